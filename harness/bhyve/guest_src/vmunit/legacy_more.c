/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* More functions of the 8259A and the 8254, which few guests use. */

#include <errno.h>
#include <string.h>

#include "legacy.h"

/* OCW2's "set priority": the line after the named one is the highest. */
static void
set_priority(const void *arg __unused)
{
	struct vm *vm = vm_with_pic(H_EXIT, 1);

	outb(vm, MASTER, 0xc3);			/* 3 is the lowest */
	pulse(vm, 1);
	pulse(vm, 4);
	window(vm);
	equal("IRQ 4 before 1", count(vm, BASE1 + 4), 1);
	equal("IRQ 1 while 4 is in service", count(vm, BASE1 + 1), 0);
	/* 1 is lower than 4, so it waits for 4's EOI; so does 5. */
	pulse(vm, 5);
	window(vm);
	equal("IRQ 1 while 4 is in service", count(vm, BASE1 + 1), 0);
	equal("IRQ 5 while 4 is in service", count(vm, BASE1 + 5), 0);
	outb(vm, MASTER, 0x20);
	window(vm);
	equal("IRQ 5 after 4", count(vm, BASE1 + 5), 1);
	outb(vm, MASTER, 0x20);
	window(vm);
	equal("IRQ 1 at last", count(vm, BASE1 + 1), 1);
	outb(vm, MASTER, 0x20);
	/* A new initialization resets it. */
	init_pics(vm, 1, 0);
	pulse(vm, 1);
	pulse(vm, 4);
	window(vm);
	equal("IRQ 1 before 4 again", count(vm, BASE1 + 1), 2);
	vm_free(vm);
}

/* ICW1 clears IMR and requests, and reads return IRR again. */
static void
initialized(const void *arg __unused)
{
	struct vm *vm = vm_with_pic(H_EXIT, 1);

	outb(vm, MASTER + 1, 0xff);
	pulse(vm, 6);
	equal("IRR", irr(vm, MASTER), 0x40);
	outb(vm, MASTER, 0x0b);			/* reads return ISR */
	outb(vm, MASTER, 0x11);
	outb(vm, MASTER + 1, 0x40);		/* other vectors */
	outb(vm, MASTER + 1, 4);
	outb(vm, MASTER + 1, 1);
	equal("IMR", inb(vm, MASTER + 1), 0);
	equal("IRR after ICW1", irr(vm, MASTER), 0);
	window(vm);
	equal("the request that was", count(vm, 0x46), 0);
	pulse(vm, 3);
	window(vm);
	equal("IRQ 3 at its new vector", count(vm, 0x43), 1);
	/* Its low three bits are the line's number. */
	init_pics(vm, 1, 0);
	outb(vm, MASTER, 0x11);
	outb(vm, MASTER + 1, 0x4f);
	outb(vm, MASTER + 1, 4);
	outb(vm, MASTER + 1, 1);
	outb(vm, MASTER, 0x63);
	pulse(vm, 1);
	window(vm);
	equal("IRQ 1 at 0x49", count(vm, 0x49), 1);
	vm_free(vm);
}

/*
 * A slave's line in service holds back the slave's other lines at the master;
 * in special fully nested mode (ICW4.SFNM) higher lines interrupt.
 */
static void
nested(const void *arg)
{
	bool special = *(const bool *)arg;
	struct vm *vm = vm_with_pic(H_EXIT, special ? 0x11 : 1);

	pulse(vm, 12);
	window(vm);
	equal("IRQ 12", count(vm, BASE2 + 4), 1);
	pulse(vm, 9);
	window(vm);
	equal("IRQ 9 while 12 is in service", count(vm, BASE2 + 1), special);
	pulse(vm, 1);
	window(vm);
	equal("IRQ 1, which is higher than the slave",
	    count(vm, BASE1 + 1), 1);
	pulse(vm, 5);
	window(vm);
	equal("IRQ 5, which is lower", count(vm, BASE1 + 5), 0);
	vm_free(vm);
}

/* Rotation with automatic EOI: the last line has the lowest priority. */
static void
rotating(const void *arg __unused)
{
	struct vm *vm = vm_with_pic(H_EXIT, 3);
	uint32_t last;

	outb(vm, MASTER, 0x80);
	pulse(vm, 3);
	window(vm);
	pulse(vm, 3);
	pulse(vm, 6);
	window(vm);
	memcpy(&last, vm->mem + A_LAST, sizeof(last));
	equal("after IRQ 3", last, BASE1 + 6);
	window(vm);
	memcpy(&last, vm->mem + A_LAST, sizeof(last));
	equal("and then", last, BASE1 + 3);
	vm_free(vm);
}

