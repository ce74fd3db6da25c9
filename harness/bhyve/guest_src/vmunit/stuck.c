/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * vCPUs that wait for another one: a suspension and a rendezvous need all of
 * them.  A process that waits for a vCPU that does not run can be killed, and
 * mapping memory during this time blocks nothing.
 */

#include <sys/param.h>
#include <sys/sysctl.h>
#include <sys/wait.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "devices.h"
#include "second.h"

#define	SOON_S		5.0
#define	ROUNDS		25

/*
 * mov $IOAPIC, %esi; mov $LEVEL | MASKED | 0x91, %eax
 * 1: movl $REDIR(9), (%rsi); xor $1, %eax; mov %eax, 0x10(%rsi); jmp 1b
 */
static const uint8_t reroute[] = { 0xbe, 0x00, 0x00, 0xc0, 0xfe, 0xb8, 0x91,
    0x80, 0x01, 0x00, 0xc7, 0x06, 0x22, 0x00, 0x00, 0x00, 0x83, 0xf0, 0x01,
    0x89, 0x46, 0x10, 0xeb, 0xf2 };
/* sti; jmp . */
static const uint8_t spin[] = { 0xfb, 0xeb, 0xfe };

/* A vCPU that a thread runs repeatedly. */
struct runner {
	struct vm	*vm;
	int		number;
	int		error;
	struct vm_exit	exit;
	cpuset_t	cpus;
};

static void *
run_on(void *arg)
{
	struct runner *runner = arg;
	struct vm_run vmrun = { .vm_exit = &runner->exit,
	    .cpuset = &runner->cpus, .cpusetsize = sizeof(runner->cpus) };

	/*
	 * Until it is suspended: the kernel waits in VM_RUN until all vCPUs
	 * are, so none may be left alone after another exit.
	 */
	do {
		runner->error = vm_run(runner->vm->vcpu[runner->number],
		    &vmrun) == 0 ? 0 : errno;
	} while (runner->error == 0 &&
	    (runner->exit.exitcode == VM_EXITCODE_BOGUS ||
	    runner->exit.exitcode == VM_EXITCODE_REQIDLE));
	return (NULL);
}

/*
 * A process like bhyve: its first thread waits for events, another one runs
 * vCPU 0, which waits for vCPU 1, which nothing runs.  A signal goes to the
 * first thread that accepts it, and the kernel does not check for signals in
 * VM_RUN.
 */
static void
waiter(bool suspending, int name_to)
{
	struct vm *vm = vm_with(2);
	struct runner runner = { .vm = vm, .number = 0 };
	pthread_t thread;

	(void)signal(SIGALRM, SIG_DFL);
	code(vm, suspending ? spin : reroute,
	    suspending ? sizeof(spin) : sizeof(reroute));
	if (suspending && vm_suspend(vm->ctx, VM_SUSPEND_RESET) != 0)
		_exit(1);
	if (pthread_create(&thread, NULL, run_on, &runner) != 0)
		_exit(1);
	(void)write(name_to, vm->name, sizeof(vm->name));
	(void)pthread_join(thread, NULL);
	/* It exited without vCPU 1. */
	_exit(2);
}

/*
 * Run vCPU 1 of another process's VM, so that nothing waits for it any more.
 */
static void
release(const char *name)
{
	struct vm *vm = vm_bare();
	struct vmctx *ctx = vm_open(name);
	struct vcpu *vcpu;

	if (ctx != NULL && (vcpu = vm_vcpu_open(ctx, 1)) != NULL)
		(void)step(vm, vcpu);
	_exit(0);
}

static bool
ends_soon(pid_t pid, int *status)
{
	double began = uptime();

	while (waitpid(pid, status, WNOHANG) != pid) {
		if (uptime() - began > SOON_S)
			return (false);
		wait_ms(10);
	}
	return (true);
}

