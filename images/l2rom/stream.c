/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * How fast bytes go through a console, and whether they arrive: it sends a
 * known sequence of bytes, or reads bytes and computes a sum, and prints the
 * cycles that this took.
 */

#include "rom.h"

#define	COM1		0x3f8
#define	COM_FIFO	(COM1 + 2)
#define	COM_LSR		(COM1 + 5)
#define	LSR_RXREADY	0x01
#define	LSR_TXREADY	0x20
#define	FIFO_ON		0x01

#define	VIRTIO_CONSOLE	0x1003
#define	RECEIVE		0
#define	TRANSMIT	1
#define	BUFFER		0x300000u
#define	CHUNK		4096u
#define	PAUSES		2000u

static uint32_t seed;

/* Printable and not a blank, so that nothing in between changes it. */
static uint8_t
next(void)
{
	seed = seed * 1103515245u + 12345u;
	return ((uint8_t)(33 + (seed >> 16 & 0x7fff) % 94));
}

/*
 * A checksum's next value.  The shift is needed: without it the changes of a
 * lowest bit in every page can cancel each other.
 */
static uint32_t
mixed(uint32_t sum, uint8_t byte)
{
	sum = (sum ^ byte) * 16777619u;
	return (sum ^ sum >> 15);
}

static void
put_cycles(uint64_t cycles)
{
	put(", cycles ");
	put_hex((uint32_t)(cycles >> 32));
	put(" ");
	put_hex((uint32_t)cycles);
	put("\n");
}

/* Through COM1, a byte at a time. */
void
stream_out(uint32_t bytes)
{
	uint64_t began;

	put("L2ROM stream begins\n");
	seed = bytes;
	began = rdtsc();
	for (uint32_t i = 0; i < bytes; i++) {
		while ((inb(COM_LSR) & LSR_TXREADY) == 0)
			__asm__ volatile("pause");
		outb(COM1, next());
	}
	began = rdtsc() - began;
	put("\nL2ROM sent ");
	put_number(bytes);
	put_cycles(began);
}

/* From COM1. */
void
stream_in(uint32_t bytes)
{
	uint64_t began = 0;
	uint32_t sum = 0;

	outb(COM_FIFO, FIFO_ON);
	put("L2ROM reads\n");
	for (uint32_t i = 0; i < bytes; i++) {
		while ((inb(COM_LSR) & LSR_RXREADY) == 0) {
			for (uint32_t j = 0; j < 100; j++)
				__asm__ volatile("pause");
		}
		sum = mixed(sum, inb(COM1));
		/* The time until the first byte is not the console's. */
		if (i == 0)
			began = rdtsc();
	}
	began = rdtsc() - began;
	outb(COM_FIFO, 0);
	put("L2ROM read ");
	put_number(bytes);
	put(", sum ");
	put_hex(sum);
	put_cycles(began);
}

/* Through the first port of a virtio console, 4 KiB at a time. */
void
stream_virtio(uint32_t bytes)
{
	uint8_t *buffer = (uint8_t *)(uintptr_t)BUFFER;
	struct virtio device;
	struct piece piece;
	uint64_t began, took = 0;
	uint32_t length;

	if (!virtio_open(&device, VIRTIO_CONSOLE, TRANSMIT)) {
		put("L2ROM error: there is no virtio console\n");
		return;
	}
	seed = bytes;
	for (uint32_t sent = 0; sent < bytes; sent += length) {
		length = bytes - sent < CHUNK ? bytes - sent : CHUNK;
		for (uint32_t i = 0; i < length; i++)
			buffer[i] = next();
		piece = (struct piece){ buffer, length, false };
		began = rdtsc();
		if (!virtio_use(&device, &piece, 1)) {
			put("L2ROM error: the virtio console accepts nothing\n");
			return;
		}
		took += rdtsc() - began;
	}
	put("L2ROM sent ");
	put_number(bytes);
	put(" by virtio");
	put_cycles(took);
}

/*
 * From the first port of a virtio console.  All descriptors of the ring are
 * offered at once, and again as soon as they are used: bhyve closes the socket
 * when it has filled every one that there is.
 */
void
stream_virtio_in(uint32_t bytes)
{
	uint8_t *memory = (uint8_t *)(uintptr_t)BUFFER;
	struct virtio device;
	uint64_t began = 0;
	uint32_t sum = 0, came = 0, length;
	uint16_t number;

	if (!virtio_open(&device, VIRTIO_CONSOLE, RECEIVE)) {
		put("L2ROM error: there is no virtio console\n");
		return;
	}
	for (number = 0; number < device.size; number++)
		virtio_offer(&device, number, memory + number * CHUNK, CHUNK);
	put("L2ROM reads\n");
	while (came < bytes) {
		if (!virtio_taken(&device, &number, &length)) {
			for (uint32_t i = 0; i < PAUSES; i++)
				__asm__ volatile("pause");
			/* bhyve's thread may wait for the processor. */
			(void)inb(COM_LSR);
			continue;
		}
		if (began == 0)
			began = rdtsc();
		for (uint32_t i = 0; i < length; i++)
			sum = mixed(sum, memory[number * CHUNK + i]);
		came += length;
		virtio_offer(&device, number, memory + number * CHUNK, CHUNK);
	}
	began = rdtsc() - began;
	put("L2ROM read ");
	put_number(came);
	put(" by virtio, sum ");
	put_hex(sum);
	put_cycles(began);
}
