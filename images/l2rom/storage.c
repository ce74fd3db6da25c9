/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Drivers for disks: virtio-blk at slot 7 by its ring, an AHCI disk at slot
 * 6 by command lists (AHCI 1.3.1, ATA8-ACS), the NVMe at slot 4 by queues (NVM
 * Express 1.4).  Each has 1 MiB of zeros.  All are polled.
 */

#include "rom.h"

#define	DISK_BYTES	0x100000u
#define	SECTOR		512u
#define	BUFFER		0x240000u
#define	OTHER		0x250000u
#define	TRIES		4000000u

static volatile uint8_t *const buffer = (volatile uint8_t *)BUFFER;
static volatile uint8_t *const other = (volatile uint8_t *)OTHER;

static uint32_t
get32(volatile uint8_t *at)
{
	return (*(volatile uint32_t *)at);
}

static void
put32(volatile uint8_t *at, uint32_t value)
{
	*(volatile uint32_t *)at = value;
}

static void
clear(volatile uint8_t *at, uint32_t bytes)
{
	for (uint32_t i = 0; i < bytes; i += 4)
		put32(at + i, 0);
}

static void
pattern(volatile uint8_t *at, uint32_t bytes, uint32_t seed)
{
	for (uint32_t i = 0; i < bytes; i++)
		at[i] = (uint8_t)(seed + i * 7 + (i >> 8));
}

static void
expect_pattern(const char *what, volatile uint8_t *at, uint32_t bytes,
    uint32_t seed)
{
	for (uint32_t i = 0; i < bytes; i++) {
		if (at[i] != (uint8_t)(seed + i * 7 + (i >> 8))) {
			wrong(what, at[i], (uint8_t)(seed + i * 7 + (i >> 8)));
			return;
		}
	}
}

/* Have a slot's memory BAR decoded below 4 GiB; returns its address. */
static uint32_t
memory_bar(uint32_t slot, uint32_t bar, uint32_t place)
{
	uint32_t value = pci_config(slot, bar);

	pci_set_config(slot, bar, place);
	if ((value & 7) == 4)
		pci_set_config(slot, bar + 4, 0);
	pci_set_config(slot, 4, (pci_config(slot, 4) & 0xffff) | 6);
	return (place);
}

/* virtio-blk: virtio 1.0, 5.2.6; the last byte of each request is its end. */
static uint8_t
block_request(struct virtio *disk, uint32_t type, uint32_t sector,
    volatile uint8_t *data, uint32_t bytes, bool written)
{
	static volatile uint32_t header[4];
	static volatile uint8_t status;
	struct piece pieces[3] = { { (void *)(uintptr_t)header, 16, false },
	    { (void *)(uintptr_t)data, bytes, written },
	    { (void *)(uintptr_t)&status, 1, true } };

	header[0] = type;
	header[1] = 0;
	header[2] = sector;
	header[3] = 0;
	status = 0xee;
	if (bytes == 0)
		pieces[1] = pieces[2];
	if (!virtio_use(disk, pieces, bytes == 0 ? 2 : 3))
		return (0xff);
	return (status);
}

void
virtio_disk(void)
{
	struct virtio disk;

	if (!virtio_open(&disk, 0x1001, 0)) {
		wrong("virtio-blk", 0, 1);
		return;
	}
	equal("its sectors", virtio_config(&disk, 0), DISK_BYTES / SECTOR);
	equal("its sectors, upper half", virtio_config(&disk, 4), 0);
	pattern(buffer, 4 * SECTOR, 3);
	equal("writing 4 sectors", block_request(&disk, 1, 8, buffer,
	    4 * SECTOR, false), 0);
	clear(other, 4 * SECTOR);
	equal("reading 4 sectors", block_request(&disk, 0, 8, other,
	    4 * SECTOR, true), 0);
	expect_pattern("what was written", other, 4 * SECTOR, 3);
	equal("reading 2 of them", block_request(&disk, 0, 9, other,
	    2 * SECTOR, true), 0);
	equal("its first byte", other[0], buffer[SECTOR]);
	equal("reading unwritten sectors", block_request(&disk, 0, 7, other,
	    SECTOR, true), 0);
	equal("its first byte", get32(other), 0);
	equal("the last sector", block_request(&disk, 0,
	    DISK_BYTES / SECTOR - 1, other, SECTOR, true), 0);
	equal("a flush", block_request(&disk, 4, 0, buffer, 0, false), 0);
	clear(other, 32);
	equal("its name", block_request(&disk, 8, 0, other, 20, true), 0);
	if (other[0] == 0)
		wrong("the name's first letter", 0, 'B');
	equal("an unknown request", block_request(&disk, 77, 0, other,
	    SECTOR, true), 2);
}

