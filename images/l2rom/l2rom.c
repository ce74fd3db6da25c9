/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * A guest without an operating system, for bhyve -l bootrom.  It prints a
 * marker and the memory it finds on COM1, and then does what it is told
 * there, a line each:
 *
 *	tN	touch N MiB of memory, a page at a time, and read it back
 *	s	spin: never answer again
 *	h	halt with interrupts off
 *	p	power off
 *	r	reset
 *	f	triple fault
 */

#include <stdbool.h>
#include <stdint.h>

#define	COM1		0x3f8
#define	COM_DATA	(COM1 + 0)
#define	COM_IER		(COM1 + 1)
#define	COM_LCR		(COM1 + 3)
#define	COM_MCR		(COM1 + 4)
#define	COM_LSR		(COM1 + 5)
#define	IER_RECEIVED	0x01
#define	MCR_INTERRUPTS	0x0b	/* DTR, RTS, and OUT2, which lets them out */
#define	LCR_8N1		0x03
#define	LCR_DLAB	0x80
#define	LSR_RXREADY	0x01
#define	LSR_TXREADY	0x20

#define	CMOS_INDEX	0x70
#define	CMOS_DATA	0x71
#define	CMOS_LOWMEM	0x34	/* 64 KiB units above 16 MiB, two bytes */
#define	CMOS_HIGHMEM	0x5b	/* 64 KiB units above 4 GiB, three bytes */

#define	PM1_CONTROL	0x404	/* bhyve's ACPI power management block */
#define	PM1_SLEEP_OFF	0x3400
#define	RESET_CONTROL	0xcf9
#define	RESET_HARD	0x06

#define	PIC1_COMMAND	0x20
#define	PIC1_MASK	0x21
#define	PIC2_COMMAND	0xa0
#define	PIC2_MASK	0xa1
#define	PIC_INIT	0x11
#define	PIC_8086	0x01
#define	LAPIC_SVR	0xfee000f0
#define	SVR_ENABLE	0x1ff
#define	LAPIC_LINT0	0xfee00350
#define	LVT_EXTINT	0x700
#define	COM1_IRQ	4
#define	IRQ_VECTOR	32
#define	VECTORS		(IRQ_VECTOR + 16)

#define	MIB		(1024U * 1024U)
#define	PAGE		4096U
/* Below lie this program's stack and variables, and the legacy hole. */
#define	FIRST_MIB	1U
#define	MAX_MIB		3000U

void	rom_main(void);
void	triple_fault(void);
void	interrupt(void);
void	load_idt(const void *table, uint32_t size);

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

static inline uint8_t
inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return (value);
}

static void
put_char(char c)
{
	while ((inb(COM_LSR) & LSR_TXREADY) == 0)
		__asm__ volatile("pause");
	outb(COM_DATA, (uint8_t)c);
}

static void
put(const char *text)
{
	for (; *text != '\0'; text++) {
		if (*text == '\n')
			put_char('\r');
		put_char(*text);
	}
}

static void
put_number(uint32_t value)
{
	char digits[11];
	int at;

	at = sizeof(digits) - 1;
	digits[at] = '\0';
	do {
		digits[--at] = (char)('0' + value % 10);
		value /= 10;
	} while (value != 0);
	put(&digits[at]);
}

/*
 * A guest that polls would keep its hypervisor, and on one processor everybody
 * else, busy with VM exits.  So it halts until the serial port interrupts; the
 * instruction after STI is still safe from that interrupt.
 */
static char
get_char(void)
{
	for (;;) {
		__asm__ volatile("cli");
		if ((inb(COM_LSR) & LSR_RXREADY) != 0)
			break;
		__asm__ volatile("sti; hlt");
	}
	__asm__ volatile("sti");
	return ((char)inb(COM_DATA));
}

/*
 * Interrupts come from COM1 alone, and their handler has nothing to do but to
 * end them.  The flag stays on otherwise: in Bochs the hypervisor's own
 * interrupts would not end a guest that spins with it off.
 */
