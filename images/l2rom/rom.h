/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef _ROM_H_
#define	_ROM_H_

#include <stdbool.h>
#include <stdint.h>

/* Shared by the ROM's parts: ports, and output on the serial line. */
static inline void
outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void
outw(uint16_t port, uint16_t value)
{
	__asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline void
outl(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t
inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return (value);
}

static inline uint16_t
inw(uint16_t port)
{
	uint16_t value;

	__asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
	return (value);
}

static inline uint32_t
inl(uint16_t port)
{
	uint32_t value;

	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
	return (value);
}

static inline uint64_t
rdtsc(void)
{
	uint64_t value;

	__asm__ volatile("rdtsc" : "=A"(value));
	return (value);
}

void	put_char(char);
void	put(const char *);
void	put_number(uint32_t);
void	put_hex(uint32_t);

/* platform.c: bhyve's own devices, reported as TAP, in either machine. */
void	platform(void);
void	firmware_machine(void);
void	wrong(const char *, uint32_t, uint32_t);
void	equal(const char *, uint32_t, uint32_t);

/* interrupt.c: functions for the other parts. */
void	interrupts_begin(void);
uint32_t interrupts_of(uint32_t);
void	halt_for(uint32_t, uint32_t);

/*
 * Its claims: pci.c, firmware.c, interrupt.c, random.c, storage.c and fwcfg.c.
 */
void	pci_devices(void);
void	pci_widths(void);
void	pci_writes(void);
void	pci_bars(void);
void	pci_moved(void);
void	pci_memory(void);
void	pci_capabilities(void);
void	firmware(void);
void	acpi_registers(void);
void	serial_line(void);
void	keyboard(void);
void	nothing(void);
void	acpi_tables(void);
void	other_tables(void);
void	second_processor(void);
void	all_processors(void);
void	interrupts(void);
void	msrs(void);
void	random_device(void);
void	virtio_disk(void);
void	ahci_disk(void);
void	nvme_disk(void);
void	fwcfg_items(void);
void	fwcfg_directory(void);
void	fwcfg_e820(void);

/* pci.c: the registers of a slot's first function; and the first of a class. */
#define	PCI_SLOTS	32u

uint32_t pci_find(uint32_t);
uint32_t pci_config(uint32_t, uint32_t);
void	pci_set_config(uint32_t, uint32_t, uint32_t);

/* virtio.c */
struct virtio {
	uint16_t	port, queue, size, used;
};

struct piece {
	void		*memory;
	uint32_t	length;
	bool		written;	/* by the device */
};

bool	virtio_open(struct virtio *, uint16_t, uint16_t);
uint32_t virtio_config(const struct virtio *, uint32_t);
bool	virtio_use(struct virtio *, const struct piece *, uint32_t);
void	virtio_offer(struct virtio *, uint16_t, void *, uint32_t);
bool	virtio_taken(struct virtio *, uint16_t *, uint32_t *);

/* stream.c: bytes through consoles. */
void	stream_out(uint32_t);
void	stream_in(uint32_t);
void	stream_virtio(uint32_t);
void	stream_virtio_in(uint32_t);

/* bios.c: boot as a BIOS does. */
void	boot(void);

#endif /* !_ROM_H_ */
