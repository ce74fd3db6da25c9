/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Interrupts and exceptions: a table of handlers, and claims about the timer,
 * the serial line and MSRs.  HLT waits for each interrupt.
 */

#include "rom.h"

#define	ENTRIES		256u
#define	LAPIC		0xfee00000u
#define	IOAPIC		0xfec00000u
#define	MASKED		0x10000u

/* Vectors by their sources. */
#define	V_PIC		0x20u
#define	V_APIC		0x50u
#define	V_TIMER_PIN	(V_APIC + 2)
#define	V_LAPIC_TIMER	(V_APIC + 3)
#define	V_SERIAL_PIN	(V_APIC + 4)

/* reset.S: 16 handlers for the PICs and 16 for the APIC, 16 bytes each. */
extern const uint8_t pic_handlers[], apic_handlers[], fault_handler[];
void	on_interrupt(uint32_t);

static uint64_t table[ENTRIES] __attribute__((aligned(8)));
static volatile uint32_t counts[ENTRIES];
static volatile uint8_t serial_cause;
/* fault_handler sets the first, and continues at the second. */
volatile uint32_t fault_seen, fault_resume;

/* Counts an interrupt, and acknowledges it at its controller. */
void
on_interrupt(uint32_t vector)
{
	counts[vector]++;
	if (vector == V_PIC + 4 || vector == V_SERIAL_PIN)
		serial_cause = inb(0x3fa);
	if (vector >= V_APIC) {
		*(volatile uint32_t *)(uintptr_t)(LAPIC + 0xb0) = 0;
		return;
	}
	if (vector >= V_PIC + 8)
		outb(0xa0, 0x20);
	outb(0x20, 0x20);
}

static void
gate(uint32_t vector, const uint8_t *handler)
{
	uint32_t at = (uint32_t)(uintptr_t)handler;

	table[vector] = (uint64_t)(at >> 16) << 48 | 0x8e0000080000ull |
	    (at & 0xffff);
}

/* The table is loaded, with an entry for #GP and those that are counted. */
void
interrupts_begin(void)
{
	struct { uint16_t limit; uint32_t base; } __attribute__((packed)) idtr
	    = { sizeof(table) - 1, (uint32_t)(uintptr_t)table };

	gate(13, fault_handler);
	for (uint32_t i = 0; i < 16; i++) {
		gate(V_PIC + i, pic_handlers + i * 16);
		gate(V_APIC + i, apic_handlers + i * 16);
	}
	__asm__ volatile("lidt %0" : : "m"(idtr));
}

uint32_t
interrupts_of(uint32_t vector)
{
	return (counts[vector]);
}

/*
 * HLT until the vector has come once more.  STI lets none in before HLT, and
 * HLT may end for no reason (the hypervisor has something else to do).
 */
void
halt_for(uint32_t vector, uint32_t before)
{
	for (uint32_t tries = 0; tries < 1000; tries++) {
		__asm__ volatile("cli" : : : "memory");
		if (counts[vector] != before)
			break;
		__asm__ volatile("sti; hlt" : : : "memory");
	}
	__asm__ volatile("sti" : : : "memory");
}

static void
set_pics(uint8_t first, uint8_t second)
{
	/* ICW1 to ICW4: edges, vectors, cascade on pin 2, 8086. */
	outb(0x20, 0x11);
	outb(0x21, V_PIC);
	outb(0x21, 4);
	outb(0x21, 1);
	outb(0xa0, 0x11);
	outb(0xa1, V_PIC + 8);
	outb(0xa1, 2);
	outb(0xa1, 1);
	outb(0x21, first);
	outb(0xa1, second);
}

/* Channel 0 of the 8254, once after 1 ms. */
static void
start_timer(void)
{
	outb(0x43, 0x30);
	outb(0x40, 1193 & 0xff);
	outb(0x40, 1193 >> 8);
}

static void
set_lapic(uint32_t offset, uint32_t value)
{
	*(volatile uint32_t *)(uintptr_t)(LAPIC + offset) = value;
}

static void
route(uint32_t pin, uint32_t value)
{
	volatile uint32_t *window = (volatile uint32_t *)(uintptr_t)IOAPIC;

	window[0] = 0x11 + pin * 2;
	window[4] = 0;
	window[0] = 0x10 + pin * 2;
	window[4] = value;
}