static void
killed(const void *arg)
{
	bool suspending = *(const bool *)arg;
	char name[32] = "";
	int ends[2], status = 0;
	pid_t pid, helper;

	vm_free(vm_with(2));
	if (pipe(ends) != 0)
		fail("pipe: %s", strerror(errno));
	if ((pid = fork()) == 0)
		waiter(suspending, ends[1]);
	(void)close(ends[1]);
	if (pid < 0 || read(ends[0], name, sizeof(name)) !=
	    (ssize_t)sizeof(name))
		fail("no other process");
	(void)close(ends[0]);
	wait_ms(200);
	if (waitpid(pid, &status, WNOHANG) != 0)
		fail("it does not wait for vCPU 1: status %#x", status);
	(void)kill(pid, SIGKILL);
	if (!ends_soon(pid, &status)) {
		miss("a process that waits for a vCPU outlives SIGKILL");
		if ((helper = fork()) == 0)
			release(name);
		wait_ms(1000);
		(void)kill(helper, SIGKILL);
		(void)ends_soon(helper, &status);
		if (!ends_soon(pid, &status))
			fail("even when that vCPU is run");
	}
	check(sysctlbyname("hw.vmm.destroy", NULL, NULL, name,
	    strlen(name)) == 0, "its VM cannot be destroyed: %s",
	    strerror(errno));
}

/*
 * vCPU 1 requests one rendezvous after another, while memory is mapped and
 * unmapped.
 */
static void
mapped(const void *arg __unused)
{
	struct vm *vm = vm_with(2);
	struct runner runners[2] = { { .vm = vm, .number = 0 },
	    { .vm = vm, .number = 1 } };
	pthread_t threads[2];
	double began;

	if (vm_create_devmem(vm->ctx, SEG_DEVICE, "unit", 4096) == (void *)-1)
		fail("no device memory: %s", strerror(errno));
	code(vm, spin, sizeof(spin));
	memcpy(vm->mem + A_AP, reroute, sizeof(reroute));
	vm->cpu = 1;
	set_reg(vm, VM_REG_GUEST_RIP, A_AP);
	vm->cpu = 0;
	for (int i = 0; i < 2; i++) {
		if (pthread_create(&threads[i], NULL, run_on, &runners[i]) != 0)
			fail("no thread");
	}
	/* Both must have begun. */
	wait_ms(50);
	began = uptime();
	for (int i = 0; i < ROUNDS; i++) {
		wait_ms(2);
		check(vm_mmap_memseg(vm->ctx, 16ul << 20, SEG_DEVICE, 0, 4096,
		    1) == 0,
		    "a mapping is refused: %s", strerror(errno));
		check(vm_munmap_memseg(vm->ctx, 16ul << 20, 4096) == 0,
		    "a mapping stays: %s", strerror(errno));
	}
	check(uptime() - began < SOON_S, "%d mappings took %.1f s", ROUNDS,
	    uptime() - began);
	(void)vm_suspend(vm->ctx, VM_SUSPEND_POWEROFF);
	for (int i = 0; i < 2; i++)
		(void)pthread_join(threads[i], NULL);
	for (int i = 0; i < 2; i++)
		check(runners[i].error == 0 &&
		    runners[i].exit.exitcode == VM_EXITCODE_SUSPENDED,
		    "vCPU %d: error %d, exit %s at %#jx, port %#x", i,
		    runners[i].error, exit_name(runners[i].exit.exitcode),
		    (uintmax_t)runners[i].exit.rip,
		    runners[i].exit.u.inout.port);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "stuck.killed_suspending", "a process can be killed while a "
	    "suspension waits for a vCPU", killed, &(const bool){ true } },
	{ "stuck.killed_rendezvous", "a process can be killed while a "
	    "rendezvous waits for a vCPU", killed, &(const bool){ false } },
	{ "stuck.mapped", "memory can be mapped while another vCPU changes "
	    "routes", mapped, NULL },
};

GROUP(stuck, tests);