/* AHCI: a list of commands, whose first entry is used, and its data. */
#define	AHCI_BAR	0xd6000000u
#define	LIST		0x260000u
#define	RECEIVED	0x261000u
#define	TABLE		0x262000u
#define	P_LIST		0x100u
#define	P_RECEIVED	0x108u
#define	P_STATUS	0x110u
#define	P_COMMAND	0x118u
#define	P_TASK		0x120u
#define	P_SIGNATURE	0x124u
#define	P_LINK		0x128u
#define	P_ISSUE		0x138u

static volatile uint8_t *const ahci = (volatile uint8_t *)AHCI_BAR;

/* A command of ATA to port 0; the task file at its end, or all ones. */
static uint32_t
ata(uint8_t command, uint32_t sector, uint32_t sectors, volatile uint8_t *data,
    uint32_t bytes, bool write)
{
	volatile uint8_t *list = (volatile uint8_t *)LIST;
	volatile uint8_t *table = (volatile uint8_t *)TABLE;

	clear(list, 32);
	clear(table, 0x90);
	table[0] = 0x27;			/* from host to device */
	table[1] = 0x80;			/* a command */
	table[2] = command;
	table[4] = (uint8_t)sector;
	table[5] = (uint8_t)(sector >> 8);
	table[6] = (uint8_t)(sector >> 16);
	table[7] = 0x40;			/* by sector's number */
	table[12] = (uint8_t)sectors;
	table[13] = (uint8_t)(sectors >> 8);
	put32(list, 5 | (write ? 0x40u : 0) | (bytes != 0 ? 1u << 16 : 0));
	put32(list + 8, TABLE);
	if (bytes != 0) {
		put32(table + 0x80, (uint32_t)(uintptr_t)data);
		put32(table + 0x8c, bytes - 1);
	}
	put32(ahci + P_STATUS, 0xffffffff);
	put32(ahci + P_ISSUE, 1);
	for (uint32_t i = 0; i < TRIES; i++) {
		if ((get32(ahci + P_ISSUE) & 1) == 0 ||
		    (get32(ahci + P_STATUS) & 1u << 30) != 0)
			return (get32(ahci + P_TASK));
		__asm__ volatile("pause");
	}
	return (0xffffffff);
}

static bool
start_ahci(void)
{
	if (pci_config(6, 8) >> 8 != 0x010601)
		return (false);
	(void)memory_bar(6, 0x24, AHCI_BAR);
	put32(ahci + 4, 1u << 31);
	equal("AHCI's mode", get32(ahci + 4) >> 31, 1);
	equal("port 0 is there", get32(ahci + 12) & 1, 1);
	put32(ahci + P_COMMAND, get32(ahci + P_COMMAND) & ~0x11u);
	put32(ahci + P_LIST, LIST);
	put32(ahci + P_LIST + 4, 0);
	put32(ahci + P_RECEIVED, RECEIVED);
	put32(ahci + P_RECEIVED + 4, 0);
	put32(ahci + P_COMMAND, get32(ahci + P_COMMAND) | 0x10);
	put32(ahci + P_COMMAND, get32(ahci + P_COMMAND) | 1);
	equal("a device, and its link", get32(ahci + P_LINK) & 0xf, 3);
	equal("a disk's signature", get32(ahci + P_SIGNATURE), 0x101);
	equal("the port runs", get32(ahci + P_COMMAND) & 0xc011, 0xc011);
	return (true);
}