/* bhyve's serial line asks for an interrupt while it could send. */
static void
serial_interrupt(const char *how, uint32_t vector)
{
	uint32_t before = counts[vector];

	serial_cause = 0xff;
	outb(0x3fc, 0x0b);
	outb(0x3f9, 0x02);
	halt_for(vector, before);
	outb(0x3f9, 0);
	if (counts[vector] == before)
		wrong(how, 0, 1);
	equal("the serial line's cause", serial_cause & 0x0f, 0x02);
}

/* HLT ends with the timer's and the serial line's interrupt, by both ways. */
void
interrupts(void)
{
	uint32_t before;

	set_lapic(0xf0, 0x1ff);
	set_lapic(0x350, 0x700);		/* LINT0: ExtINT */
	set_pics(0xff & ~(1u << 0), 0xff);
	before = counts[V_PIC];
	start_timer();
	halt_for(V_PIC, before);
	equal("the timer by the PIC", counts[V_PIC], before + 1);
	outb(0x21, 0xff & ~(1u << 4));
	serial_interrupt("the serial line by the PIC", V_PIC + 4);
	outb(0x21, 0xff);

	route(2, V_TIMER_PIN);
	before = counts[V_TIMER_PIN];
	start_timer();
	halt_for(V_TIMER_PIN, before);
	equal("the timer by the I/O APIC", counts[V_TIMER_PIN], before + 1);
	route(2, MASKED);
	route(4, V_SERIAL_PIN);
	serial_interrupt("the serial line by the I/O APIC", V_SERIAL_PIN);
	route(4, MASKED);

	before = counts[V_LAPIC_TIMER];
	set_lapic(0x3e0, 0xb);
	set_lapic(0x320, V_LAPIC_TIMER);
	set_lapic(0x380, 100000);
	halt_for(V_LAPIC_TIMER, before);
	equal("the local APIC's timer", counts[V_LAPIC_TIMER], before + 1);
	set_lapic(0x320, MASKED);
	equal("interrupts of nobody", counts[V_PIC + 7] + counts[V_PIC + 15],
	    0);
}

/* False if it causes a #GP. */
static bool
read_msr(uint32_t number, uint32_t *low, uint32_t *high)
{
	fault_seen = 0;
	__asm__ volatile("movl $1f, %2\n\trdmsr\n1:"
	    : "=a"(*low), "=d"(*high), "=m"(fault_resume)
	    : "c"(number), "a"(0x55555555), "d"(0x55555555) : "memory");
	return (fault_seen == 0);
}

static bool
write_msr(uint32_t number, uint32_t low)
{
	fault_seen = 0;
	__asm__ volatile("movl $1f, %0\n\twrmsr\n1:" : "=m"(fault_resume)
	    : "c"(number), "a"(low), "d"(0) : "memory");
	return (fault_seen == 0);
}

static bool
is_intel(void)
{
	uint32_t a = 0, b, c, d;

	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
	return (b == 0x756e6547);		/* "Genu" */
}

/* MSRs that the kernel passes to bhyve, which handles a few of them. */
void
msrs(void)
{
	static const struct { uint32_t number, low; } known[2][4] = {
		/* MSR_BIOS_SIGN, NB_CFG1, 0xc0011029, PERF_CTL0 */
		{ { 0x8b, 0 }, { 0xc001001f, 0 }, { 0xc0011029, 1 },
		    { 0xc0010000, 0 } },
		/*
		 * MSR_BIOS_SIGN, FEATURE_CONTROL, RAPL_POWER_UNIT, PKG_ENERGY
		 */
		{ { 0x8b, 0 }, { 0x3a, 1 }, { 0x606, 0xa1003 }, { 0x611, 0 } },
	};
	static const uint32_t ignored[2] = { 0xc0010015, 0x8b };
	static const uint32_t none[3] = { 0x12345678, 0xc0011fff, 0x270 };
	bool intel = is_intel();
	uint32_t low, high;

	for (uint32_t i = 0; i < 4; i++) {
		if (!read_msr(known[intel][i].number, &low, &high)) {
			wrong("a #GP for the MSR", known[intel][i].number, 0);
			continue;
		}
		equal("an MSR", low, known[intel][i].low);
		equal("its upper half", high, 0);
	}
	if (!write_msr(ignored[intel], 0))
		wrong("a #GP for a write of the MSR", ignored[intel], 0);
	for (uint32_t i = 0; i < 3; i++) {
		if (read_msr(none[i], &low, &high))
			wrong("an unknown MSR", none[i], 0);
		if (write_msr(none[i], 0))
			wrong("a write to an unknown MSR", none[i], 0);
	}
}
