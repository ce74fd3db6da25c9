/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Numbers of the VMCS and its controls: SDM volume 3, appendices A to C. */

#ifndef VMX_H
#define	VMX_H

#include "probe.h"

#define	MSR_VMX_EPT_VPID_CAP	0x48c

/* The five control fields. */
enum { PIN, PROC, PROC2, EXIT, ENTRY };

#define	BIT(n)			(1U << (n))
#define	PIN_EXTINT		BIT(0)
#define	PIN_NMI			BIT(3)
#define	PIN_VIRTUAL_NMI		BIT(5)
#define	PIN_PREEMPTION_TIMER	BIT(6)
#define	PROC_HLT		BIT(7)
#define	PROC_CR3_LOAD		BIT(15)
#define	PROC_CR3_STORE		BIT(16)
#define	PROC_IO			BIT(24)
#define	PROC_IO_BITMAPS		BIT(25)
#define	PROC_MSR_BITMAPS	BIT(28)
#define	PROC_SECONDARY		BIT(31)
#define	PROC2_EPT		BIT(1)
#define	PROC2_VPID		BIT(5)
#define	PROC2_UNRESTRICTED	BIT(7)
#define	EXIT_SAVE_DEBUG		BIT(2)
#define	EXIT_HOST_64		BIT(9)
#define	EXIT_ACK_INTERRUPT	BIT(15)
#define	EXIT_SAVE_EFER		BIT(20)
#define	EXIT_LOAD_EFER		BIT(21)
#define	ENTRY_LOAD_DEBUG	BIT(2)
#define	ENTRY_IA32E		BIT(9)
#define	ENTRY_LOAD_EFER		BIT(15)

#define	VMCS_VPID		0x0000
#define	VMCS_GUEST_ES		0x0800	/* ES CS SS DS FS GS LDTR TR */
#define	VMCS_HOST_ES		0x0c00	/* ES CS SS DS FS GS TR */
#define	VMCS_MSR_BITMAP		0x2004
#define	VMCS_EPTP		0x201a
#define	VMCS_GPA		0x2400
#define	VMCS_LINK		0x2800
#define	VMCS_GUEST_DEBUGCTL	0x2802
#define	VMCS_GUEST_EFER		0x2806
#define	VMCS_HOST_EFER		0x2c02
#define	VMCS_CTL_PIN		0x4000
#define	VMCS_CTL_PROC		0x4002
#define	VMCS_EXCEPTIONS		0x4004
#define	VMCS_CTL_EXIT		0x400c
#define	VMCS_CTL_ENTRY		0x4012
#define	VMCS_CTL_PROC2		0x401e
#define	VMCS_INSTR_ERROR	0x4400
#define	VMCS_EXIT_REASON	0x4402
#define	VMCS_EXIT_INTR_INFO	0x4404
#define	VMCS_EXIT_INSTR_LEN	0x440c
#define	VMCS_GUEST_ES_LIMIT	0x4800	/* ... LDTR TR GDTR IDTR */
#define	VMCS_GUEST_ES_AR	0x4814
#define	VMCS_PREEMPTION_TIMER	0x482e
#define	VMCS_EXIT_QUAL		0x6400
#define	VMCS_EXIT_GLA		0x640a
#define	VMCS_GUEST_CR0		0x6800
#define	VMCS_GUEST_CR3		0x6802
#define	VMCS_GUEST_CR4		0x6804
#define	VMCS_GUEST_ES_BASE	0x6806
#define	VMCS_GUEST_DR7		0x681a
#define	VMCS_GUEST_RSP		0x681c
#define	VMCS_GUEST_RIP		0x681e
#define	VMCS_GUEST_RFLAGS	0x6820
#define	VMCS_HOST_CR0		0x6c00
#define	VMCS_HOST_CR3		0x6c02
#define	VMCS_HOST_CR4		0x6c04
#define	VMCS_HOST_GDTR_BASE	0x6c0c
#define	VMCS_HOST_IDTR_BASE	0x6c0e
#define	VMCS_HOST_RIP		0x6c16

#define	REASON_EXTINT		1
#define	REASON_CPUID		10
#define	REASON_HLT		12
#define	REASON_VMCALL		18
#define	REASON_IO		30
#define	REASON_EPT_VIOLATION	48
#define	REASON_TIMER		52
#define	REASON_ENTRY_FAILED	0x80000000

/* Exit qualification for EPT violations. */
#define	QUAL_READ		0x001
#define	QUAL_WRITE		0x002
#define	QUAL_FETCH		0x004
#define	QUAL_READABLE		0x008
#define	QUAL_WRITABLE		0x010
#define	QUAL_EXECUTABLE		0x020
#define	QUAL_GLA_VALID		0x080
#define	QUAL_FINAL		0x100	/* not while walking L2's own tables */

/* vmx.c */
int	 vmx_on(const struct row *);
int	 vmx_vmcs(const struct row *);
int	 vmx_invept(const struct row *);
int	 vmx_invvpid(const struct row *);
int	 vmx_interrupt_masked(const struct row *);
int	 vmx_off(const struct row *);

#endif /* VMX_H */
