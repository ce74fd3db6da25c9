/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Several operations in one command, because in an emulator the start of a
 * program takes ten times as long as most of them.
 *
 * Each step is a process of its own, so that it leaves nothing behind in the
 * next one, and a failed one ends alone.
 */

#include <sys/types.h>
#include <sys/wait.h>

#include <err.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "vmtool.h"

#define	AFTER_STEP	"\036%d %d\n"

static int
step(int argc, char **argv)
{
	pid_t pid;
	int status;

	if ((pid = fork()) == -1)
		err(EX_OSERR, "fork");
	if (pid == 0) {
		/* The next step's words follow; this process does not need them. */
		argv[argc] = NULL;
		if (strcmp(argv[0], "exec") == 0 && argc > 1) {
			(void)execvp(argv[1], argv + 1);
			err(errno == ENOENT ? 127 : 126, "%s", argv[1]);
		}
		exit(operate(argc, argv));
	}
	while (waitpid(pid, &status, 0) != pid) {
		if (errno != EINTR)
			err(EX_OSERR, "waitpid");
	}
	return (WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
}

/*
 * Each step is a word, the number of its other words, and these: another
 * operation of this program, or "exec" and a program with arguments.  After
 * each, both outputs get a line with the step's number and its exit code.
 *
 * When a step that begins with "must" fails, only those that begin with
 * "always" follow; one that begins with "may" may fail.
 */
int
steps(int argc, char **argv)
{
	size_t words;
	bool always, failed, must;
	int code;

	failed = false;
	for (int i = 0; argc > 0; i++) {
		must = strcmp(argv[0], "must") == 0;
		always = strcmp(argv[0], "always") == 0;
		if (argc < 3 ||
		    (!must && !always && strcmp(argv[0], "may") != 0))
			usage();
		words = number(argv[1]);
		argc -= 2;
		argv += 2;
		if (words == 0 || words > (size_t)argc)
			usage();
		if (!failed || always) {
			code = step((int)words, argv);
			(void)dprintf(STDOUT_FILENO, AFTER_STEP, i, code);
			(void)dprintf(STDERR_FILENO, AFTER_STEP, i, code);
			failed |= must && code != 0;
		}
		argc -= (int)words;
		argv += words;
	}
	return (EX_OK);
}
