/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* The HPET, by the IA-PC HPET Specification 1.0a. */

#include <errno.h>
#include <string.h>

#include "devices.h"

#define	CAPABILITIES	0x00u
#define	CONFIG		0x10u
#define	STATUS		0x20u
#define	COUNTER		0xf0u
#define	TIMER(n)	(0x100u + 0x20u * (n))
#define	COMPARE(n)	(0x108u + 0x20u * (n))
#define	FSB(n)		(0x110u + 0x20u * (n))

#define	T_LEVEL		0x0002u
#define	T_ENABLE	0x0004u
#define	T_PERIODIC	0x0008u
#define	T_SET		0x0040u
#define	T_FSB		0x4000u
#define	T_ROUTE(pin)	((pin) << 9)
#define	HZ		16777216.0

static void
registers(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t value = hpet(vm, CAPABILITIES, 8);
	uint32_t low = 0;

	equal("revision", value & 0xff, 1);
	equal("the last timer", value >> 8 & 0x1f, 7);
	equal("a counter of 32 bits, no legacy routes", value >> 13 & 7, 0);
	equal("the maker", value >> 16 & 0xffff, 0x8086);
	/* 10^15 fs over 2^24 Hz */
	equal("the period", value >> 32, 59604644);
	equal("its lower half", hpet(vm, CAPABILITIES, 4), value & 0xffffffff);
	equal("its upper half", hpet(vm, CAPABILITIES + 4, 4), value >> 32);
	check(vm_get_hpet_capabilities(vm->ctx, &low) == 0 &&
	    low == (uint32_t)value, "VM_GET_HPET_CAPABILITIES says %#x", low);
	equal("configuration", hpet(vm, CONFIG, 8), 0);
	equal("status", hpet(vm, STATUS, 8), 0);
	equal("counter", hpet(vm, COUNTER, 8), 0);
	for (unsigned n = 0; n < 8; n++) {
		value = hpet(vm, TIMER(n), 8);
		equal_at("FSB and periodic of timer", n, value & 0xffff,
		    0x8010);
		equal_at("routes of timer", n, value >> 32, 0xff000000);
		equal_at("comparator of timer", n, hpet(vm, COMPARE(n), 8),
		    0xffffffff);
	}
	/* Read-only registers do not change. */
	set_hpet(vm, CAPABILITIES, 8, 0);
	check(hpet(vm, CAPABILITIES, 8) != 0, "its capabilities changed");
	set_hpet(vm, CONFIG, 4, 2);
	equal("legacy routes", hpet(vm, CONFIG, 4), 0);
	set_hpet(vm, TIMER(3), 8, 0);
	equal("timer 3's capabilities", hpet(vm, TIMER(3), 8),
	    0xff00000000008010);
	equal("no register", hpet(vm, 0x300, 4), 0);
	vm_free(vm);
}

/* Registers of 64 bits, accessed by halves. */
static void
halves(const void *arg __unused)
{
	struct vm *vm = vm_new();

	set_hpet(vm, FSB(2), 8, 0x1122334455667788);
	equal("FSB route", hpet(vm, FSB(2), 8), 0x1122334455667788);
	set_hpet(vm, FSB(2), 4, 0x99aabbcc);
	equal("FSB route", hpet(vm, FSB(2), 8), 0x1122334499aabbcc);
	set_hpet(vm, FSB(2) + 4, 4, 0xddeeff00);
	equal("FSB route", hpet(vm, FSB(2), 8), 0xddeeff0099aabbcc);
	equal("its upper half", hpet(vm, FSB(2) + 4, 4), 0xddeeff00);
	set_hpet(vm, COMPARE(1), 4, 0x1234);
	equal("comparator", hpet(vm, COMPARE(1), 8), 0x1234);
	vm_free(vm);
}

static void
counter(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t first, second;

	set_hpet(vm, COUNTER, 4, 0x1000);
	equal("the counter while off", hpet(vm, COUNTER, 4), 0x1000);
	wait_ms(2);
	equal("the counter while off", hpet(vm, COUNTER, 4), 0x1000);
	set_hpet(vm, CONFIG, 4, 1);
	wait_ms(10);
	first = hpet(vm, COUNTER, 4);
	check(first >= 0x1000 + HZ / 100 * 0.99, "the counter is %#jx after "
	    "10 ms", (uintmax_t)first);
	set_hpet(vm, CONFIG, 4, 0);
	first = hpet(vm, COUNTER, 4);
	wait_ms(2);
	second = hpet(vm, COUNTER, 4);
	equal("the counter when off again", second, first);
	/* 32 bits: it wraps. */
	set_hpet(vm, COUNTER, 4, 0xfffffff0);
	set_hpet(vm, CONFIG, 4, 1);
	wait_ms(2);
	check(hpet(vm, COUNTER, 8) < 0x10000000, "the counter does not wrap: "
	    "%#jx", (uintmax_t)hpet(vm, COUNTER, 8));
	vm_free(vm);
}

