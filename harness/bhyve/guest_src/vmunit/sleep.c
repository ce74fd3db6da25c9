/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* A vCPU that sleeps in HLT, and actions of others during this time. */

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "devices.h"

struct sleeper {
	struct vm	*vm;
	int		error;
	double		ended;
};

/* Run vCPU 0 until an exit. */
static void *
sleep_there(void *arg)
{
	struct sleeper *sleeper = arg;
	struct vm *vm = sleeper->vm;

	do {
		sleeper->error = step(vm, vm->vcpu[0]);
	} while (sleeper->error == 0 &&
	    (vm->exit.exitcode == VM_EXITCODE_BOGUS ||
	    vm->exit.exitcode == VM_EXITCODE_REQIDLE));
	sleeper->ended = uptime();
	return (NULL);
}

static pthread_t
lay_down(struct sleeper *sleeper, struct vm *vm)
{
	/*
	 * sti; hlt; jmp to hlt: vmm ends a HLT early if its thread has other
	 * work.
	 */
	static const uint8_t halt[] = { 0xfb, 0xf4, 0xeb, 0xfd };
	pthread_t thread;

	sleeper->vm = vm;
	sleeper->ended = 0;
	code(vm, halt, sizeof(halt));
	if (pthread_create(&thread, NULL, sleep_there, sleeper) != 0)
		fail("no thread");
	wait_ms(30);
	return (thread);
}

/*
 * A vector below the TPR does not wake it, a higher one does: at once, and not
 * at its own check, which it makes each second.
 */
static void
woken(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);
	struct sleeper sleeper = { 0 };
	pthread_t thread;
	double asked;

	set_lapic(vm, L_TPR, 0x50);
	for (unsigned i = 1; i <= 3; i++) {
		thread = lay_down(&sleeper, vm);
		check(vm_lapic_irq(vm->vcpu[0], 0x40) == 0, "refused");
		wait_ms(30);
		asked = uptime();
		check(vm_lapic_irq(vm->vcpu[0], 0x60 + (int)i) == 0,
		    "refused");
		(void)pthread_join(thread, NULL);
		check(sleeper.ended - asked < 0.4,
		    "waking it took %.2f s", sleeper.ended - asked);
		equal("the vector above the TPR", count(vm, 0x60 + (int)i),
		    1);
		equal("the vector below it", count(vm, 0x40), 0);
		set_lapic(vm, L_EOI, 0);
	}
	set_lapic(vm, L_TPR, 0);
	window(vm);
	equal("the vector below it, when the TPR is 0", count(vm, 0x40), 1);
	vm_free(vm);
}

/* An NMI, an interrupt of the PIC, an MSI. */
static void
woken_by_all(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);
	struct sleeper sleeper = { 0 };
	pthread_t thread;
	double asked;

	route(vm, 9, 0x71);
	for (int way = 0; way < 3; way++) {
		thread = lay_down(&sleeper, vm);
		asked = uptime();
		check((way == 0 ? vm_lapic_msi(vm->ctx, LAPIC, 0x70) :
		    way == 1 ? vm_ioapic_pulse_irq(vm->ctx, 9) :
		    vm_inject_nmi(vm->vcpu[0])) == 0, "way %d is refused",
		    way);
		(void)pthread_join(thread, NULL);
		check(sleeper.ended - asked < 0.4, "way %d took %.2f s", way,
		    sleeper.ended - asked);
		check(vm->exit.exitcode == VM_EXITCODE_INOUT &&
		    vm->exit.u.inout.port == (way < 2 ? PORT_INTR :
		    PORT_FAULT), "way %d: exit %s", way,
		    exit_name(vm->exit.exitcode));
		set_lapic(vm, L_EOI, 0);
	}
	vm_free(vm);
}

/* A debugger's stop and a suspension end the sleep. */
static void
stopped(const void *arg)
{
	bool debug = *(const bool *)arg;
	struct vm *vm = vm_with_lapic(0);
	struct sleeper sleeper = { 0 };
	pthread_t thread = lay_down(&sleeper, vm);
	double asked = uptime();

	check((debug ? vm_suspend_cpu(vm->vcpu[0]) :
	    vm_suspend(vm->ctx, VM_SUSPEND_RESET)) == 0, "refused: %s",
	    strerror(errno));
	while (sleeper.ended == 0 && uptime() - asked < 3)
		wait_ms(10);
	if (sleeper.ended == 0) {
		miss("it sleeps on");
		(void)vm_suspend(vm->ctx, VM_SUSPEND_POWEROFF);
	}
	(void)pthread_join(thread, NULL);
	check(vm->exit.exitcode == (debug ? VM_EXITCODE_DEBUG :
	    VM_EXITCODE_SUSPENDED), "exit %s", exit_name(vm->exit.exitcode));
	vm_free(vm);
}

/* An ioctl for a sleeping vCPU works, and the vCPU continues to sleep. */
static void
asked(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);
	struct sleeper sleeper = { 0 };
	pthread_t thread = lay_down(&sleeper, vm);
	double began = uptime();
	uint64_t rip = reg(vm, VM_REG_GUEST_RIP);

	check(rip > A_CODE && rip <= A_CODE + 2, "RIP is %#jx",
	    (uintmax_t)rip);
	check(uptime() - began < 3, "it took %.1f s", uptime() - began);
	check(sleeper.ended == 0, "it has woken up");
	check(vm_lapic_irq(vm->vcpu[0], 0x61) == 0, "refused");
	(void)pthread_join(thread, NULL);
	equal("interrupts", count(vm, 0x61), 1);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "sleep.woken", "a halted vCPU wakes only for a vector above its TPR",
	    woken, NULL },
	{ "sleep.woken_by_all", "a halted vCPU wakes for every interrupt",
	    woken_by_all, NULL },
	{ "sleep.debug", "a halted vCPU stops for a debugger", stopped,
	    &(const bool){ true } },
	{ "sleep.suspended", "a suspension ends a halted vCPU", stopped,
	    &(const bool){ false } },
	{ "sleep.asked", "a halted vCPU's registers can be read", asked,
	    NULL },
};

GROUP(sleep, tests);
