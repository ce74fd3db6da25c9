/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * From the reset vector to 32-bit C: the processor starts in real mode at
 * f000:fff0 with CS based at 0xffff0000 (Intel SDM vol. 3, 10.1.4), so this
 * must be near jumps alone until the far one below, and reads go through CS.
 */

	.code16
	.section .text.start, "ax"
	.globl	start
start:
	cli
	cld
	/*
	 * The table's address as this CS sees it: its offset in the top 64
	 * KiB.
	 */
	movl	$(gdtr - 0xffff0000), %ebx
	lgdtl	%cs:(%ebx)
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$0x08, $flat

	.code32
flat:
	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$0x9000, %esp
	/*
	 * The variables are in RAM, whose contents are undefined after a
	 * reset.
	 */
	movl	$bss_start, %edi
	movl	$bss_end, %ecx
	subl	%edi, %ecx
	xorl	%eax, %eax
	rep stosb
	call	rom_main
1:	hlt
	jmp	1b

	/*
	 * An interrupt table without entries turns any exception into a triple
	 * fault.
	 */
	.globl	triple_fault
triple_fault:
	lidtl	no_idt
	int3
	jmp	1b

	/* A #GP: record it, and continue at the address that was set. */
	.globl	fault_handler
fault_handler:
	addl	$4, %esp
	movl	$13, fault_seen
	pushl	%eax
	movl	fault_resume, %eax
	movl	%eax, 4(%esp)
	popl	%eax
	iretl

	.macro	handlers first
	.set	vec, \first
	.rept	16
	.balign	16
	.byte	0x68			/* push $vec */
	.long	vec
	jmp	interrupted
	.set	vec, vec + 1
	.endr
	.endm

	.balign	16
	.globl	pic_handlers, apic_handlers
pic_handlers:
	handlers 0x20
	.balign	16
apic_handlers:
	handlers 0x50

interrupted:
	pushal
	cld
	pushl	32(%esp)
	call	on_interrupt
	addl	$4, %esp
	popal
	addl	$4, %esp
	iretl

	.section .rodata, "a"
	.balign	8
	/*
	 * The accessed bits are set already: the processor would set them at
	 * the first use, and a write to a ROM is an EPT violation that ends
	 * the guest.
	 */
	.globl	gdt
gdt:
	.quad	0
	.quad	0x00cf9b000000ffff	/* code: base 0, 4 GiB */
	.quad	0x00cf93000000ffff	/* data: the same */
	.quad	0x00009b090000ffff	/* 16-bit code: base 0x90000, 64 KiB */
	.quad	0x000093000000ffff	/* 16-bit data: base 0, 64 KiB */
gdtr:
	.word	gdtr - gdt - 1
	.long	gdt
no_idt:
	.word	0
	.long	0

	.code16
	.section .reset, "ax"
	.globl	reset_vector
reset_vector:
	.byte	0xe9			/* jmp near to start, 16-bit displacement */
	.word	start - (reset_vector + 3)
