/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* The end of VMs: each ends within 5 s, and then nothing of it is left. */

#include <sys/param.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysctl.h>
#include <sys/wait.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "devices.h"

#define	SOON_S		5.0

static bool
node(const char *name)
{
	char path[64];
	struct stat status;

	(void)snprintf(path, sizeof(path), "/dev/vmm/%s", name);
	return (stat(path, &status) == 0);
}

static int
destroy(const char *name)
{
	return (sysctlbyname("hw.vmm.destroy", NULL, NULL, name,
	    strlen(name)) == 0 ? 0 : errno);
}

/* What the guest of the other process does. */
struct end {
	const char	*what;
	uint8_t		code[16];
	size_t		length;
	bool		stopped;	/* a debugger has stopped it */
};

/* sti; jmp .: in Bochs 2.7 nothing interrupts a guest without STI. */
static const struct end spinning = { "spins", { 0xfb, 0xeb, 0xfe }, 3, false };
static const struct end halted = { "is halted", { 0xfb, 0xf4, 0xeb, 0xfc },
	4, false };
/* cli; mov $0xff, %al; out to the masks of both PICs; sti; hlt */
static const struct end masked = { "is halted with everything masked",
	{ 0xfa, 0xb0, 0xff, 0xe6, 0x21, 0xe6, 0xa1, 0xfb, 0xf4, 0xeb, 0xfc },
	11, false };
static const struct end stopped = { "is in a debugger's stop",
	{ 0xfb, 0xeb, 0xfe }, 3, true };
/* Start a process with a VM that runs; the VM's name comes through a pipe. */
static pid_t
other_process(const struct end *end, char *name, size_t size)
{
	int ends[2];
	pid_t pid;

	if (pipe(ends) != 0)
		fail("pipe: %s", strerror(errno));
	if ((pid = fork()) == 0) {
		struct vm *vm;

		(void)signal(SIGALRM, SIG_DFL);
		vm = vm_new();
		if (end->stopped)
			(void)vm_suspend_cpu(vm->vcpu[0]);
		code(vm, end->code, end->length);
		(void)write(ends[1], vm->name, sizeof(vm->name));
		for (;;) {
			(void)step(vm, vm->vcpu[0]);
			if (vm->exit.exitcode == VM_EXITCODE_DEBUG)
				(void)usleep(1000);
		}
	}
	if (pid < 0 || read(ends[0], name, size) != (ssize_t)size) {
		if (pid > 0)
			(void)kill(pid, SIGKILL);
		fail("no other process");
	}
	(void)close(ends[0]);
	(void)close(ends[1]);
	wait_ms(50);
	return (pid);
}

/* SIGKILL ends the process; the VM is still there and can be destroyed. */
static void
killed(const void *arg)
{
	const struct end *end = arg;
	char name[32];
	pid_t pid = other_process(end, name, sizeof(name));
	double began = uptime();
	int status;

	(void)kill(pid, SIGKILL);
	while (waitpid(pid, &status, WNOHANG) == 0 &&
	    uptime() - began < SOON_S)
		wait_ms(5);
	check(uptime() - began < SOON_S, "a process whose guest %s outlives "
	    "SIGKILL", end->what);
	check(node(name), "the VM went with its process");
	began = uptime();
	check(destroy(name) == 0, "it cannot be destroyed");
	check(uptime() - began < SOON_S, "destroying it took %.1f s",
	    uptime() - began);
	check(!node(name), "its node is left");
}

/* Destroy a VM while a process runs it. */
static void
destroyed(const void *arg)
{
	const struct end *end = arg;
	char name[32];
	pid_t pid = other_process(end, name, sizeof(name));
	double began = uptime();
	int status;

	check(destroy(name) == 0, "it cannot be destroyed");
	check(uptime() - began < SOON_S, "destroying it took %.1f s",
	    uptime() - began);
	check(!node(name), "its node is left");
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, &status, 0);
}

/* SIGSTOP and SIGCONT affect a process whose vCPU sleeps or runs. */
static void
held(const void *arg)
{
	const struct end *end = arg;
	char name[32];
	pid_t pid = other_process(end, name, sizeof(name)), got = 0;
	double began = uptime();
	int status;

	(void)kill(pid, SIGSTOP);
	while ((got = waitpid(pid, &status, WNOHANG | WUNTRACED)) == 0 &&
	    uptime() - began < SOON_S)
		wait_ms(5);
	check(got == pid && WIFSTOPPED(status), "a process whose guest %s "
	    "does not stop", end->what);
	(void)kill(pid, SIGCONT);
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, &status, 0);
	check(destroy(name) == 0, "it cannot be destroyed");
}

