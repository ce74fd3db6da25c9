/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * The L2 guest: real mode, CS = L2_CODE_SEG, IP = 0, one page of code, one
 * page of data.  It goes through its stages in a fixed order, and reports each
 * by a CPUID whose leaf is the stage's number; L1 checks what must have
 * happened by then.  MODE_ bits in its data page make it misbehave on purpose.
 */

#include "layout.h"

	.code16
	.section .l2, "ax", @progbits
	.globl	l2_hello, l2_read, l2_have_read, l2_write, l2_have_written
	.globl	l2_io, l2_vmcall, l2_vmmcall, l2_cost_at, l2_hlt, l2_spin
l2:
	movw	$L2_DATA_SEG, %ax
	movw	%ax, %ds
	movw	$L2_HOLE_SEG, %ax
	movw	%ax, %es

	testw	$MODE_SPIN, L2_MODE
1:
	jnz	1b

	/* Answer the nonce, and report the processor's mode. */
	testw	$MODE_SILENT, L2_MODE
	jnz	2f
	movl	L2_NONCE, %eax
	xorl	$L2_KEY, %eax
	movl	%eax, L2_ANSWER
	smsw	%ax
	movw	%ax, L2_CR0
	movw	%cs, L2_CS
2:
	movl	$L2_HELLO, %eax
l2_hello:
	cpuid
	movl	%ebx, L2_REGISTERS

	/* Touch the hole: once to read ... */
	movw	$L2_HOLE_OFF, %bx
	testw	$MODE_WRONG_GPA, L2_MODE
	jz	l2_read
	movw	$L2_WRONG_OFF, %bx
l2_read:
	movl	%es:(%bx), %ecx
	testw	$MODE_WRONG_READ, L2_MODE
	jz	3f
	notl	%ecx
3:
	movl	%ecx, L2_READ
	movl	$L2_HAVE_READ, %eax
l2_have_read:
	cpuid

	/* ... and, the page being given for reading only, once to write. */
	movw	$L2_HOLE_OFF, %bx
	movl	L2_READ, %ecx
	xorl	$L2_KEY, %ecx
l2_write:
	movl	%ecx, %es:(%bx)
	movl	%es:(%bx), %ecx
	movl	%ecx, L2_READBACK
	movl	$L2_HAVE_WRITTEN, %eax
l2_have_written:
	cpuid

	/* A byte for the serial port, as a boot ROM does. */
	movw	$L2_IO_PORT, %dx
	movb	$L2_IO_BYTE, %al
	testw	$MODE_NO_IO, L2_MODE
	jnz	5f
l2_io:
	outb	%al, %dx
5:

	/* The instruction for calling the hypervisor. */
	movl	$L2_CALL, %eax
	testw	$MODE_NO_CALL, L2_MODE
	jnz	7f
	testw	$MODE_SVM, L2_MODE
	jnz	l2_vmmcall
l2_vmcall:
	vmcall
	jmp	7f
l2_vmmcall:
	vmmcall
7:

	/* Do not give the processor back: an interrupt has to take it. */
	cmpw	$0, L2_RELEASE
	je	7b
	movl	$L2_RELEASED, %eax
	cpuid

	/* Measure a round trip. */
	testw	$MODE_NO_COST, L2_MODE
	jnz	9f
8:
	movl	$L2_COST, %eax
l2_cost_at:
	cpuid
	cmpl	$0, %eax		/* L1 answers 0: enough */
	jne	8b
9:
	testw	$MODE_NO_HLT, L2_MODE
	jnz	10f
l2_hlt:
	hlt
10:
	movl	$L2_END, %eax
	cpuid
	jmp	10b

	/* Not on the way: L1 sets IP here after the HLT. */
l2_spin:
	jmp	l2_spin
	.section .note.GNU-stack, "", @progbits
