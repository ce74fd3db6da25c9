/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Runs the tests of one part of bhyve(8), each in a process of its own, and
 * writes their results as TAP.
 */

#include <sys/mman.h>
#include <sys/param.h>
#include <sys/wait.h>

#include <err.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "unit.h"

#define	LIMIT_S		10
#define	NOTES_BYTES	2048

struct shared {
	bool	failed;
	char	skipped[256];
	char	notes[NOTES_BYTES];
};

static struct shared *shared;

static void
add(const char *format, va_list arguments)
{
	size_t used = strlen(shared->notes);

	if (used + 2 >= sizeof(shared->notes))
		return;
	(void)vsnprintf(shared->notes + used, sizeof(shared->notes) - used - 1,
	    format, arguments);
	/* A part may return any bytes, but a note must be one line of text. */
	for (char *at = shared->notes + used; *at != '\0'; at++) {
		if (*at < ' ' || *at > '~')
			*at = '?';
	}
	(void)strlcat(shared->notes, "\n", sizeof(shared->notes));
}

/* The test fails, and continues. */
void
miss(const char *format, ...)
{
	va_list arguments;

	shared->failed = true;
	va_start(arguments, format);
	add(format, arguments);
	va_end(arguments);
}

/* The test ends here without a result. */
void
skip(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(shared->skipped, sizeof(shared->skipped), format,
	    arguments);
	va_end(arguments);
	_exit(EX_OK);
}

bool
equal(const char *what, uint64_t got, uint64_t wanted)
{
	if (got == wanted)
		return (true);
	miss("%s is %#jx, not %#jx", what, (uintmax_t)got, (uintmax_t)wanted);
	return (false);
}

bool
same(const char *what, const char *got, const char *wanted)
{
	if (strcmp(got, wanted) == 0)
		return (true);
	miss("%s is \"%s\", not \"%s\"", what, got, wanted);
	return (false);
}

void *
guarded(size_t count, size_t size)
{
	size_t bytes, length;
	char *base;

	if (size != 0 && count > SIZE_MAX / size)
		return (NULL);
	bytes = count * size;
	length = roundup2(bytes, PAGE_SIZE);
	base = mmap(NULL, length + PAGE_SIZE, PROT_READ | PROT_WRITE,
	    MAP_ANON | MAP_PRIVATE, -1, 0);
	if (base == MAP_FAILED)
		return (NULL);
	if (mprotect(base + length, PAGE_SIZE, PROT_NONE) != 0)
		err(EX_OSERR, "mprotect");
	return (base + length - bytes);
}

static void
run(const struct unit *unit)
{
	int status;
	pid_t pid;

	memset(shared, 0, sizeof(*shared));
	(void)fflush(stdout);
	if ((pid = fork()) == 0) {
		/* The output of the part must not get into the TAP. */
		(void)dup2(STDERR_FILENO, STDOUT_FILENO);
		(void)alarm(LIMIT_S);
		unit->func();
		_exit(EX_OK);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		err(EX_OSERR, "%s", unit->name);
	if (WIFSIGNALED(status))
		miss(WTERMSIG(status) == SIGALRM ? "no end within %d s" :
		    "it was ended by signal %d",
		    WTERMSIG(status) == SIGALRM ? LIMIT_S : WTERMSIG(status));
	else if (WEXITSTATUS(status) != 0)
		miss("it exited with %d", WEXITSTATUS(status));
}

int
main(void)
{
	char *line, *rest;
	unsigned failures = 0;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
	    MAP_ANON | MAP_SHARED, -1, 0);
	if (shared == MAP_FAILED)
		err(EX_OSERR, "mmap");
	(void)printf("TAP version 13\n1..%zu\n", nunits);
	for (size_t i = 0; i < nunits; i++) {
		run(&units[i]);
		failures += shared->failed;
		(void)printf("%sok %zu - %s: %s%s%s\n",
		    shared->failed ? "not " : "", i + 1, units[i].name,
		    units[i].what, shared->skipped[0] == '\0' ? "" : " # SKIP ",
		    shared->skipped);
		rest = shared->notes;
		while ((line = strsep(&rest, "\n")) != NULL) {
			if (*line != '\0')
				(void)printf("# %s\n", line);
		}
	}
	(void)printf("# verdict failed=%u\n", failures);
	return (failures != 0);
}