/*
 * A second VM with the same name is refused, and the first one is still there.
 */
static void
same_name(const void *arg __unused)
{
	char name[32];
	pid_t pid = other_process(&halted, name, sizeof(name));
	int status;

	errno = 0;
	check(vm_create(name) != 0 && errno == EEXIST, "a second one: %s",
	    strerror(errno));
	check(node(name), "the first one does not exist any more");
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, &status, 0);
	check(destroy(name) == 0, "it cannot be destroyed");
	check(destroy(name) == EINVAL, "it can be destroyed twice");
}

/* After a suspension a VM can be reinitialized, except memory and devices. */
static void
reinit(const void *arg __unused)
{
	struct vm *vm = vm_new();

	RUN(vm, 0x90);
	expect_done(vm);
	errno = 0;
	check(vm_reinit(vm->ctx) != 0 && errno == EBUSY,
	    "while it runs: %s", strerror(errno));
	vm->mem[A_DATA] = 0x42;
	check(vm_suspend(vm->ctx, VM_SUSPEND_RESET) == 0, "not suspended: %s",
	    strerror(errno));
	RUN(vm, 0x90);
	check(vm->exit.exitcode == VM_EXITCODE_SUSPENDED &&
	    vm->exit.u.suspended.how == VM_SUSPEND_RESET, "exit %s",
	    exit_name(vm->exit.exitcode));
	check(step(vm, vm->vcpu[0]) == EINVAL,
	    "a suspended vCPU can be run: exit %s",
	    exit_name(vm->exit.exitcode));
	check(vm_reinit(vm->ctx) == 0, "it cannot be reinitialized: %s",
	    strerror(errno));
	equal("its memory", (uint8_t)vm->mem[A_DATA], 0x42);
	check(vm_activate_cpu(vm->vcpu[0]) == 0, "vCPU 0 is active: %s",
	    strerror(errno));
	check(vm_set_capability(vm->vcpu[0], VM_CAP_HALT_EXIT, 1) == 0,
	    "no hlt_exit");
	(void)vm_set_capability(vm->vcpu[0], VM_CAP_UNRESTRICTED_GUEST, 1);
	vm_mode(vm, LONG64);
	RUN(vm, 0x90);
	expect_done(vm);
	equal("its I/O APIC", ioapic(vm, REDIR(3)), MASKED);
	equal("its APIC", lapic(vm, L_SVR), 0xff);
	vm_free(vm);
}

static void
bad_suspensions(const void *arg __unused)
{
	struct vm *vm = vm_new();

	errno = 0;
	check(vm_suspend(vm->ctx, VM_SUSPEND_NONE) != 0 && errno == EINVAL,
	    "0: %s", strerror(errno));
	check(vm_suspend(vm->ctx, VM_SUSPEND_LAST) != 0 && errno == EINVAL,
	    "too far: %s", strerror(errno));
	vm_free(vm);
}

/* HLT with interrupts off on the only vCPU: the VM is halted. */
static void
halts(const void *arg __unused)
{
	struct vm *vm = vm_new();
	double began = uptime();

	RUN(vm, 0xfa, 0xf4);
	check(vm->exit.exitcode == VM_EXITCODE_SUSPENDED &&
	    vm->exit.u.suspended.how == VM_SUSPEND_HALT, "exit %s",
	    exit_name(vm->exit.exitcode));
	check(uptime() - began < SOON_S, "it took %.1f s", uptime() - began);
	vm_free(vm);
}

/* An NMI ends this HLT, too. */
static void
nmi_wakes(const void *arg __unused)
{
	struct vm *vm = vm_new();

	check(vm_inject_nmi(vm->vcpu[0]) == 0, "an NMI is refused");
	RUN(vm, 0xfa, 0xf4);
	check(vm->fault.vector == 2, "exit %s, vector %d",
	    exit_name(vm->exit.exitcode), vm->fault.vector);
	vm_free(vm);
}

/*
 * A debugger stops a vCPU: exit DEBUG.  Then it continues at the same place.
 */
