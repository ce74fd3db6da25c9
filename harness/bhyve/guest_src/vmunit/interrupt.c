/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* When interrupts are delivered: after STI, emulated instructions and HLT. */

#include <errno.h>
#include <string.h>

#include "devices.h"

/* RIP at the interrupt that ended the run (H_EXIT). */
static uint64_t
interrupted_at(struct vm *vm)
{
	uint64_t rip = 0, rsp = reg(vm, VM_REG_GUEST_RSP);

	if (vm->exit.exitcode != VM_EXITCODE_INOUT ||
	    vm->exit.u.inout.port != PORT_INTR)
		fail("no interrupt came: exit %s",
		    exit_name(vm->exit.exitcode));
	memcpy(&rip, vm->mem + rsp + 16, sizeof(rip));
	return (rip);
}

/* STI delays interrupts by one instruction (SDM 2, "STI"). */
static void
after_sti(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);

	set_lapic(vm, L_ICR, 0x40000 | 0x61);
	RUN(vm, 0x90, 0xfb, 0x90, 0x90, 0x90, 0xfa);
	equal("interrupted at", interrupted_at(vm), A_CODE + 3);
	/* So none is delivered between STI and CLI. */
	set_lapic(vm, L_EOI, 0);
	set_lapic(vm, L_ICR, 0x40000 | 0x62);
	RUN(vm, 0xfb, 0xfa, 0x90);
	expect_done(vm);
	equal("between STI and CLI", count(vm, 0x62), 0);
	vm_free(vm);
}

/* The same if this instruction is emulated. */
static void
after_emulated(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);

	set_lapic(vm, L_ICR, 0x40000 | 0x61);
	set_reg(vm, VM_REG_GUEST_RCX, LAPIC + L_ESR);
	/* sti; mov %eax, (%rcx); nop ... */
	RUN(vm, 0xfb, 0x89, 0x01, 0x90, 0x90, 0x90, 0xfa);
	equal("interrupted at", interrupted_at(vm), A_CODE + 3);
	/* The same if the kernel handles its exit. */
	set_lapic(vm, L_EOI, 0);
	set_lapic(vm, L_ICR, 0x40000 | 0x62);
	set_reg(vm, VM_REG_GUEST_RAX, 0);
	RUN(vm, 0xfb, 0x0f, 0xa2, 0x90, 0x90, 0xfa);	/* sti; cpuid */
	equal("interrupted at", interrupted_at(vm), A_CODE + 3);
	vm_free(vm);
}

/* An interrupt from before HLT ends it, if IF and the TPR allow it. */
static void
pending_at_halt(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);

	set_lapic(vm, L_ICR, 0x40000 | 0x61);
	check(g_halt(vm), "HLT does not end: exit %s",
	    exit_name(vm->exit.exitcode));
	equal("interrupts", count(vm, 0x61), 1);
	/* RIP in the handler is after HLT: the HLT has ended. */
	handlers(vm, H_EXIT);
	set_lapic(vm, L_ICR, 0x40000 | 0x62);
	RUN(vm, 0xfb, 0xf4, 0x90, 0xfa);
	equal("interrupted at", interrupted_at(vm), A_CODE + 2);
	vm_free(vm);
}

/*
 * Lowering CR8 delivers what it held back: at once, but on AMD, where vmm.ko
 * reads it only after an exit, here CPUID's.
 */
static void
cr8_lowered(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);

	set_lapic(vm, L_TPR, 0x80);
	set_lapic(vm, L_ICR, 0x40000 | 0x71);
	window(vm);
	equal("held back", count(vm, 0x71), 0);
	/* xor %eax, %eax; sti; nop; mov %rax, %cr8; cpuid; nop; nop; cli */
	RUN(vm, 0x31, 0xc0, 0xfb, 0x90, 0x44, 0x0f, 0x22, 0xc0, 0x0f, 0xa2,
	    0x90, 0x90, 0xfa);
	equal("interrupted at", interrupted_at(vm), A_CODE +
	    (intel ? 8 : 10));
	vm_free(vm);
}

