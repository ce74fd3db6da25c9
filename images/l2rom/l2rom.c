/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * A guest without an operating system, for bhyve -l bootrom.  It prints a
 * marker and the memory that it finds on COM1, and then obeys commands from
 * there, one per line:
 *
 *	tN	touch N MiB of memory, a page at a time, and read it back
 *	s	spin: never answer again
 *	h	halt with interrupts off
 *	z	sleep: halt with interrupts on, of which none comes
 *	p	power off
 *	r	reset
 *	f	triple fault
 *	u	look at bhyve's own devices (platform.c)
 *	oN	send N bytes through COM1 (stream.c)
 *	iN	read N bytes from COM1, which follow the line
 *	vN	send N bytes through a virtio console
 *	jN	read N bytes from a virtio console
 *	n	count until a character comes, and look at memory then
 *	b	boot from the first disk as a BIOS does (bios.c)
 *	w	look at QEMU's fw_cfg, in a machine that has it
 */

#include "rom.h"

#define	COM1		0x3f8
#define	COM_DATA	(COM1 + 0)
#define	COM_FCR		(COM1 + 2)
#define	COM_LCR		(COM1 + 3)
#define	COM_LSR		(COM1 + 5)
#define	FCR_EMPTY	0x07	/* FIFOs on, and nothing in them */
#define	FIFO_CHARS	16U
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

#define	PIC1_MASK	0x21
#define	PIC2_MASK	0xa1

#define	POLL_PAUSES	200000U

#define	MIB		(1024U * 1024U)
#define	PAGE		4096U
/* Below are this program's stack and variables, and the legacy hole. */
#define	FIRST_MIB	1U
#define	MAX_MIB		3000U
#define	MAX_NUMBER	100000000U

void	rom_main(void);
void	rom_serve(void);
void	triple_fault(void);

/*
 * Fill the FIFO with one instruction: that is one VM exit to bhyve, while
 * reading the status and writing each character would be two exits per
 * character.
 */
static void
put_chars(const char *chars, uint32_t count)
{
	while ((inb(COM_LSR) & LSR_TXREADY) == 0)
		__asm__ volatile("pause");
	__asm__ volatile("rep outsb"
	    : "+S" (chars), "+c" (count)
	    : "d" ((uint16_t)COM_DATA)
	    : "memory");
}

void
put_char(char c)
{
	put_chars(&c, 1);
}

void
put(const char *text)
{
	char chars[FIFO_CHARS];
	uint32_t count = 0;

	for (; *text != '\0'; text++) {
		if (count + 2 > FIFO_CHARS) {
			put_chars(chars, count);
			count = 0;
		}
		if (*text == '\n')
			chars[count++] = '\r';
		chars[count++] = *text;
	}
	if (count != 0)
		put_chars(chars, count);
}

void
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

void
put_hex(uint32_t value)
{
	put("0x");
	for (int shift = 28; shift >= 0; shift -= 4)
		put_char("0123456789abcdef"[value >> shift & 0xf]);
}

/*
 * Each read of the port is a VM exit up to bhyve itself, so a guest that polled
 * all the time would keep L1's processor busy.  Halting until an interrupt
 * comes would be kinder still, but Bochs emulates everything at a fifth of its
 * speed once it has delivered a virtual interrupt.
 */
static char
get_char(void)
{
	while ((inb(COM_LSR) & LSR_RXREADY) == 0) {
		for (uint32_t i = 0; i < POLL_PAUSES; i++)
			__asm__ volatile("pause");
	}
	return ((char)inb(COM_DATA));
}

static uint8_t
cmos(uint8_t index)
{
	outb(CMOS_INDEX, index);
	return (inb(CMOS_DATA));
}

/* Memory below 4 GiB, in MiB; the registers do not include the first 16. */
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
 * addresses of the same page are noticed.
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
		if (value < MAX_NUMBER)
			value = value * 10 + (uint32_t)(c - '0');
	}
}

#define	COUNT_PAUSES	100000U
#define	COUNT_MIB	4U

static uint32_t
pattern(uint32_t address)
{
	return (address * 2654435761U);
}

/*
 * Count and print the numbers while this guest may be suspended: the number is
 * in a register, and a pattern written before is read back at the end.
 */
static void
count(void)
{
	uint32_t number = 0, bad = 0, address;

	/* The end of the line does not end the count. */
	(void)get_number();
	for (address = FIRST_MIB * MIB; address < (FIRST_MIB + COUNT_MIB) * MIB;
	    address += PAGE)
		*(volatile uint32_t *)(uintptr_t)address = pattern(address);
	while ((inb(COM_LSR) & LSR_RXREADY) == 0) {
		put("L2ROM counts ");
		put_number(++number);
		put("\n");
		for (uint32_t i = 0; i < COUNT_PAUSES; i++)
			__asm__ volatile("pause");
	}
	(void)inb(COM_DATA);
	for (address = FIRST_MIB * MIB; address < (FIRST_MIB + COUNT_MIB) * MIB;
	    address += PAGE) {
		if (*(volatile uint32_t *)(uintptr_t)address != pattern(address))
			bad++;
	}
	put("L2ROM counted to ");
	put_number(number);
	put(", bad pages: ");
	put_number(bad);
	put("\n");
}

void
rom_main(void)
{
	outb(COM_LCR, LCR_DLAB | LCR_8N1);
	outb(COM1, 1);			/* 115200 baud */
	outb(COM1 + 1, 0);
	outb(COM_LCR, LCR_8N1);
	outb(COM_FCR, FCR_EMPTY);
	outb(COM1 + 1, 0);		/* no interrupts: everything is polled */

	/*
	 * No interrupt is wanted, but they must not be masked by the flag:
	 * in Bochs the hypervisor's own interrupts would then not end a
	 * guest that spins, and its whole machine would stand still.
	 */
	outb(PIC1_MASK, 0xff);
	outb(PIC2_MASK, 0xff);
	__asm__ volatile("sti");

	put("L2ROM ready, memory: low ");
	put_number(lowmem_mib());
	put(" MiB, high ");
	put_number(highmem_mib());
	put(" MiB\n");
	rom_serve();
}

/* Do what is asked for, for ever. */
void
rom_serve(void)
{
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
		case 'z':
			put("L2ROM sleeps\n");
			for (;;)
				__asm__ volatile("sti; hlt");
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
		case 'u':
			platform();
			break;
		case 'o':
			stream_out(get_number());
			break;
		case 'i':
			stream_in(get_number());
			break;
		case 'v':
			stream_virtio(get_number());
			break;
		case 'j':
			stream_virtio_in(get_number());
			break;
		case 'n':
			count();
			break;
		case 'b':
			boot();
			break;
		case 'w':
			firmware_machine();
			break;
		case '\r':
		case '\n':
			break;
		default:
			put("L2ROM error: b, f, h, i, j, n, o, p, r, s, t, u, v, w\n");
			break;
		}
	}
}
