/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Runs vmmls repeatedly while some VMs stay and others are made and destroyed.
 * The latter sort last, so that each listing finds their names before it asks
 * them last.
 */

#include <sys/types.h>
#include <sys/wait.h>

#include <machine/vmm.h>

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include <vmmapi.h>

#include "vmtool.h"

#define	STANDING	"stays"
#define	COMING		"zgoes"
#define	TOLD_MAX	5
#define	PAUSE_US	5000

extern char **environ;

struct churn {
	size_t		bytes;
	atomic_size_t	next;
	atomic_size_t	cycles;
	atomic_bool	over;
};

/* Yields the processor to vmmls, and continues at another point of its work. */
static void
pause_a_little(void)
{
	(void)usleep(arc4random_uniform(PAUSE_US));
}

static void *
comer(void *arg)
{
	struct churn *churn = arg;
	struct vmctx *vm;
	char name[32];

	(void)snprintf(name, sizeof(name), COMING "%zu",
	    atomic_fetch_add(&churn->next, 1));
	while (!churn->over) {
		if (vm_create(name) != 0)
			err(EX_OSERR, "%s: vm_create", name);
		vm = open_vm(name);
		if (vm_setup_memory(vm, churn->bytes, VM_MMAP_ALL) != 0)
			err(EX_OSERR, "%s: vm_setup_memory", name);
		pause_a_little();
		forget_memory(vm);
		vm_destroy(vm);
		atomic_fetch_add(&churn->cycles, 1);
		pause_a_little();
	}
	return (NULL);
}

/* Run vmmls; returns its exit status, and both outputs in one buffer. */
static int
list(char *vmmls, char *buf, size_t size)
{
	static char flags[] = "-Hp";
	char *argv[] = { vmmls, flags, NULL };
	posix_spawn_file_actions_t actions;
	size_t used;
	ssize_t got;
	pid_t pid;
	int pipes[2], status;

	if (pipe2(pipes, O_CLOEXEC) != 0)
		err(EX_OSERR, "pipe2");
	(void)posix_spawn_file_actions_init(&actions);
	(void)posix_spawn_file_actions_adddup2(&actions, pipes[1], 1);
	(void)posix_spawn_file_actions_adddup2(&actions, pipes[1], 2);
	errno = posix_spawn(&pid, vmmls, &actions, NULL, argv, environ);
	if (errno != 0)
		err(EX_OSERR, "%s", vmmls);
	(void)posix_spawn_file_actions_destroy(&actions);
	(void)close(pipes[1]);
	for (used = 0; used < size - 1; used += got) {
		got = read(pipes[0], buf + used, size - 1 - used);
		if (got <= 0)
			break;
	}
	buf[used] = '\0';
	(void)close(pipes[0]);
	if (waitpid(pid, &status, 0) != pid)
		err(EX_OSERR, "waitpid");
	return (status);
}

/*
 * A new VM has no memory yet, or all of it, or "-" while it gets it.
 */
static const char *
judge_line(const char *line, size_t bytes, size_t *stood, size_t *met)
{
	char name[256], owner[64], sizes[3][32], state[32], vcpus[16], all[32];
	int end;

	end = 0;
	if (sscanf(line, "%255s\t%63s\t%15s\t%31s\t%31s\t%31s\t%31s%n", name,
	    owner, vcpus, state, sizes[0], sizes[1], sizes[2], &end) != 7 ||
	    line[end] != '\0')
		return ("a line in the wrong form");
	if (strcmp(owner, "root") != 0 || strcmp(vcpus, "1") != 0 ||
	    strcmp(state, "created") != 0)
		return ("another VM than was made");
	(void)snprintf(all, sizeof(all), "%zu", bytes);
	if (strncmp(name, STANDING, strlen(STANDING)) == 0) {
		(*stood)++;
		return (strcmp(sizes[0], all) == 0 &&
		    strcmp(sizes[1], "0") == 0 ? NULL :
		    "a standing VM with other memory than it has");
	}
	if (strncmp(name, COMING, strlen(COMING)) != 0)
		return ("a VM that was never made");
	(*met)++;
	if (strcmp(sizes[0], all) != 0 && strcmp(sizes[0], "0") != 0 &&
	    strcmp(sizes[0], "-") != 0)
		return ("memory that a VM never had");
	return (NULL);
}

static const char *
judge(int status, char *text, size_t bytes, size_t standing, size_t *met)
{
	const char *what;
	char *last, *line;
	size_t stood;

	if (!WIFEXITED(status) || WEXITSTATUS(status) != EX_OK)
		return ("an exit status that is not 0");
	stood = 0;
	for (last = NULL; (line = strsep(&text, "\n")) != NULL && *line != '\0';
	    last = line) {
		if (last != NULL && strcmp(last, line) >= 0)
			return ("lines out of order");
		what = judge_line(line, bytes, &stood, met);
		if (what != NULL)
			return (what);
	}
	return (stood == standing ? NULL : "a standing VM is missing");
}

int
watch(char *vmmls, size_t creators, size_t standing, size_t listings,
    size_t bytes)
{
	struct churn churn = { .bytes = bytes };
	const char *what;
	char *kept, name[32], *text;
	pthread_t *threads;
	size_t met, size, wrong;
	int status;

	size = 4096 + 128 * (standing + creators);
	text = malloc(size);
	threads = calloc(creators, sizeof(*threads));
	if (text == NULL || threads == NULL)
		err(EX_OSERR, "malloc");
	for (size_t i = 0; i < standing; i++) {
		(void)snprintf(name, sizeof(name), STANDING "%05zu", i);
		create(name, bytes, false, NULL, 0);
	}
	for (size_t i = 0; i < creators; i++) {
		errno = pthread_create(&threads[i], NULL, comer, &churn);
		if (errno != 0)
			err(EX_OSERR, "pthread_create");
	}
	met = wrong = 0;
	for (size_t i = 0; i < listings; i++) {
		status = list(vmmls, text, size);
		if ((kept = strdup(text)) == NULL)
			err(EX_OSERR, "strdup");
		what = judge(status, text, bytes, standing, &met);
		if (what != NULL && wrong++ < TOLD_MAX)
			warnx("listing %zu: %s (status %#x): %.400s", i, what,
			    (unsigned)status, kept);
		free(kept);
	}
	churn.over = true;
	for (size_t i = 0; i < creators; i++)
		(void)pthread_join(threads[i], NULL);
	for (size_t i = 0; i < standing; i++) {
		(void)snprintf(name, sizeof(name), STANDING "%05zu", i);
		vm_destroy(open_vm(name));
	}
	free(threads);
	free(text);
	(void)printf("listings %zu cycles %zu met %zu wrong %zu\n", listings,
	    (size_t)churn.cycles, met, wrong);
	return (wrong == 0 ? EX_OK : EX_DATAERR);
}
