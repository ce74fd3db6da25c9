/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Threads that make and destroy VMs, and others that read the figures. All
 * segments have the same length, so each figure must be a multiple of it, and
 * at most the memory of all threads.
 */

#include <sys/types.h>
#include <sys/sysctl.h>

#include <machine/vmm.h>

#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include <vmmapi.h>

#include "vmtool.h"

#define	READERS		2
#define	TOLD_MAX	5

struct contest {
	size_t		creators;
	size_t		rounds;
	size_t		bytes;
	uint64_t	before;
	uint64_t	total;
	atomic_size_t	next;		/* creator's number */
	atomic_size_t	cycles;
	atomic_size_t	reads;
	atomic_size_t	wrong;
	atomic_bool	over;
};

static uint64_t
get(const char *name)
{
	uint64_t value;
	size_t len;

	len = sizeof(value);
	if (sysctlbyname(name, &value, &len, NULL, 0) != 0)
		err(EX_OSERR, "%s", name);
	if (len != sizeof(value))
		errx(EX_DATAERR, "%s has %zu bytes", name, len);
	return (value);
}

/* Some are printed, all are counted. */
static void
wrong(struct contest *contest, const char *what, uint64_t value)
{
	if (atomic_fetch_add(&contest->wrong, 1) < TOLD_MAX)
		warnx("%s: %ju", what, (uintmax_t)value);
}

static void
look(struct contest *contest)
{
	uint64_t held, most;

	most = contest->creators * contest->bytes;
	held = get("hw.vmm.mem_allocated") - contest->before;
	if (held > most || held % contest->bytes != 0)
		wrong(contest, "mem_allocated was never so", held);
	held = contest->total - get("hw.vmm.mem_free") - contest->before;
	if (held > most || held % contest->bytes != 0)
		wrong(contest, "mem_free was never so", held);
	if (get("hw.vmm.mem_total") != contest->total)
		wrong(contest, "mem_total moved", get("hw.vmm.mem_total"));
	atomic_fetch_add(&contest->reads, 1);
}

static void *
reader(void *arg)
{
	struct contest *contest = arg;

	while (!contest->over)
		look(contest);
	return (NULL);
}

static void *
creator(void *arg)
{
	struct contest *contest = arg;
	struct vmctx *vm;
	uint64_t held;
	char name[32];

	(void)snprintf(name, sizeof(name), "race%zu",
	    atomic_fetch_add(&contest->next, 1));
	for (size_t i = 0; i < contest->rounds; i++) {
		if (vm_create(name) != 0)
			err(EX_OSERR, "%s: vm_create", name);
		vm = open_vm(name);
		if (vm_setup_memory(vm, contest->bytes, VM_MMAP_ALL) != 0)
			err(EX_OSERR, "%s: vm_setup_memory", name);
		/* This thread must see its own memory. */
		held = get("hw.vmm.mem_allocated") - contest->before;
		if (held < contest->bytes)
			wrong(contest, "less allocated than one VM has", held);
		forget_memory(vm);
		vm_destroy(vm);
		held = get("hw.vmm.mem_allocated") - contest->before;
		if (held > (contest->creators - 1) * contest->bytes)
			wrong(contest, "more allocated than the others have",
			    held);
		atomic_fetch_add(&contest->cycles, 1);
	}
	return (NULL);
}

int
race(size_t creators, size_t rounds, size_t bytes)
{
	struct contest contest = {
		.creators = creators, .rounds = rounds, .bytes = bytes
	};
	pthread_t *threads;

	contest.before = get("hw.vmm.mem_allocated");
	contest.total = get("hw.vmm.mem_total");
	if ((threads = calloc(creators + READERS, sizeof(*threads))) == NULL)
		err(EX_OSERR, "calloc");
	for (size_t i = 0; i < creators + READERS; i++) {
		errno = pthread_create(&threads[i], NULL,
		    i < creators ? creator : reader, &contest);
		if (errno != 0)
			err(EX_OSERR, "pthread_create");
	}
	for (size_t i = 0; i < creators + READERS; i++) {
		if (i == creators)
			contest.over = true;
		(void)pthread_join(threads[i], NULL);
	}
	free(threads);
	if (get("hw.vmm.mem_allocated") != contest.before)
		wrong(&contest, "left allocated",
		    get("hw.vmm.mem_allocated") - contest.before);
	if (get("hw.vmm.mem_free") != contest.total - contest.before)
		wrong(&contest, "left free", get("hw.vmm.mem_free"));
	(void)printf("cycles %zu reads %zu wrong %zu\n",
	    (size_t)contest.cycles, (size_t)contest.reads,
	    (size_t)contest.wrong);
	return (contest.wrong == 0 ? EX_OK : EX_DATAERR);
}