/* If CR8 is raised in time, it holds back a pending interrupt. */
static void
cr8_raised(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);

	set_lapic(vm, L_ICR, 0x40000 | 0x31);
	/* mov $5, %eax; mov %rax, %cr8; sti; nop; nop; cli */
	RUN(vm, 0xb8, 5, 0, 0, 0, 0x44, 0x0f, 0x22, 0xc0, 0xfb, 0x90, 0x90,
	    0xfa);
	expect_done(vm);
	equal("held back", count(vm, 0x31), 0);
	/* xor %eax, %eax; mov %rax, %cr8; sti; nop; cpuid; nop; cli */
	RUN(vm, 0x31, 0xc0, 0x44, 0x0f, 0x22, 0xc0, 0xfb, 0x90, 0x0f, 0xa2,
	    0x90, 0xfa);
	equal("delivered", count(vm, 0x31), 1);
	vm_free(vm);
}

static void
injected_twice(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);

	/* One vector, twice before it is taken, is one interrupt. */
	check(vm_lapic_irq(vm->vcpu[0], 0x61) == 0, "refused");
	check(vm_lapic_irq(vm->vcpu[0], 0x61) == 0, "refused");
	window(vm);
	equal("interrupts", count(vm, 0x61), 1);
	vm_free(vm);
}

/* With the APIC off, LINT0 is INTR and LINT1 is NMI (SDM 3, 11.4.7.1). */
static void
lint_while_off(const void *arg __unused)
{
	struct vm *vm = vm_new();

	check(vm_lapic_local_irq(vm->vcpu[0], 1) == 0, "LINT1 is refused");
	RUN(vm, 0x90);
	check(vm->fault.vector == 2, "LINT1 is no NMI: exit %s, vector %d",
	    exit_name(vm->exit.exitcode), vm->fault.vector);
	vm_free(vm);
}

/* The x2APIC's register for IPIs to itself, and its EOI. */
static void
self_ipi(const void *arg __unused)
{
	struct vm *vm = vm_new();

	check(vm_set_x2apic_state(vm->vcpu[0], X2APIC_ENABLED) == 0,
	    "no x2APIC");
	check(g_wrmsr(vm, 0x80f, 0x1ff), "SVR cannot be written");
	handlers(vm, H_EOI_X2APIC);
	for (unsigned i = 1; i <= 2; i++) {
		check(g_wrmsr(vm, 0x83f, 0x66), "SELF_IPI cannot be written");
		window(vm);
		equal("interrupts", count(vm, 0x66), i);
	}
	/* By ICR, all 64 bits at once. */
	check(g_wrmsr(vm, 0x830, 0x67), "ICR cannot be written");
	check(g_wrmsr(vm, 0x830, 0x40068), "ICR cannot be written");
	check(g_wrmsr(vm, 0x830, 5ul << 32 | 0x69), "ICR cannot be written");
	window(vm);
	equal("to id 0", count(vm, 0x67), 1);
	equal("to itself", count(vm, 0x68), 1);
	equal("without a destination", count(vm, 0x69), 0);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "interrupt.after_sti", "STI delays interrupts by one instruction",
	    after_sti, NULL },
	{ "interrupt.after_emulated",
	    "STI delays them also if this instruction is emulated",
	    after_emulated, NULL },
	{ "interrupt.pending_at_halt", "a pending interrupt ends HLT",
	    pending_at_halt, NULL },
	{ "interrupt.cr8_lowered",
	    "lowering CR8 delivers the interrupts that it held back",
	    cr8_lowered, NULL },
	{ "interrupt.cr8_raised", "raising CR8 holds back pending interrupts",
	    cr8_raised, NULL },
	{ "interrupt.injected_twice",
	    "a vector that is requested twice is one interrupt",
	    injected_twice, NULL },
	{ "interrupt.lint_while_off", "LINT1 is an NMI while the APIC is off",
	    lint_while_off, NULL },
	{ "interrupt.self_ipi",
	    "the x2APIC's IPIs and EOI work", self_ipi, NULL },
};

GROUP(interrupt, tests);