void
ahci_disk(void)
{
	if (!start_ahci()) {
		wrong("AHCI's class", pci_config(6, 8) >> 8, 0x010601);
		return;
	}
	clear(buffer, SECTOR);
	equal("IDENTIFY", ata(0xec, 0, 0, buffer, SECTOR, false) & 0xff, 0x50);
	equal("its sectors by 28 bits", get32(buffer + 120),
	    DISK_BYTES / SECTOR);
	equal("its sectors by 48 bits", get32(buffer + 200),
	    DISK_BYTES / SECTOR);
	equal("48 bits, flushes", buffer[167] & 0x34, 0x34);
	equal("DMA and numbers of sectors", buffer[99] & 3, 3);
	pattern(buffer, 8 * SECTOR, 11);
	equal("WRITE DMA EXT", ata(0x35, 100, 8, buffer, 8 * SECTOR, true) &
	    0xff, 0x50);
	equal("bytes that were moved", get32((volatile uint8_t *)LIST + 4),
	    8 * SECTOR);
	clear(other, 8 * SECTOR);
	equal("READ DMA EXT", ata(0x25, 100, 8, other, 8 * SECTOR, false) &
	    0xff, 0x50);
	expect_pattern("what was written", other, 8 * SECTOR, 11);
	clear(other, SECTOR);
	equal("READ DMA", ata(0xc8, 103, 1, other, SECTOR, false) & 0xff,
	    0x50);
	equal("the fourth of them", other[5], buffer[3 * SECTOR + 5]);
	equal("READ DMA EXT of the last", ata(0x25, DISK_BYTES / SECTOR - 1,
	    1, other, SECTOR, false) & 0xff, 0x50);
	equal("its first bytes", get32(other), 0);
	equal("FLUSH CACHE EXT", ata(0xea, 0, 0, buffer, 0, false) & 0xff,
	    0x50);
	/* An unknown command is aborted, and the port works afterwards. */
	equal("command 99", ata(0x99, 0, 0, buffer, 0, false) & 0x401, 0x401);
	put32(ahci + P_COMMAND, get32(ahci + P_COMMAND) & ~1u);
	put32(ahci + P_COMMAND, get32(ahci + P_COMMAND) | 1);
	equal("READ DMA EXT after that", ata(0x25, 100, 1, other, SECTOR,
	    false) & 0xff, 0x50);
	equal("its first byte", other[0], buffer[0]);
}

/* NVMe: an admin queue and one for data, of eight entries each. */
#define	NVME_BAR	0xd4000000u
#define	QUEUES		0x270000u		/* a page each: SQ0 CQ0 SQ1 CQ1 */
#define	ENTRIES		8u
#define	N_CONFIG	0x14u
#define	N_STATUS	0x1cu
#define	N_ATTRIBUTES	0x24u
#define	N_SUBMISSION	0x28u
#define	N_COMPLETION	0x30u
#define	N_DOORBELLS	0x1000u

static volatile uint8_t *const nvme = (volatile uint8_t *)NVME_BAR;
static uint32_t sent[2];

static bool
ready(uint32_t wanted)
{
	for (uint32_t i = 0; i < TRIES / 8; i++) {
		if ((get32(nvme + N_STATUS) & 1) == wanted)
			return (true);
		__asm__ volatile("pause");
	}
	return (false);
}

/* A command to a queue; its status field, or all ones. */
static uint32_t
command(uint32_t queue, uint32_t opcode, uint32_t space, volatile uint8_t *data,
    uint32_t word10, uint32_t word11, uint32_t word12)
{
	uint32_t number = sent[queue]++;
	volatile uint8_t *entry = (volatile uint8_t *)(QUEUES +
	    queue * 0x2000 + number % ENTRIES * 64);
	volatile uint8_t *end = (volatile uint8_t *)(QUEUES + 0x1000 +
	    queue * 0x2000 + number % ENTRIES * 16);
	/* The phase changes each time the queue wraps. */
	uint32_t phase = number / ENTRIES % 2 == 0;

	clear(entry, 64);
	put32(entry, opcode | (number + 1) << 16);
	put32(entry + 4, space);
	put32(entry + 24, (uint32_t)(uintptr_t)data);
	put32(entry + 32, (uint32_t)(uintptr_t)data + 0x1000);
	put32(entry + 40, word10);
	put32(entry + 44, word11);
	put32(entry + 48, word12);
	put32(nvme + N_DOORBELLS + queue * 8, (number + 1) % ENTRIES);
	for (uint32_t i = 0; i < TRIES / 8; i++) {
		if ((get32(end + 12) >> 16 & 1) != phase) {
			__asm__ volatile("pause");
			continue;
		}
		equal("the command's number", get32(end + 12) & 0xffff,
		    number + 1);
		equal("its queue", get32(end + 8) >> 16, queue);
		put32(nvme + N_DOORBELLS + queue * 8 + 4,
		    (number + 1) % ENTRIES);
		return (get32(end + 12) >> 17 & 0x7ff);
	}
	return (0xffffffff);
}

