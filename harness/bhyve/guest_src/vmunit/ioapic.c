/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* The I/O APIC (82093AA; SDM 3, 11.8.3.1) and the local APIC's timers. */

#include <errno.h>
#include <string.h>

#include "devices.h"

static void
registers(const void *arg __unused)
{
	struct vm *vm = vm_new();
	int pins = 0;

	equal("version and pins", ioapic(vm, 1), 0x001f0011);
	set_ioapic(vm, 0, 0xffffffff);
	/* Bits 27 to 24; there may be more bits. */
	equal("the id", ioapic(vm, 0) & 0x0fffffff, 0x0f000000);
	equal("the arbitration id", ioapic(vm, 2), ioapic(vm, 0));
	set_ioapic(vm, 1, 0);
	equal("the version, written", ioapic(vm, 1), 0x001f0011);
	g_write(vm, IOAPIC, 4, 0x31);
	equal("the index", g_read(vm, IOAPIC, 4), 0x31);
	for (unsigned pin = 0; pin < 32; pin++)
		equal_at("pin", pin, ioapic(vm, REDIR(pin)), MASKED);
	/* Remote IRR and delivery status are read-only. */
	set_ioapic(vm, REDIR(7), 0x0001ffff);
	equal("an entry, written", ioapic(vm, REDIR(7)), 0x0001afff);
	set_ioapic(vm, REDIR(7) + 1, 0xab000000);
	equal("its upper half", ioapic(vm, REDIR(7) + 1), 0xab000000);
	equal("its lower half", ioapic(vm, REDIR(7)), 0x0001afff);
	equal("no register", ioapic(vm, 0x50), 0);
	equal("8 bytes of it", g_read(vm, IOAPIC + 0x10, 8), 0);
	check(vm_ioapic_pincount(vm->ctx, &pins) == 0 && pins == 32,
	    "VM_IOAPIC_PINCOUNT says %d", pins);
	vm_free(vm);
}

static void
bad_pins(const void *arg __unused)
{
	static const int bad[] = { -1, 32, 1000 };
	struct vm *vm = vm_new();

	for (size_t i = 0; i < nitems(bad); i++) {
		errno = 0;
		check(vm_ioapic_assert_irq(vm->ctx, bad[i]) != 0 &&
		    errno == EINVAL, "pin %d: %s", bad[i], strerror(errno));
		check(vm_ioapic_deassert_irq(vm->ctx, bad[i]) != 0 &&
		    errno == EINVAL, "pin %d: %s", bad[i], strerror(errno));
		check(vm_ioapic_pulse_irq(vm->ctx, bad[i]) != 0 &&
		    errno == EINVAL, "pin %d: %s", bad[i], strerror(errno));
	}
	vm_free(vm);
}

static void
edge(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);

	route(vm, 9, 0x91);
	check(vm_ioapic_pulse_irq(vm->ctx, 9) == 0, "a pulse is refused");
	window(vm);
	equal("after a pulse", count(vm, 0x91), 1);
	/* Held, it is one interrupt; what was lost while masked stays lost. */
	check(vm_ioapic_assert_irq(vm->ctx, 9) == 0, "assert is refused");
	window(vm);
	window(vm);
	equal("after a rising edge", count(vm, 0x91), 2);
	check(vm_ioapic_deassert_irq(vm->ctx, 9) == 0, "deassert is refused");
	set_ioapic(vm, REDIR(9), MASKED | 0x91);
	check(vm_ioapic_pulse_irq(vm->ctx, 9) == 0, "a pulse is refused");
	set_ioapic(vm, REDIR(9), 0x91);
	window(vm);
	equal("after a pulse while masked", count(vm, 0x91), 2);
	check((ioapic(vm, REDIR(9)) & REMOTE_IRR) == 0, "Remote IRR is set");
	check(!lapic_bit(vm, L_TMR, 0x91), "TMR's bit is set");
	/*
	 * High while masked and when it is unmasked: this is no edge, either.
	 */
	set_ioapic(vm, REDIR(9), MASKED | 0x91);
	check(vm_ioapic_assert_irq(vm->ctx, 9) == 0, "assert is refused");
	set_ioapic(vm, REDIR(9), 0x91);
	window(vm);
	equal("unmasked while it is high", count(vm, 0x91), 2);
	check(vm_ioapic_deassert_irq(vm->ctx, 9) == 0, "deassert is refused");
	/* The interrupt of another APIC. */
	set_ioapic(vm, REDIR(9) + 1, 5u << 24);
	check(vm_ioapic_pulse_irq(vm->ctx, 9) == 0, "a pulse is refused");
	window(vm);
	equal("for another APIC", count(vm, 0x91), 2);
	vm_free(vm);
}

