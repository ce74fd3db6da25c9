/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* What the processor offers to C: instructions, registers, MSRs. */

#ifndef CPU_H
#define	CPU_H

#include <stdint.h>

#define	CR0_PE			0x00000001UL
#define	CR0_ET			0x00000010UL
#define	CR0_NE			0x00000020UL
#define	CR0_PG			0x80000000UL
#define	CR4_VMXE		0x00002000UL
#define	EFER_SVME		0x00001000UL

#define	MSR_FEATURE_CONTROL	0x3a
#define	FEATURE_CONTROL_LOCK	0x1
#define	FEATURE_CONTROL_VMXON	0x4
#define	MSR_VMX_BASIC		0x480
#define	MSR_VMX_MISC		0x485
#define	MSR_EFER		0xc0000080
#define	MSR_VM_CR		0xc0010114
#define	VM_CR_SVMDIS		0x10
#define	MSR_VM_HSAVE_PA		0xc0010117

struct cpuid {
	uint32_t	eax, ebx, ecx, edx;
};

static inline struct cpuid
cpuid(uint32_t leaf, uint32_t sub)
{
	struct cpuid r;

	__asm__ volatile("cpuid"
	    : "=a" (r.eax), "=b" (r.ebx), "=c" (r.ecx), "=d" (r.edx)
	    : "a" (leaf), "c" (sub));
	return (r);
}

static inline uint64_t
rdmsr(uint32_t msr)
{
	uint32_t lo, hi;

	__asm__ volatile("rdmsr" : "=a" (lo), "=d" (hi) : "c" (msr));
	return ((uint64_t)hi << 32 | lo);
}

static inline void
wrmsr(uint32_t msr, uint64_t val)
{
	__asm__ volatile("wrmsr" : : "c" (msr), "a" ((uint32_t)val),
	    "d" ((uint32_t)(val >> 32)));
}

/* LFENCE: the time stamp must not be taken ahead of what is timed. */
static inline uint64_t
rdtsc(void)
{
	uint32_t lo, hi;

	__asm__ volatile("lfence; rdtsc" : "=a" (lo), "=d" (hi) : : "memory");
	return ((uint64_t)hi << 32 | lo);
}

static inline void
outb(uint16_t port, uint8_t val)
{
	__asm__ volatile("outb %0, %1" : : "a" (val), "Nd" (port));
}

static inline void
outw(uint16_t port, uint16_t val)
{
	__asm__ volatile("outw %0, %1" : : "a" (val), "Nd" (port));
}

static inline uint8_t
inb(uint16_t port)
{
	uint8_t val;

	__asm__ volatile("inb %1, %0" : "=a" (val) : "Nd" (port));
	return (val);
}

#define	CR_ACCESS(n)							\
static inline uint64_t							\
rcr##n(void)								\
{									\
	uint64_t val;							\
									\
	__asm__ volatile("mov %%cr" #n ", %0" : "=r" (val));		\
	return (val);							\
}									\
									\
static inline void							\
lcr##n(uint64_t val)							\
{									\
	__asm__ volatile("mov %0, %%cr" #n : : "r" (val) : "memory");	\
}

CR_ACCESS(0)
CR_ACCESS(3)
CR_ACCESS(4)

struct __attribute__((packed)) table_reg {
	uint16_t	limit;
	uint64_t	base;
};

static inline struct table_reg
sgdt(void)
{
	struct table_reg r;

	__asm__ volatile("sgdt %0" : "=m" (r));
	return (r);
}

static inline struct table_reg
sidt(void)
{
	struct table_reg r;

	__asm__ volatile("sidt %0" : "=m" (r));
	return (r);
}

#endif /* CPU_H */