static bool
start_nvme(void)
{
	sent[0] = sent[1] = 0;
	(void)memory_bar(4, 0x10, NVME_BAR);
	put32(nvme + N_CONFIG, 0);
	if (!ready(0))
		return (false);
	clear((volatile uint8_t *)QUEUES, 0x4000);
	put32(nvme + N_ATTRIBUTES, (ENTRIES - 1) << 16 | (ENTRIES - 1));
	put32(nvme + N_SUBMISSION, QUEUES);
	put32(nvme + N_SUBMISSION + 4, 0);
	put32(nvme + N_COMPLETION, QUEUES + 0x1000);
	put32(nvme + N_COMPLETION + 4, 0);
	/* Entries of 64 and 16 bytes, and the enable bit. */
	put32(nvme + N_CONFIG, 4u << 20 | 6u << 16 | 1);
	return (ready(1));
}

void
nvme_disk(void)
{
	uint32_t shift, blocks;

	if (!start_nvme()) {
		wrong("NVMe is ready", 0, 1);
		return;
	}
	equal("IDENTIFY of the controller", command(0, 6, 0, buffer, 1, 0, 0),
	    0);
	equal("its vendor", get32(buffer) & 0xffff,
	    pci_config(4, 0) & 0xffff);
	equal("sizes of entries", get32(buffer + 512) & 0x0f0f, 0x0406);
	equal("name spaces", get32(buffer + 516), 1);
	equal("IDENTIFY of the name space", command(0, 6, 1, buffer, 0, 0, 0),
	    0);
	blocks = get32(buffer);
	shift = buffer[130 + (buffer[26] & 0xf) * 4];
	equal("its bytes", blocks << shift, DISK_BYTES);
	equal("IDENTIFY of the list", command(0, 6, 0, buffer, 2, 0, 0), 0);
	equal("its only number", get32(buffer), 1);
	equal("the end of it", get32(buffer + 4), 0);
	equal("an unknown command", command(0, 0x77, 0, buffer, 0, 0, 0),
	    1);
	equal("a completion queue", command(0, 5, 0,
	    (volatile uint8_t *)(QUEUES + 0x3000), (ENTRIES - 1) << 16 | 1, 1,
	    0), 0);
	equal("a submission queue", command(0, 1, 0,
	    (volatile uint8_t *)(QUEUES + 0x2000), (ENTRIES - 1) << 16 | 1,
	    1 << 16 | 1, 0), 0);
	if (shift > 12)
		return;
	for (uint32_t i = 0; i < 10; i++) {
		pattern(buffer, 1u << shift, i);
		equal("writing a block", command(1, 1, 1, buffer, i, 0, 0), 0);
	}
	for (uint32_t i = 0; i < 10; i++) {
		equal("reading a block", command(1, 2, 1, other, i, 0, 0), 0);
		expect_pattern("what was written", other, 1u << shift, i);
	}
	equal("a flush", command(1, 0, 1, buffer, 0, 0, 0), 0);
	equal("the last block", command(1, 2, 1, other, blocks - 1, 0, 0), 0);
	equal("after the last block", command(1, 2, 1, other, blocks, 0, 0),
	    0x80);
	equal("another name space", command(1, 2, 2, other, 0, 0, 0), 0x0b);
	put32(nvme + N_CONFIG, 0);
	if (!ready(0))
		wrong("NVMe goes off", 1, 0);
}