/* One-shot: one interrupt, when the counter passes the comparator. */
static void
one_shot(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);

	route(vm, 24, 0xa1);
	set_hpet(vm, TIMER(0), 4, T_ENABLE | T_ROUTE(24));
	set_hpet(vm, COMPARE(0), 4, (uint64_t)(HZ / 100));
	wait_ms(20);
	window(vm);
	equal("before it counts", count(vm, 0xa1), 0);
	set_hpet(vm, CONFIG, 4, 1);
	check(g_halt(vm), "nothing ends HLT");
	equal("interrupts", count(vm, 0xa1), 1);
	check(hpet(vm, COUNTER, 4) >= HZ / 100, "it came too early");
	wait_ms(30);
	window(vm);
	equal("interrupts later", count(vm, 0xa1), 1);
	/* No interrupt while it is disabled. */
	set_hpet(vm, TIMER(0), 4, T_ROUTE(24));
	set_hpet(vm, COMPARE(0), 4, hpet(vm, COUNTER, 4) +
	    (uint64_t)(HZ / 100));
	wait_ms(30);
	window(vm);
	equal("interrupts while disabled", count(vm, 0xa1), 1);
	vm_free(vm);
}

static void
periodic(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);
	double began, took;

	route(vm, 25, 0xa2);
	set_hpet(vm, TIMER(1), 4, T_ENABLE | T_PERIODIC | T_SET |
	    T_ROUTE(25));
	set_hpet(vm, COMPARE(1), 4, (uint64_t)(HZ / 32));
	equal("VAL_SET after the comparator is set", hpet(vm, TIMER(1), 4) &
	    T_SET, 0);
	began = uptime();
	set_hpet(vm, CONFIG, 4, 1);
	while (count(vm, 0xa2) < 8 && g_halt(vm))
		continue;
	took = uptime() - began;
	check(took > 7.9 / 32 && took < 8.5 / 32 + 0.2,
	    "8 periods of 1/32 s took %.4f s", took);
	check(hpet(vm, COMPARE(1), 4) % (uint64_t)(HZ / 32) == 0 &&
	    hpet(vm, COMPARE(1), 4) >= HZ / 4,
	    "the comparator is %#jx", (uintmax_t)hpet(vm, COMPARE(1), 4));
	vm_free(vm);
}

/* Level-triggered: status bit and pin, until 1 is written to the status. */
static void
level(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);

	route(vm, 26, LEVEL | 0xa3);
	set_hpet(vm, TIMER(2), 4, T_ENABLE | T_LEVEL | T_ROUTE(26));
	set_hpet(vm, COMPARE(2), 4, (uint64_t)(HZ / 100));
	set_hpet(vm, CONFIG, 4, 1);
	(void)g_halt(vm);
	equal("interrupts", count(vm, 0xa3), 1);
	equal("status", hpet(vm, STATUS, 4), 4);
	set_hpet(vm, STATUS, 4, 0xfb);
	equal("status, others cleared", hpet(vm, STATUS, 4), 4);
	set_hpet(vm, STATUS, 4, 4);
	equal("status, cleared", hpet(vm, STATUS, 4), 0);
	set_lapic(vm, L_EOI, 0);
	window(vm);
	equal("interrupts after that", count(vm, 0xa3), 1);
	check((ioapic(vm, REDIR(26)) & REMOTE_IRR) == 0, "Remote IRR stays");
	vm_free(vm);
}

/*
 * An asserted level ends if the timer is disabled, changed to edges, or routed
 * to another pin; otherwise it would never end.
 */
