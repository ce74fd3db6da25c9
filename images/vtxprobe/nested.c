/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Nested page tables: one path of four levels, and in the last table
 * whichever pages of L2's first 2 MiB are given to it.
 *
 * EPT (SDM volume 3, "The Extended Page-Table Mechanism") has a bit for
 * each of read, write and execute, and a memory type in the leaf; AMD's
 * nested paging (APM volume 2, "Nested Paging") uses the ordinary format,
 * in which L2's accesses count as the user's.
 */

#include "probe.h"

#define	EPT_WB		(6UL << 3)
#define	EPTP_WB_4LEVEL	(6UL | 3UL << 3)

#define	PTE_P		0x1UL
#define	PTE_W		0x2UL
#define	PTE_U		0x4UL

static uint64_t pml4[512] PAGE_ALIGNED;
static uint64_t pdpt[512] PAGE_ALIGNED;
static uint64_t pd[512] PAGE_ALIGNED;
static uint64_t pt[512] PAGE_ALIGNED;
static int npt;

/* Returns the EPT pointer, or what goes into the VMCB's N_CR3. */
uint64_t
nested_init(int svm)
{
	uint64_t all;

	npt = svm;
	all = npt ? PTE_P | PTE_W | PTE_U : MAP_READ | MAP_WRITE | MAP_EXEC;
	pml4[0] = (uint64_t)pdpt | all;
	pdpt[0] = (uint64_t)pd | all;
	pd[0] = (uint64_t)pt | all;
	memset(pt, 0, sizeof(pt));
	return ((uint64_t)pml4 | (npt ? 0 : EPTP_WB_4LEVEL));
}

void
nested_map(uint64_t gpa, void *page, unsigned prot)
{
	uint64_t pte;

	if (npt)
		pte = PTE_P | PTE_U | ((prot & MAP_WRITE) != 0 ? PTE_W : 0);
	else
		pte = prot | EPT_WB;
	*(volatile uint64_t *)&pt[gpa / PAGE_SIZE % 512] =
	    prot == 0 ? 0 : (uint64_t)page | pte;
}
