/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * What is measured, in the guest's 64-bit mode.  Each piece of code runs R12D
 * rounds and stores the cycles of each at R13.  It is copied to A_CODE, so it
 * uses relative addresses alone.  R14 is the instruction's operand: a port, an
 * MSR, an address.
 */

#define	PORT_DONE	0xf0
#define	LAPIC_EOI	0xfee000b0
#define	LAPIC_ICR	0xfee00300
#define	ICR_SELF	0x44000		/* fixed, assert, self */
#define	ICR_OTHERS	0xc4000		/* fixed, assert, all but self */
/* As in bench.c. */
#define	V_WAKE		0x50
#define	V_PING		0x51
#define	V_PONG		0x52
#define	A_ANSWERED	0x18000
#define	A_STOP		0x18004

	.section .rodata
	.code64

	.macro	BEFORE
	lfence
	rdtsc
	shlq	$32, %rdx
	leaq	(%rax, %rdx), %r8
	.endm

	.macro	AFTER
	rdtsc
	shlq	$32, %rdx
	orq	%rdx, %rax
	.endm

	/* Store the cycles since BEFORE, and begin the next round. */
	.macro	ROUND
	subq	%r8, %rax
	movl	%eax, (%r13)
	addq	$4, %r13
	decl	%r12d
	jnz	1b
	outb	%al, $PORT_DONE
	.endm

	.macro	PIECE name
	.globl	\name, \name\()_end
\name:
1:
	.endm

	PIECE	p_nothing
	BEFORE
	AFTER
	ROUND
p_nothing_end:

	PIECE	p_cpuid
	xorl	%eax, %eax
	BEFORE
	xorl	%eax, %eax
	cpuid
	AFTER
	ROUND
p_cpuid_end:

	PIECE	p_port
	BEFORE
	movl	%r14d, %edx
	inb	%dx, %al
	AFTER
	ROUND
p_port_end:

	PIECE	p_mmio
	BEFORE
	movl	(%r14), %ecx
	AFTER
	ROUND
p_mmio_end:

	PIECE	p_msr
	BEFORE
	movl	%r14d, %ecx
	rdmsr
	AFTER
	ROUND
p_msr_end:

	/* In each round another page that was never touched. */
	PIECE	p_page
	BEFORE
	movb	$1, (%r14)
	AFTER
	addq	$4096, %r14
	ROUND
p_page_end:

	/* An IPI to itself that waits for interrupts to be allowed. */
	PIECE	p_ipi
	movl	$LAPIC_ICR, %ecx
	BEFORE
	movl	$(ICR_SELF | V_WAKE), (%rcx)
	AFTER
	ROUND
p_ipi_end:

	/*
	 * HLT that an interrupt ends at once, as it waits already.  The clock
	 * stops in the interrupt's handler, at R9.
	 */
	PIECE	p_hlt
	cli
	movl	$LAPIC_ICR, %ecx
	movl	$(ICR_SELF | V_WAKE), (%rcx)
	BEFORE
	sti
	hlt
	cli
	movq	%r9, %rax
	ROUND
p_hlt_end:

	.globl	h_wake, h_wake_end
h_wake:
	rdtsc
	shlq	$32, %rdx
	leaq	(%rax, %rdx), %r9
	movl	$LAPIC_EOI, %ecx
	movl	$0, (%rcx)
	iretq
h_wake_end:

	/* An IPI to the other vCPU, which halts, and its answer. */
	PIECE	p_ping
	movl	$A_ANSWERED, %ebx
	movl	$0, (%rbx)
	movl	$LAPIC_ICR, %ecx
	cli
	BEFORE
	movl	$(ICR_OTHERS | V_PING), (%rcx)
2:	sti
	hlt
	cli
	cmpl	$0, (%rbx)
	je	2b
	AFTER
	ROUND
p_ping_end:

	.globl	h_pong, h_pong_end
h_pong:
	movl	$A_ANSWERED, %eax
	movl	$1, (%rax)
	movl	$LAPIC_EOI, %ecx
	movl	$0, (%rcx)
	iretq
h_pong_end:

	/* The other vCPU: halts, and answers until it is to stop. */
	.globl	p_other, p_other_end
p_other:
1:	sti
	hlt
	jmp	1b
p_other_end:

	.globl	h_ping, h_ping_end
h_ping:
	movl	$LAPIC_EOI, %ecx
	movl	$0, (%rcx)
	movl	$A_STOP, %eax
	cmpl	$0, (%rax)
	jne	3f
	movl	$LAPIC_ICR, %ecx
	movl	$(ICR_OTHERS | V_PONG), (%rcx)
	iretq
3:	outb	%al, $PORT_DONE
	jmp	3b
h_ping_end:

	.section .note.GNU-stack, "", @progbits
