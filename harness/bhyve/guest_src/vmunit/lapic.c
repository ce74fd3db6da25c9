/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* The local APIC: SDM 3, chapter 11. */

#include <errno.h>
#include <string.h>

#include "devices.h"

static const unsigned lvts[] = { L_CMCI, L_TIMER, L_THERMAL, L_PERF, L_LINT0,
	L_LINT1, L_ERROR };

static void
reset_values(const void *arg __unused)
{
	static const struct { unsigned offset; uint32_t value; } zero[] = {
		{ L_ID, 0 }, { L_TPR, 0 }, { L_PPR, 0 }, { L_LDR, 0 },
		{ L_DFR, 0xffffffff }, { L_SVR, 0xff }, { L_ESR, 0 },
		{ L_ICR, 0 }, { L_ICR_HIGH, 0 }, { L_COUNT, 0 },
		{ L_CURRENT, 0 }, { L_DIVIDE, 0 } };
	struct vm *vm = vm_new();

	for (size_t i = 0; i < nitems(zero); i++)
		equal_at("register", zero[i].offset, lapic(vm, zero[i].offset),
		    zero[i].value);
	for (size_t i = 0; i < nitems(lvts); i++)
		equal_at("LVT", lvts[i], lapic(vm, lvts[i]), MASKED);
	for (unsigned i = 0; i < 8; i++) {
		equal_at("ISR", i, lapic(vm, L_ISR + i * 16), 0);
		equal_at("TMR", i, lapic(vm, L_TMR + i * 16), 0);
		equal_at("IRR", i, lapic(vm, L_IRR + i * 16), 0);
	}
	equal("the version", lapic(vm, L_VERSION) & 0xff, 0x14);
	equal("the last LVT", lapic(vm, L_VERSION) >> 16 & 0xff, 6);
	vm_free(vm);
}

/* Figure 11-8: the writable and the reserved bits of each LVT entry. */
static void
lvt_bits(const void *arg __unused)
{
	static const struct { unsigned offset; uint32_t writable, reserved; }
	    bits[] = {
		{ L_TIMER, 0x300ff, 0xfff8ef00 },
		{ L_THERMAL, 0x107ff, 0xfffee800 },
		{ L_PERF, 0x107ff, 0xfffee800 },
		{ L_CMCI, 0x107ff, 0xfffee800 },
		{ L_LINT0, 0x1a7ff, 0xfffe0800 },
		{ L_LINT1, 0x1a7ff, 0xfffe0800 },
		{ L_ERROR, 0x100ff, 0xfffeef00 },
	};
	struct vm *vm = vm_with_lapic(0);
	uint32_t value;

	for (size_t i = 0; i < nitems(bits); i++) {
		set_lapic(vm, bits[i].offset, 0xffffffff);
		value = lapic(vm, bits[i].offset);
		equal_at("LVT's writable bits", bits[i].offset,
		    value & bits[i].writable, bits[i].writable);
		equal_at("LVT's reserved bits", bits[i].offset,
		    value & bits[i].reserved, 0);
		set_lapic(vm, bits[i].offset, 0x5a);
		equal_at("LVT", bits[i].offset, lapic(vm, bits[i].offset),
		    0x5a);
	}
	/*
	 * 11.4.7.2: while the APIC is disabled by software they stay masked.
	 */
	set_lapic(vm, L_SVR, 0xff);
	for (size_t i = 0; i < nitems(bits); i++) {
		equal_at("LVT while disabled", bits[i].offset,
		    lapic(vm, bits[i].offset), 0x5a | MASKED);
		set_lapic(vm, bits[i].offset, 0x5b);
		equal_at("LVT written while disabled", bits[i].offset,
		    lapic(vm, bits[i].offset), 0x5b | MASKED);
	}
	vm_free(vm);
}

