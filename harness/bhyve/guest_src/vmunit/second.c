/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * A second vCPU, which a thread runs: how it is started, and what needs both
 * vCPUs.
 */

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "devices.h"
#include "second.h"

#define	IPI_INIT	0x500
#define	IPI_STARTUP	0x600

/*
 * Code for it: sti and jmp .; sti and hlt; cli and hlt.  In Bochs 2.7 nothing,
 * not even the host, interrupts a guest that spins with interrupts off.
 */
static const uint8_t spin[] = { 0xfb, 0xeb, 0xfe, 0x90 };
static const uint8_t halt[] = { 0xfb, 0xf4, 0xeb, 0xfc };
static const uint8_t dead[] = { 0xfa, 0xf4, 0xeb, 0xfc };

/* A second vCPU, which a thread runs until an exit. */
struct second {
	struct vm	*vm;
	struct vm_exit	exit;
	cpuset_t	cpus;
	int		error;
};

static void *
run_second(void *arg)
{
	struct second *second = arg;
	struct vm_run vmrun = { .vm_exit = &second->exit,
	    .cpuset = &second->cpus, .cpusetsize = sizeof(second->cpus) };

	do {
		second->error = vm_run(second->vm->vcpu[1], &vmrun) == 0 ? 0 :
		    errno;
	} while (second->error == 0 &&
	    (second->exit.exitcode == VM_EXITCODE_BOGUS ||
	    second->exit.exitcode == VM_EXITCODE_REQIDLE));
	return (NULL);
}

/* Start vCPU 1 in real mode at A_AP, with this code. */
static pthread_t
start_second(struct vm *vm, struct second *second, const uint8_t *bytes,
    size_t length)
{
	pthread_t thread;

	memcpy(vm->mem + A_AP, bytes, length);
	if (vcpu_reset(vm->vcpu[1]) != 0 ||
	    vm_set_desc(vm->vcpu[1], VM_REG_GUEST_CS, A_AP, 0xffff, 0x93) !=
	    0 || vm_set_register(vm->vcpu[1], VM_REG_GUEST_CS, A_AP >> 4) !=
	    0 || vm_set_register(vm->vcpu[1], VM_REG_GUEST_RIP, 0) != 0)
		fail("vCPU 1 cannot be set up: %s", strerror(errno));
	second->vm = vm;
	if (pthread_create(&thread, NULL, run_second, second) != 0)
		fail("no thread");
	return (thread);
}

static bool
start(struct vm *vm, uint32_t mode, unsigned id, unsigned vector)
{
	set_reg(vm, VM_REG_GUEST_RCX, LAPIC + L_ICR);
	set_lapic(vm, L_ICR_HIGH, id << 24);
	set_reg(vm, VM_REG_GUEST_RCX, LAPIC + L_ICR);
	set_reg(vm, VM_REG_GUEST_RAX, 0x4000 | mode | vector);
	RUN(vm, 0x89, 0x01);			/* mov %eax, (%rcx) */
	return (vm->exit.exitcode != VM_EXITCODE_INOUT);
}

