/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Claims about disks: virtio-blk at slot 7, an AHCI disk at slot 6 and the NVMe
 * at slot 4, the latter two through disks.c.  Each has 1 MiB of zeros.
 */

#include "disks.h"

#define	DISK_BYTES	0x100000u

static volatile uint8_t *const buffer = (volatile uint8_t *)BUFFER;
static volatile uint8_t *const other = (volatile uint8_t *)OTHER;

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

void
ahci_disk(void)
{
	if (!ahci_start()) {
		wrong("AHCI's class", pci_config(6, 8) >> 8, 0x010601);
		return;
	}
	clear(buffer, SECTOR);
	equal("IDENTIFY", ata(ATA_IDENTIFY, 0, 0, buffer, SECTOR,
	    false) & 0xff, ATA_GOOD);
	equal("its sectors by 28 bits", get32(buffer + 120),
	    DISK_BYTES / SECTOR);
	equal("its sectors by 48 bits", get32(buffer + 200),
	    DISK_BYTES / SECTOR);
	equal("48 bits, flushes", buffer[167] & 0x34, 0x34);
	equal("DMA and numbers of sectors", buffer[99] & 3, 3);
	pattern(buffer, 8 * SECTOR, 11);
	equal("WRITE DMA EXT", ata(0x35, 100, 8, buffer, 8 * SECTOR, true) &
	    0xff, 0x50);
	equal("bytes that were moved", get32((volatile uint8_t *)AHCI_LIST + 4),
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
	ahci_restart();
	equal("READ DMA EXT after that", ata(0x25, 100, 1, other, SECTOR,
	    false) & 0xff, 0x50);
	equal("its first byte", other[0], buffer[0]);
}

void
nvme_disk(void)
{
	uint32_t shift, blocks;

	if (!nvme_start()) {
		wrong("NVMe is ready", 0, 1);
		return;
	}
	equal("IDENTIFY of the controller", nvme_do(0, 6, 0, buffer, 1, 0, 0),
	    0);
	equal("its vendor", get32(buffer) & 0xffff,
	    pci_config(4, 0) & 0xffff);
	equal("sizes of entries", get32(buffer + 512) & 0x0f0f, 0x0406);
	equal("name spaces", get32(buffer + 516), 1);
	equal("IDENTIFY of the name space", nvme_do(0, 6, 1, buffer, 0, 0, 0),
	    0);
	blocks = get32(buffer);
	shift = buffer[130 + (buffer[26] & 0xf) * 4];
	equal("its bytes", blocks << shift, DISK_BYTES);
	equal("IDENTIFY of the list", nvme_do(0, 6, 0, buffer, 2, 0, 0), 0);
	equal("its only number", get32(buffer), 1);
	equal("the end of it", get32(buffer + 4), 0);
	equal("an unknown command", nvme_do(0, 0x77, 0, buffer, 0, 0, 0),
	    1);
	equal("a completion queue", nvme_make_completions(), 0);
	equal("a submission queue", nvme_make_submissions(), 0);
	if (shift > 12)
		return;
	for (uint32_t i = 0; i < 10; i++) {
		pattern(buffer, 1u << shift, i);
		equal("writing a block", nvme_do(1, 1, 1, buffer, i, 0, 0), 0);
	}
	for (uint32_t i = 0; i < 10; i++) {
		equal("reading a block", nvme_do(1, 2, 1, other, i, 0, 0), 0);
		expect_pattern("what was written", other, 1u << shift, i);
	}
	equal("a flush", nvme_do(1, 0, 1, buffer, 0, 0, 0), 0);
	equal("the last block", nvme_do(1, 2, 1, other, blocks - 1, 0, 0), 0);
	equal("after the last block", nvme_do(1, 2, 1, other, blocks, 0, 0),
	    0x80);
	equal("another name space", nvme_do(1, 2, 2, other, 0, 0, 0), 0x0b);
	if (!nvme_stop())
		wrong("NVMe goes off", 1, 0);
}