static void
read_only(const void *arg __unused)
{
	static const unsigned offsets[] = { L_ID, L_VERSION, L_PPR, L_ISR,
	    L_TMR, L_IRR, L_CURRENT };
	struct vm *vm = vm_with_lapic(0);
	/* On AMD vmm.ko copies it from V_TPR, which has four bits. */
	uint32_t before, tpr = intel ? 0x34 : 0x30;

	for (size_t i = 0; i < nitems(offsets); i++) {
		before = lapic(vm, offsets[i]);
		set_lapic(vm, offsets[i], ~before);
		equal_at("register", offsets[i], lapic(vm, offsets[i]),
		    before);
	}
	set_lapic(vm, L_DFR, 0);
	equal("DFR", lapic(vm, L_DFR), 0x0fffffff);
	set_lapic(vm, L_LDR, 0x12345678);
	equal("LDR", lapic(vm, L_LDR), 0x12000000);
	set_lapic(vm, L_TPR, 0x1234);
	equal("TPR", lapic(vm, L_TPR), tpr);
	equal("PPR", lapic(vm, L_PPR), tpr);
	vm_free(vm);
}

/* A register can also be read with 8 or 64 bits. */
static void
other_sizes(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(0);

	set_reg(vm, VM_REG_GUEST_RCX, LAPIC + L_VERSION);
	set_reg(vm, VM_REG_GUEST_RAX, 0x1100);
	RUN(vm, 0x8a, 0x01);			/* mov (%rcx), %al */
	expect_done(vm);
	equal("8 bits of the version", reg(vm, VM_REG_GUEST_RAX), 0x1114);
	/* A processor's own APIC page does not accept 64-bit accesses. */
	if (!apicv)
		equal("64 bits of SVR", (uint32_t)g_read(vm, LAPIC + L_SVR, 8),
		    0x1ff);
	vm_free(vm);
}

/* In IRR, then in ISR, then in neither: 11.8.4. */
static void
in_service(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);

	set_lapic(vm, L_ICR, 0x40000 | 0x61);	/* to itself */
	check(lapic_bit(vm, L_IRR, 0x61), "IRR's bit is not set");
	check(!lapic_bit(vm, L_ISR, 0x61), "ISR's bit is set too early");
	window(vm);
	check(vm->exit.exitcode == VM_EXITCODE_INOUT &&
	    vm->exit.u.inout.port == PORT_INTR, "no interrupt came: exit %s",
	    exit_name(vm->exit.exitcode));
	equal("interrupts", count(vm, 0x61), 1);
	check(!lapic_bit(vm, L_IRR, 0x61), "IRR's bit stays");
	check(lapic_bit(vm, L_ISR, 0x61), "ISR's bit is not set");
	equal("PPR", lapic(vm, L_PPR), 0x60);
	/* Lower and equal classes wait, a higher one is delivered. */
	set_lapic(vm, L_ICR, 0x40000 | 0x6f);
	window(vm);
	equal("of the same class", count(vm, 0x6f), 0);
	set_lapic(vm, L_ICR, 0x40000 | 0x71);
	window(vm);
	equal("of a higher class", count(vm, 0x71), 1);
	equal("PPR", lapic(vm, L_PPR), 0x70);
	set_lapic(vm, L_EOI, 0);
	equal("PPR after an EOI", lapic(vm, L_PPR), 0x60);
	set_lapic(vm, L_EOI, 0);
	check(!lapic_bit(vm, L_ISR, 0x61), "ISR's bit stays after EOI");
	window(vm);
	equal("that waited", count(vm, 0x6f), 1);
	vm_free(vm);
}

static void
priorities(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);
	uint32_t last;

	set_lapic(vm, L_TPR, 0x60);
	set_lapic(vm, L_ICR, 0x40000 | 0x6e);
	window(vm);
	equal("below the TPR", count(vm, 0x6e), 0);
	set_lapic(vm, L_TPR, 0x50);
	window(vm);
	equal("above the TPR", count(vm, 0x6e), 1);
	/* The highest comes first, so the lowest is the last. */
	for (unsigned vector = 0xf1; vector >= 0x31; vector -= 0x20)
		set_lapic(vm, L_ICR, 0x40000 | vector);
	set_lapic(vm, L_TPR, 0);
	window(vm);
	for (unsigned vector = 0xf1; vector >= 0x31; vector -= 0x20)
		equal_at("vector", vector, count(vm, (int)vector), 1);
	memcpy(&last, vm->mem + A_LAST, sizeof(last));
	equal("the last vector", last, 0x31);
	vm_free(vm);
}

