/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * The guest's handlers of exceptions and interrupts.  They are copied to
 * A_HANDLERS, A_HANDLERS32 and A_HANDLERS16; the constants are in vmunit.h.
 *
 * An exception ends the run at PORT_FAULT: then its vector, an error code (0
 * if it has none) and what the processor pushed are on the stack.  An
 * interrupt is counted and acknowledged as A_FLAGS says; then its handler
 * returns, or ends the run at PORT_INTR.
 */

	.section .rodata
	.globl	handlers64, handlers64_end, handlers32, handlers32_end
	.globl	handlers16, handlers16_end

	.set	COUNTS, 0xa000
	.set	FLAGS, 0xa400
	.set	LAST, 0xa404

	/* 8, 10 to 14, 17, 21, 29 and 30 push an error code themselves. */
	.macro	entry_points
	.set	vec, 0
	.rept	256
	.balign	16
	/* In real mode no exception has an error code (SDM 3, 20.1.4). */
	.if	bits == 16 || (vec != 8 && (vec < 10 || vec > 14) && \
		vec != 17 && vec != 21 && vec != 29 && vec != 30)
	.byte	0x6a, 0			/* push $0 */
	.endif
	.byte	0x68			/* push $vec */
	.if	bits == 16
	.word	vec
	.else
	.long	vec
	.endif
	.if	vec < 32
	jmp	1f
	.else
	jmp	2f
	.endif
	.set	vec, vec + 1
	.endr
	.endm

	.balign	16
	.code64
	.set	bits, 64
handlers64:
	entry_points
	.balign	16
1:	outb	%al, $0xf1
	jmp	1b
2:	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	movl	24(%rsp), %eax		/* the vector */
	lock
	incl	COUNTS(, %rax, 4)
	movl	%eax, LAST
	movl	FLAGS, %edx
	testb	$0x01, %dl
	jz	3f
	movl	$0xfee000b0, %eax
	movl	$0, (%rax)
3:	testb	$0x02, %dl
	jz	4f
	pushq	%rdx
	movl	$0x80b, %ecx
	xorl	%eax, %eax
	xorl	%edx, %edx
	wrmsr
	popq	%rdx
4:	testb	$0x04, %dl
	jz	5f
	movb	$0x20, %al
	outb	%al, $0xa0
	outb	%al, $0x20
5:	testb	$0x08, %dl
	popq	%rdx
	popq	%rcx
	popq	%rax
	jz	6f
	outb	%al, $0xf2
6:	addq	$16, %rsp
	iretq
handlers64_end:

	.balign	16
	.code32
	.set	bits, 32
handlers32:
	entry_points
	.balign	16
1:	outb	%al, $0xf1
	jmp	1b
2:	outb	%al, $0xf2
	addl	$8, %esp
	iretl
handlers32_end:

	.balign	16
	.code16
	.set	bits, 16
handlers16:
	entry_points
	.balign	16
1:	outb	%al, $0xf1
	jmp	1b
2:	outb	%al, $0xf2
	addw	$4, %sp
	iretw
handlers16_end:
	.code64
	.section .note.GNU-stack, "", %progbits