/* A level repeats until it ends; Remote IRR is set from acceptance to EOI. */
static void
level(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);

	route(vm, 20, LEVEL | 0x92);
	check(lapic_bit(vm, L_TMR, 0x92), "TMR's bit is not set");
	check(vm_ioapic_assert_irq(vm->ctx, 20) == 0, "assert is refused");
	check((ioapic(vm, REDIR(20)) & REMOTE_IRR) != 0,
	    "Remote IRR is not set");
	window(vm);
	equal("when asserted", count(vm, 0x92), 1);
	set_lapic(vm, L_EOI, 0);
	check((ioapic(vm, REDIR(20)) & REMOTE_IRR) != 0,
	    "Remote IRR is not set again while asserted");
	window(vm);
	equal("again, as it is still asserted", count(vm, 0x92), 2);
	check(vm_ioapic_deassert_irq(vm->ctx, 20) == 0, "deassert is refused");
	set_lapic(vm, L_EOI, 0);
	check((ioapic(vm, REDIR(20)) & REMOTE_IRR) == 0,
	    "Remote IRR stays after the EOI");
	window(vm);
	equal("after its end", count(vm, 0x92), 2);
	vm_free(vm);
}

static void
level_masked(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);

	route(vm, 21, MASKED | LEVEL | 0x93);
	check(vm_ioapic_assert_irq(vm->ctx, 21) == 0, "assert is refused");
	window(vm);
	equal("while masked", count(vm, 0x93), 0);
	set_ioapic(vm, REDIR(21), LEVEL | 0x93);
	window(vm);
	equal("when unmasked", count(vm, 0x93), 1);
	/*
	 * Changing to edge and back clears Remote IRR: an EOI for I/O APICs
	 * without an EOI register.
	 */
	check((ioapic(vm, REDIR(21)) & REMOTE_IRR) != 0,
	    "Remote IRR is not set");
	set_ioapic(vm, REDIR(21), MASKED | 0x93);
	check((ioapic(vm, REDIR(21)) & REMOTE_IRR) == 0,
	    "Remote IRR stays for an edge");
	check(!lapic_bit(vm, L_TMR, 0x93), "TMR's bit stays for an edge");
	vm_free(vm);
}

/* Asserted again before the EOI, and released: one interrupt. */
static void
level_again(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);

	route(vm, 23, LEVEL | 0x95);
	(void)vm_ioapic_assert_irq(vm->ctx, 23);
	window(vm);
	(void)vm_ioapic_deassert_irq(vm->ctx, 23);
	(void)vm_ioapic_assert_irq(vm->ctx, 23);
	check(!lapic_bit(vm, L_IRR, 0x95), "it is requested before the EOI");
	(void)vm_ioapic_deassert_irq(vm->ctx, 23);
	set_lapic(vm, L_EOI, 0);
	window(vm);
	equal("interrupts", count(vm, 0x95), 1);
	vm_free(vm);
}

/* Two devices on one pin: it is asserted until both have released it. */
static void
shared_pin(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);

	route(vm, 22, LEVEL | 0x94);
	(void)vm_ioapic_assert_irq(vm->ctx, 22);
	(void)vm_ioapic_assert_irq(vm->ctx, 22);
	window(vm);
	(void)vm_ioapic_deassert_irq(vm->ctx, 22);
	set_lapic(vm, L_EOI, 0);
	window(vm);
	equal("while one device is left", count(vm, 0x94), 2);
	(void)vm_ioapic_deassert_irq(vm->ctx, 22);
	set_lapic(vm, L_EOI, 0);
	window(vm);
	equal("after both have ended", count(vm, 0x94), 2);
	vm_free(vm);
}

