/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * The boot sector.  The BIOS puts it at 0x7c00 in real mode with the boot
 * drive in %dl.  It reads the rest of the image to 0x10000, sector by
 * sector, and jumps there in 32-bit protected mode.
 *
 * Sectors are read one at a time: the whole payload is under 64 KiB, so the
 * time does not matter, and a single sector never crosses a track, a
 * segment or a 64 KiB DMA boundary, whatever the geometry.
 *
 * Address line 20 is left alone: everything the probe uses lies below 1 MiB.
 */

#include "layout.h"

	.code16
	.section .boot, "ax", @progbits
	.globl	_start
_start:
	/* BIOS writes to 0x3 .. 0x59 of a "boot parameter block" are known. */
	jmp	1f
	.fill	0x5a - (. - _start), 1, 0
1:
	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$0x7c00, %sp
	ljmp	$0, $2f
2:
	sti
	cld
	movb	%dl, drive

	/* COM1, 115200 8n1, FIFOs on: pairs of (offset, value). */
	movw	$uart, %si
	movw	$(uart_end - uart) / 2, %cx
3:
	lodsw
	movw	$COM1, %dx
	addb	%al, %dl
	movb	%ah, %al
	outb	%al, %dx
	loop	3b

	/* INT 13h extensions: function 41h asks for them, bit 0: packets. */
	movb	$0x41, %ah
	movb	drive, %dl
	movw	$0x55aa, %bx
	int	$0x13
	jc	chs
	cmpw	$0xaa55, %bx
	jne	chs
	testb	$1, %cl
	jz	chs
	movw	$read_lba, reader
	jmp	load

	/* None: ask for the geometry and read by cylinder, head, sector. */
chs:
	movb	$0x08, %ah
	movb	drive, %dl
	xorw	%di, %di
	int	$0x13
	movw	$0, %ax			/* mov: the carry must survive */
	movw	%ax, %es
	jc	fail
	andw	$0x3f, %cx
	jz	fail
	movw	%cx, spt
	movzbw	%dh, %ax
	incw	%ax
	movw	%ax, heads

load:
	movw	$payload_sectors, %cx
4:
	pushw	%cx
	movw	$3, %cx			/* a floppy's motor may need a retry */
5:
	pushw	%cx
	call	*reader
	popw	%cx
	jnc	6f
	xorw	%ax, %ax		/* reset the drive, try again */
	movb	drive, %dl
	int	$0x13
	loop	5b
	jmp	fail
6:
	popw	%cx
	incw	packet_lba
	addw	$0x20, packet_seg
	loop	4b

	/* The last four bytes show that everything was loaded, and in order. */
	movw	$tail_seg, %ax
	movw	%ax, %es
	cmpl	$TAIL_MAGIC, %es:tail_off
	jne	fail

	cli
	lgdtl	gdtr
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$SEL_CODE32, $entry32

read_lba:
	movb	$0x42, %ah
	movb	drive, %dl
	movw	$packet, %si
	int	$0x13
	ret

read_chs:
	movw	packet_lba, %ax
	xorw	%dx, %dx
	divw	spt			/* %dx: sector - 1 */
	movb	%dl, %cl
	incb	%cl
	xorw	%dx, %dx
	divw	heads			/* %ax: cylinder, %dx: head */
	movb	%dl, %dh
	movb	%al, %ch
	shlb	$6, %ah
	orb	%ah, %cl
	movb	drive, %dl
	movw	packet_seg, %es
	xorw	%bx, %bx
	movw	$0x0201, %ax
	int	$0x13
	ret

fail:
	movw	$msg, %si
7:
	lodsb
	testb	%al, %al
	jz	9f
	movb	%al, %bl
8:
	movw	$COM1 + 5, %dx
	inb	%dx, %al
	testb	$0x20, %al
	jz	8b
	movw	$COM1, %dx
	movb	%bl, %al
	outb	%al, %dx
	jmp	7b
9:
	movb	$EXIT_BAIL, %al
	outb	%al, $DEBUG_EXIT
	cli
	hlt
	jmp	9b

msg:
	.ascii	"TAP version 13\n"
	.asciz	"Bail out! boot sector: the disk cannot be read\n"
	/* Divisor latch on, divisor 1, 8n1, FIFOs on and clear, DTR and RTS. */
uart:
	.byte	1, 0x00, 3, 0x80, 0, 0x01, 1, 0x00, 3, 0x03, 2, 0x07, 4, 0x03
uart_end:
reader:
	.word	read_chs
spt:
	.word	0
heads:
	.word	0
drive:
	.byte	0
	.balign	4
	/* Disk address packet: size, count, offset:segment, sector. */
packet:
	.byte	16, 0
	.word	1
	.word	0
packet_seg:
	.word	PAYLOAD_SEG
packet_lba:
	.quad	1
	.balign	8
gdt:
	.quad	0
	.quad	0x00af9a000000ffff	/* SEL_CODE64 */
	.quad	0x00cf92000000ffff	/* SEL_DATA */
	.quad	0x00cf9a000000ffff	/* SEL_CODE32 */
gdtr:
	.word	gdtr - gdt - 1
	.long	gdt

	.org	510
	.word	0xaa55
