/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * VMs that are made and destroyed, one after another and at the same time;
 * wired memory.
 */

#include <sys/param.h>
#include <sys/sysctl.h>

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "vmunit.h"

#define	CYCLES		40
#define	THREADS		4
#define	ROUNDS		8

static int
ask(const char *what, const char *name)
{
	return (sysctlbyname(what, NULL, NULL, name, strlen(name)) == 0 ? 0 :
	    errno);
}

static unsigned
vms(void)
{
	DIR *directory = opendir("/dev/vmm");
	struct dirent *entry;
	unsigned number = 0;

	if (directory == NULL)
		return (0);
	while ((entry = readdir(directory)) != NULL)
		number += entry->d_name[0] != '.';
	(void)closedir(directory);
	return (number);
}

/* Each VM runs, and contains nothing of the previous one. */
static void
cycles(const void *arg __unused)
{
	for (unsigned i = 0; i < CYCLES; i++) {
		struct vm *vm = vm_new();

		equal("what an earlier VM left", vm->mem[A_DATA], 0);
		vm->mem[A_DATA] = 0x55;
		RUN(vm, 0x90);
		expect_done(vm);
		vm_free(vm);
	}
	equal("VMs that are left", vms(), 0);
}

static atomic_uint wrong;

static void *
come_and_go(void *arg)
{
	char name[32];

	(void)snprintf(name, sizeof(name), "vmunit-race%ju",
	    (uintmax_t)(uintptr_t)arg);
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct vmctx *ctx;

		/* All threads also try to make a VM with the same name. */
		int error = ask("hw.vmm.create", "vmunit-race");

		if (error != 0 && error != EEXIST)
			atomic_fetch_add(&wrong, 1);
		if (ask("hw.vmm.create", name) != 0 ||
		    (ctx = vm_open(name)) == NULL ||
		    vm_setup_memory(ctx, MEM_BYTES, VM_MMAP_ALL) != 0)
			atomic_fetch_add(&wrong, 1);
		else
			vm_destroy(ctx);
		error = ask("hw.vmm.destroy", "vmunit-race");
		if (error != 0 && error != EINVAL)
			atomic_fetch_add(&wrong, 1);
	}
	return (NULL);
}

/* Threads that make and destroy VMs, some with the same name. */
static void
race(const void *arg __unused)
{
	pthread_t threads[THREADS];

	atomic_store(&wrong, 0);
	for (uintptr_t i = 0; i < THREADS; i++) {
		if (pthread_create(&threads[i], NULL, come_and_go,
		    (void *)i) != 0)
			fail("no thread");
	}
	for (unsigned i = 0; i < THREADS; i++)
		(void)pthread_join(threads[i], NULL);
	equal("answers that are wrong", atomic_load(&wrong), 0);
	equal("VMs that are left", vms(), 0);
}

/* Wired memory is allocated at once, counted, and released. */
static void
wired(const void *arg __unused)
{
	static const char count_name[] = "vm.stats.vm.v_user_wire_count";
	struct vm *vm = vm_bare();
	u_long before = 0, now = 0;
	size_t size = sizeof(before);

	if (sysctlbyname(count_name, &before, &size, NULL, 0) != 0)
		skip("%s does not exist", count_name);
	vm_set_memflags(vm->ctx, VM_MEM_F_WIRED);
	if (vm_setup_memory(vm->ctx, MEM_BYTES, VM_MMAP_ALL) != 0)
		fail("memory cannot be wired: %s", strerror(errno));
	(void)sysctlbyname(count_name, &now, &size, NULL, 0);
	equal("pages that are wired", now - before, MEM_BYTES / PAGE_SIZE);
	vm_free(vm);
	(void)sysctlbyname(count_name, &now, &size, NULL, 0);
	equal("pages that are wired after it", now, before);
}

static const struct test tests[] = {
	{ "wear.cycles",
	    "VMs that are made and destroyed leave nothing", cycles, NULL },
	{ "wear.race",
	    "threads can make and destroy VMs at the same time", race,
	    NULL },
	{ "wear.wired", "wired memory is counted and released", wired,
	    NULL },
};

GROUP(wear, tests);
