/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef _DISKS_H_
#define	_DISKS_H_

#include "rom.h"

#define	SECTOR		512u
/* Pages of memory for data, and how much one request may move. */
#define	BUFFER		0x240000u
#define	OTHER		0x250000u
#define	PAGE_BYTES	4096u

static inline uint32_t
get32(volatile uint8_t *at)
{
	return (*(volatile uint32_t *)at);
}

static inline void
put32(volatile uint8_t *at, uint32_t value)
{
	*(volatile uint32_t *)at = value;
}

static inline void
clear(volatile uint8_t *at, uint32_t bytes)
{
	for (uint32_t i = 0; i < bytes; i += 4)
		put32(at + i, 0);
}

/* Commands of ATA, and the task file after one that succeeded. */
#define	ATA_IDENTIFY	0xecu
#define	ATA_READ	0x25u			/* READ DMA EXT */
#define	ATA_GOOD	0x50u

/* The first AHCI disk; the header of its first command. */
#define	AHCI_CLASS	0x010601u
#define	AHCI_LIST	0x260000u

bool	ahci_start(void);
void	ahci_restart(void);
uint32_t ata(uint8_t, uint32_t, uint32_t, volatile uint8_t *, uint32_t,
	    bool);

/* The first NVMe: queue 0 is the admin queue. */
#define	NVME_CLASS	0x010802u
/* A page each: SQ0 CQ0 SQ1 CQ1. */
#define	NVME_QUEUES	0x270000u
#define	NVME_ENTRIES	8u
#define	NVME_IDENTIFY	6u
#define	NVME_READ	2u

bool	nvme_start(void);
bool	nvme_stop(void);
uint32_t nvme_do(uint32_t, uint32_t, uint32_t, volatile uint8_t *,
	    uint32_t, uint32_t, uint32_t);
uint32_t nvme_make_completions(void);
uint32_t nvme_make_submissions(void);

/* Any disk, for a BIOS. */
bool	disk_open(uint32_t *);
bool	disk_read(uint32_t, uint32_t, uint32_t);

#endif /* !_DISKS_H_ */
