/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* A round: a process with a virtual machine, and its end. */

#include <sys/param.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sysctl.h>
#include <sys/wait.h>

#include <err.h>
#include <fcntl.h>
#include <fts.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "vmmfuzz.h"

static uint32_t thread_calls;

static void *
run_thread(void *arg)
{
	struct thread *self = arg;

	while (self->calls < thread_calls)
		make_call(self);
	atomic_store(&shared->at[self->number], UINT32_MAX);
	return (NULL);
}

static void
on_tick(int signal __unused)
{
}

static int
write_name(const char *oid, const char *name)
{
	return (sysctlbyname(oid, NULL, NULL, name, strlen(name)) == 0 ? 0 :
	    errno);
}

/* A useful VM: with a little memory, and with a vCPU that may run. */
static int
open_round(struct rng *rng)
{
	struct vm_memseg seg = { .segid = 0, .len = 4 << 20 };
	struct vm_memmap map = { .len = 4 << 20, .prot = PROT_READ |
	    PROT_WRITE | PROT_EXEC };
	struct vm_activate_cpu cpu = { .vcpuid = 0 };
	char path[64];
	int fd;

	(void)snprintf(vm_name, sizeof(vm_name), "fuzz%ju",
	    (uintmax_t)below(rng, 4));
	if (dry)
		return (-1);
	(void)write_name("hw.vmm.create", vm_name);
	(void)snprintf(path, sizeof(path), "/dev/vmm/%s", vm_name);
	if ((fd = open(path, O_RDWR)) < 0)
		err(EX_OSERR, "%s", path);
	if (!one_in(rng, 4) && ioctl(fd, VM_ALLOC_MEMSEG, &seg) == 0)
		(void)ioctl(fd, VM_MMAP_MEMSEG, &map);
	if (!one_in(rng, 3))
		(void)ioctl(fd, VM_ACTIVATE_CPU, &cpu);
	return (fd);
}

static void
round_body(uint32_t calls)
{
	static struct thread threads[MAX_THREADS];
	struct sigaction tick = { .sa_handler = on_tick };
	pthread_t ids[MAX_THREADS];
	struct rng rng = { seed * 0x100000001b3 + round_number };
	int count, fd;
	bool busy;

	(void)sigaction(SIGUSR1, &tick, NULL);
	(void)next(&rng);
	fd = open_round(&rng);
	/* Every third round is a race. */
	count = one_in(&rng, 3) && !answers ?
	    2 + (int)below(&rng, MAX_THREADS - 1) : 1;
	thread_calls = MAX(calls / (uint32_t)count, 1);
	for (int i = 0; i < count; i++) {
		threads[i].number = i;
		threads[i].fd = fd;
		threads[i].rng.state = next(&rng);
		if (dry)
			(void)run_thread(&threads[i]);
		else if (pthread_create(&ids[i], NULL, run_thread,
		    &threads[i]) != 0)
			errx(EX_OSERR, "cannot make a thread");
	}
	if (dry)
		_exit(0);
	/* Prevent calls from sleeping, and VMs from running, for ever. */
	do {
		busy = false;
		(void)usleep(TICK_US);
		for (int i = 0; i < count; i++) {
			if (atomic_load(&shared->at[i]) != UINT32_MAX) {
				(void)pthread_kill(ids[i], SIGUSR1);
				busy = true;
			}
		}
	} while (busy);
	(void)fflush(stdout);
	_exit(0);
}

static bool
reap(pid_t pid, useconds_t limit, int *status)
{
	for (useconds_t waited = 0; waited < limit; waited += TICK_US) {
		if (waitpid(pid, status, WNOHANG) == pid)
			return (true);
		(void)usleep(TICK_US);
	}
	return (false);
}

/* Destroy all existing VMs, which are ours. */
static void
destroy_all(void)
{
	char *const roots[] = { __DECONST(char *, "/dev/vmm"), NULL };
	FTSENT *entry;
	FTS *tree;

	/* A folder disappears with its last VM, so do not stay in it. */
	if ((tree = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL)) == NULL)
		return;
	while ((entry = fts_read(tree)) != NULL) {
		if (entry->fts_info == FTS_DEFAULT)
			(void)write_name("hw.vmm.destroy",
			    entry->fts_path + sizeof("/dev/vmm"));
	}
	(void)fts_close(tree);
}

static void
tell_hang(const char *what)
{
	(void)printf("hang %u %s", round_number, what);
	for (int i = 0; i < MAX_THREADS; i++) {
		uint32_t at = atomic_load(&shared->at[i]);

		if (at != 0 && at != UINT32_MAX)
			(void)printf(" %d.%u:%s", i, at - 1,
			    ops[atomic_load(&shared->op[i])].name);
	}
	(void)printf("\n");
	(void)fflush(stdout);
}

/* One round; false if a call of it hangs, or destroying its VMs does. */
bool
run_round(uint32_t calls)
{
	uint64_t before, now;
	useconds_t idle;
	pid_t pid;
	int status;
	bool killed;

	for (int i = 0; i < MAX_THREADS; i++)
		atomic_store(&shared->at[i], 0);
	(void)fflush(stdout);
	if ((pid = fork()) == 0)
		round_body(calls);
	if (pid < 0)
		err(EX_OSERR, "fork");
	killed = false;
	before = atomic_load(&shared->calls);
	for (idle = 0; !reap(pid, TICK_US, &status);) {
		now = atomic_load(&shared->calls);
		idle = now == before ? idle + TICK_US : 0;
		before = now;
		if (idle > STALL_US && !killed) {
			(void)kill(pid, SIGKILL);
			killed = true;
		}
		if (idle > HANG_US) {
			tell_hang("call");
			return (false);
		}
	}
	if (killed)
		tell_hang("stall");
	else if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
		(void)printf("exit %u %d\n", round_number, WEXITSTATUS(status));
	else if (WIFSIGNALED(status))
		(void)printf("signal %u %d\n", round_number, WTERMSIG(status));
	if ((pid = fork()) == 0) {
		destroy_all();
		_exit(0);
	}
	if (pid > 0 && !reap(pid, HANG_US, &status)) {
		tell_hang("destroy");
		return (false);
	}
	return (true);
}
