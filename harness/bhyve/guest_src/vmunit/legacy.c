/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* The two 8259A and the 8254, as in their data sheets. */

#include <errno.h>
#include <string.h>

#include "legacy.h"

/* Write ICW1 to ICW4 of both; all lines in `masks` are masked. */
void
init_pics(struct vm *vm, uint8_t icw4, uint16_t masks)
{
	outb(vm, MASTER, 0x11);
	outb(vm, MASTER + 1, BASE1);
	outb(vm, MASTER + 1, 4);
	outb(vm, MASTER + 1, icw4);
	outb(vm, SLAVE, 0x11);
	outb(vm, SLAVE + 1, BASE2);
	outb(vm, SLAVE + 1, 2);
	outb(vm, SLAVE + 1, icw4);
	outb(vm, MASTER + 1, (uint8_t)masks);
	outb(vm, SLAVE + 1, (uint8_t)(masks >> 8));
}

/* A VM with the PICs connected to the vCPU: its APIC is disabled. */
struct vm *
vm_with_pic(uint32_t flags, uint8_t icw4)
{
	struct vm *vm = vm_new();

	init_pics(vm, icw4, 0);
	handlers(vm, flags);
	return (vm);
}

void
pulse(struct vm *vm, int irq)
{
	if (vm_isa_pulse_irq(vm->ctx, irq, -1) != 0)
		fail("IRQ %d cannot be pulsed: %s", irq, strerror(errno));
}

uint8_t
irr(struct vm *vm, uint16_t port)
{
	outb(vm, port, 0x0a);
	return (inb(vm, port));
}

uint8_t
isr(struct vm *vm, uint16_t port)
{
	outb(vm, port, 0x0b);
	return (inb(vm, port));
}

/* Every line has its vector; the slave's lines pass through line 2. */
static void
vectors(const void *arg __unused)
{
	struct vm *vm = vm_with_pic(H_EOI_PIC, 1);

	for (int irq = 0; irq < 16; irq++) {
		if (irq == 2)
			continue;
		pulse(vm, irq);
		window(vm);
		equal_at("IRQ", (unsigned)irq, count(vm, irq < 8 ?
		    BASE1 + irq : BASE2 + irq - 8), 1);
	}
	equal("ISR", isr(vm, MASTER), 0);
	equal("the slave's ISR", isr(vm, SLAVE), 0);
	vm_free(vm);
}

static void
masks(const void *arg __unused)
{
	struct vm *vm = vm_with_pic(H_EOI_PIC, 1);

	outb(vm, MASTER + 1, 0x5a);
	equal("IMR", inb(vm, MASTER + 1), 0x5a);
	outb(vm, SLAVE + 1, 0xa5);
	equal("the slave's IMR", inb(vm, SLAVE + 1), 0xa5);
	outb(vm, MASTER + 1, 0x20);
	pulse(vm, 5);
	window(vm);
	equal("while masked", count(vm, BASE1 + 5), 0);
	equal("IRR", irr(vm, MASTER), 0x20);
	outb(vm, MASTER + 1, 0);
	window(vm);
	equal("when unmasked", count(vm, BASE1 + 5), 1);
	equal("IRR", irr(vm, MASTER), 0);
	vm_free(vm);
}

/* The lowest line has the highest priority; specific and other EOIs. */
static void
priorities(const void *arg __unused)
{
	struct vm *vm = vm_with_pic(H_EXIT, 1);

	pulse(vm, 6);
	pulse(vm, 4);
	window(vm);
	equal("IRQ 4 of 4 and 6", count(vm, BASE1 + 4), 1);
	equal("IRQ 6 while 4 is in service", count(vm, BASE1 + 6), 0);
	equal("ISR", isr(vm, MASTER), 0x10);
	equal("IRR", irr(vm, MASTER), 0x40);
	pulse(vm, 3);
	window(vm);
	equal("IRQ 3, which is higher", count(vm, BASE1 + 3), 1);
	equal("ISR", isr(vm, MASTER), 0x18);
	outb(vm, MASTER, 0x64);			/* specific EOI: 4 */
	equal("ISR after an EOI of 4", isr(vm, MASTER), 0x08);
	outb(vm, MASTER, 0x20);
	equal("ISR after an EOI", isr(vm, MASTER), 0);
	window(vm);
	equal("IRQ 6", count(vm, BASE1 + 6), 1);
	outb(vm, MASTER, 0x20);
	/*
	 * Rotation: after an EOI with rotation, line 6 has the lowest
	 * priority.
	 */
	pulse(vm, 6);
	window(vm);
	outb(vm, MASTER, 0xa0);
	pulse(vm, 6);
	pulse(vm, 7);
	window(vm);
	equal("IRQ 7 before 6, rotated", count(vm, BASE1 + 7), 1);
	equal("IRQ 6 after 7, rotated", count(vm, BASE1 + 6), 2);
	vm_free(vm);
}

