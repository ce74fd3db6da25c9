/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* The guest's page tables and descriptor tables. */

#include <string.h>

#include "vmunit.h"

#define	PTE		0x67ul		/* present, writable, user, A, D */
#define	PTE_PS		0x80ul

/*
 * Shared page directories for 0, 2 and 3 GiB, then six pages for each window.
 */
#define	PD(gib)		(A_PAGES + 0x1000u * ((gib) == 0 ? 0 : (gib) - 1))
#define	OF(window)	(A_PAGES + 0x3000u + 0x6000u * (window))
enum { PML4, PDPT, PD1, PT, PD32, PT32 };
#define	TABLE(window, which) (OF(window) + 0x1000u * (which))

/*
 * The window: four pages of data and two of code.  Its adjacent pages are not
 * adjacent in guest-physical memory, so code that confuses linear and physical
 * addresses fails.
 */
static uint64_t
behind(enum window window, unsigned page)
{
	static const uint32_t ram[] = { A_DATA, A_DATA + 0x2000,
	    A_DATA + 0x1000, A_DATA + 0x3000 };

	if (page == 4)
		return (A_CODE2);
	if (page == 5)
		return (A_CODE2 + 0x2000);
	if (window == W_RAM)
		return (ram[page]);
	if (window == W_HPET && page == 0)
		return (HPET);
	return (DEVICE + page * PAGE_SIZE);
}

static void
make_window(char *mem, enum window window)
{
	uint64_t *pml4 = (uint64_t *)(void *)(mem + TABLE(window, PML4));
	uint64_t *pdpt = (uint64_t *)(void *)(mem + TABLE(window, PDPT));
	uint64_t *pd1 = (uint64_t *)(void *)(mem + TABLE(window, PD1));
	uint64_t *pt = (uint64_t *)(void *)(mem + TABLE(window, PT));
	uint32_t *pd32 = (uint32_t *)(void *)(mem + TABLE(window, PD32));
	uint32_t *pt32 = (uint32_t *)(void *)(mem + TABLE(window, PT32));

	pml4[0] = TABLE(window, PDPT) | PTE;
	pdpt[0] = PD(0) | PTE;
	pdpt[1] = TABLE(window, PD1) | PTE;
	pdpt[2] = PD(2) | PTE;
	pdpt[3] = PD(3) | PTE;
	pd1[0] = TABLE(window, PT) | PTE;
	for (unsigned i = 0; i < 1024; i++)
		pd32[i] = (uint32_t)((i << 22) | PTE | PTE_PS);
	pd32[WINDOW >> 22] = (uint32_t)(TABLE(window, PT32) | PTE);
	for (unsigned page = 0; page < 6; page++) {
		pt[page] = behind(window, page) | PTE;
		pt32[page] = (uint32_t)pt[page];
	}
}

static void
gate(char *mem, unsigned vector, uint32_t offset32, uint32_t offset64)
{
	uint64_t *low = (uint64_t *)(void *)(mem + A_IDT64 + vector * 16);
	uint64_t *gate32 = (uint64_t *)(void *)(mem + A_IDT32 + vector * 8);
	const uint64_t kind = 0x8e00ul << 32;	/* interrupt gate, DPL 0 */

	low[0] = (offset64 & 0xffff) | 0x08ul << 16 | kind |
	    (uint64_t)(offset64 >> 16) << 48;
	low[1] = 0;
	*gate32 = (offset32 & 0xffff) | 0x18ul << 16 | kind |
	    (uint64_t)(offset32 >> 16) << 48;
}

/* Fill a guest's memory with everything that the modes need. */
void
make_tables(char *mem)
{
	static const uint64_t gdt[] = {
		0,
		0x00209b0000000000ul,	/* 08: 64-bit code */
		0x00cf93000000fffful,	/* 10: data */
		0x00cf9b000000fffful,	/* 18: 32-bit code */
		0x008f9b000000fffful,	/* 20: 16-bit code */
		0x0020fb0000000000ul,	/* 28: 64-bit code, DPL 3 */
		0x00cff3000000fffful,	/* 30: data, DPL 3 */
		0x00008b0000000067ul | (uint64_t)A_TSS << 16,	/* 38: TSS */
		0,
	};
	uint32_t stack = A_STACK;
	uint64_t *pd;
	uint32_t *ivt;

	memcpy(mem + A_GDT, gdt, sizeof(gdt));
	memcpy(mem + A_TSS + 4, &stack, sizeof(stack));	/* RSP0, ESP0 */
	for (unsigned gib = 0; gib < 4; gib++) {
		if (gib == 1)
			continue;
		pd = (uint64_t *)(void *)(mem + PD(gib));
		for (uint64_t i = 0; i < 512; i++)
			pd[i] = (uint64_t)gib << 30 | i << 21 | PTE | PTE_PS;
	}
	for (int window = 0; window < WINDOWS; window++)
		make_window(mem, window);
	ivt = (uint32_t *)(void *)(mem + A_IVT);
	for (unsigned vector = 0; vector < 256; vector++) {
		gate(mem, vector, A_HANDLERS32 + vector * 16,
		    A_HANDLERS + vector * 16);
		ivt[vector] = A_HANDLERS16 + vector * 16;
	}
}

/* CR3 for a mode, with page tables that map a window. */
uint64_t
cr3_of(enum mode mode, enum window window)
{
	return (TABLE(window, mode == LONG64 ? PML4 : PD32));
}
