/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef _DEVICES_H_
#define	_DEVICES_H_

#include "vmunit.h"

/* The local APIC's registers, SDM 3, table 11-1. */
#define	L_ID		0x020u
#define	L_VERSION	0x030u
#define	L_TPR		0x080u
#define	L_PPR		0x0a0u
#define	L_EOI		0x0b0u
#define	L_LDR		0x0d0u
#define	L_DFR		0x0e0u
#define	L_SVR		0x0f0u
#define	L_ISR		0x100u
#define	L_TMR		0x180u
#define	L_IRR		0x200u
#define	L_ESR		0x280u
#define	L_CMCI		0x2f0u
#define	L_ICR		0x300u
#define	L_ICR_HIGH	0x310u
#define	L_TIMER		0x320u
#define	L_THERMAL	0x330u
#define	L_PERF		0x340u
#define	L_LINT0		0x350u
#define	L_LINT1		0x360u
#define	L_ERROR		0x370u
#define	L_COUNT		0x380u
#define	L_CURRENT	0x390u
#define	L_DIVIDE	0x3e0u

#define	MASKED		0x10000u
#define	PERIODIC	0x20000u

uint32_t lapic(struct vm *, unsigned);
void	set_lapic(struct vm *, unsigned, uint32_t);
bool	lapic_bit(struct vm *, unsigned, unsigned);
struct vm *vm_with_lapic(uint32_t);
void	window(struct vm *);
uint32_t ioapic(struct vm *, unsigned);
void	set_ioapic(struct vm *, unsigned, uint32_t);
void	route(struct vm *, unsigned, uint32_t);
uint64_t hpet(struct vm *, unsigned, int);
void	set_hpet(struct vm *, unsigned, int, uint64_t);
void	wait_ms(unsigned);

#define	REDIR(pin)	(0x10u + 2u * (pin))
#define	LEVEL		0x8000u
#define	REMOTE_IRR	0x4000u

#endif /* !_DEVICES_H_ */