static void
init_interrupts(void)
{
	static uint64_t idt[VECTORS];
	uint32_t handler;

	handler = (uint32_t)(uintptr_t)interrupt;
	idt[IRQ_VECTOR + COM1_IRQ] = (uint64_t)(handler & 0xffff0000) << 32 |
	    0x00008e0000080000ULL | (handler & 0xffff);
	load_idt(idt, sizeof(idt));

	/* A reset local APIC keeps the PIC's interrupts to itself. */
	*(volatile uint32_t *)LAPIC_SVR = SVR_ENABLE;
	*(volatile uint32_t *)LAPIC_LINT0 = LVT_EXTINT;

	outb(PIC1_COMMAND, PIC_INIT);
	outb(PIC1_MASK, IRQ_VECTOR);
	outb(PIC1_MASK, 1 << 2);
	outb(PIC1_MASK, PIC_8086);
	outb(PIC2_COMMAND, PIC_INIT);
	outb(PIC2_MASK, IRQ_VECTOR + 8);
	outb(PIC2_MASK, 2);
	outb(PIC2_MASK, PIC_8086);
	outb(PIC1_MASK, (uint8_t)~(1 << COM1_IRQ));
	outb(PIC2_MASK, 0xff);
	outb(COM_MCR, MCR_INTERRUPTS);
	outb(COM_IER, IER_RECEIVED);
	__asm__ volatile("sti");
}

static uint8_t
cmos(uint8_t index)
{
	outb(CMOS_INDEX, index);
	return (inb(CMOS_DATA));
}

/* Memory below 4 GiB, in MiB; the registers say nothing of the first 16. */
static uint32_t
lowmem_mib(void)
{
	uint32_t units;

	units = cmos(CMOS_LOWMEM) | (uint32_t)cmos(CMOS_LOWMEM + 1) << 8;
	return (units / 16 + 16);
}

static uint32_t
highmem_mib(void)
{
	uint32_t units;

	units = cmos(CMOS_HIGHMEM) | (uint32_t)cmos(CMOS_HIGHMEM + 1) << 8 |
	    (uint32_t)cmos(CMOS_HIGHMEM + 2) << 16;
	return (units / 16);
}

/*
 * Write every page's own address into it and read all back, so that two
 * pages which are one do not go unnoticed.
 */
static void
touch(uint32_t mib)
{
	uint32_t address, bad, end;

	if (mib == 0 || mib > MAX_MIB || mib + FIRST_MIB > lowmem_mib()) {
		put("L2ROM error: that much memory is not there\n");
		return;
	}
	end = (FIRST_MIB + mib) * MIB;
	for (address = FIRST_MIB * MIB; address < end; address += PAGE)
		*(volatile uint32_t *)(uintptr_t)address = address ^ 0x5a5a5a5a;
	bad = 0;
	for (address = FIRST_MIB * MIB; address < end; address += PAGE) {
		if (*(volatile uint32_t *)(uintptr_t)address !=
		    (address ^ 0x5a5a5a5a))
			bad++;
	}
	put("L2ROM touched ");
	put_number(mib);
	put(" MiB, bad pages: ");
	put_number(bad);
	put("\n");
}

/* A decimal number up to the end of the line. */
static uint32_t
get_number(void)
{
	uint32_t value;
	char c;

	value = 0;
	for (;;) {
		c = get_char();
		if (c < '0' || c > '9')
			return (value);
		if (value <= MAX_MIB)
			value = value * 10 + (uint32_t)(c - '0');
	}
}

void
rom_main(void)
{
	outb(COM_LCR, LCR_DLAB | LCR_8N1);
	outb(COM_DATA, 1);		/* 115200 baud */
	outb(COM_IER, 0);
	outb(COM_LCR, LCR_8N1);

	init_interrupts();

	put("L2ROM ready, memory: low ");
	put_number(lowmem_mib());
	put(" MiB, high ");
	put_number(highmem_mib());
	put(" MiB\n");

	for (;;) {
		switch (get_char()) {
		case 't':
			touch(get_number());
			break;
		case 's':
			put("L2ROM spins\n");
			for (;;)
				__asm__ volatile("pause");
		case 'h':
			put("L2ROM halts\n");
			__asm__ volatile("cli; hlt");
			break;
		case 'p':
			put("L2ROM powers off\n");
			outw(PM1_CONTROL, PM1_SLEEP_OFF);
			break;
		case 'r':
			put("L2ROM resets\n");
			outb(RESET_CONTROL, RESET_HARD);
			break;
		case 'f':
			put("L2ROM faults\n");
			triple_fault();
			break;
		case '\r':
		case '\n':
			break;
		default:
			put("L2ROM error: t, s, h, p, r or f\n");
			break;
		}
	}
}
