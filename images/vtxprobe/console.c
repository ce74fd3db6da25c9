/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* The serial line, and the ways to end the emulator. */

#include "cpu.h"
#include "probe.h"

#define	UART_LSR	(COM1 + 5)
#define	LSR_THRE	0x20		/* holding register empty */
#define	LSR_TEMT	0x40		/* all sent */

/*
 * Bounded, so that a broken UART costs time and nothing else; a missing one
 * reads as all ones.  Long enough for a reader who looks now and then: an
 * emulator's transmitter is full until somebody has read.
 */
static void
wait_lsr(uint8_t bit)
{
	int i;

	for (i = 0; i < 20000000; i++)
		if ((inb(UART_LSR) & bit) != 0)
			return;
}

static void
put(const char *s)
{
	for (; *s != '\0'; s++) {
		wait_lsr(LSR_THRE);
		outb(COM1, (uint8_t)*s);
	}
}

void
say(const char *fmt, ...)
{
	char line[512];
	va_list ap;

	va_start(ap, fmt);
	format(line, sizeof(line), fmt, ap);
	va_end(ap);
	put(line);
}

/*
 * QEMU leaves at isa-debug-exit, with a code for the result; Bochs
 * when "Shutdown" was written to its port 0x8900.  What has neither gets
 * ACPI's soft-off (PM1a_CNT SLP_EN with SLP_TYP 0): 0xb004 is where Bochs
 * has the PIIX4's register, 0x604 where QEMU has it.
 */
void
power_off(int code)
{
	const char *s;

	wait_lsr(LSR_TEMT);
	outb(DEBUG_EXIT, (uint8_t)code);
	for (s = "Shutdown"; *s != '\0'; s++)
		outb(0x8900, (uint8_t)*s);
	outw(0xb004, 0x2000);
	outw(0x604, 0x2000);
	for (;;)
		__asm__ volatile("cli; hlt");
}

void
bail_out(const char *fmt, ...)
{
	char line[512];
	va_list ap;

	va_start(ap, fmt);
	format(line, sizeof(line), fmt, ap);
	va_end(ap);
	say("Bail out! %s\n", line);
	power_off(EXIT_BAIL);
}