/* Automatic EOI (ICW4.AEOI): nothing is in service. */
static void
automatic(const void *arg __unused)
{
	struct vm *vm = vm_with_pic(0, 3);

	for (unsigned i = 1; i <= 3; i++) {
		pulse(vm, 5);
		window(vm);
		equal("interrupts", count(vm, BASE1 + 5), i);
		equal("ISR", isr(vm, MASTER), 0);
	}
	vm_free(vm);
}

/* A request that ends before its acknowledgement appears as line 7. */
static void
spurious(const void *arg __unused)
{
	struct vm *vm = vm_with_pic(H_EXIT, 1);

	outb(vm, 0x4d0, 0x20);			/* IRQ 5 is a level */
	(void)vm_isa_assert_irq(vm->ctx, 5, -1);
	(void)vm_isa_deassert_irq(vm->ctx, 5, -1);
	window(vm);
	equal("IRQ 5, which has ended", count(vm, BASE1 + 5), 0);
	equal("a spurious one", count(vm, BASE1 + 7), 1);
	vm_free(vm);
}

/* ELCR: IRQ 0, 1, 2, 8 and 13 are always edges (PIIX). */
static void
trigger(const void *arg __unused)
{
	static const int edges[] = { 0, 1, 2, 8, 13 };
	struct vm *vm = vm_with_pic(H_EOI_PIC, 1);

	equal("the first ELCR1", inb(vm, 0x4d0), 0);
	outb(vm, 0x4d0, 0xff);
	outb(vm, 0x4d1, 0xff);
	equal("ELCR1", inb(vm, 0x4d0), 0xf8);
	equal("ELCR2", inb(vm, 0x4d1), 0xde);
	outb(vm, 0x4d0, 0);
	outb(vm, 0x4d1, 0);
	for (size_t i = 0; i < nitems(edges); i++) {
		errno = 0;
		check(vm_isa_set_irq_trigger(vm->ctx, edges[i],
		    LEVEL_TRIGGER) != 0 && errno == EINVAL,
		    "IRQ %d can be a level: %s", edges[i], strerror(errno));
		check(vm_isa_set_irq_trigger(vm->ctx, edges[i],
		    EDGE_TRIGGER) == 0, "IRQ %d cannot be an edge", edges[i]);
	}
	check(vm_isa_set_irq_trigger(vm->ctx, 11, LEVEL_TRIGGER) == 0,
	    "IRQ 11 cannot be a level");
	equal("ELCR2", inb(vm, 0x4d1), 0x08);
	check(vm_isa_set_irq_trigger(vm->ctx, 16, EDGE_TRIGGER) != 0,
	    "IRQ 16 is accepted");
	/* A level interrupts repeatedly while it lasts. */
	handlers(vm, H_EXIT);
	(void)vm_isa_assert_irq(vm->ctx, 11, -1);
	window(vm);
	outb(vm, SLAVE, 0x20);
	outb(vm, MASTER, 0x20);
	window(vm);
	equal("a level of IRQ 11", count(vm, BASE2 + 3), 2);
	(void)vm_isa_deassert_irq(vm->ctx, 11, -1);
	outb(vm, SLAVE, 0x20);
	outb(vm, MASTER, 0x20);
	window(vm);
	equal("a level that has ended", count(vm, BASE2 + 3), 2);
	vm_free(vm);
}

static void
special_modes(const void *arg __unused)
{
	struct vm *vm = vm_with_pic(H_EXIT, 1);

	/* Special mask mode: a masked line in service blocks no other line. */
	pulse(vm, 3);
	window(vm);
	pulse(vm, 6);
	window(vm);
	equal("IRQ 6 below 3", count(vm, BASE1 + 6), 0);
	outb(vm, MASTER + 1, 0x08);
	outb(vm, MASTER, 0x68);
	window(vm);
	equal("IRQ 6 in special mask mode", count(vm, BASE1 + 6), 1);
	outb(vm, MASTER, 0x48);
	/* Poll: a read returns the line and acknowledges it. */
	init_pics(vm, 1, 0);
	outb(vm, MASTER, 0x63);
	outb(vm, MASTER, 0x66);
	pulse(vm, 5);
	outb(vm, MASTER, 0x0e);
	equal("a poll", inb(vm, MASTER) & 0x87, 0x85);
	equal("ISR after a poll", isr(vm, MASTER), 0x20);
	vm_free(vm);
}

/* Through LINT0 as ExtINT, with the local APIC enabled (virtual wire). */
static void
virtual_wire(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_PIC);

	init_pics(vm, 1, 0);
	pulse(vm, 5);
	window(vm);
	equal("while LINT0 is masked", count(vm, BASE1 + 5), 0);
	vm_free(vm);
	vm = vm_with_lapic(H_EOI_PIC);
	init_pics(vm, 1, 0);
	set_lapic(vm, L_LINT0, 0x700);
	pulse(vm, 5);
	window(vm);
	equal("through LINT0", count(vm, BASE1 + 5), 1);
	check(vm_isa_pulse_irq(vm->ctx, 16, -1) != 0, "IRQ 16 is accepted");
	/* An ISA line is also a pin of the I/O APIC. */
	route(vm, 11, 0x9b);
	check(vm_isa_pulse_irq(vm->ctx, 11, 11) == 0, "IRQ 11 is refused");
	handlers(vm, H_EOI_PIC | H_EOI_LAPIC);
	window(vm);
	equal("at the I/O APIC", count(vm, 0x9b), 1);
	vm_free(vm);
}