static void
level_changed(const void *arg __unused)
{
	static const struct { const char *what; uint32_t config; } changes[] = {
		{ "disabled", T_LEVEL | T_ROUTE(26) },
		{ "made an edge", T_ENABLE | T_ROUTE(26) },
		{ "routed elsewhere", T_ENABLE | T_LEVEL | T_ROUTE(27) },
		{ "made an MSI", T_ENABLE | T_LEVEL | T_FSB | T_ROUTE(26) },
	};

	for (size_t i = 0; i < nitems(changes); i++) {
		struct vm *vm = vm_with_lapic(H_EXIT);

		route(vm, 26, LEVEL | 0xa3);
		set_hpet(vm, TIMER(2), 4, T_ENABLE | T_LEVEL | T_ROUTE(26));
		set_hpet(vm, COMPARE(2), 4, (uint64_t)(HZ / 200));
		set_hpet(vm, CONFIG, 4, 1);
		(void)g_halt(vm);
		equal("status", hpet(vm, STATUS, 4), 4);
		set_hpet(vm, TIMER(2), 4, changes[i].config);
		check(hpet(vm, STATUS, 4) == 0, "%s: its status stays",
		    changes[i].what);
		set_lapic(vm, L_EOI, 0);
		window(vm);
		check(count(vm, 0xa3) == 1, "%s: its level stays",
		    changes[i].what);
		vm_free(vm);
	}
}

/* Only routes that it announces can be chosen. */
static void
routes(const void *arg __unused)
{
	struct vm *vm = vm_new();

	for (unsigned pin = 1; pin < 32; pin++) {
		set_hpet(vm, TIMER(0), 4, T_ROUTE(pin));
		equal_at("route to pin", pin, hpet(vm, TIMER(0), 4) >> 9 & 0x1f,
		    pin >= 24 ? pin : 0);
	}
	/* The counter has 32 bits, so the bit for 32-bit mode stays clear. */
	set_hpet(vm, TIMER(0), 4, 0x100);
	equal("32-bit mode", hpet(vm, TIMER(0), 4) & 0x100, 0);
	vm_free(vm);
}

/*
 * A timer that was set while the counter was stopped runs when it is started.
 */
static void
stopped(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);
	uint64_t stood;

	route(vm, 24, 0xa5);
	set_hpet(vm, CONFIG, 4, 1);
	set_hpet(vm, TIMER(0), 4, T_ENABLE | T_ROUTE(24));
	set_hpet(vm, COMPARE(0), 4, hpet(vm, COUNTER, 4) +
	    (uint64_t)(HZ / 20));
	set_hpet(vm, CONFIG, 4, 0);
	stood = hpet(vm, COUNTER, 4);
	wait_ms(80);
	window(vm);
	equal("interrupts while it is stopped", count(vm, 0xa5), 0);
	equal("the counter", hpet(vm, COUNTER, 4), stood);
	set_hpet(vm, CONFIG, 4, 1);
	check(hpet(vm, COUNTER, 4) - stood < HZ / 20, "it went on by %ju",
	    (uintmax_t)(hpet(vm, COUNTER, 4) - stood));
	check(g_halt(vm), "nothing ends HLT");
	equal("interrupts", count(vm, 0xa5), 1);
	vm_free(vm);
}

/* An MSI: its address is the upper half of FSB, its data the lower half. */
static void
by_msi(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);

	set_hpet(vm, FSB(4), 8, (uint64_t)LAPIC << 32 | 0xa4);
	set_hpet(vm, TIMER(4), 4, T_ENABLE | T_FSB);
	set_hpet(vm, COMPARE(4), 4, (uint64_t)(HZ / 100));
	set_hpet(vm, CONFIG, 4, 1);
	check(g_halt(vm), "nothing ends HLT");
	equal("interrupts", count(vm, 0xa4), 1);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "hpet.registers",
	    "registers have their reset values", registers, NULL },
	{ "hpet.halves",
	    "registers of 64 bits can be accessed by halves", halves, NULL },
	{ "hpet.counter", "the counter runs, stops and wraps", counter,
	    NULL },
	{ "hpet.one_shot", "a one-shot timer fires once", one_shot, NULL },
	{ "hpet.periodic",
	    "a periodic timer keeps its period", periodic, NULL },
	{ "hpet.level", "a level-triggered timer asserts its pin until its "
	    "status is cleared", level, NULL },
	{ "hpet.level_changed",
	    "a level ends when its timer is disabled or changed",
	    level_changed, NULL },
	{ "hpet.routes",
	    "a timer accepts only the routes that it announces", routes, NULL },
	{ "hpet.stopped", "a timer that was set while the counter was stopped "
	    "starts with it", stopped, NULL },
	{ "hpet.by_msi", "a timer can send an MSI", by_msi, NULL },
};

GROUP(hpet, tests);
