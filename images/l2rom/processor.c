/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Starting the other processors. */

#include "rom.h"

#define	LAPIC		0xfee00000u
#define	AP_PAGE		0x6000u

static void
set_lapic(uint32_t offset, uint32_t value)
{
	*(volatile uint32_t *)(uintptr_t)(LAPIC + offset) = value;
}

/*
 * INIT and SIPI to the second processor: it begins in real mode at the page
 * that the vector names (SDM 3, 9.4.4), here with: mov $0x1234, %ax;
 * mov %ax, %cs:0x100; mov %cs, %ax; mov %ax, %cs:0x102; cli; hlt
 */
void
second_processor(void)
{
	static const uint8_t code[] = { 0xb8, 0x34, 0x12, 0x2e, 0xa3, 0x00,
	    0x01, 0x8c, 0xc8, 0x2e, 0xa3, 0x02, 0x01, 0xfa, 0xf4, 0xeb, 0xfc };
	volatile uint8_t *page = (volatile uint8_t *)(uintptr_t)AP_PAGE;
	volatile uint16_t *mark =
	    (volatile uint16_t *)(uintptr_t)(AP_PAGE + 0x100);

	for (uint32_t i = 0; i < sizeof(code); i++)
		page[i] = code[i];
	mark[0] = mark[1] = 0;
	set_lapic(0xf0, 0x1ff);
	set_lapic(0x310, 1u << 24);
	set_lapic(0x300, 0x4600 | AP_PAGE >> 12);	/* SIPI too early */
	set_lapic(0x310, 1u << 24);
	set_lapic(0x300, 0x4500);			/* INIT */
	equal("the processor before its SIPI", mark[0], 0);
	set_lapic(0x310, 1u << 24);
	set_lapic(0x300, 0x4600 | AP_PAGE >> 12);
	for (uint32_t i = 0; i < 20000000 && mark[1] == 0; i++)
		__asm__ volatile("pause");
	equal("what it wrote", mark[0], 0x1234);
	equal("its CS", mark[1], AP_PAGE >> 4);
}

/*
 * Start all others at once: each marks the byte of its APIC id.  mov $1, %eax;
 * cpuid; shr $24, %ebx; movb $0x5a, %cs:0x110(%bx); cli; hlt.  Interrupts are
 * off, because the PIC's are offered to each whose local APIC is off.
 */
void
all_processors(void)
{
	static const uint8_t code[] = { 0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2,
	    0x66, 0xc1, 0xeb, 0x18, 0x2e, 0xc6, 0x87, 0x10, 0x01, 0x5a, 0xfa,
	    0xf4, 0xeb, 0xfc };
	volatile uint8_t *page = (volatile uint8_t *)(uintptr_t)AP_PAGE;
	volatile uint8_t *marks = page + 0x110;

	for (uint32_t i = 0; i < sizeof(code); i++)
		page[i] = code[i];
	for (uint32_t i = 0; i < 8; i++)
		marks[i] = 0;
	set_lapic(0xf0, 0x1ff);
	set_lapic(0x300, 0xc4500);			/* INIT */
	set_lapic(0x300, 0xc4600 | AP_PAGE >> 12);
	for (uint32_t i = 0; i < 20000000 && (marks[1] == 0 || marks[2] == 0 ||
	    marks[3] == 0); i++)
		__asm__ volatile("pause");
	for (uint32_t i = 1; i < 4; i++)
		equal("a processor's mark", marks[i], 0x5a);
	equal("the first one's mark", marks[0], 0);
	equal("a mark of nobody", marks[4], 0);
}
