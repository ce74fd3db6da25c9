/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#include <sys/stat.h>
#include <sys/syscall.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pwd.h>
#include <stddef.h>
#include <unistd.h>

#include <libutil.h>
#include <libxo/xo.h>
#include <vis.h>

#include "shim.h"


/* The real ones from here on; the shim's headers rename what vmmls calls. */
#undef fstat
#undef lstat
#undef open

#define	PATH_DEV_VMM	"/dev/vmm"
#define	PATH_STAND_IN	"./././vm"	/* as long, so names begin alike */

FILE *shim_out, *shim_err;

static void __dead2
bug(const char *what)
{
	fprintf(stderr, "shim: %s\n", what);
	abort();
}

static FILE *
out(void)
{
	return (shim_out != NULL ? shim_out : stdout);
}

static FILE *
err(void)
{
	return (shim_err != NULL ? shim_err : stderr);
}

/*
 * /dev/vmm and its ioctls.  One VM is open at a time: vmmls asks one by one.
 */

static struct {
	int		fd;
	struct vm_memstat mem;
	struct vm_cpu_topology topology;
	uint64_t	cpus[3];
	bool		busy;
	int		open_errno;
	long		fail_after;
	int		fail_errno;
	bool		dies;
} vm = { .fd = -1 };

static void
vm_load(FILE *fp)
{
	char line[256];
	unsigned sockets, cores, threads;

	memset(&vm, 0, sizeof(vm));
	vm.fd = -1;
	vm.topology.sockets = vm.topology.cores = vm.topology.threads = 1;
	while (fgets(line, sizeof(line), fp) != NULL) {
		if (sscanf(line, "mem %lu %lu %lu %lu %lu %lu", &vm.mem.sysmem,
		    &vm.mem.devmem, &vm.mem.lowmem, &vm.mem.highmem,
		    &vm.mem.wired, &vm.mem.resident) == 6)
			continue;
		if (sscanf(line, "cpus %u %u %u %lx %lx %lx", &sockets, &cores,
		    &threads, &vm.cpus[VM_ACTIVE_CPUS],
		    &vm.cpus[VM_SUSPENDED_CPUS], &vm.cpus[VM_DEBUG_CPUS]) == 6) {
			vm.topology.sockets = sockets;
			vm.topology.cores = cores;
			vm.topology.threads = threads;
			continue;
		}
		if (sscanf(line, "dead %ld %d", &vm.fail_after,
		    &vm.fail_errno) == 2)
			vm.dies = true;
		else if (strcmp(line, "busy\n") == 0)
			vm.busy = true;
		else if (sscanf(line, "open %d", &vm.open_errno) != 1 &&
		    sscanf(line, "fail %ld %d", &vm.fail_after,
		    &vm.fail_errno) != 2)
			bug("not a line that describes a VM");
	}
}

static int
stand_in(const char *path, char *buf, size_t size)
{
	size_t len;

	len = strlen(PATH_DEV_VMM);
	if (strncmp(path, PATH_DEV_VMM, len) != 0 ||
	    (path[len] != '\0' && path[len] != '/'))
		bug("a path outside /dev/vmm");
	if (strlen(path) >= size) {
		errno = ENAMETOOLONG;
		return (-1);
	}
	strcpy(buf, path);
	memcpy(buf, PATH_STAND_IN, strlen(PATH_STAND_IN));
	return (0);
}

int
shim_open(const char *path, int flags)
{
	char real[PATH_MAX];
	FILE *fp;
	int fd;

	if ((flags & O_ACCMODE) != O_RDONLY)
		bug("opens a device for writing");
	if (stand_in(path, real, sizeof(real)) != 0)
		return (-1);
	fd = open(real, flags);
	if (fd == -1 || (flags & O_DIRECTORY) != 0)
		return (fd);
	if ((fp = fdopen(dup(fd), "r")) == NULL)
		bug("fdopen");
	vm_load(fp);
	fclose(fp);
	if (vm.open_errno != 0) {
		(void)close(fd);
		errno = vm.open_errno;
		return (-1);
	}
	vm.fd = fd;
	return (fd);
}

int
shim_lstat(const char *path, struct stat *sb)
{
	char real[PATH_MAX];

	if (stand_in(path, real, sizeof(real)) != 0)
		return (-1);
	return (lstat(real, sb));
}

/* A node that is dead has no status any more. */
int
shim_fstat(int fd, struct stat *sb)
{
	if (fd == vm.fd && vm.dies && vm.fail_after < 0) {
		errno = EBADF;
		return (-1);
	}
	return (fstat(fd, sb));
}

