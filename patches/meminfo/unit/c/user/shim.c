/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <unistd.h>

#include <libutil.h>
#include <libxo/xo.h>
#include <vis.h>

#include "shim.h"

/* The real ones; the shim's headers rename what vmmls calls. */
int	open(const char *path, int flags, ...);
void	*fts_open(char *const *paths, int options, void *compare);

#define	PATH_DEV_VMM	"/dev/vmm"
#define	PATH_STAND_IN	"./././vm"	/* as long, so names begin alike */
#define	MAXLINES	64

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

struct seg {
	int		id;
	size_t		len;
	char		name[16];
};

struct map {
	uint64_t	gpa;
	size_t		len;
	int		id;
};

static struct {
	int		fd;
	struct seg	segs[MAXLINES];
	struct map	maps[MAXLINES];
	int		nsegs, nmaps;
	int		open_errno;
	long		fail_after;
	int		fail_errno;
	char		path[PATH_MAX];
	int		opens;		/* of this path, one after another */
} vm = { .fd = -1 };

static void
vm_load(FILE *fp)
{
	char line[256];
	struct seg *seg;
	struct map *map;
	int dead_opens;

	vm.nsegs = vm.nmaps = vm.open_errno = vm.fail_errno = 0;
	vm.fail_after = 0;
	while (fgets(line, sizeof(line), fp) != NULL) {
		if (vm.nsegs == MAXLINES || vm.nmaps == MAXLINES)
			bug("too many lines");
		seg = &vm.segs[vm.nsegs];
		map = &vm.maps[vm.nmaps];
		if (sscanf(line, "seg %d %zu %15s", &seg->id, &seg->len,
		    seg->name) == 3) {
			if (strcmp(seg->name, "-") == 0)
				seg->name[0] = '\0';
			vm.nsegs++;
		} else if (sscanf(line, "map %lu %zu %d", &map->gpa,
		    &map->len, &map->id) == 3) {
			vm.nmaps++;
		} else if (sscanf(line, "dead %ld %d %d", &vm.fail_after,
		    &vm.fail_errno, &dead_opens) == 3) {
			if (vm.opens > dead_opens)
				vm.fail_errno = 0;
		} else if (sscanf(line, "open %d", &vm.open_errno) != 1 &&
		    sscanf(line, "fail %ld %d", &vm.fail_after,
		    &vm.fail_errno) != 2) {
			bug("not a line that describes a VM");
		}
	}
}

int
shim_open(const char *path, int flags)
{
	char stand_in[PATH_MAX];
	FILE *fp;
	int fd;

	if (strncmp(path, PATH_DEV_VMM "/", strlen(PATH_DEV_VMM "/")) != 0)
		bug("opens a path outside /dev/vmm");
	if ((flags & 3) != 0)
		bug("opens a device for writing");
	if (strlen(path) >= sizeof(stand_in)) {
		errno = ENAMETOOLONG;
		return (-1);
	}
	vm.opens = strcmp(vm.path, path) == 0 ? vm.opens + 1 : 1;
	strcpy(vm.path, path);
	strcpy(stand_in, path);
	memcpy(stand_in, PATH_STAND_IN, strlen(PATH_STAND_IN));
	fd = open(stand_in, flags);
	if (fd == -1)
		return (-1);
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

static int
get_memseg(struct vm_memseg *ms)
{
	if (ms->segid < 0 || ms->segid >= SHIM_SEGMENTS) {
		errno = EINVAL;
		return (-1);
	}
	ms->len = 0;
	for (int i = 0; i < vm.nsegs; i++) {
		if (vm.segs[i].id == ms->segid) {
			ms->len = vm.segs[i].len;
			memcpy(ms->name, vm.segs[i].name, sizeof(ms->name));
		}
	}
	return (0);
}

static int
mmap_getnext(struct vm_memmap *mm)
{
	struct map *next;

	next = NULL;
	for (int i = 0; i < vm.nmaps; i++) {
		if (vm.maps[i].len != 0 && vm.maps[i].gpa >= mm->gpa &&
		    (next == NULL || vm.maps[i].gpa < next->gpa))
			next = &vm.maps[i];
	}
	if (next == NULL) {
		errno = ENOENT;
		return (-1);
	}
	mm->gpa = next->gpa;
	mm->len = next->len;
	mm->segid = next->id;
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
	case VM_GET_MEMSEG:
		return (get_memseg(arg));
	case VM_MMAP_GETNEXT:
		return (mmap_getnext(arg));
	default:
		bug("an ioctl that may disturb a guest");
	}
}

void *
shim_fts_open(char *const *paths, int options, void *compare)
{
	char stand_in[] = PATH_STAND_IN;
	char *stand_ins[] = { stand_in, NULL, NULL };

	if (strcmp(paths[0], PATH_DEV_VMM) != 0 || paths[1] != NULL)
		bug("walks a path that is not /dev/vmm");
	if (getenv("SHIM_TWICE") != NULL)
		stand_ins[1] = stand_in;
	return (fts_open(stand_ins, options, compare));
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

int
sysctlbyname(const char *name, void *old, size_t *oldlen, const void *new,
    size_t newlen)
{
	const char *value;
	uint64_t number;

	if (new != NULL || newlen != 0)
		bug("sets a sysctl");
	value = NULL;
	if (strcmp(name, "hw.vmm.mem_total") == 0)
		value = getenv("SHIM_TOTAL");
	else if (strcmp(name, "hw.vmm.mem_allocated") == 0)
		value = getenv("SHIM_ALLOCATED");
	else if (strcmp(name, "hw.vmm.mem_free") == 0)
		value = getenv("SHIM_FREE");
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
