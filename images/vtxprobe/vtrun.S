/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Into L2 and back, and calls that may end in an exception.
 */

#include "layout.h"

#define	VMCS_HOST_RSP	0x6c14

	.macro	save_callee
	pushq	%rbp
	pushq	%rbx
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	.endm

	.macro	restore_callee
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbx
	popq	%rbp
	.endm

	/* struct regs, all but %rax and the register that points to it. */
	.macro	regs_load p
	movq	8(\p), %rbx
	movq	16(\p), %rcx
	movq	24(\p), %rdx
	movq	48(\p), %rbp
	movq	56(\p), %r8
	movq	64(\p), %r9
	movq	72(\p), %r10
	movq	80(\p), %r11
	movq	88(\p), %r12
	movq	96(\p), %r13
	movq	104(\p), %r14
	movq	112(\p), %r15
	.endm

	.macro	regs_save p
	movq	%rbx, 8(\p)
	movq	%rcx, 16(\p)
	movq	%rdx, 24(\p)
	movq	%rbp, 48(\p)
	movq	%r8, 56(\p)
	movq	%r9, 64(\p)
	movq	%r10, 72(\p)
	movq	%r11, 80(\p)
	movq	%r12, 88(\p)
	movq	%r13, 96(\p)
	movq	%r14, 104(\p)
	movq	%r15, 112(\p)
	.endm

	.text
	.code64

/* int guard_call(void (*fn)(void *), void *arg): -1, or the exception. */
	.globl	guard_call, guard_escape
guard_call:
	save_callee
	movq	%rsp, guard_rsp(%rip)
	movq	%rdi, %rax
	movq	%rsi, %rdi
	call	*%rax
	movl	$-1, %eax
	jmp	1f
guard_escape:
	movq	guard_rsp(%rip), %rsp
1:
	movq	$0, guard_rsp(%rip)
	restore_callee
	ret

/*
 * int vmx_enter(struct regs *, int launched): 0 after a VM exit, 1 for
 * VMfailInvalid (carry), 2 for VMfailValid (zero).
 */
	.globl	vmx_enter, vmx_exit
vmx_enter:
	save_callee
	pushq	%rdi
	movl	$VMCS_HOST_RSP, %edx
	vmwrite	%rsp, %rdx
	jbe	2f
	testl	%esi, %esi		/* MOV leaves the flags alone */
	regs_load %rdi
	movq	0(%rdi), %rax
	movq	32(%rdi), %rsi
	movq	40(%rdi), %rdi
	jnz	1f
	vmlaunch
	jmp	2f
1:
	vmresume
2:
	movl	$1, %eax
	movl	$2, %ecx
	cmovncl	%ecx, %eax
	popq	%rdi
	restore_callee
	ret

	/* HOST_RIP: the stack is as it was at the VMWRITE above. */
vmx_exit:
	pushq	%rdi
	movq	8(%rsp), %rdi
	movq	%rax, 0(%rdi)
	movq	%rsi, 32(%rdi)
	regs_save %rdi
	popq	40(%rdi)
	addq	$8, %rsp
	xorl	%eax, %eax
	restore_callee
	ret

/*
 * void svm_enter(uint64_t vmcb, struct regs *, uint64_t host): %rax and
 * %rsp of L2 are in the VMCB.  VMSAVE and VMLOAD take care of what VMRUN
 * leaves alone: FS, GS, TR, LDTR and the system call MSRs.
 *
 * GIF is clear from CLGI to STGI.  STI before VMRUN, for with virtual
 * interrupt masking it is the host's IF that lets an interrupt end L2.
 */
	.globl	svm_enter
svm_enter:
	save_callee
	pushq	%rsi
	pushq	%rdx
	clgi
	movq	%rdx, %rax
	vmsave	%rax
	movq	%rdi, %rax
	vmload	%rax
	regs_load %rsi
	movq	40(%rsi), %rdi
	movq	32(%rsi), %rsi
	sti
	vmrun	%rax
	cli
	vmsave	%rax
	pushq	%rsi
	movq	16(%rsp), %rsi
	regs_save %rsi
	movq	%rdi, 40(%rsi)
	popq	32(%rsi)
	popq	%rax
	vmload	%rax
	stgi
	/* The interrupt that ended L2, if any, is still pending: take it. */
	sti
	nop
	cli
	popq	%rsi
	restore_callee
	ret
	.section .note.GNU-stack, "", @progbits