static void
debug_stop(const void *arg __unused)
{
	struct vm *vm = vm_new();
	cpuset_t cpus;

	check(vm_suspend_cpu(vm->vcpu[0]) == 0, "not stopped: %s",
	    strerror(errno));
	check(vm_debug_cpus(vm->ctx, &cpus) == 0 && CPU_ISSET(0, &cpus),
	    "vCPU 0 is not among those that are stopped");
	RUN(vm, 0x90);
	check(vm->exit.exitcode == VM_EXITCODE_DEBUG &&
	    vm->exit.rip == A_CODE, "exit %s at %#jx",
	    exit_name(vm->exit.exitcode), (uintmax_t)vm->exit.rip);
	check(vm_resume_cpu(vm->vcpu[0]) == 0, "it does not continue: %s",
	    strerror(errno));
	errno = 0;
	check(vm_resume_cpu(vm->vcpu[0]) != 0 && errno == EINVAL,
	    "it continues twice: %s", strerror(errno));
	(void)run(vm);
	expect_done(vm);
	vm_free(vm);
}

/* A VM without memory and registers: whatever happens, it exits. */
static void
empty(const void *arg __unused)
{
	struct vm *vm;

	if (emulated && !intel)
		skip(N_A "Bochs as AMD does not exit at a guest's triple "
		    "fault");
	vm = vm_bare();
	for (unsigned i = 0; i < 4; i++) {
		int error = step(vm, vm->vcpu[0]);

		check(error == 0 && vm->exit.exitcode != VM_EXITCODE_MAX,
		    "VM_RUN: %s", strerror(error));
	}
	vm_free(vm);
}

/* vCPUs that do not exist, and sets of them. */
static void
bad_vcpus(const void *arg __unused)
{
	static const int bad[] = { -1, 1000, 65535, 0x7fffffff };
	struct vm *vm = vm_new();
	cpuset_t cpus;
	struct vm_cpuset set = { .which = VM_ACTIVE_CPUS, .cpus = &cpus };

	for (size_t i = 0; i < nitems(bad); i++) {
		struct vm_register access = { .cpuid = bad[i],
		    .regnum = VM_REG_GUEST_RAX };

		errno = 0;
		check(ioctl(vm->fd, VM_GET_REGISTER, &access) != 0 &&
		    errno == EINVAL, "vCPU %d: %s", bad[i], strerror(errno));
	}
	check(vm_active_cpus(vm->ctx, &cpus) == 0 && CPU_COUNT(&cpus) == 1 &&
	    CPU_ISSET(0, &cpus), "%d vCPUs are active", CPU_COUNT(&cpus));
	check(ioctl(vm->fd, VM_GET_CPUS, &set) != 0 && errno == ERANGE,
	    "a set of 0 bytes: %s", strerror(errno));
	set.cpusetsize = sizeof(cpus);
	set.which = 3;
	check(ioctl(vm->fd, VM_GET_CPUS, &set) != 0 && errno == EINVAL,
	    "set 3: %s", strerror(errno));
	check(ioctl(vm->fd, _IO('v', 255)) != 0 && errno == ENOTTY,
	    "no such ioctl: %s", strerror(errno));
	vm_free(vm);
}

static const struct test tests[] = {
	{ "end.killed_spinning",
	    "a process can be killed while its guest spins", killed,
	    &spinning },
	{ "end.killed_halted",
	    "a process can be killed while its guest is halted", killed,
	    &halted },
	{ "end.killed_masked", "a process can be killed while its guest halts "
	    "with all interrupts masked", killed, &masked },
	{ "end.killed_stopped", "a process can be killed while a debugger has "
	    "stopped its guest", killed,
	    &stopped },
	{ "end.held_spinning",
	    "a process can be stopped while its guest spins", held,
	    &spinning },
	{ "end.held_halted",
	    "a process can be stopped while its guest is halted", held,
	    &halted },
	{ "end.destroyed_spinning",
	    "a VM can be destroyed while its guest spins",
	    destroyed, &spinning },
	{ "end.destroyed_halted",
	    "a VM can be destroyed while its guest is halted",
	    destroyed, &halted },
	{ "end.destroyed_stopped",
	    "a VM can be destroyed while a debugger has stopped it",
	    destroyed, &stopped },
	{ "end.same_name",
	    "a second VM with the same name is refused", same_name, NULL },
	{ "end.reinit", "a VM can be reinitialized", reinit, NULL },
	{ "end.bad_suspensions",
	    "invalid suspensions are refused", bad_suspensions,
	    NULL },
	{ "end.halts", "HLT with interrupts off ends the VM", halts, NULL },
	{ "end.nmi_wakes",
	    "an NMI ends HLT with interrupts off", nmi_wakes, NULL },
	{ "end.debug_stop", "a debugger can stop a vCPU and let it "
	    "continue", debug_stop, NULL },
	{ "end.empty",
	    "running a VM without memory or registers causes an exit", empty,
	    NULL },
	{ "end.bad_vcpus",
	    "vCPUs that do not exist are refused", bad_vcpus, NULL },
};

GROUP(end, tests);
