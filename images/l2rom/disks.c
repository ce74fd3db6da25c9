/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Drivers of disks: the first AHCI disk by command lists (AHCI 1.3.1,
 * ATA8-ACS), the first NVMe by queues (NVM Express 1.4), virtio-blk by its ring
 * (virtio 1.0, 5.2.6).  All are polled.  The last part reads from whichever is
 * there, as the functions of a BIOS need it.
 */

#include "disks.h"

#define	TRIES		4000000u

/* Have a slot's memory BAR decoded below 4 GiB. */
static void
memory_bar(uint32_t slot, uint32_t bar, uint32_t place)
{
	uint32_t value = pci_config(slot, bar);

	pci_set_config(slot, bar, place);
	if ((value & 7) == 4)
		pci_set_config(slot, bar + 4, 0);
	pci_set_config(slot, 4, (pci_config(slot, 4) & 0xffff) | 6);
}

/* AHCI: a list of commands, whose first entry is used, and its data. */
#define	AHCI_BAR	0xd6000000u
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
uint32_t
ata(uint8_t command, uint32_t sector, uint32_t sectors, volatile uint8_t *data,
    uint32_t bytes, bool write)
{
	volatile uint8_t *list = (volatile uint8_t *)AHCI_LIST;
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

/* Start port 0; false if there is no AHCI. */
bool
ahci_start(void)
{
	uint32_t slot = pci_find(AHCI_CLASS);

	if (slot == PCI_SLOTS)
		return (false);
	memory_bar(slot, 0x24, AHCI_BAR);
	put32(ahci + 4, 1u << 31);
	equal("AHCI's mode", get32(ahci + 4) >> 31, 1);
	equal("port 0 is there", get32(ahci + 12) & 1, 1);
	put32(ahci + P_COMMAND, get32(ahci + P_COMMAND) & ~0x11u);
	put32(ahci + P_LIST, AHCI_LIST);
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

/* Let the port go on after a command that failed. */
void
ahci_restart(void)
{
	put32(ahci + P_COMMAND, get32(ahci + P_COMMAND) & ~1u);
	put32(ahci + P_COMMAND, get32(ahci + P_COMMAND) | 1);
}

/* NVMe: an admin queue and one for data, of eight entries each. */
#define	NVME_BAR	0xd4000000u
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
uint32_t
nvme_do(uint32_t queue, uint32_t opcode, uint32_t space, volatile uint8_t *data,
    uint32_t word10, uint32_t word11, uint32_t word12)
{
	uint32_t number = sent[queue]++;
	volatile uint8_t *entry = (volatile uint8_t *)(NVME_QUEUES +
	    queue * 0x2000 + number % NVME_ENTRIES * 64);
	volatile uint8_t *end = (volatile uint8_t *)(NVME_QUEUES + 0x1000 +
	    queue * 0x2000 + number % NVME_ENTRIES * 16);
	/* The phase changes each time the queue wraps. */
	uint32_t phase = number / NVME_ENTRIES % 2 == 0;

	clear(entry, 64);
	put32(entry, opcode | (number + 1) << 16);
	put32(entry + 4, space);
	put32(entry + 24, (uint32_t)(uintptr_t)data);
	put32(entry + 32, (uint32_t)(uintptr_t)data + 0x1000);
	put32(entry + 40, word10);
	put32(entry + 44, word11);
	put32(entry + 48, word12);
	put32(nvme + N_DOORBELLS + queue * 8, (number + 1) % NVME_ENTRIES);
	for (uint32_t i = 0; i < TRIES / 8; i++) {
		if ((get32(end + 12) >> 16 & 1) != phase) {
			__asm__ volatile("pause");
			continue;
		}
		equal("the command's number", get32(end + 12) & 0xffff,
		    number + 1);
		equal("its queue", get32(end + 8) >> 16, queue);
		put32(nvme + N_DOORBELLS + queue * 8 + 4,
		    (number + 1) % NVME_ENTRIES);
		return (get32(end + 12) >> 17 & 0x7ff);
	}
	return (0xffffffff);
}

bool
nvme_stop(void)
{
	put32(nvme + N_CONFIG, 0);
	return (ready(0));
}

/* Start it with an admin queue; false if it does not get ready. */
bool
nvme_start(void)
{
	uint32_t slot = pci_find(NVME_CLASS);

	if (slot == PCI_SLOTS)
		return (false);
	sent[0] = sent[1] = 0;
	memory_bar(slot, 0x10, NVME_BAR);
	if (!nvme_stop())
		return (false);
	clear((volatile uint8_t *)NVME_QUEUES, 0x4000);
	put32(nvme + N_ATTRIBUTES, (NVME_ENTRIES - 1) << 16 |
	    (NVME_ENTRIES - 1));
	put32(nvme + N_SUBMISSION, NVME_QUEUES);
	put32(nvme + N_SUBMISSION + 4, 0);
	put32(nvme + N_COMPLETION, NVME_QUEUES + 0x1000);
	put32(nvme + N_COMPLETION + 4, 0);
	/* Entries of 64 and 16 bytes, and the enable bit. */
	put32(nvme + N_CONFIG, 4u << 20 | 6u << 16 | 1);
	return (ready(1));
}

/* The queue for data; the result is a status field. */
uint32_t
nvme_make_completions(void)
{
	return (nvme_do(0, 5, 0, (volatile uint8_t *)(NVME_QUEUES +
	    0x3000), (NVME_ENTRIES - 1) << 16 | 1, 1, 0));
}

uint32_t
nvme_make_submissions(void)
{
	return (nvme_do(0, 1, 0, (volatile uint8_t *)(NVME_QUEUES +
	    0x2000), (NVME_ENTRIES - 1) << 16 | 1, 1 << 16 | 1, 0));
}

/* A disk for a BIOS: the first that there is, virtio-blk, AHCI or NVMe. */
#define	VIRTIO_BLOCK	0x1001
#define	REQUEST_READ	0u
#define	MOST_SECTORS	(PAGE_BYTES / SECTOR)

static volatile uint8_t *const buffer = (volatile uint8_t *)BUFFER;
static enum { NONE, VIRTIO, AHCI, NVME } kind;
static uint32_t capacity;
static struct virtio disk;
static struct {
	uint32_t	type, reserved, sector, sector_high;
} request;
static uint8_t status;

static bool
open_ahci(void)
{
	if (!ahci_start() || (ata(ATA_IDENTIFY, 0, 0, buffer, SECTOR,
	    false) & 0xff) != ATA_GOOD)
		return (false);
	capacity = get32(buffer + 200);
	return (true);
}

/* A name space whose blocks are sectors. */
static bool
open_nvme(void)
{
	if (!nvme_start() ||
	    nvme_do(0, NVME_IDENTIFY, 1, buffer, 0, 0, 0) != 0 ||
	    1u << buffer[130 + (buffer[26] & 0xf) * 4] != SECTOR)
		return (false);
	capacity = get32(buffer);
	return (nvme_make_completions() == 0 && nvme_make_submissions() == 0);
}

/* Find the disk, and say how many sectors it has. */
bool
disk_open(uint32_t *sectors)
{
	kind = NONE;
	if (virtio_open(&disk, VIRTIO_BLOCK, 0)) {
		kind = VIRTIO;
		capacity = virtio_config(&disk, 0);
	} else if (open_ahci())
		kind = AHCI;
	else if (open_nvme())
		kind = NVME;
	*sectors = capacity;
	return (kind != NONE);
}

/* At most a page, to the buffer. */
static bool
read_some(uint32_t sector, uint32_t count)
{
	const struct piece pieces[] = {
		{ &request, sizeof(request), false },
		{ (void *)(uintptr_t)buffer, count * SECTOR, true },
		{ &status, 1, true },
	};

	switch (kind) {
	case VIRTIO:
		request.type = REQUEST_READ;
		request.reserved = request.sector_high = 0;
		request.sector = sector;
		status = 0xff;
		return (virtio_use(&disk, pieces, 3) && status == 0);
	case AHCI:
		return ((ata(ATA_READ, sector, count, buffer,
		    count * SECTOR, false) & 0xff) == ATA_GOOD);
	case NVME:
		return (nvme_do(1, NVME_READ, 1, buffer, sector, 0,
		    count - 1) == 0);
	default:
		return (false);
	}
}

/* Read sectors to an address; false for an error, or behind the end. */
bool
disk_read(uint32_t sector, uint32_t count, uint32_t address)
{
	volatile uint8_t *to = (volatile uint8_t *)(uintptr_t)address;
	uint32_t some;

	if (count == 0 || sector >= capacity || count > capacity - sector)
		return (false);
	for (; count != 0; count -= some, sector += some) {
		some = count < MOST_SECTORS ? count : MOST_SECTORS;
		if (!read_some(sector, some))
			return (false);
		for (uint32_t i = 0; i < some * SECTOR; i++)
			*to++ = buffer[i];
	}
	return (true);
}
