/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * The watchdog: channel 0 of the 8254 in one-shot mode, through the first
 * 8259.  vmm.ko insists on external-interrupt exiting, so an interrupt
 * takes the processor away from any L2, even from one that spins.
 */

#include "cpu.h"
#include "probe.h"

#define	PIC1		0x20
#define	PIC2		0xa0
#define	PIT_CH0		0x40
#define	PIT_MODE	0x43

void
watchdog_init(void)
{
	/* ICW1..4: edge, cascade, vectors from 0x20 and 0x28, 8086 mode. */
	outb(PIC1, 0x11);
	outb(PIC2, 0x11);
	outb(PIC1 + 1, WATCHDOG_VECTOR);
	outb(PIC2 + 1, WATCHDOG_VECTOR + 8);
	outb(PIC1 + 1, 0x04);
	outb(PIC2 + 1, 0x02);
	outb(PIC1 + 1, 0x01);
	outb(PIC2 + 1, 0x01);
	outb(PIC1 + 1, 0xff);
	outb(PIC2 + 1, 0xff);
}

/* Mode 0 raises the line once, `count` periods of 838 ns from now. */
void
watchdog_arm(uint16_t count)
{
	outb(PIT_MODE, 0x30);
	outb(PIT_CH0, (uint8_t)count);
	outb(PIT_CH0, (uint8_t)(count >> 8));
	outb(PIC1 + 1, 0xfe);
}

void
watchdog_disarm(void)
{
	outb(PIC1 + 1, 0xff);
}

/* Whether the 8259 has a tick that nobody took. */
int
watchdog_pending(void)
{
	outb(PIC1, 0x0a);			/* OCW3: read IRR */
	return (inb(PIC1) & 1);
}

/* Non-specific end of interrupt. */
void
watchdog_ack(void)
{
	outb(PIC1, 0x20);
}
