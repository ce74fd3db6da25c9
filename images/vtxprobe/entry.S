/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * From 32-bit protected mode, without paging, to main() in long mode; the
 * exception stubs; and the message for a processor without long mode.
 */

#include "layout.h"

#define	MSR_EFER	0xc0000080
#define	EFER_LME	0x100
#define	CR0_PG		0x80000000
#define	CR4_PAE		0x20
#define	PTE_P_RW	0x003
#define	PTE_PS		0x080

	.code32
	.section .entry, "ax", @progbits
	.globl	entry32
entry32:
	movw	$SEL_DATA, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %fs
	movw	%ax, %gs
	movw	%ax, %ss

	cld
	movl	$bss_start, %edi
	movl	$bss_end, %ecx
	subl	%edi, %ecx
	shrl	$2, %ecx
	xorl	%eax, %eax
	rep stosl
	movl	$stack_top, %esp

	/* Long mode: CPUID 8000_0001h EDX bit 29. */
	movl	$0x80000000, %eax
	cpuid
	cmpl	$0x80000001, %eax
	jb	no_long_mode
	movl	$0x80000001, %eax
	cpuid
	btl	$29, %edx
	jnc	no_long_mode

	/* Identity map of the first gigabyte, in pages of 2 MiB. */
	movl	$pdpt + PTE_P_RW, pml4
	movl	$pd + PTE_P_RW, pdpt
	movl	$pd, %edi
	movl	$PTE_P_RW | PTE_PS, %eax
	movl	$512, %ecx
1:
	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$0x200000, %eax
	loop	1b

	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	%cr4, %eax
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	$MSR_EFER, %ecx
	rdmsr
	orl	$EFER_LME, %eax
	wrmsr
	movl	%cr0, %eax
	orl	$CR0_PG, %eax
	movl	%eax, %cr0
	ljmp	$SEL_CODE64, $entry64

no_long_mode:
	movl	$no_lm_msg, %esi
2:
	lodsb
	testb	%al, %al
	jz	4f
	movb	%al, %bl
	movl	$100000, %ecx		/* a dead UART must not hang us */
3:
	movw	$COM1 + 5, %dx
	inb	%dx, %al
	testb	$0x20, %al
	loopz	3b
	movw	$COM1, %dx
	movb	%bl, %al
	outb	%al, %dx
	jmp	2b
4:
	movl	$100000, %ecx		/* until the last byte has left */
5:
	movw	$COM1 + 5, %dx
	inb	%dx, %al
	testb	$0x40, %al
	loopz	5b
	movb	$EXIT_NOT_OK, %al	/* the same ways out as power_off() */
	outb	%al, $DEBUG_EXIT
	movl	$shutdown, %esi
	movw	$0x8900, %dx
	movl	$8, %ecx
	rep outsb
	movw	$0x2000, %ax
	movw	$0xb004, %dx
	outw	%ax, %dx
	movw	$0x604, %dx
	outw	%ax, %dx
6:
	cli
	hlt
	jmp	6b

no_lm_msg:
	.ascii	"TAP version 13\n1..1\n"
	.ascii	"not ok 1 - cpu.long_mode: 64-bit mode\n"
	.ascii	"# CPUID 0x80000001 EDX bit 29 is 0: vmm.ko is amd64 only\n"
	.ascii	"# verdict vt=none module=0 ept=0 unrestricted=0 l2=0 "
	.asciz	"failed=1 first_missing=cpu.long_mode\n"
shutdown:
	.ascii	"Shutdown"

	.code64
entry64:
	xorl	%ebp, %ebp
	call	main
7:
	cli
	hlt
	jmp	7b

/*
 * One stub for each vector: push a zero where the processor pushes no error
 * code, then the vector.  IDT_STUB_SIZE apart, so that trap.c can compute
 * the addresses.
 */
	.text
	.balign	16
	.globl	idt_stubs
idt_stubs:
	.set	vector, 0
	.rept	48
	.balign	16
	.if	!((vector == 8) || ((vector >= 10) && (vector <= 14)) || \
		(vector == 17) || (vector == 21) || (vector == 29) || \
		(vector == 30))
	pushq	$0
	.endif
	pushq	$vector
	jmp	trap_common
	.set	vector, vector + 1
	.endr

	.balign	16
trap_common:
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	cld
	movq	%rsp, %rdi		/* struct trapframe * */
	call	trap
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rdx
	popq	%rcx
	popq	%rax
	addq	$16, %rsp
	iretq

	.section .bss.page, "aw", @nobits
	.balign	4096
	.globl	pml4
pml4:	.space	4096
pdpt:	.space	4096
pd:	.space	4096
stack:	.space	16384
stack_top:
	.section .note.GNU-stack, "", @progbits
