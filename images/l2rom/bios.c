/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * The part of a PC's BIOS that a boot sector needs: it reads the first sector
 * of the first disk to 0000:7c00 and jumps to it, in real mode with the drive's
 * number in DL, and offers INT 10h (a character), INT 13h (the disk) and INT
 * 18h (nothing to boot).  bios_modes.S switches between the modes.
 */

#include "disks.h"

#define	BOOT_SECTOR	0x7c00u
#define	STUB		0x9f000u	/* 9000:f000, see bios_modes.S */
#define	DRIVES		0x475u		/* BIOS data: how many disks */
#define	HEADS		255u
#define	SECTORS		63u
#define	CARRY		1u

/* What bios_modes.S pushes. */
struct frame {
	uint16_t	es, ds;
	uint32_t	edi, esi, ebp, esp, ebx, edx, ecx, eax;
	uint16_t	vector;
	uint16_t	ip, cs, flags;
} __attribute__((packed));

struct packet {
	uint8_t		size, zero;
	uint16_t	count, offset, segment;
	uint32_t	sector, sector_high;
};

extern const uint8_t bios_stub[], bios_stub_end[];
extern const uint16_t bios_vectors[];	/* vector, offset; 0 ends them */

void	bios_start(void);
void	bios_call(struct frame *);
void	rom_serve(void);

static uint32_t capacity;

static void
set_ah(struct frame *frame, uint32_t value)
{
	frame->eax = (frame->eax & 0xffff00ff) | value << 8;
}

static uint32_t
linear(uint16_t segment, uint16_t offset)
{
	return ((uint32_t)segment * 16 + offset);
}

/* INT 13h, AH=48h: a drive's parameters of EDD 1.1. */
static void
parameters(uint32_t address)
{
	volatile uint32_t *words = (volatile uint32_t *)(uintptr_t)address;

	*(volatile uint16_t *)(uintptr_t)(address + 2) = 0;
	words[1] = capacity / (HEADS * SECTORS);
	words[2] = HEADS;
	words[3] = SECTORS;
	words[4] = capacity;
	words[5] = 0;
	*(volatile uint16_t *)(uintptr_t)(address + 24) = SECTOR;
}

/* INT 13h; returns whether it succeeded. */
static bool
disk_service(struct frame *frame)
{
	const struct packet *packet;
	uint32_t cylinder, head, sector, operation = frame->eax >> 8 & 0xff;

	if ((frame->edx & 0xff) != 0x80)
		return (false);
	switch (operation) {
	case 0x00:
		return (true);
	case 0x02:
		cylinder = (frame->ecx >> 8 & 0xff) | (frame->ecx & 0xc0) << 2;
		head = frame->edx >> 8 & 0xff;
		sector = frame->ecx & 0x3f;
		return (sector != 0 && disk_read((cylinder * HEADS + head) *
		    SECTORS + sector - 1, frame->eax & 0xff,
		    linear(frame->es, (uint16_t)frame->ebx)));
	case 0x08:
		cylinder = capacity / (HEADS * SECTORS);
		cylinder = cylinder > 1023 ? 1023 : cylinder;
		frame->ecx = (frame->ecx & 0xffff0000) |
		    (cylinder & 0xff) << 8 | (cylinder >> 2 & 0xc0) | SECTORS;
		frame->edx = (frame->edx & 0xffff0000) | (HEADS - 1) << 8 | 1;
		return (true);
	case 0x41:
		frame->ebx = (frame->ebx & 0xffff0000) | 0xaa55;
		frame->ecx = (frame->ecx & 0xffff0000) | 1;
		return (true);
	case 0x42:
		packet = (const struct packet *)(uintptr_t)linear(frame->ds,
		    (uint16_t)frame->esi);
		return (packet->sector_high == 0 && disk_read(packet->sector,
		    packet->count, linear(packet->segment, packet->offset)));
	case 0x48:
		parameters(linear(frame->ds, (uint16_t)frame->esi));
		return (true);
	default:
		return (false);
	}
}

/* Serve a BIOS call; bios_modes.S calls this in 32-bit mode. */
void
bios_call(struct frame *frame)
{
	uint32_t operation = frame->eax >> 8 & 0xff;
	bool good = false;

	switch (frame->vector) {
	case 0x10:
		if (operation == 0x0e)
			put_char((char)frame->eax);
		return;
	case 0x13:
		good = disk_service(frame);
		set_ah(frame, !good ? 1 : operation == 0x41 ? 0x21 : 0);
		break;
	case 0x18:
		put("L2ROM: nothing to boot\n");
		rom_serve();
		return;
	default:
		set_ah(frame, 0x86);
		break;
	}
	frame->flags = (uint16_t)((frame->flags & ~CARRY) | (good ? 0 : CARRY));
}

/* Read the first sector, and jump to it as a BIOS does. */
void
boot(void)
{
	volatile uint16_t *vectors = (volatile uint16_t *)0;

	if (!disk_open(&capacity)) {
		put("L2ROM error: there is no disk\n");
		return;
	}
	if (!disk_read(0, 1, BOOT_SECTOR)) {
		put("L2ROM error: the disk's first sector cannot be read\n");
		return;
	}
	if (*(volatile uint16_t *)(uintptr_t)(BOOT_SECTOR + 510) != 0xaa55) {
		put("L2ROM error: the first sector is no boot sector\n");
		return;
	}
	for (uint32_t i = 0; i < (uint32_t)(bios_stub_end - bios_stub); i++)
		*(volatile uint8_t *)(uintptr_t)(STUB + i) = bios_stub[i];
	/* Real mode's table is at 0, which C does not write to by itself. */
	__asm__ volatile("" : "+r"(vectors));
	for (uint32_t i = 0; i < 256; i++) {
		vectors[2 * i] = STUB & 0xffff;
		vectors[2 * i + 1] = 0x9000;
	}
	for (const uint16_t *it = bios_vectors; it[0] != 0; it += 2)
		vectors[2 * it[0]] = (uint16_t)((STUB & 0xffff) + it[1]);
	*((volatile uint8_t *)vectors + DRIVES) = 1;
	put("L2ROM boots\n");
	bios_start();
}
