/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Devices that are not on the PCI bus: fwctl, ACPI's registers and tables, the
 * serial line, the keyboard's controller.
 */

#include "rom.h"

#define	FWCTL_OUT	0x510
#define	FWCTL_IN	0x511

static uint32_t
fwctl_word(void)
{
	return (inl(FWCTL_IN));
}

/* One request: header, then the name; the answer is read completely. */
static uint32_t
fwctl(uint32_t operation, const char *name, uint32_t length, uint32_t *value)
{
	uint32_t size, error = 0, word;

	outl(FWCTL_OUT, 12 + length);
	outl(FWCTL_OUT, operation);
	outl(FWCTL_OUT, 0x4242);
	for (uint32_t i = 0; i < length; i += 4) {
		word = 0;
		for (uint32_t j = 0; j < 4 && i + j < length; j++)
			word |= (uint32_t)(uint8_t)name[i + j] << j * 8;
		outl(FWCTL_OUT, word);
	}
	size = fwctl_word();
	equal("fwctl: its operation", fwctl_word(), operation);
	equal("fwctl: its number", fwctl_word(), 0x4242);
	error = fwctl_word();
	for (uint32_t i = 16; i < size && i < 64; i += 4) {
		word = fwctl_word();
		if (value != 0 && i < 32)
			value[(i - 16) / 4] = word;
	}
	return (error);
}

/* fwctl: the signature, hw.ncpu with its exact length, and bad requests. */
void
firmware(void)
{
	static const char name[8] = "hw.ncpu";
	uint32_t value[4] = { 0, 0, 0, 0 };

	outw(FWCTL_OUT, 0);			/* identify again */
	equal("B", inb(FWCTL_IN), 'B');
	equal("H", inb(FWCTL_IN), 'H');
	equal("Y", inb(FWCTL_IN), 'Y');
	equal("V", inb(FWCTL_IN), 'V');
	/* 3 gets a length, 4 a value: its length, 8 bytes, in front. */
	equal("a length's error", fwctl(3, name, 8, value), 0);
	equal("the length of hw.ncpu", value[0], 4);
	equal("a value's error", fwctl(4, name, 8, value), 0);
	equal("the length of hw.ncpu", value[0], 4);
	equal("hw.ncpu", value[2], 4);
	/* 7 bytes are not a multiple of 4. */
	equal("an odd length's error", fwctl(4, name, 7, value), 0);
	equal("hw.ncpu, odd", value[2], 4);
	if (fwctl(4, "hw.none", 8, 0) == 0)
		wrong("the error of an unknown name", 0, 2);
	if (fwctl(99, name, 8, 0) == 0)
		wrong("the error of an unknown operation", 0, 2);
}

#define	PM1_STATUS	0x400
#define	PM1_ENABLE	0x402
#define	PM1_CONTROL	0x404
#define	SMI_COMMAND	0xb2

/* ACPI 6, 4.8.3: only the bits that bhyve has can be set; SCI_EN by SMI. */
void
acpi_registers(void)
{
	equal("status", inw(PM1_STATUS), 0);
	outw(PM1_ENABLE, 0xffff);
	equal("enable", inw(PM1_ENABLE), 0x0520);
	outw(PM1_ENABLE, 0);
	equal("enable", inw(PM1_ENABLE), 0);
	outw(PM1_CONTROL, 0);
	outb(SMI_COMMAND, 0xa0);
	equal("SCI_EN when enabled", inw(PM1_CONTROL) & 1, 1);
	outw(PM1_CONTROL, 0x1c00);		/* SLP_TYP without SLP_EN */
	equal("control", inw(PM1_CONTROL), 0x1c01);
	outw(PM1_CONTROL, 0);
	outb(SMI_COMMAND, 0xa1);
	equal("SCI_EN when disabled", inw(PM1_CONTROL) & 1, 0);
	outb(0xcf9, 2);
	equal("reset control", inb(0xcf9), 2);
	outb(0xcf9, 0);
}

/* 16550: scratch register, divisor latch, loopback, and what is read-only. */
void
serial_line(void)
{
	uint8_t line = inb(0x3fb);

	outb(0x3ff, 0x5a);
	equal("scratch", inb(0x3ff), 0x5a);
	outb(0x3fb, line | 0x80);
	outb(0x3f9, 0x12);
	equal("divisor", inb(0x3f9), 0x12);
	outb(0x3f9, 0);
	outb(0x3fb, line);
	equal("interrupt enable", inb(0x3f9), 0);
	equal("no interrupt", inb(0x3fa) & 1, 1);
	outb(0x3fc, 0x1f);			/* loopback, all outputs */
	equal("loopback", inb(0x3fe) & 0xf0, 0xf0);
	outb(0x3fc, 0x10);
	equal("loopback, none", inb(0x3fe) & 0xf0, 0);
	while ((inb(0x3fd) & 1) != 0)
		(void)inb(0x3f8);
	outb(0x3f8, 'Z');
	equal("a character, looped back", inb(0x3fd) & 1, 1);
	equal("which one", inb(0x3f8), 'Z');
	equal("no other", inb(0x3fd) & 1, 0);
	outb(0x3fc, 0x03);
	equal("modem control", inb(0x3fc), 0x03);
	equal("the transmitter is empty", inb(0x3fd) & 0x60, 0x60);
}