/* INIT and SIPI exit as IPI with their destinations (ipi_exit). */
static void
startup(const void *arg __unused)
{
	struct vm *vm = vm_with(2);
	struct second second = { 0 };
	pthread_t thread = start_second(vm, &second, halt, sizeof(halt));
	cpuset_t wanted;

	/* vCPU 1 must be running: an INIT waits for its destination. */
	wait_ms(20);
	check(vm_set_capability(vm->vcpu[0], VM_CAP_IPI_EXIT, 1) == 0,
	    "no ipi_exit: %s", strerror(errno));
	/* A SIPI is ignored by a vCPU that does not wait for one. */
	check(!start(vm, IPI_STARTUP, 1, A_AP >> 12),
	    "a SIPI without an INIT: exit %s",
	    exit_name(vm->exit.exitcode));
	CPU_SETOF(1, &wanted);
	check(start(vm, IPI_INIT, 1, 0) &&
	    vm->exit.exitcode == VM_EXITCODE_IPI &&
	    vm->exit.u.ipi.mode == IPI_INIT &&
	    CPU_CMP(&vm->cpus, &wanted) == 0,
	    "INIT: exit %s, mode %#x, %d vCPUs",
	    exit_name(vm->exit.exitcode), vm->exit.u.ipi.mode,
	    CPU_COUNT(&vm->cpus));
	(void)run(vm);
	expect_done(vm);
	check(start(vm, IPI_STARTUP, 1, A_AP >> 12) &&
	    vm->exit.exitcode == VM_EXITCODE_IPI &&
	    vm->exit.u.ipi.mode == IPI_STARTUP &&
	    vm->exit.u.ipi.vector == A_AP >> 12 &&
	    CPU_CMP(&vm->cpus, &wanted) == 0,
	    "SIPI: exit %s, mode %#x, vector %#x",
	    exit_name(vm->exit.exitcode), vm->exit.u.ipi.mode,
	    vm->exit.u.ipi.vector);
	(void)run(vm);
	expect_done(vm);
	/* The second SIPI, which manuals recommend, is ignored. */
	check(!start(vm, IPI_STARTUP, 1, A_AP >> 12),
	    "a second SIPI: exit %s", exit_name(vm->exit.exitcode));
	(void)vm_suspend(vm->ctx, VM_SUSPEND_POWEROFF);
	RUN(vm, 0x90);
	(void)pthread_join(thread, NULL);
	vm_free(vm);
}

/*
 * The same for a bhyve without ipi_exit, which activates vCPUs at this exit.
 */
static void
startup_old(const void *arg __unused)
{
	struct vm *vm = vm_with(2);

	vm_free(vm);
	vm = vm_with(1);

	check(!start(vm, IPI_INIT, 1, 0), "INIT: exit %s",
	    exit_name(vm->exit.exitcode));
	check(start(vm, IPI_STARTUP, 1, A_AP >> 12) &&
	    vm->exit.exitcode == VM_EXITCODE_SPINUP_AP &&
	    vm->exit.u.spinup_ap.vcpu == 1 &&
	    vm->exit.u.spinup_ap.rip == A_AP,
	    "SIPI: exit %s, vCPU %d at %#jx",
	    exit_name(vm->exit.exitcode), vm->exit.u.spinup_ap.vcpu,
	    (uintmax_t)vm->exit.u.spinup_ap.rip);
	vm_free(vm);
}

/* IPIs to ids that do not exist change nothing, in both ways. */
static void
to_nobody(const void *arg __unused)
{
	static const unsigned nobody[] = { 3, 4, 63, 100, 200, 254 };
	struct vm *vm = vm_with(1);

	for (int exits = 0; exits < 2; exits++) {
		check(vm_set_capability(vm->vcpu[0], VM_CAP_IPI_EXIT,
		    exits) == 0, "ipi_exit: %s", strerror(errno));
		for (size_t i = 0; i < nitems(nobody); i++) {
			bool out = start(vm, IPI_INIT, nobody[i], 0);

			check(!out || vm->exit.exitcode == VM_EXITCODE_IPI,
			    "INIT to %u: exit %s", nobody[i],
			    exit_name(vm->exit.exitcode));
			check(!CPU_ISSET(nobody[i] % CPU_SETSIZE, &vm->cpus) ||
			    nobody[i] < 4, "INIT is for vCPU %u", nobody[i]);
			if (out)
				(void)run(vm);
			if (start(vm, IPI_STARTUP, nobody[i], 9))
				check(vm->exit.exitcode !=
				    VM_EXITCODE_SPINUP_AP ||
				    nobody[i] < 4, "SIPI to %u: exit %s",
				    nobody[i], exit_name(vm->exit.exitcode));
			set_lapic(vm, L_ICR_HIGH, nobody[i] << 24);
			set_lapic(vm, L_ICR, 0x61);
			set_lapic(vm, L_ICR, 0x400);
		}
	}
	/* It still runs, and nothing was delivered to it. */
	window(vm);
	expect_done(vm);
	equal("interrupts", count(vm, 0x61), 0);
	vm_free(vm);
}