/* 11.5.3: illegal vectors; a write to ESR makes it show them. */
static void
errors(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);

	set_lapic(vm, L_ERROR, 0x77);
	set_lapic(vm, L_ICR, 0x40000 | 0x0f);
	equal("ESR before it is written", lapic(vm, L_ESR), 0);
	set_lapic(vm, L_ESR, 0);
	equal("ESR: send illegal vector", lapic(vm, L_ESR), 0x20);
	window(vm);
	equal("error interrupts", count(vm, 0x77), 1);
	set_lapic(vm, L_ESR, 0);
	equal("ESR written again", lapic(vm, L_ESR), 0);
	/*
	 * While it is masked there is no interrupt, but the error is recorded.
	 */
	set_lapic(vm, L_ERROR, MASKED | 0x77);
	set_lapic(vm, L_ICR, 0x40000 | 0x05);
	window(vm);
	equal("error interrupts while masked", count(vm, 0x77), 1);
	set_lapic(vm, L_ESR, 0xff);
	equal("ESR", lapic(vm, L_ESR), 0x20);
	vm_free(vm);
}

/* Vectors from the host: 16 to 255, and none while disabled by software. */
static void
from_outside(const void *arg __unused)
{
	static const int bad[] = { -1, 0, 15, 256, 1000 };
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);

	for (size_t i = 0; i < nitems(bad); i++) {
		errno = 0;
		check(vm_lapic_irq(vm->vcpu[0], bad[i]) != 0 &&
		    errno == EINVAL, "vector %d: %s", bad[i], strerror(errno));
	}
	check(vm_lapic_irq(vm->vcpu[0], 0x55) == 0, "vector 0x55 is refused");
	window(vm);
	equal("interrupts", count(vm, 0x55), 1);
	set_lapic(vm, L_SVR, 0xff);
	check(vm_lapic_irq(vm->vcpu[0], 0x55) == 0, "vector 0x55 is refused");
	set_lapic(vm, L_SVR, 0x1ff);
	window(vm);
	equal("interrupts while disabled", count(vm, 0x55), 1);
	vm_free(vm);
}

struct local {
	const char	*name;
	int		pin;
	unsigned	offset;
};
/* VM_LAPIC_LOCAL_IRQ uses the LVT's numbers of machine/apicreg.h. */
static const struct local locals[] = {
	{ "LINT0", 0, L_LINT0 }, { "LINT1", 1, L_LINT1 },
	{ "TIMER", 2, L_TIMER }, { "ERROR", 3, L_ERROR },
	{ "PMC", 4, L_PERF }, { "THERMAL", 5, L_THERMAL },
	{ "CMCI", 6, L_CMCI },
};

static void
local_interrupts(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);

	for (size_t i = 0; i < nitems(locals); i++) {
		int vector = 0x81 + (int)i;

		set_lapic(vm, locals[i].offset, (uint32_t)vector | MASKED);
		check(vm_lapic_local_irq(vm->vcpu[0], locals[i].pin) == 0,
		    "%s is refused", locals[i].name);
		window(vm);
		equal(locals[i].name, count(vm, vector), 0);
		set_lapic(vm, locals[i].offset, (uint32_t)vector);
		check(vm_lapic_local_irq(vm->vcpu[0], locals[i].pin) == 0,
		    "%s is refused", locals[i].name);
		window(vm);
		equal(locals[i].name, count(vm, vector), 1);
	}
	/* LINT1 as an NMI, on all vCPUs (-1 in the ioctl). */
	set_lapic(vm, L_LINT1, 0x400);
	check(vm_lapic_local_irq(vm->vcpu[0], 1) == 0, "LINT1 is refused");
	window(vm);
	check(vm->fault.vector == 2, "LINT1 is no NMI: vector %d",
	    vm->fault.vector);
	errno = 0;
	check(vm_lapic_local_irq(vm->vcpu[0], 7) != 0 && errno == EINVAL,
	    "LVT 7: %s", strerror(errno));
	vm_free(vm);
}