/* As devfs does: all that fits, in one piece. */
ssize_t
shim_getdirentries(int fd, char *buf, size_t size, off_t *base)
{
	ssize_t got;
	size_t used;

	if (base != NULL)
		bug("asks for more of a directory than it needs");
	for (used = 0; size - used > sizeof(struct dirent); used += got) {
		got = syscall(SYS_getdents64, fd, buf + used, size - used);
		if (got == -1)
			return (-1);
		if (got == 0)
			break;
	}
	return (used);
}

unsigned
shim_sleep(unsigned seconds)
{
	const char *command;

	(void)seconds;
	command = getenv("SHIM_SLEEP");
	if (command == NULL || system(command) != 0) {
		fflush(NULL);
		_exit(0);
	}
	return (0);
}

const char *
shim_user_from_uid(uid_t uid, int nouser)
{
	static char number[16];
	struct passwd *pw;

	if (nouser != 0)
		bug("no name for a user without one");
	if ((pw = getpwuid(uid)) != NULL)
		return (pw->pw_name);
	(void)snprintf(number, sizeof(number), "%u", uid);
	return (number);
}

bool
shim_cpu_subset(const shim_cpuset_t *p, const shim_cpuset_t *c)
{
	for (size_t i = 0; i < sizeof(p->bits) / sizeof(p->bits[0]); i++) {
		if ((c->bits[i] & ~p->bits[i]) != 0)
			return (false);
	}
	return (true);
}

static int
get_cpus(struct vm_cpuset *cpus)
{
	if (cpus->which < VM_ACTIVE_CPUS || cpus->which > VM_DEBUG_CPUS ||
	    cpus->cpusetsize != sizeof(cpuset_t)) {
		errno = EINVAL;
		return (-1);
	}
	memset(cpus->cpus, 0, cpus->cpusetsize);
	cpus->cpus->bits[0] = vm.cpus[cpus->which];
	return (0);
}

int
shim_ioctl(int fd, unsigned long cmd, void *arg)
{
	if (fd != vm.fd || fd == -1)
		bug("ioctl on something else");
	if (vm.fail_errno != 0 && vm.fail_after-- <= 0) {
		errno = vm.fail_errno;
		return (-1);
	}
	switch (cmd) {
	case VM_GET_MEMSTAT:
		if (vm.busy) {
			errno = EBUSY;
			return (-1);
		}
		memcpy(arg, &vm.mem, sizeof(vm.mem));
		return (0);
	case VM_GET_TOPOLOGY:
		memcpy(arg, &vm.topology, sizeof(vm.topology));
		return (0);
	case VM_GET_CPUS:
		return (get_cpus(arg));
	default:
		bug("an ioctl that may disturb a guest or wait for one");
	}
}

int
modfind(const char *name)
{
	const char *module;

	module = getenv("SHIM_MODULE");
	if (strcmp(name, "vmm") != 0 ||
	    (module != NULL && strcmp(module, "0") == 0)) {
		errno = ENOENT;
		return (-1);
	}
	return (1);
}

/* The value of a sysctl, or NULL. */
static const char *
sysctl_value(const char *name)
{
	static const struct {
		const char	*name;
		const char	*variable;
	} sysctls[] = {
		{ "hw.vmm.mem_total", "SHIM_TOTAL" },
		{ "hw.vmm.mem_allocated", "SHIM_ALLOCATED" },
		{ "hw.vmm.mem_device", "SHIM_DEVICE" },
		{ "hw.vmm.mem_free", "SHIM_FREE" },
	};
	static char line[128];
	const char *value;
	size_t len;
	FILE *fp;

	value = NULL;
	len = strlen(name);
	if ((fp = fopen("sysctls", "r")) != NULL) {
		while (value == NULL && fgets(line, sizeof(line), fp) != NULL) {
			if (strncmp(line, name, len) == 0 && line[len] == '=')
				value = line + len + 1;
		}
		fclose(fp);
	}
	for (size_t i = 0; i < 4 && value == NULL; i++) {
		if (strcmp(name, sysctls[i].name) == 0)
			value = getenv(sysctls[i].variable);
	}
	return (value);
}

int
sysctlbyname(const char *name, void *old, size_t *oldlen, const void *new,
    size_t newlen)
{
	const char *value;
	uint64_t number;

	if (new != NULL || newlen != 0)
		bug("sets a sysctl");
	value = sysctl_value(name);
	if (value == NULL) {
		errno = ENOENT;
		return (-1);
	}
	if (*oldlen < sizeof(number)) {
		errno = ENOMEM;
		return (-1);
	}
	number = strtoull(value, NULL, 10);
	memcpy(old, &number, sizeof(number));
	*oldlen = sizeof(number);
	return (0);
}

