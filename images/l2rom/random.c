/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * A driver for a virtio device: virtio-rnd at slot 3, by its legacy
 * registers (virtio 1.0, 4.1.4.8), with a ring in memory and MSI-X.
 */

#include "rom.h"

#define	SLOT		3u
#define	PORT		0x3100u
#define	TABLE		0xd9000000u	/* where the MSI-X table is put */
#define	RING		0x200000u
#define	BUFFERS		0x210000u
#define	BUFFER_BYTES	64u
#define	VECTOR		0x56u

/* Registers; the vectors are there while MSI-X is enabled. */
#define	R_PFN		8u
#define	R_SIZE		12u
#define	R_SELECT	14u
#define	R_NOTIFY	16u
#define	R_STATUS	18u
#define	R_ISR		19u
#define	R_QUEUE_VECTOR	22u

struct descriptor {
	uint64_t	address;
	uint32_t	length;
	uint16_t	flags, next;
};

struct used {
	uint32_t	id, length;
};

static uint32_t
config(uint32_t offset)
{
	return (pci_config(SLOT, offset));
}

/* MSI-X with its table at TABLE, vector 0 for VECTOR; its capability, or 0. */
static uint32_t
enable_msix(void)
{
	volatile uint32_t *table = (volatile uint32_t *)(uintptr_t)TABLE;
	uint32_t at = config(0x34) & 0xfc, bar;

	while (at != 0 && (config(at) & 0xff) != 0x11)
		at = config(at) >> 8 & 0xfc;
	if (at == 0)
		return (0);
	bar = config(at + 4) & 7;
	pci_set_config(SLOT, 0x10 + bar * 4, TABLE);
	pci_set_config(SLOT, 4, config(4) | 7);
	table += (config(at + 4) & ~7u) / 4;
	table[0] = 0xfee00000;
	table[1] = 0;
	table[2] = VECTOR;
	table[3] = 0;
	equal("the MSI-X table's data", table[2], VECTOR);
	pci_set_config(SLOT, at, config(at) | 0x80000000u);
	return (at);
}

/* The addresses of the parts of a ring with this number of entries. */
static volatile uint16_t *
avail_of(uint32_t size)
{
	return ((volatile uint16_t *)(uintptr_t)(RING + size * 16));
}

static volatile uint16_t *
used_of(uint32_t size)
{
	uint32_t end = RING + size * 16 + 6 + size * 2;

	return ((volatile uint16_t *)(uintptr_t)((end + 4095) & ~4095u));
}

static volatile uint8_t *
buffer(uint32_t slot)
{
	return ((volatile uint8_t *)(uintptr_t)(BUFFERS +
	    slot * BUFFER_BYTES));
}

/* Put a buffer for random bytes into the ring. */
static void
post(uint32_t number, uint32_t size)
{
	volatile struct descriptor *descriptors =
	    (volatile struct descriptor *)(uintptr_t)RING;
	uint32_t slot = number % size;

	for (uint32_t i = 0; i < BUFFER_BYTES; i++)
		buffer(slot)[i] = 0;
	descriptors[slot].address = (uint32_t)(uintptr_t)buffer(slot);
	descriptors[slot].length = BUFFER_BYTES - 8;
	descriptors[slot].flags = 2;		/* the device writes */
	descriptors[slot].next = 0;
	avail_of(size)[2 + slot] = (uint16_t)slot;
	avail_of(size)[1] = (uint16_t)(number + 1);
}

/* The device returned the buffer, filled exactly to its length. */
static void
filled(uint32_t number, uint32_t size)
{
	volatile struct used *used =
	    (volatile struct used *)(used_of(size) + 2);
	uint32_t slot = number % size, set = 0;

	equal("which", used[slot].id, slot);
	equal("bytes", used[slot].length, BUFFER_BYTES - 8);
	for (uint32_t i = 0; i < BUFFER_BYTES - 8; i++)
		set += buffer(slot)[i] != 0;
	if (set < 16)
		wrong("random bytes", set, BUFFER_BYTES - 8);
	for (uint32_t i = BUFFER_BYTES - 8; i < BUFFER_BYTES; i++)
		equal("a byte behind them", buffer(slot)[i], 0);
}

/* The requests with these numbers, offered at once: one MSI. */
static void
requests(uint32_t from, uint32_t to, uint32_t size)
{
	uint32_t before = interrupts_of(VECTOR);

	for (uint32_t number = from; number < to; number++)
		post(number, size);
	outw(PORT + R_NOTIFY, 0);
	halt_for(VECTOR, before);
	equal("its MSIs", interrupts_of(VECTOR), before + 1);
	equal("used", used_of(size)[1], to);
	for (uint32_t number = from; number < to; number++)
		filled(number, size);
}

/* The device fills all buffers, through its whole ring. */
void
random_device(void)
{
	uint32_t bar = config(0x10), command = config(4), msix, size;
	volatile uint32_t *ring = (volatile uint32_t *)(uintptr_t)RING;

	pci_set_config(SLOT, 0x10, PORT | 1);
	pci_set_config(SLOT, 4, command | 7);
	msix = enable_msix();
	if (msix == 0) {
		wrong("MSI-X's capability", 0, 0x11);
		return;
	}
	outb(PORT + R_STATUS, 0);
	outb(PORT + R_STATUS, 3);
	outw(PORT + R_SELECT, 0);
	size = inw(PORT + R_SIZE);
	equal("the queue's size", size, 64);
	outw(PORT + R_SELECT, 7);
	equal("a queue that does not exist", inw(PORT + R_SIZE), 0);
	outw(PORT + R_SELECT, 0);
	for (uint32_t i = 0; i < 3 * 4096 / 4; i++)
		ring[i] = 0;
	outl(PORT + R_PFN, RING >> 12);
	equal("the queue's page", inl(PORT + R_PFN), RING >> 12);
	outw(PORT + R_QUEUE_VECTOR, 0);
	equal("the queue's vector", inw(PORT + R_QUEUE_VECTOR), 0);
	outb(PORT + R_STATUS, 7);
	if (size == 64) {
		requests(0, 1, size);
		requests(1, 60, size);
		requests(60, 67, size);
	}
	outb(PORT + R_STATUS, 0);
	equal("the queue's page after a reset", inl(PORT + R_PFN), 0);
	pci_set_config(SLOT, msix, config(msix) & ~0x80000000u);
	pci_set_config(SLOT, 0x10, bar);
	pci_set_config(SLOT, 4, command);
}