/* 8042: its own test, its command byte. */
void
keyboard(void)
{
	uint8_t mode;

	while ((inb(0x64) & 1) != 0)
		(void)inb(0x60);
	outb(0x64, 0xaa);
	equal("self-test", inb(0x60), 0x55);
	outb(0x64, 0xab);
	equal("interface test", inb(0x60), 0);
	outb(0x64, 0x20);
	mode = inb(0x60);
	outb(0x64, 0x60);
	outb(0x60, mode ^ 0x40);
	outb(0x64, 0x20);
	equal("command byte", inb(0x60), mode ^ 0x40u);
	outb(0x64, 0x60);
	outb(0x60, mode);
}

/* Where there is no device, reads of every size return all ones. */
void
nothing(void)
{
	equal("a byte", inb(0x5000), 0xff);
	equal("a word", inw(0x5000), 0xffff);
	equal("a double word", inl(0x5000), 0xffffffff);
	outb(0x5000, 1);
	equal("memory that is not there",
	    *(volatile uint32_t *)(uintptr_t)0xdf000000u, 0xffffffff);
}

static uint8_t
sum(const volatile uint8_t *bytes, uint32_t length)
{
	uint8_t total = 0;

	for (uint32_t i = 0; i < length; i++)
		total = (uint8_t)(total + bytes[i]);
	return (total);
}

static const volatile uint8_t *
find(uint32_t from, uint32_t to, const char *text, uint32_t length)
{
	for (uint32_t at = from; at < to; at += 16) {
		const volatile uint8_t *here = (void *)(uintptr_t)at;
		uint32_t i = 0;

		while (i < length && here[i] == (uint8_t)text[i])
			i++;
		if (i == length)
			return (here);
	}
	return (0);
}

static uint32_t
word_at(const volatile uint8_t *at)
{
	return (at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
	    (uint32_t)at[3] << 24);
}

/* ACPI's tables: checksums all the way down, and a processor for each vCPU. */
void
acpi_tables(void)
{
	const volatile uint8_t *rsdp, *xsdt, *table;
	uint32_t length, processors = 0;

	rsdp = find(0xe0000, 0x100000, "RSD PTR ", 8);
	if (rsdp == 0) {
		wrong("RSD PTR", 0, 1);
		return;
	}
	equal("RSDP's checksum", sum(rsdp, 20), 0);
	equal("its extended checksum", sum(rsdp, word_at(rsdp + 20)), 0);
	xsdt = (const volatile uint8_t *)(uintptr_t)word_at(rsdp + 24);
	length = word_at(xsdt + 4);
	equal("XSDT's signature", word_at(xsdt), 0x54445358);
	equal("XSDT's checksum", sum(xsdt, length), 0);
	for (uint32_t at = 36; at + 8 <= length && at < 36 + 8 * 16; at += 8) {
		table = (const volatile uint8_t *)(uintptr_t)word_at(xsdt +
		    at);
		equal("a table's checksum", sum(table, word_at(table + 4)),
		    0);
		if (word_at(table) != 0x43495041)	/* APIC */
			continue;
		equal("the local APIC's address", word_at(table + 36),
		    0xfee00000);
		for (uint32_t i = 44; i + 2 <= word_at(table + 4) &&
		    table[i + 1] != 0; i += table[i + 1])
			processors += table[i] == 0 && (table[i + 4] & 1);
	}
	equal("processors", processors, 4);
}

/* The MP table and SMBIOS, where bhyve puts them. */
void
other_tables(void)
{
	const volatile uint8_t *mp, *bios;

	mp = find(0xf0000, 0x100000, "_MP_", 4);
	if (mp != 0) {
		const volatile uint8_t *table =
		    (const volatile uint8_t *)(uintptr_t)word_at(mp + 4);

		equal("_MP_'s checksum", sum(mp, 16), 0);
		equal("PCMP", word_at(table), 0x504d4350);
		equal("the MP table's checksum", sum(table,
		    word_at(table + 4) & 0xffff), 0);
	}
	bios = find(0xf0000, 0x100000, "_SM_", 4);
	if (bios == 0) {
		wrong("_SM_", 0, 1);
		return;
	}
	equal("_SM_'s checksum", sum(bios, bios[5]), 0);
	equal("_DMI_'s checksum", sum(bios + 16, 15), 0);
}
