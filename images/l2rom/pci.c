/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * PCI configuration and BARs, in the machine that platform.c describes.
 */

#include "rom.h"

#define	CONFIG_ADDRESS	0xcf8
#define	CONFIG_DATA	0xcfc
#define	ECFG		0xe0000000u

static void
address(uint32_t slot, uint32_t function, uint32_t offset)
{
	outl(CONFIG_ADDRESS, 0x80000000u | slot << 11 | function << 8 |
	    (offset & 0xfc));
}

static uint32_t
config(uint32_t slot, uint32_t offset)
{
	address(slot, 0, offset);
	return (inl(CONFIG_DATA));
}

static void
set_config(uint32_t slot, uint32_t offset, uint32_t value)
{
	address(slot, 0, offset);
	outl(CONFIG_DATA, value);
}

uint32_t
pci_config(uint32_t slot, uint32_t offset)
{
	return (config(slot, offset));
}

void
pci_set_config(uint32_t slot, uint32_t offset, uint32_t value)
{
	set_config(slot, offset, value);
}

/* The slot of the first device of a class, or PCI_SLOTS. */
uint32_t
pci_find(uint32_t class)
{
	uint32_t slot = 0;

	while (slot < PCI_SLOTS && config(slot, 8) >> 8 != class)
		slot++;
	return (slot);
}

static bool
there(uint32_t slot)
{
	return (config(slot, 0) != 0xffffffffu);
}

/* Vendors and classes of the devices on bhyve's command line. */
void
pci_devices(void)
{
	equal("the host bridge", config(0, 0), 0x12751275);
	equal("its class", config(0, 8) >> 16, 0x0600);
	equal("virtio-rnd's vendor", config(3, 0) & 0xffff, 0x1af4);
	equal("virtio-rnd's device", config(3, 0) >> 16, 0x1005);
	equal("nvme's class", config(4, 8) >> 8, 0x010802);
	equal("xhci's class", config(5, 8) >> 8, 0x0c0330);
	equal("the LPC bridge", config(31, 0), 0x70008086);
	equal("its class", config(31, 8) >> 16, 0x0601);
	/* The firmware turns on decoding; before that nothing is decoded. */
	equal("AHCI's class", config(6, 8) >> 8, 0x010601);
	equal("virtio-blk's device", config(7, 0), 0x10011af4);
	for (uint32_t slot = 3; slot < 8; slot++)
		equal("decoding at power-on", config(slot, 4) & 3, 0);
	for (uint32_t slot = 8; slot < 31; slot++)
		equal("an empty slot", config(slot, 0), 0xffffffff);
	address(3, 1, 0);
	equal("a function that is not there", inl(CONFIG_DATA), 0xffffffff);
}

/* The same by bytes, words and double words, and through MMIO (ECFG). */
void
pci_widths(void)
{
	for (uint32_t slot = 0; slot < PCI_SLOTS; slot++) {
		if (!there(slot))
			continue;
		for (uint32_t offset = 0; offset < 0x40; offset += 4) {
			uint32_t whole = config(slot, offset);

			for (uint32_t i = 0; i < 4; i++)
				equal("a byte", inb((uint16_t)(CONFIG_DATA +
				    i)), whole >> i * 8 & 0xff);
			for (uint32_t i = 0; i < 4; i += 2)
				equal("a word", inw((uint16_t)(CONFIG_DATA +
				    i)), whole >> i * 8 & 0xffff);
			equal("by MMIO", *(volatile uint32_t *)(uintptr_t)
			    (ECFG + (slot << 15) + offset), whole);
		}
	}
	address(3, 0, 8);
	equal("the address", inl(CONFIG_ADDRESS), 0x80001808);
	outl(CONFIG_ADDRESS, 0x00001800);
	equal("data while it is off", inl(CONFIG_DATA), 0xffffffff);
	equal("the address while it is off", inl(CONFIG_ADDRESS), 0x1800);
}

/* Identification is read-only, the interrupt line is not. */
void
pci_writes(void)
{
	for (uint32_t slot = 3; slot < 8; slot++) {
		uint32_t before = config(slot, 0), line;

		line = config(slot, 0x3c);
		set_config(slot, 0x3c, (line & ~0xffu) | 0x5a);
		equal("the interrupt line", config(slot, 0x3c) & 0xff, 0x5a);
		equal("the interrupt pin", config(slot, 0x3c) >> 8 & 0xff,
		    line >> 8 & 0xff);
		set_config(slot, 0x3c, line);
		equal("identification", config(slot, 0), before);
		/* Unusual ways to write a BAR change nothing. */
		before = config(slot, 0x10);
		address(slot, 0, 0x10);
		outb(CONFIG_DATA + 1, 0xff);
		outw(CONFIG_DATA + 2, 0xffff);
		equal("a BAR written by bytes", config(slot, 0x10), before);
	}
}

static bool
power_of_two(uint32_t value)
{
	return (value != 0 && (value & (value - 1)) == 0);
}

