/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* The rates of all clocks, compared with L1's clock. */

#include "devices.h"

#define	PIT_COUNT	0xf000u
/* 30 s at 50 Hz, nearly. */
#define	INTERRUPTS	1500
#define	RATE_TICKS	23864
#define	RATE_VECTOR	0x95
#define	RATE_COUNT	(A_COUNTS + 4 * RATE_VECTOR)

/*
 * A clock: its code puts the count into EAX, which goes up to `span`.  A count
 * that was latched can be read later, which does not change the result.
 */
struct clock {
	const char	*name;
	double		hz;
	double		slow, fast;	/* allowed error, as a fraction */
	double		span;
	bool		down;
	uint8_t		latch[8];
	size_t		latch_length;
	uint8_t		code[20];
	size_t		length;
};

#define	EXACT	0.00005
#define	CODE(...)	{ __VA_ARGS__ }, sizeof((const uint8_t []){ __VA_ARGS__ })
#define	NO_LATCH	{ 0 }, 0
static const struct clock clocks[] = {
	/*
	 * The stock module's is fast, because its period is rounded to
	 * 2^-32 s: 0.0716 %.
	 * mov $0x408, %edx; in (%dx), %eax
	 */
	{ "the ACPI timer", 3579545.0, EXACT, 0.00080, 4294967296.0, false,
	    NO_LATCH, CODE(0xba, 0x08, 0x04, 0, 0, 0xed) },
	/* mov $HPET + 0xf0, %ecx; mov (%rcx), %eax */
	{ "the HPET", 16777216.0, EXACT, EXACT, 4294967296.0, false,
	    NO_LATCH, CODE(0xb9, 0xf0, 0x00, 0xd0, 0xfe, 0x8b, 0x01) },
	/* mov $LAPIC + 0x390, %ecx; mov (%rcx), %eax */
	{ "the local APIC's timer", 1048576.0, EXACT, EXACT, 4294967296.0,
	    true, NO_LATCH, CODE(0xb9, 0x90, 0x03, 0xe0, 0xfe, 0x8b, 0x01) },
	/*
	 * Latch channel 2: mov $0x80, %al; out %al, $0x43.  Read it: in $0x42,
	 * %al; mov %al, %cl; in $0x42, %al; mov %al, %ch; movzx %cx, %eax
	 */
	{ "the PIT", 1193182.0, EXACT, EXACT, PIT_COUNT, true,
	    CODE(0xb0, 0x80, 0xe6, 0x43), CODE(0xe4, 0x42, 0x88, 0xc1, 0xe4,
	    0x42, 0x88, 0xc5, 0x0f, 0xb7, 0xc1) },
};

struct reading {
	uint64_t	shown;
	double		before, after;	/* L1's time before and after */
};

/* Run a piece of code, and record when it began and ended. */
static void
timed(struct vm *vm, const uint8_t *bytes, size_t length, struct reading *now)
{
	code(vm, bytes, length);
	now->before = uptime();
	(void)run(vm);
	now->after = uptime();
	expect_done(vm);
}

/* The shortest of several readings. */
static struct reading
look(struct vm *vm, const struct clock *clock)
{
	struct reading best = { .after = 1e9 }, now, later;
	bool latched = clock->latch_length != 0;

	for (int again = 0; again < 8; again++) {
		if (latched)
			timed(vm, clock->latch, clock->latch_length, &now);
		timed(vm, clock->code, clock->length, latched ? &later : &now);
		now.shown = reg(vm, VM_REG_GUEST_RAX) & 0xffffffff;
		if (now.after - now.before < best.after - best.before)
			best = now;
	}
	return (best);
}

/*
 * The duration of a reading is allowed for: the ticks are at least those
 * between the end of the first reading and the beginning of the second.  A
 * reading takes long in an emulator, but there 20 s of idle time take only one
 * second.
 */