static uint16_t
latched(struct vm *vm, unsigned channel)
{
	uint8_t low;

	outb(vm, 0x43, (uint8_t)(channel << 6));
	low = inb(vm, (uint16_t)(0x40 + channel));
	return ((uint16_t)(low | inb(vm, (uint16_t)(0x40 + channel)) << 8));
}

static void
load(struct vm *vm, unsigned channel, uint8_t mode, uint16_t value)
{
	outb(vm, 0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1));
	outb(vm, (uint16_t)(0x40 + channel), (uint8_t)value);
	outb(vm, (uint16_t)(0x40 + channel), (uint8_t)(value >> 8));
}

/* The count falls; a latched one stays until it is read. */
static void
pit_counts(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint16_t first, second, third;

	for (unsigned channel = 0; channel < 3; channel += 2) {
		load(vm, channel, 2, 0xf000);
		first = latched(vm, channel);
		second = latched(vm, channel);
		check(first <= 0xf000 && second < first,
		    "channel %u goes from %#x to %#x", channel, first, second);
		/* 10 ms are about 11900 counts; a second latch is ignored. */
		load(vm, channel, 2, 0xf000);
		outb(vm, 0x43, (uint8_t)(channel << 6));
		wait_ms(10);
		second = latched(vm, channel);
		third = latched(vm, channel);
		check(second - third >= 11000 || third > second,
		    "channel %u: latched %#x, and then %#x", channel, second,
		    third);
	}
	vm_free(vm);
}

/*
 * Read-back: null count until it is loaded, OUT at the end of mode 0; port 61.
 */
static void
pit_status(const void *arg __unused)
{
	struct vm *vm = vm_new();

	outb(vm, 0x43, 0xb0);			/* channel 2, mode 0 */
	outb(vm, 0x43, 0xe8);			/* status of channel 2 */
	equal("null count before it is loaded", inb(vm, 0x42) & 0x40, 0x40);
	load(vm, 2, 0, 60000);			/* about 50 ms */
	outb(vm, 0x43, 0xe8);
	equal("null count when loaded", inb(vm, 0x42) & 0x40, 0);
	equal("OUT at port 61", inb(vm, 0x61) & 0x20, 0);
	wait_ms(100);
	equal("OUT at port 61 at the end", inb(vm, 0x61) & 0x20, 0x20);
	outb(vm, 0x43, 0xe8);
	equal("OUT in the status", inb(vm, 0x42) & 0x80, 0x80);
	vm_free(vm);
}

/* Mode 2 of channel 0: IRQ 0 and pin 2, at 1193182 Hz divided by the count. */
static void
pit_interrupts(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);
	double began, took;

	route(vm, 2, 0x95);
	began = uptime();
	load(vm, 0, 2, 29829);			/* about 40 Hz */
	while (count(vm, 0x95) < 8 && g_halt(vm))
		continue;
	took = uptime() - began;
	check(took > 7.9 / 40 && took < 8.5 / 40 + 0.2,
	    "8 periods of 1/40 s took %.4f s", took);
	/* Mode 0: one interrupt. */
	handlers(vm, H_EOI_LAPIC);
	load(vm, 0, 0, 5000);
	check(g_halt(vm), "nothing ends HLT");
	equal("interrupts of mode 0", count(vm, 0x95), 1);
	wait_ms(20);
	window(vm);
	equal("interrupts later", count(vm, 0x95), 1);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "pic.vectors",
	    "every line interrupts with its vector", vectors, NULL },
	{ "pic.masks", "IMR masks lines, and IRR shows requests", masks, NULL },
	{ "pic.priorities",
	    "priorities, EOIs and rotation follow the data sheet", priorities,
	    NULL },
	{ "pic.automatic",
	    "automatic EOI leaves nothing in service", automatic, NULL },
	{ "pic.spurious", "a request that ended before its acknowledgement is "
	    "spurious", spurious, NULL },
	{ "pic.trigger", "ELCR chooses levels or edges", trigger, NULL },
	{ "pic.special_modes",
	    "special mask mode and polling work", special_modes,
	    NULL },
	{ "pic.virtual_wire", "interrupts of the PICs pass through the local "
	    "APIC", virtual_wire, NULL },
	{ "timer.pit_counts",
	    "the PIT counts down, and a latch holds a count", pit_counts,
	    NULL },
	{ "timer.pit_status",
	    "the PIT's status and port 61 show its output", pit_status,
	    NULL },
	{ "timer.pit_interrupts",
	    "the PIT interrupts at its rate", pit_interrupts,
	    NULL },
};

GROUP(legacy, tests);