/*
 * libc and libutil
 */

int
stravis(char **dst, const char *src, int flags)
{
	char *p;

	if (flags != (VIS_OCTAL | VIS_WHITE))
		bug("vis(3) flags the stand-in does not know");
	p = *dst = malloc(4 * strlen(src) + 1);
	if (p == NULL)
		return (-1);
	for (; *src != '\0'; src++) {
		if (*src > ' ' && *src < 0x7f && *src != '\\')
			*p++ = *src;
		else
			p += sprintf(p, "\\%03o", (unsigned char)*src);
	}
	*p = '\0';
	return ((int)(p - *dst));
}

int
humanize_number(char *buf, size_t size, int64_t number, const char *suffix,
    int scale, int flags)
{
	static const char units[] = "BKMGTPE";
	uint64_t value;
	int i, n, rest;

	if (number < 0 || suffix[0] != '\0' || scale != HN_AUTOSCALE ||
	    flags != (HN_B | HN_DECIMAL | HN_NOSPACE) || size != 5)
		bug("humanize_number(3) in a way the stand-in does not know");
	value = (uint64_t)number;
	rest = 0;
	for (i = 0; value > 999 || (value == 999 && rest >= 512); i++) {
		rest = value % 1024;
		value /= 1024;
	}
	n = (int)value * 10 + (rest * 10 + 512) / 1024;
	if (i > 0 && n < 100)
		n = snprintf(buf, size, "%d.%d%c", n / 10, n % 10, units[i]);
	else
		n = snprintf(buf, size, "%d%c", (int)value + (rest + 512) / 1024,
		    units[i]);
	return (n);
}

size_t
shim_strlcpy(char *dst, const char *src, size_t size)
{
	if (size != 0)
		(void)snprintf(dst, size, "%s", src);
	return (strlen(src));
}

long long
shim_strtonum(const char *text, long long min, long long max,
    const char **errstrp)
{
	long long value;
	char *end;

	errno = 0;
	value = strtoll(text, &end, 10);
	*errstrp = end == text || *end != '\0' ? "invalid" :
	    value < min ? "too small" :
	    value > max || errno != 0 ? "too large" : NULL;
	return (*errstrp == NULL ? value : 0);
}

/*
 * libxo.  Roles: k and none (both), d (display), e (encode), n (number, not
 * quoted) and T (title, display).  The encoding format's "%@*@" skips a width.
 */

static bool json, started;
static int depth;
static bool comma[16];

void
shim_reset(void)
{
	json = started = false;
	depth = 0;
	comma[0] = false;
}

static void
separate(void)
{
	if (!started) {
		fprintf(out(), "{");
		started = true;
	}
	fprintf(out(), comma[depth] ? ", " : "");
	comma[depth] = true;
}

static void
string(const char *s)
{
	fputc('"', out());
	for (; *s != '\0'; s++) {
		if (*s == '"' || *s == '\\')
			fputc('\\', out());
		fputc(*s, out());
	}
	fputc('"', out());
}

static void
begin(const char *name, const char *bracket)
{
	if (!json)
		return;
	separate();
	if (name != NULL)
		fprintf(out(), "\"%s\": ", name);
	fprintf(out(), "%s", bracket);
	if (++depth == 16)
		bug("too deep");
	comma[depth] = false;
}

static void
end(const char *bracket)
{
	if (!json)
		return;
	if (--depth < 0)
		bug("closes what is not open");
	fprintf(out(), "%s", bracket);
}

void
xo_no_setlocale(void)
{
}

int
xo_parse_args(int argc, char **argv)
{
	int n;

	n = 1;
	for (int i = 1; i < argc; i++) {
		if (strncmp(argv[i], "--libxo", 7) != 0) {
			argv[n++] = argv[i];
		} else if (strcmp(argv[i], "--libxo=json") == 0) {
			json = true;
		} else if (strcmp(argv[i], "--libxo=text") != 0) {
			fprintf(err(), "invalid libxo argument\n");
			return (-1);
		}
	}
	argv[n] = NULL;
	return (n);
}

void
xo_set_version(const char *version)
{
	if (json) {
		separate();
		fprintf(out(), "\"__version\": \"%s\"", version);
	}
}

