/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * bhyve's own platform as a guest sees it, reported as TAP: one claim per line,
 * followed by its errors. The machine is defined in harness/bhyve/l2.py: a host
 * bridge at 0, virtio-rnd at 3, nvme at 4, xhci at 5, an AHCI disk at 6,
 * virtio-blk at 7, the LPC bridge at 31, and four vCPUs.  Another machine has
 * QEMU's fw_cfg.
 */

#include "rom.h"

#define	MAX_FAILURES	6u

/* The errors of the current claim; the first few are printed. */
static uint32_t wrongs;
static struct {
	const char	*what;
	uint32_t	got, wanted;
} all[MAX_FAILURES];

void
wrong(const char *what, uint32_t got, uint32_t wanted)
{
	if (wrongs < MAX_FAILURES) {
		all[wrongs].what = what;
		all[wrongs].got = got;
		all[wrongs].wanted = wanted;
	}
	wrongs++;
}

void
equal(const char *what, uint32_t got, uint32_t wanted)
{
	if (got != wanted)
		wrong(what, got, wanted);
}

struct claim {
	const char	*name;
	void		(*func)(void);
};

static const struct claim claims[] = {
	/*
	 * This is first: until its SIPI, a processor's thread in bhyve polls
	 * every millisecond, which takes most of an emulator's time.  After
	 * this it is halted.
	 */
	{ "second_processor: it starts where its SIPI says",
	    second_processor },
	{ "all_processors: all start at once", all_processors },
	{ "pci_devices: what the command line asked for is there",
	    pci_devices },
	{ "pci_widths: configuration reads the same by every width",
	    pci_widths },
	{ "pci_writes: what can be written of configuration", pci_writes },
	{ "pci_bars: BARs can be sized", pci_bars },
	{ "pci_moved: an I/O BAR moves", pci_moved },
	{ "pci_memory: a memory BAR moves", pci_memory },
	{ "pci_capabilities: capabilities end", pci_capabilities },
	{ "firmware: fwctl answers, odd lengths too", firmware },
	{ "acpi_registers: ACPI's registers", acpi_registers },
	{ "serial_line: the 16550", serial_line },
	{ "keyboard: the 8042", keyboard },
	{ "nothing: where nothing is", nothing },
	{ "acpi_tables: ACPI's tables", acpi_tables },
	{ "other_tables: the MP table and SMBIOS", other_tables },
	{ "interrupts: HLT ends with those of bhyve's devices", interrupts },
	{ "msrs: those that are bhyve's", msrs },
	{ "virtio: a device fills what it is given",
	    random_device },
	{ "virtio_disk: virtio-blk reads and writes", virtio_disk },
	{ "ahci_disk: a disk of AHCI reads and writes", ahci_disk },
	{ "nvme_disk: NVMe reads and writes", nvme_disk },
};

static const struct claim others[] = {
	{ "fwcfg_items: fw_cfg answers", fwcfg_items },
	{ "fwcfg_directory: its files", fwcfg_directory },
	{ "fwcfg_e820: the map of memory", fwcfg_e820 },
};

static void
look(const struct claim *list, uint32_t count)
{
	uint32_t failures = 0;

	interrupts_begin();
	put("TAP version 13\n1..");
	put_number(count);
	put("\n");
	for (uint32_t number = 1; number <= count; number++) {
		wrongs = 0;
		list[number - 1].func();
		failures += wrongs != 0;
		put(wrongs != 0 ? "not ok " : "ok ");
		put_number(number);
		put(" - platform.");
		put(list[number - 1].name);
		put("\n");
		for (uint32_t i = 0; i < wrongs && i < MAX_FAILURES; i++) {
			put("# ");
			put(all[i].what);
			put(" is ");
			put_hex(all[i].got);
			put(", not ");
			put_hex(all[i].wanted);
			put("\n");
		}
	}
	put("# verdict failed=");
	put_number(failures);
	put(" total=");
	put_number(count);
	put("\n");
}

void
platform(void)
{
	look(claims, sizeof(claims) / sizeof(claims[0]));
}

void
firmware_machine(void)
{
	look(others, sizeof(others) / sizeof(others[0]));
}
