/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Exceptions and interrupts of the probe itself (L1).  An exception that
 * nobody expected ends the run: what a broken probe says about a processor
 * is worth nothing.
 */

#include "cpu.h"
#include "probe.h"

#define	NVECTORS	48
#define	STUB_SIZE	16

struct trapframe {
	uint64_t	r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax;
	uint64_t	vector, error;
	uint64_t	rip, cs, rflags, rsp, ss;
};

struct gate {
	uint16_t	off0, sel, attr, off16;
	uint32_t	off32, zero;
};

static struct gate idt[NVECTORS];
static uint64_t gdt[6];
static uint8_t tss[104] __attribute__((aligned(16)));
extern const uint8_t idt_stubs[];

/* Where guarded() goes on after an exception; 0 when none is expected. */
uint64_t guard_rsp;
int	guard_call(void (*)(void *), void *);	/* vtrun.S */
extern const uint8_t guard_escape[];
void	trap(struct trapframe *);

void
trap(struct trapframe *tf)
{
	uint64_t cr2;

	if (tf->vector >= 32) {
		watchdog_ack();
		return;
	}
	if (guard_rsp != 0) {
		/* guard_escape unwinds the stack and returns %rax. */
		tf->rax = tf->vector;
		tf->rip = (uint64_t)guard_escape;
		return;
	}
	__asm__ volatile("mov %%cr2, %0" : "=r" (cr2));
	bail_out("unexpected exception %lu in the probe: error 0x%lx "
	    "rip 0x%lx rsp 0x%lx cr2 0x%lx", tf->vector, tf->error, tf->rip,
	    tf->rsp, cr2);
}

int
guarded(void (*fn)(void *), void *arg)
{
	return (guard_call(fn, arg));
}

struct msr_arg {
	uint32_t	msr;
	uint64_t	val;
};

static void
do_rdmsr(void *p)
{
	struct msr_arg *a = p;

	a->val = rdmsr(a->msr);
}

int
rdmsr_safe(uint32_t msr, uint64_t *val)
{
	struct msr_arg a = { msr, 0 };
	int error;

	error = guarded(do_rdmsr, &a);
	*val = a.val;
	return (error < 0 ? 0 : error);
}

void
trap_init(void)
{
	struct table_reg r;
	uint64_t addr;
	int i;

	/* VM entry wants a task register with a busy 64-bit TSS behind it. */
	addr = (uint64_t)tss;
	gdt[SEL_CODE64 / 8] = 0x00af9b000000ffff;
	gdt[SEL_DATA / 8] = 0x00cf93000000ffff;
	gdt[SEL_CODE32 / 8] = 0x00cf9b000000ffff;
	gdt[SEL_TSS / 8] = (sizeof(tss) - 1) | (addr & 0xffffff) << 16 |
	    0x89UL << 40 | (addr >> 24 & 0xff) << 56;
	gdt[SEL_TSS / 8 + 1] = addr >> 32;
	*(uint16_t *)&tss[102] = sizeof(tss);	/* no I/O bitmap */
	r.limit = sizeof(gdt) - 1;
	r.base = (uint64_t)gdt;
	__asm__ volatile("lgdt %0" : : "m" (r));
	__asm__ volatile("ltr %w0" : : "r" (SEL_TSS));

	for (i = 0; i < NVECTORS; i++) {
		addr = (uint64_t)idt_stubs + (uint64_t)i * STUB_SIZE;
		idt[i].off0 = (uint16_t)addr;
		idt[i].sel = SEL_CODE64;
		idt[i].attr = 0x8e00;		/* interrupt gate */
		idt[i].off16 = (uint16_t)(addr >> 16);
		idt[i].off32 = (uint32_t)(addr >> 32);
	}
	r.limit = sizeof(idt) - 1;
	r.base = (uint64_t)idt;
	__asm__ volatile("lidt %0" : : "m" (r));
}