static void
speed(const void *arg __unused)
{
	struct reading first[nitems(clocks)], second;
	struct vm *vm = vm_with_lapic(0);
	double ticks, least, most;

	set_hpet(vm, 0x10, 4, 1);
	set_lapic(vm, L_TIMER, MASKED | 0x61);
	set_lapic(vm, L_DIVIDE, 0xa);
	set_lapic(vm, L_COUNT, 0xffffffff);
	outb(vm, 0x43, 0xb4);			/* channel 2, mode 2 */
	outb(vm, 0x42, PIT_COUNT & 0xff);
	outb(vm, 0x42, PIT_COUNT >> 8);
	for (size_t i = 0; i < nitems(clocks); i++)
		first[i] = look(vm, &clocks[i]);
	patience(40);
	wait_ms(emulated ? 20000 : 5000);
	for (size_t i = 0; i < nitems(clocks); i++) {
		const struct clock *clock = &clocks[i];

		second = look(vm, clock);
		ticks = (double)second.shown - (double)first[i].shown;
		if (clock->down)
			ticks = -ticks;
		least = (second.before - first[i].after) * clock->hz *
		    (1 - clock->slow) - 2;
		most = (second.after - first[i].before) * clock->hz *
		    (1 + clock->fast) + 2;
		/* The count may have wrapped several times. */
		while (ticks < least)
			ticks += clock->span;
		check(ticks <= most, "%s: %.0f ticks in %.4f s, not %.0f to "
		    "%.0f", clock->name, ticks,
		    second.before - first[i].after, least, most);
	}
	vm_free(vm);
}

/* The ACPI timer can be read only with 32 bits. */
static void
pmtimer(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t first = g_in(vm, 0x408, 4), second;

	wait_ms(10);
	second = g_in(vm, 0x408, 4);
	check(second - first >= 35000 && second > first,
	    "it changes from %#jx to %#jx in 10 ms", (uintmax_t)first,
	    (uintmax_t)second);
	vm_free(vm);
}

/*
 * The PIT's interrupts must follow the time, too: each is due one period after
 * the previous one was due, not after it was delivered.  One interrupt may be
 * late by a fraction of its period; over many interrupts this is little.  A
 * busy host may lose some.
 */
static void
pit_rate(const void *arg __unused)
{
	/* sti; 1: hlt; cmpl $INTERRUPTS, COUNTS + 4 * 0x95; jb 1b; cli */
	static const uint8_t bytes[] = { 0xfb, 0xf4, 0x81, 0x3c, 0x25,
	    (uint8_t)RATE_COUNT, (uint8_t)(RATE_COUNT >> 8), 0, 0,
	    (uint8_t)INTERRUPTS, (uint8_t)(INTERRUPTS >> 8), 0, 0, 0x72, 0xf2,
	    0xfa };
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);
	double wanted = (double)INTERRUPTS * RATE_TICKS / 1193182, began, took;

	patience(60);
	route(vm, 2, RATE_VECTOR);
	outb(vm, 0x43, 0x34);			/* channel 0, mode 2 */
	outb(vm, 0x40, RATE_TICKS & 0xff);
	outb(vm, 0x40, RATE_TICKS >> 8);
	began = uptime();
	code(vm, bytes, sizeof(bytes));
	(void)run(vm);
	took = uptime() - began;
	expect_done(vm);
	check(took >= wanted * (1 - EXACT) - 0.0005 &&
	    took <= wanted * (1 + EXACT) + (emulated ? 0.01 : 0.5),
	    "%d interrupts took %.4f s, not %.4f s", INTERRUPTS, took, wanted);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "timer.pit_rate", "the PIT's interrupts follow the host's time",
	    pit_rate, NULL },
	{ "timer.pmtimer", "the ACPI timer runs", pmtimer, NULL },
	{ "timer.speed", "every clock follows the host's time to 0.01 %",
	    speed, NULL },
};

GROUP(clock, tests);