/* An LVT entry with an illegal vector: "send illegal vector", no interrupt. */
static void
illegal_lvt(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);

	set_lapic(vm, L_PERF, 0x08);
	check(vm_lapic_local_irq(vm->vcpu[0], 4) == 0, "PMC is refused");
	set_lapic(vm, L_ESR, 0);
	equal("ESR", lapic(vm, L_ESR), 0x20);
	/*
	 * The vector of the error's own LVT entry is illegal: this must not
	 * cause more and more errors.
	 */
	set_lapic(vm, L_ERROR, 0x02);
	check(vm_lapic_local_irq(vm->vcpu[0], 4) == 0, "PMC is refused");
	set_lapic(vm, L_ESR, 0);
	equal("ESR", lapic(vm, L_ESR), 0x20);
	/* The same for an IPI with an illegal vector. */
	set_lapic(vm, L_ICR, 0x40000 | 0x03);
	set_lapic(vm, L_ESR, 0);
	equal("ESR after an IPI", lapic(vm, L_ESR), 0x20);
	vm_free(vm);
}

/* MSIs: SDM 3, 11.11. */
static void
msi(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);

	check(vm_lapic_msi(vm->ctx, LAPIC, 0x51) == 0, "an MSI is refused");
	check(vm_lapic_msi(vm->ctx, LAPIC | 0xff000, 0x52) == 0,
	    "a broadcast is refused");
	check(vm_lapic_msi(vm->ctx, LAPIC | 0x77000, 0x53) == 0,
	    "an MSI without a destination is an error");
	/* Bits 5 to 11 extend the destination: nothing has the id 0x100. */
	check(vm_lapic_msi(vm->ctx, LAPIC | 0x20, 0x54) == 0,
	    "an MSI without a destination is an error");
	/* Logical: with RH and DM, and LDR 2. */
	set_lapic(vm, L_LDR, 2u << 24);
	check(vm_lapic_msi(vm->ctx, LAPIC | 0x200c, 0x55) == 0,
	    "a logical MSI is refused");
	check(vm_lapic_msi(vm->ctx, LAPIC | 0x400c, 0x56) == 0,
	    "a logical MSI without a destination is an error");
	/* Lowest priority */
	check(vm_lapic_msi(vm->ctx, LAPIC | 0x200c, 0x157) == 0,
	    "an MSI of lowest priority is refused");
	window(vm);
	equal("physical", count(vm, 0x51), 1);
	equal("broadcast", count(vm, 0x52), 1);
	equal("without a destination", count(vm, 0x53), 0);
	equal("to an extended id", count(vm, 0x54), 0);
	equal("logical", count(vm, 0x55), 1);
	equal("logical, no destination", count(vm, 0x56), 0);
	equal("lowest priority", count(vm, 0x57), 1);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "lapic.reset_values",
	    "the local APIC's registers have their reset values", reset_values,
	    NULL },
	{ "lapic.lvt_bits", "the LVT's bits can be written, and disabling the "
	    "APIC masks the LVT", lvt_bits, NULL },
	{ "lapic.read_only", "read-only registers of the APIC cannot be "
	    "written", read_only, NULL },
	{ "lapic.other_sizes", "registers of the APIC can be read in other "
	    "sizes than 32 bits", other_sizes,
	    NULL },
	{ "lapic.in_service",
	    "IRR, ISR and PPR follow interrupts and EOIs", in_service, NULL },
	{ "lapic.priorities", "interrupts come by priority, and the TPR holds "
	    "them back", priorities, NULL },
	{ "lapic.errors", "ESR shows illegal vectors", errors, NULL },
	{ "lapic.from_outside",
	    "the host can send interrupts to the APIC", from_outside,
	    NULL },
	{ "lapic.local_interrupts",
	    "every local interrupt of the LVT is delivered", local_interrupts,
	    NULL },
	{ "lapic.illegal_lvt", "an LVT with an illegal vector is an error "
	    "without an interrupt", illegal_lvt,
	    NULL },
	{ "lapic.msi", "MSIs reach the APICs that they address", msi, NULL },
};

GROUP(lapic, tests);
