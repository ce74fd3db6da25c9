/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Switches between a boot sector's real mode and the ROM's 32-bit mode.  The
 * code from bios_stub to bios_stub_end is copied to 9000:f000 and runs there;
 * the rest stays in the ROM.
 */

#define	HERE(label)	((label) - bios_stub + 0xf000)
#define	CODE16		0x18		/* selectors of reset.S */
#define	DATA16		0x20
#define	STACK		0x90000

	.section .rodata, "a"
	.code16
	.globl	bios_stub, bios_stub_end, bios_vectors
bios_stub:
	iret				/* every vector but those below */
int10:	pushw	$0x10
	jmp	service
int13:	pushw	$0x13
	jmp	service
int15:	pushw	$0x15
	jmp	service
int16:	pushw	$0x16
	jmp	service
int18:	pushw	$0x18
service:
	pushal
	pushw	%ds
	pushw	%es
	cli
	cld
	movw	%cs, %ax
	movw	%ax, %ds
	movw	%ss, HERE(saved_ss)
	movl	%esp, HERE(saved_esp)
	lgdtl	HERE(stub_gdtr)
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$0x08, $bios_enter

	/* From a 16-bit segment to real mode. */
	.macro	to_real_mode
	movw	$DATA16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	%cr0, %eax
	andb	$0xfe, %al
	movl	%eax, %cr0
	ljmpw	$0x9000, $HERE(1f)
1:
	.endm

bios_leave:
	to_real_mode
	movw	%cs, %ax
	movw	%ax, %ds
	movw	HERE(saved_ss), %ss
	movl	HERE(saved_esp), %esp
	popw	%es
	popw	%ds
	popal
	addw	$2, %sp
	iret

	/* On the way to the boot sector. */
bios_jump:
	to_real_mode
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$0x7c00, %esp
	movw	$0x80, %dx
	sti
	ljmpw	$0, $0x7c00

	.balign	4
stub_gdtr:
	.word	5 * 8 - 1
	.long	gdt
saved_ss:
	.word	0
saved_esp:
	.long	0
bios_stub_end:

	.balign	2
bios_vectors:
	.word	0x10, int10 - bios_stub
	.word	0x13, int13 - bios_stub
	.word	0x15, int15 - bios_stub
	.word	0x16, int16 - bios_stub
	.word	0x18, int18 - bios_stub
	.word	0, 0

	.code32
	.text
bios_enter:
	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$STACK, %esp
	/* The frame's address: what was SS:SP. */
	movzwl	(0x90000 + HERE(saved_ss)), %eax
	shll	$4, %eax
	movzwl	(0x90000 + HERE(saved_esp)), %ecx
	addl	%ecx, %eax
	pushl	%eax
	call	bios_call
	cli
	ljmpl	$CODE16, $HERE(bios_leave)

	.globl	bios_start
bios_start:
	cli
	ljmpl	$CODE16, $HERE(bios_jump)
