/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Virtio devices by their legacy registers (Virtio 1.0, 4.1.4.8): a BAR of I/O
 * ports, one ring at a time, polled.
 */

#include "rom.h"

#define	VENDOR		0x1af4u

#define	REG_GUEST_FEATURES 0x04
#define	REG_RING	0x08
#define	REG_SIZE	0x0c
#define	REG_SELECT	0x0e
#define	REG_NOTIFY	0x10
#define	REG_STATUS	0x12
#define	REG_ISR		0x13
#define	REG_CONFIG	0x14
#define	STATUS_DRIVER	0x03
#define	STATUS_OK	0x07

#define	DESC_NEXT	1
#define	DESC_WRITE	2
#define	ALIGNED(x)	(((x) + 0xfffu) & ~0xfffu)

/* The memory of a ring; only one device is used at a time. */
#define	RING		0x20000u
#define	RING_BYTES	0x10000u
#define	PORTS		0xc000u
#define	TRIES		20000u
#define	PAUSES		2000u

struct descriptor {
	uint32_t	address, address_high;
	uint32_t	length;
	uint16_t	flags, next;
};

/* Find a device by its number (0x1003 a console), let it decode, reset it. */
bool
virtio_open(struct virtio *device, uint16_t number, uint16_t queue)
{
	uint32_t slot, bar;

	for (slot = 0; slot < PCI_SLOTS; slot++) {
		if (pci_config(slot, 0) == ((uint32_t)number << 16 | VENDOR))
			break;
	}
	if (slot == PCI_SLOTS)
		return (false);
	bar = pci_config(slot, 0x10);
	if ((bar & 1) == 0)
		return (false);
	if ((bar & ~3u) == 0) {
		/*
		 * bhyve has assigned its ports; in QEMU the firmware does
		 * that.
		 */
		bar = PORTS | 1;
		pci_set_config(slot, 0x10, bar);
	}
	pci_set_config(slot, 4, (pci_config(slot, 4) & 0xffff) | 5);
	device->port = (uint16_t)(bar & ~3u);
	device->queue = queue;
	outb((uint16_t)(device->port + REG_STATUS), 0);
	outb((uint16_t)(device->port + REG_STATUS), STATUS_DRIVER);
	outl((uint16_t)(device->port + REG_GUEST_FEATURES), 0);
	outw((uint16_t)(device->port + REG_SELECT), queue);
	device->size = inw((uint16_t)(device->port + REG_SIZE));
	if (device->size == 0 || device->size > 1024)
		return (false);
	for (uint32_t i = 0; i < RING_BYTES; i += 4)
		*(volatile uint32_t *)(uintptr_t)(RING + i) = 0;
	device->used = 0;
	outl((uint16_t)(device->port + REG_RING), RING >> 12);
	outb((uint16_t)(device->port + REG_STATUS), STATUS_OK);
	return (true);
}

/* A word of the device's own configuration. */
uint32_t
virtio_config(const struct virtio *device, uint32_t offset)
{
	return (inl((uint16_t)(device->port + REG_CONFIG + offset)));
}

static volatile struct descriptor *
descriptors(void)
{
	return ((volatile struct descriptor *)(uintptr_t)RING);
}

static volatile uint16_t *
available_ring(const struct virtio *device)
{
	return ((volatile uint16_t *)(uintptr_t)(RING + 16u * device->size));
}

static volatile uint16_t *
used_ring(const struct virtio *device)
{
	return ((volatile uint16_t *)(uintptr_t)
	    ALIGNED(RING + 16u * device->size + 6u + 2u * device->size));
}

/* Offer one of several buffers, for the device to write to at any time. */
void
virtio_offer(struct virtio *device, uint16_t number, void *memory,
    uint32_t length)
{
	volatile uint16_t *available = available_ring(device);
	volatile struct descriptor *it = &descriptors()[number];

	it->address = (uint32_t)(uintptr_t)memory;
	it->address_high = 0;
	it->length = length;
	it->flags = DESC_WRITE;
	available[2 + available[1] % device->size] = number;
	available[1]++;
	outw((uint16_t)(device->port + REG_NOTIFY), device->queue);
}

/* The next buffer that the device has written to; false if there is none. */
bool
virtio_taken(struct virtio *device, uint16_t *number, uint32_t *length)
{
	volatile uint16_t *used = used_ring(device);
	volatile uint32_t *entry;

	if (used[1] == device->used)
		return (false);
	entry = (volatile uint32_t *)(uintptr_t)(used + 2) +
	    2 * (device->used % device->size);
	*number = (uint16_t)entry[0];
	*length = entry[1];
	device->used++;
	return (true);
}

/* Offer pieces of memory to the device, and wait until it has used them. */
bool
virtio_use(struct virtio *device, const struct piece *pieces, uint32_t count)
{
	volatile struct descriptor *table = descriptors();
	volatile uint16_t *available = available_ring(device);
	volatile uint16_t *used = used_ring(device);

	for (uint32_t i = 0; i < count; i++) {
		table[i].address = (uint32_t)(uintptr_t)pieces[i].memory;
		table[i].address_high = 0;
		table[i].length = pieces[i].length;
		table[i].flags = (uint16_t)((pieces[i].written ?
		    DESC_WRITE : 0) | (i + 1 < count ? DESC_NEXT : 0));
		table[i].next = (uint16_t)(i + 1);
	}
	available[2 + device->used % device->size] = 0;
	device->used++;
	available[1] = device->used;
	outw((uint16_t)(device->port + REG_NOTIFY), device->queue);
	for (uint32_t tries = 0; tries < TRIES; tries++) {
		for (uint32_t i = 0; i < PAUSES; i++) {
			if (used[1] == device->used)
				return (true);
			__asm__ volatile("pause");
		}
		/*
		 * bhyve's thread may wait for the processor; this is an exit.
		 */
		(void)inb((uint16_t)(device->port + REG_ISR));
	}
	return (false);
}