/* A poll without a request reports that; masked lines are not reported. */
static void
polled(const void *arg __unused)
{
	struct vm *vm = vm_with_pic(H_EXIT, 1);

	outb(vm, MASTER, 0x0e);
	equal("a poll of nothing", inb(vm, MASTER) & 0x80, 0);
	outb(vm, MASTER + 1, 0x10);
	pulse(vm, 4);
	outb(vm, MASTER, 0x0e);
	equal("a poll of what is masked", inb(vm, MASTER) & 0x80, 0);
	outb(vm, MASTER + 1, 0);
	outb(vm, MASTER, 0x0e);
	equal("a poll", inb(vm, MASTER) & 0x87, 0x84);
	/* It is acknowledged: in service, and it does not come. */
	window(vm);
	equal("interrupts", count(vm, BASE1 + 4), 0);
	equal("ISR", isr(vm, MASTER) & 0x10, 0x10);
	/* The same for the slave. */
	pulse(vm, 10);
	outb(vm, SLAVE, 0x0e);
	equal("a poll of the slave", inb(vm, SLAVE) & 0x87, 0x82);
	vm_free(vm);
}

static void
load(struct vm *vm, unsigned channel, uint8_t mode, uint16_t value)
{
	outb(vm, 0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1));
	outb(vm, (uint16_t)(0x40 + channel), (uint8_t)value);
	outb(vm, (uint16_t)(0x40 + channel), (uint8_t)(value >> 8));
}

static uint16_t
two_reads(struct vm *vm, unsigned channel)
{
	uint8_t low = inb(vm, (uint16_t)(0x40 + channel));

	return ((uint16_t)(low | inb(vm, (uint16_t)(0x40 + channel)) << 8));
}

/* 0 is the longest count, 65536; every mode that guests use is supported. */
static void
pit_modes(const void *arg __unused)
{
	static const uint8_t modes[] = { 0, 2, 3, 4 };
	struct vm *vm = vm_new();

	for (size_t i = 0; i < nitems(modes); i++) {
		uint16_t first, second;

		load(vm, 2, modes[i], 0xff00);
		outb(vm, 0x43, 0x80);
		first = two_reads(vm, 2);
		wait_ms(1);
		outb(vm, 0x43, 0x80);
		second = two_reads(vm, 2);
		check(first <= 0xff00 && first > 0xe000 && second < first,
		    "mode %u: from %#x to %#x", modes[i], first, second);
		/*
		 * The status contains the mode, and that a count has two
		 * bytes.
		 */
		outb(vm, 0x43, 0xe8);
		(void)inb(vm, 0x42);
		load(vm, 2, modes[i], 0);
		outb(vm, 0x43, 0x80);
		first = two_reads(vm, 2);
		check(first > 0xe000, "mode %u: 0 counts from %#x", modes[i],
		    first);
	}
	vm_free(vm);
}

/*
 * Without a latch the running count is read, low byte first.  Read-back
 * latches status and count of several channels.
 */
static void
pit_reads(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint16_t first, second;

	load(vm, 2, 2, 0xf000);
	first = two_reads(vm, 2);
	wait_ms(2);
	second = two_reads(vm, 2);
	check(first <= 0xf000 && first > 0xd000 && second < first &&
	    second > 0xc000, "unlatched it changes from %#x to %#x", first,
	    second);
	/* The counts of channels 0 and 2, latched together. */
	load(vm, 0, 2, 0xf000);
	load(vm, 2, 2, 0xf000);
	outb(vm, 0x43, 0xda);
	wait_ms(40);
	first = two_reads(vm, 0);
	second = two_reads(vm, 2);
	check(first <= 0xf000 && first > 0x8000, "channel 0 is latched as %#x",
	    first);
	check(second <= 0xf000 && second > 0x8000,
	    "channel 2 is latched as %#x", second);
	/* The status comes first, then the count that was latched with it. */
	load(vm, 2, 2, 0xf000);
	outb(vm, 0x43, 0xc8);
	wait_ms(40);
	equal("null count in the status", inb(vm, 0x42) & 0x40, 0);
	first = two_reads(vm, 2);
	check(first <= 0xf000 && first > 0x8000,
	    "latched with the status: %#x", first);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "pic.set_priority",
	    "OCW2 sets the line with the lowest priority", set_priority,
	    NULL },
	{ "pic.initialized",
	    "initialization clears masks and requests", initialized, NULL },
	{ "pic.nested",
	    "a slave's line in service holds back its other lines", nested,
	    &(const bool){ false } },
	{ "pic.special_nested",
	    "in special fully nested mode a slave's higher lines interrupt",
	    nested, &(const bool){ true } },
	{ "pic.rotating",
	    "priorities rotate with automatic EOI", rotating, NULL },
	{ "pic.polled", "a poll reports the slave's line, and no masked one",
	    polled, NULL },
	{ "timer.pit_modes",
	    "the PIT counts in every mode, and 0 is its longest count",
	    pit_modes, NULL },
	{ "timer.pit_reads",
	    "the PIT's counts can be read unlatched and by read-back",
	    pit_reads, NULL },
};

GROUP(legacy_more, tests);