/* Every BAR can be sized, and is restored. */
void
pci_bars(void)
{
	for (uint32_t slot = 0; slot < PCI_SLOTS; slot++) {
		uint32_t command;

		if (!there(slot))
			continue;
		command = config(slot, 4);
		set_config(slot, 4, command & ~3u);
		for (uint32_t bar = 0x10; bar < 0x28; bar += 4) {
			uint32_t before = config(slot, bar), mask, flags;
			uint32_t high = 0;

			set_config(slot, bar, 0xffffffff);
			mask = config(slot, bar);
			set_config(slot, bar, before);
			equal("a BAR that was sized", config(slot, bar),
			    before);
			if (mask == 0)
				continue;
			flags = mask & 1 ? mask & 3 : mask & 0xf;
			equal("a BAR's flags", before & (mask & 1 ? 3 : 0xf),
			    flags);
			mask &= mask & 1 ? ~3u : ~0xfu;
			if ((flags & 1) != 0)
				mask |= 0xffff0000;
			if (!power_of_two(~mask + 1))
				wrong("a BAR's size", ~mask + 1, 0);
			equal("a BAR's alignment", before & ~mask &
			    (flags & 1 ? ~3u : ~0xfu), 0);
			if ((flags & 7) != 4)
				continue;
			/* 64 bits: the upper half is a BAR of its own. */
			bar += 4;
			high = config(slot, bar);
			set_config(slot, bar, 0xffffffff);
			equal("an upper half's size", config(slot, bar),
			    0xffffffff);
			set_config(slot, bar, high);
			equal("an upper half", config(slot, bar), high);
		}
		set_config(slot, 4, command);
		equal("the command", config(slot, 4) & 7, command & 7);
	}
}

/* virtio-rnd's registers move with its BAR, and end with its decoding. */
void
pci_moved(void)
{
	uint32_t before = config(3, 0x10), command = config(3, 4);
	uint16_t port = (uint16_t)(before & ~3u), other = 0x3000;
	uint32_t features;

	equal("an I/O BAR", before & 1, 1);
	set_config(3, 4, command | 1);
	features = inl(port);
	outb((uint16_t)(port + 18), 0);		/* status: reset */
	equal("status", inb((uint16_t)(port + 18)), 0);
	outb((uint16_t)(port + 18), 3);
	equal("status", inb((uint16_t)(port + 18)), 3);
	set_config(3, 0x10, other);
	equal("the BAR", config(3, 0x10), other | 1u);
	equal("features, moved", inl(other), features);
	equal("status, moved", inb((uint16_t)(other + 18)), 3);
	equal("where it was", inl(port), 0xffffffff);
	set_config(3, 4, command & ~1u);
	equal("while it is not decoded", inl(other), 0xffffffff);
	set_config(3, 4, command | 1);
	equal("status, decoded again", inb((uint16_t)(other + 18)), 3);
	set_config(3, 0x10, before);
	outb((uint16_t)(port + 18), 0);
	equal("status, moved back", inb((uint16_t)(port + 18)), 0);
	set_config(3, 4, command);
}

/* nvme's registers: capabilities, version; a 64-bit memory BAR that moves. */
void
pci_memory(void)
{
	uint32_t before = config(4, 0x10), high = config(4, 0x14), version;
	uint32_t other = 0xd8000000;

	equal("a 64-bit BAR", before & 7, 4);
	set_config(4, 4, config(4, 4) | 2);
	/* Wherever it was, it is moved below 4 GiB. */
	set_config(4, 0x10, other);
	set_config(4, 0x14, 0);
	version = *(volatile uint32_t *)(uintptr_t)(other + 8);
	if (version >> 16 != 1)
		wrong("nvme's version", version, 0x00010400);
	set_config(4, 0x10, other + 0x100000);
	equal("its version, moved", *(volatile uint32_t *)(uintptr_t)(other +
	    0x100000 + 8), version);
	equal("where it was", *(volatile uint32_t *)(uintptr_t)(other + 8),
	    0xffffffff);
	set_config(4, 0x10, before);
	set_config(4, 0x14, high);
}

/* Lists of capabilities end, and MSI-X tables are in a BAR. */
void
pci_capabilities(void)
{
	for (uint32_t slot = 0; slot < PCI_SLOTS; slot++) {
		uint32_t at, header, steps = 0;

		if (!there(slot) || (config(slot, 4) & 0x100000) == 0)
			continue;
		at = config(slot, 0x34) & 0xfc;
		while (at != 0 && steps++ < 48) {
			header = config(slot, at);
			if (at < 0x40)
				wrong("a capability's place", at, 0x40);
			if ((header & 0xff) == 0x11 &&
			    (config(slot, at + 4) & 7) > 5)
				wrong("an MSI-X table's BAR",
				    config(slot, at + 4) & 7, 5);
			at = header >> 8 & 0xfc;
		}
		if (steps >= 48)
			wrong("the number of capabilities", steps, 8);
	}
}