/* A suspension ends both, whatever the second one does. */
static void
suspended(const void *arg)
{
	const uint8_t *bytes = arg;
	struct vm *vm = vm_with(2);
	struct second second = { 0 };
	pthread_t thread = start_second(vm, &second, bytes, 4);
	double began;

	wait_ms(50);
	check(vm_suspend(vm->ctx, VM_SUSPEND_POWEROFF) == 0,
	    "it cannot be suspended: %s", strerror(errno));
	errno = 0;
	check(vm_suspend(vm->ctx, VM_SUSPEND_RESET) != 0 && errno == EALREADY,
	    "it can be suspended twice: %s", strerror(errno));
	began = uptime();
	RUN(vm, 0x90);
	(void)pthread_join(thread, NULL);
	check(uptime() - began < 5, "it took %.1f s", uptime() - began);
	check(vm->exit.exitcode == VM_EXITCODE_SUSPENDED &&
	    vm->exit.u.suspended.how == VM_SUSPEND_POWEROFF,
	    "vCPU 0: exit %s", exit_name(vm->exit.exitcode));
	check(second.exit.exitcode == VM_EXITCODE_SUSPENDED &&
	    second.exit.u.suspended.how == VM_SUSPEND_POWEROFF,
	    "vCPU 1: exit %s, %s", exit_name(second.exit.exitcode),
	    strerror(second.error));
	vm_free(vm);
}

/* If all vCPUs halt with interrupts off, the VM is halted. */
static void
all_halted(const void *arg __unused)
{
	struct vm *vm = vm_with(2);
	struct second second = { 0 };
	pthread_t thread = start_second(vm, &second, dead, sizeof(dead));

	RUN(vm, 0xfa, 0xf4);
	(void)pthread_join(thread, NULL);
	check(vm->exit.exitcode == VM_EXITCODE_SUSPENDED &&
	    vm->exit.u.suspended.how == VM_SUSPEND_HALT, "exit %s",
	    exit_name(vm->exit.exitcode));
	check(second.exit.exitcode == VM_EXITCODE_SUSPENDED, "vCPU 1: exit %s",
	    exit_name(second.exit.exitcode));
	vm_free(vm);
}

/* Changing a route needs every vCPU (rendezvous); memory is mapped as well. */
static void
rendezvous(const void *arg)
{
	const uint8_t *bytes = arg;
	struct vm *vm = vm_with(2);
	struct second second = { 0 };
	pthread_t thread;
	double began;

	if (vm_create_devmem(vm->ctx, SEG_DEVICE, "unit", 4096) == (void *)-1)
		fail("no device memory: %s", strerror(errno));
	thread = start_second(vm, &second, bytes, 4);
	wait_ms(20);
	began = uptime();
	for (unsigned i = 0; i < 20; i++) {
		route(vm, 9, LEVEL | MASKED | (0x91 + i % 2));
		check(vm_mmap_memseg(vm->ctx, 16ul << 20, SEG_DEVICE, 0, 4096,
		    1) == 0,
		    "a mapping is refused: %s", strerror(errno));
		check(vm_munmap_memseg(vm->ctx, 16ul << 20, 4096) == 0,
		    "a mapping stays: %s", strerror(errno));
	}
	check(uptime() - began < 5, "20 changes took %.1f s",
	    uptime() - began);
	(void)vm_suspend(vm->ctx, VM_SUSPEND_POWEROFF);
	RUN(vm, 0x90);
	(void)pthread_join(thread, NULL);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "smp.startup",
	    "INIT and SIPI cause an exit to bhyve", startup, NULL },
	{ "smp.startup_old",
	    "SIPI causes the exit that earlier releases had", startup_old, NULL },
	{ "smp.to_nobody",
	    "IPIs to ids that do not exist change nothing", to_nobody, NULL },
	{ "smp.suspended_spinning",
	    "a suspension ends all vCPUs while one spins",
	    suspended, spin },
	{ "smp.suspended_halted",
	    "a suspension ends all vCPUs while one is idle", suspended,
	    halt },
	{ "smp.all_halted", "a VM ends when all its vCPUs halt with interrupts "
	    "off", all_halted, NULL },
	{ "smp.rendezvous_spinning", "memory and routes can change while one "
	    "vCPU spins", rendezvous, spin },
	{ "smp.rendezvous_halted",
	    "memory and routes can change while one vCPU is idle",
	    rendezvous, halt },
};

GROUP(second, tests);