/* One-shot (SDM 3, 11.5.4): it fires once, and the count stays 0. */
static void
one_shot(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);
	uint32_t first, second;

	set_lapic(vm, L_DIVIDE, 0xb);		/* by 1 */
	set_lapic(vm, L_TIMER, 0x61);
	set_lapic(vm, L_COUNT, 0x7fffffff);
	first = lapic(vm, L_CURRENT);
	second = lapic(vm, L_CURRENT);
	check(first <= 0x7fffffff && second < first && second != 0,
	    "the count goes from %#x to %#x", first, second);
	equal("the initial count", lapic(vm, L_COUNT), 0x7fffffff);
	set_lapic(vm, L_COUNT, 1000000);	/* about 7 ms */
	check(g_halt(vm), "nothing ends HLT: exit %s",
	    exit_name(vm->exit.exitcode));
	equal("interrupts", count(vm, 0x61), 1);
	equal("the count at the end", lapic(vm, L_CURRENT), 0);
	wait_ms(30);
	window(vm);
	equal("interrupts later", count(vm, 0x61), 1);
	/* Masked, it counts but does not interrupt; 0 stops it. */
	set_lapic(vm, L_TIMER, MASKED | 0x61);
	set_lapic(vm, L_COUNT, 1000000);
	wait_ms(30);
	window(vm);
	equal("interrupts while masked", count(vm, 0x61), 1);
	set_lapic(vm, L_TIMER, 0x61);
	set_lapic(vm, L_COUNT, 2000000);
	set_lapic(vm, L_COUNT, 0);
	wait_ms(40);
	window(vm);
	equal("interrupts after the count was set to 0", count(vm, 0x61), 1);
	equal("the count after it was set to 0", lapic(vm, L_CURRENT), 0);
	vm_free(vm);
}

static void
periodic(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);
	double began, took;

	set_lapic(vm, L_DIVIDE, 0xa);		/* by 128: 2^20 Hz */
	set_lapic(vm, L_TIMER, PERIODIC | 0x62);
	set_lapic(vm, L_COUNT, 1u << 15);	/* 1/32 s */
	began = uptime();
	while (count(vm, 0x62) < 8 && g_halt(vm))
		continue;
	took = uptime() - began;
	equal("interrupts", count(vm, 0x62), 8);
	check(took > 7.5 / 32 && took < 9.0 / 32 + 0.2,
	    "8 periods of 1/32 s took %.4f s", took);
	/* Disabling the APIC by software stops it. */
	set_lapic(vm, L_SVR, 0xff);
	handlers(vm, H_EOI_LAPIC);
	wait_ms(100);
	set_lapic(vm, L_SVR, 0x1ff);
	window(vm);
	equal("interrupts while disabled", count(vm, 0x62), 0);
	vm_free(vm);
}

/* Every divisor (11.5.4, figure 11-10): the count falls slower by it. */
static void
divisors(const void *arg __unused)
{
	static const struct { uint32_t code, by; } all[] = { { 0xb, 1 },
	    { 0x0, 2 }, { 0x1, 4 }, { 0x2, 8 }, { 0x3, 16 }, { 0x8, 32 },
	    { 0x9, 64 }, { 0xa, 128 } };
	struct vm *vm = vm_with_lapic(0);
	double before[2], after[2], least, most, rate = 128.0 * 1024 * 1024;
	uint32_t start, end;

	set_lapic(vm, L_TIMER, MASKED | 0x61);
	for (size_t i = 0; i < nitems(all); i++) {
		set_lapic(vm, L_DIVIDE, all[i].code);
		set_lapic(vm, L_COUNT, 0xffffffff);
		before[0] = uptime();
		start = lapic(vm, L_CURRENT);
		before[1] = uptime();
		wait_ms(100);
		after[0] = uptime();
		end = lapic(vm, L_CURRENT);
		after[1] = uptime();
		least = (after[0] - before[1]) * rate / all[i].by * 0.999;
		most = (after[1] - before[0]) * rate / all[i].by * 1.001 + 2;
		check(start - end >= least && start - end <= most,
		    "by %u: it fell by %u, not %.0f to %.0f", all[i].by,
		    start - end, least, most);
	}
	vm_free(vm);
}

static const struct test tests[] = {
	{ "ioapic.registers",
	    "registers have their reset values, and read-only bits stay",
	    registers, NULL },
	{ "ioapic.bad_pins",
	    "pins that do not exist are refused", bad_pins, NULL },
	{ "ioapic.edge", "an edge is one interrupt", edge, NULL },
	{ "ioapic.level", "a level repeats after EOI, and Remote IRR follows "
	    "it", level, NULL },
	{ "ioapic.level_masked", "a level waits while it is masked, and Remote "
	    "IRR ends with an edge",
	    level_masked, NULL },
	{ "ioapic.level_again",
	    "a level that rises again before the EOI is one interrupt",
	    level_again, NULL },
	{ "ioapic.shared_pin", "a pin stays asserted until both of its devices "
	    "release it", shared_pin, NULL },
	{ "timer.lapic_one_shot",
	    "the local APIC's one-shot timer fires once", one_shot,
	    NULL },
	{ "timer.lapic_periodic",
	    "the local APIC's periodic timer keeps its period",
	    periodic, NULL },
	{ "timer.lapic_divisors", "the local APIC's timer obeys each divisor",
	    divisors, NULL },
};

GROUP(ioapic, tests);