ssize_t
xo_open_container(const char *name)
{
	begin(name, "{");
	return (0);
}

ssize_t
xo_close_container(const char *name)
{
	(void)name;
	end("}");
	return (0);
}

ssize_t
xo_open_list(const char *name)
{
	begin(name, "[");
	return (0);
}

ssize_t
xo_close_list(const char *name)
{
	(void)name;
	end("]");
	return (0);
}

ssize_t
xo_open_instance(const char *name)
{
	(void)name;
	begin(NULL, "{");
	return (0);
}

ssize_t
xo_close_instance(const char *name)
{
	(void)name;
	end("}");
	return (0);
}

/* One "{roles:name/format/encoding}"; returns what follows it. */
static const char *
field(const char *fmt, va_list *ap)
{
	char roles[8], name[32], spec[32];
	const char *s;
	bool display, encode;
	int len, width;

	if (sscanf(fmt, "{%7[a-zA-Z]%n", roles, &len) != 1) {
		roles[0] = '\0';
		len = 1;
	}
	fmt += len;
	if (*fmt++ != ':')
		bug("xo_emit: no colon");
	name[0] = '\0';
	if (sscanf(fmt, "%31[a-z-]%n", name, &len) == 1)
		fmt += len;
	if (sscanf(fmt, "/%31[^/}]%n", spec, &len) != 1)
		bug("xo_emit: no format");
	fmt += len;
	fmt += strcspn(fmt, "}");
	if (*fmt++ != '}')
		bug("xo_emit: no closing brace");

	encode = strpbrk(roles, "dT") == NULL;
	display = strchr(roles, 'e') == NULL;
	if (json && encode) {
		separate();
		fprintf(out(), "\"%s\": ", name);
	}
	if (strcmp(spec, "%ju") == 0) {
		uintmax_t n;

		n = va_arg(*ap, uintmax_t);
		if (strchr(roles, 'n') == NULL)
			bug("xo_emit: a quoted number");
		if (json ? encode : display)
			fprintf(out(), "%ju", n);
		return (fmt);
	}
	width = 0;
	if (strcmp(spec, "%*s") == 0)
		width = va_arg(*ap, int);
	else if (strcmp(spec, "%-*s") == 0)
		width = -va_arg(*ap, int);
	else if (strcmp(spec, "%s") != 0)
		bug("xo_emit: unknown format");
	s = va_arg(*ap, const char *);
	if (!json && display)
		fprintf(out(), "%*s", width, s);
	if (json && encode)
		string(s);
	return (fmt);
}

ssize_t
xo_emit(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	while (*fmt != '\0') {
		if (*fmt == '{')
			fmt = field(fmt, &ap);
		else if (json)
			fmt++;
		else
			fputc(*fmt++, out());
	}
	va_end(ap);
	return (0);
}

xo_style_t
xo_get_style(xo_handle_t *handle)
{
	(void)handle;
	return (json ? XO_STYLE_JSON : XO_STYLE_TEXT);
}

ssize_t
xo_flush(void)
{
	return (fflush(out()) != 0 || ferror(out()) ? -1 : 0);
}

ssize_t
xo_finish(void)
{
	if (json) {
		if (depth != 0)
			bug("xo_finish: something is open");
		fprintf(out(), "%s}\n", started ? "" : "{ ");
	}
	return (fflush(out()) != 0 || ferror(out()) ? -1 : 0);
}

static void
message(int error, const char *fmt, va_list ap)
{
	fprintf(err(), "vmmls: ");
	vfprintf(err(), fmt, ap);
	if (error != 0)
		fprintf(err(), ": %s", strerror(error));
	fprintf(err(), "\n");
}

void
xo_error(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(err(), fmt, ap);
	va_end(ap);
}

void
xo_warn(const char *fmt, ...)
{
	va_list ap;
	int error;

	error = errno;
	va_start(ap, fmt);
	message(error, fmt, ap);
	va_end(ap);
}

void
xo_warnx(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	message(0, fmt, ap);
	va_end(ap);
}

void
xo_err(int code, const char *fmt, ...)
{
	va_list ap;
	int error;

	error = errno;
	va_start(ap, fmt);
	message(error, fmt, ap);
	va_end(ap);
	(void)xo_finish();
	shim_exit(code);
}

void
xo_errx(int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	message(0, fmt, ap);
	va_end(ap);
	(void)xo_finish();
	shim_exit(code);
}

/* The fuzzer has its own, to go on. */
void __attribute__((__weak__))
shim_exit(int code)
{
	exit(code);
}
