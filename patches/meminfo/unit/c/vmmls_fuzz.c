/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Run vmmls's main() over and over in one process, each time on another
 * /dev/vmm full of nonsense: any name, any answer, any error at any moment.
 * It must end, with an exit code that is documented, and print nothing but
 * printable ASCII.  The sanitizers watch the rest, leaks included.
 *
 * usage: vmmls_fuzz first-seed count; works in the working directory.
 */

#include <sys/stat.h>

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <setjmp.h>
#include <unistd.h>

#include "shim.h"

void	shim_exit(int code) __dead2;

#define	main	vmmls_main
#define	exit	shim_exit
#include "vmmls.c"
#undef main
#undef exit

static jmp_buf done;
static uint64_t state;

void
shim_exit(int code)
{
	longjmp(done, code + 1);
}

static uint64_t
any(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state);
}

static unsigned
below(unsigned n)
{
	return ((any() >> 32) % n);
}

/* Mostly round numbers that bhyve uses, sometimes anything at all. */
static uint64_t
number(void)
{
	switch (below(4)) {
	case 0:
		return (any() >> below(64));
	case 1:
		return (UINT64_MAX - below(3) * 4096);
	default:
		return ((uint64_t)below(64) << (12 + below(24)));
	}
}

static void
component(char *name)
{
	static const char odd[] = "\033\233\\%{}/\"'$`\x7f\n\r\t \xff\xc3\xa9";
	int len;

	len = 1 + below(below(8) == 0 ? 60 : 6);
	for (int i = 0; i < len; i++)
		name[i] = (char)(below(3) != 0 ? 'a' + below(26) :
		    below(2) != 0 ? (unsigned)odd[below(sizeof(odd) - 1)] :
		    1 + below(255));
	for (int i = 0; i < len; i++) {
		if (name[i] == '/' || name[i] == '\0')
			name[i] = '+';
	}
	name[len] = '\0';
	if (name[0] == '.')
		name[0] = ',';
}

static void
describe(FILE *fp)
{
	static const int errors[] = { ENOENT, ENXIO, EACCES, EPERM, EINVAL,
	    EBUSY, ENOTTY, EINTR };

	if (below(4) != 0)
		fprintf(fp, "mem %ju %ju %ju %ju %ju %ju\n",
		    (uintmax_t)number(), (uintmax_t)number(),
		    (uintmax_t)number(), (uintmax_t)number(),
		    (uintmax_t)number(), (uintmax_t)number());
	if (below(2) != 0)
		fprintf(fp, "cpus %u %u %u %jx %jx %jx\n", below(300),
		    below(300), below(300), (uintmax_t)(any() >> below(64)),
		    (uintmax_t)(any() >> below(64)),
		    (uintmax_t)(any() >> below(64)));
	if (below(8) == 0)
		fprintf(fp, "busy\n");
	if (below(8) == 0)
		fprintf(fp, "open %d\n", errors[below(8)]);
	if (below(4) == 0)
		fprintf(fp, "%s %d %d\n", below(2) != 0 ? "fail" : "dead",
		    below(6), errors[below(8)]);
}

static void
populate(void)
{
	char name[128], path[512];
	FILE *fp;
	size_t len;

	if (below(20) == 0)
		return;
	if (mkdir("vm", 0700) != 0)
		err(1, "mkdir");
	for (unsigned i = below(6); i > 0; i--) {
		strcpy(path, "vm");
		for (unsigned depth = 1 + below(3); depth > 0; depth--) {
			(void)mkdir(path, 0700);
			len = strlen(path);
			component(name);
			(void)snprintf(path + len, sizeof(path) - len, "/%s",
			    name);
		}
		if (below(20) == 0) {
			(void)symlink("/dev/null", path);
		} else if ((fp = fopen(path, "w")) != NULL) {
			describe(fp);
			fclose(fp);
		}
	}
}

static int
remove_one(const char *path, const struct stat *sb, int flag, struct FTW *ftw)
{
	(void)sb;
	(void)flag;
	(void)ftw;
	return (remove(path));
}

static void
fuzz(uint64_t seed)
{
	static char *const words[] = { "-H", "-p", "-Hpv", "--libxo=json",
	    "-x", "--", "", "a", "../a", "\033[2J", "--libxo=bogus", "-" };
	char *argv[8], *text[2];
	size_t size[2];
	int argc, code;

	state = seed * 0x9e3779b97f4a7c15 | 1;
	for (int i = 0; i < 8; i++)
		(void)any();
	populate();
	setenv("SHIM_MODULE", below(20) == 0 ? "0" : "1", 1);
	for (int i = 0; i < 3; i++) {
		static const char *const names[] = { "SHIM_TOTAL",
		    "SHIM_ALLOCATED", "SHIM_DEVICE" };
		char digits[32];

		(void)snprintf(digits, sizeof(digits), "%ju",
		    (uintmax_t)number());
		if (below(20) == 0)
			unsetenv(names[i]);
		else
			setenv(names[i], digits, 1);
	}
	argc = 0;
	argv[argc++] = "vmmls";
	for (unsigned i = below(4); i > 0; i--)
		argv[argc++] = words[below(below(2) != 0 ? 4 :
		    sizeof(words) / sizeof(words[0]))];
	argv[argc] = NULL;

	Hflag = pflag = vflag = false;
	exitcode = 0;
	optind = 0;
	opterr = 0;
	shim_reset();
	shim_out = open_memstream(&text[0], &size[0]);
	shim_err = open_memstream(&text[1], &size[1]);
	if ((code = setjmp(done)) == 0)
		vmmls_main(argc, argv);
	code--;
	fclose(shim_out);
	fclose(shim_err);

	if (code != 0 && code != 1)
		errx(1, "seed %ju: exit code %d", (uintmax_t)seed, code);
	if (code != 0 && size[1] == 0)
		errx(1, "seed %ju: failed silently", (uintmax_t)seed);
	for (int i = 0; i < 2; i++) {
		for (size_t j = 0; j < size[i]; j++) {
			char c = text[i][j];

			if ((c < ' ' || c > '~') && c != '\n' && c != '\t')
				errx(1, "seed %ju: prints byte %#x",
				    (uintmax_t)seed, (unsigned char)c);
		}
		free(text[i]);
	}
	if (nftw("vm", remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0 &&
	    errno != ENOENT)
		err(1, "cannot clean up");
}

int
main(int argc, char **argv)
{
	uint64_t first;
	long count;

	if (argc != 3)
		errx(2, "usage: vmmls_fuzz first-seed count");
	first = strtoull(argv[1], NULL, 10);
	count = strtol(argv[2], NULL, 10);
	setenv("POSIXLY_CORRECT", "1", 1);
	for (long i = 0; i < count; i++) {
		alarm(20);
		fuzz(first + i);
	}
	return (0);
}
