/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Runs and judges one test, and prints its line of TAP. */

#include <sys/time.h>

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "judge.h"

static jmp_buf leave;
static pid_t judging;

/* Leave the test; in a process that the test has started, exit. */
static void __dead2
abandon(void)
{
	if (getpid() != judging)
		_exit(1);
	longjmp(leave, 1);
}

double
uptime(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return ((double)now.tv_sec + (double)now.tv_nsec / 1e9);
}

static void
add(const char *format, va_list arguments)
{
	size_t used = strlen(shared->notes);

	if (used + 2 >= sizeof(shared->notes))
		return;
	(void)vsnprintf(shared->notes + used, sizeof(shared->notes) - used - 1,
	    format, arguments);
	(void)strlcat(shared->notes, "\n", sizeof(shared->notes));
}

/* Record evidence, which is printed if the test fails. */
void
note(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	add(format, arguments);
	va_end(arguments);
}

/* The test fails but continues, because there may be more errors. */
void
miss(const char *format, ...)
{
	va_list arguments;

	atomic_store(&shared->failed, true);
	va_start(arguments, format);
	add(format, arguments);
	va_end(arguments);
}

/* The test fails and ends here. */
void
fail(const char *format, ...)
{
	va_list arguments;

	atomic_store(&shared->failed, true);
	va_start(arguments, format);
	add(format, arguments);
	va_end(arguments);
	abandon();
}

/* The test does not apply here, for this reason. */
void
skip(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(shared->skipped, sizeof(shared->skipped), format,
	    arguments);
	va_end(arguments);
	abandon();
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
equal_at(const char *what, uint64_t where, uint64_t got, uint64_t wanted)
{
	if (got == wanted)
		return (true);
	miss("%s %#jx is %#jx, not %#jx", what, (uintmax_t)where,
	    (uintmax_t)got, (uintmax_t)wanted);
	return (false);
}

/* Set the time that the current test may take from now on. */
void
patience(unsigned seconds)
{
	/*
	 * Repeated, because a signal between two system calls would have no
	 * effect.
	 */
	struct itimerval timer = { .it_value = { .tv_sec = seconds },
	    .it_interval = { .tv_usec = 500000 } };

	atomic_store(&shared->patience, seconds);
	(void)setitimer(ITIMER_REAL, &timer, NULL);
}

/* Run a test to its end, in a process that may not survive it. */
void
judge(const struct test *test)
{
	double began = uptime();

	shared->notes[0] = shared->skipped[0] = '\0';
	atomic_store(&shared->failed, false);
	late = 0;
	judging = getpid();
	patience(PATIENCE_S);
	if (setjmp(leave) == 0)
		test->func(test->arg);
	if (atomic_load(&shared->failed))
		vm_forget_shared();
	report(test, !atomic_load(&shared->failed), uptime() - began);
}

/* Print a line of TAP, and below it the evidence if the test failed. */
void
report(const struct test *test, bool held, double seconds)
{
	char *rest = shared->notes, *line;

	shared->number++;
	if (!held)
		shared->failures++;
	(void)printf("%sok %u - %s: %s", held ? "" : "not ", shared->number,
	    test->name, test->what);
	if (held && shared->skipped[0] != '\0')
		(void)printf(" # SKIP %s", shared->skipped);
	(void)printf("\n");
	while (!held && (line = strsep(&rest, "\n")) != NULL) {
		if (*line != '\0')
			(void)printf("# %s\n", line);
	}
	(void)printf("# took %.3f s\n", seconds);
	(void)fflush(stdout);
}
