/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * A boot sector: it checks what a BIOS must provide, prints a line by INT 10h,
 * reads the sector behind its own by INT 13h, prints the text there, and powers
 * the machine off.  At the end of a run of sectors it is one, too.
 */

	.code16
	.text
	.globl	start
start:
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$0x7c00, %sp
	cld
	movb	%dl, drive - start + 0x7c00
	movw	$(marker - start + 0x7c00), %si
	call	print
	cmpb	$0x80, drive - start + 0x7c00
	jne	bad
	/* The text's sector by its number, as a packet on the stack. */
	pushl	$0
	pushl	lba - start + 0x7c00
	pushw	$0
	pushw	$0x8000
	pushw	$1
	pushw	$16
	movw	%sp, %si
	movb	drive - start + 0x7c00, %dl
	movb	$0x42, %ah
	int	$0x13
	jc	bad
	addw	$16, %sp
	movw	$0x8000, %si
	call	print
	movw	$0x404, %dx
	movw	$0x3400, %ax
	outw	%ax, %dx
1:	hlt
	jmp	1b
bad:
	movw	$(failed - start + 0x7c00), %si
	call	print
1:	hlt
	jmp	1b

print:
	lodsb
	testb	%al, %al
	jz	1f
	movb	$0x0e, %ah
	movw	$7, %bx
	int	$0x10
	jmp	print
1:	ret

marker:
	.asciz	"BOOTSECT runs\r\n"
failed:
	.asciz	"BOOTSECT failed\r\n"
drive:
	.byte	0
	.org	504, 0
	/* The program that makes the disk sets the text's place. */
lba:
	.long	1
	.word	0
	.word	0xaa55
