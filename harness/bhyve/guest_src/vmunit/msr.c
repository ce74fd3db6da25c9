/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * MSRs: values after a reset, which can be written, which raise #GP(0).
 * Numbers and fields are those of Intel's SDM 4, chapter 2, and AMD's APM 2,
 * appendix A.
 */

#include <machine/specialreg.h>

#include <string.h>

#include "vmunit.h"

#define	BOTH	0
#define	INTEL	1
#define	AMD	2

enum answer {
	VALUE,			/* reads as `value` */
	KEPT,			/* reads `value`, then what was written */
	IGNORED,		/* reads `value`; writes are ignored */
	READONLY,		/* reads `value`; writing is a #GP(0) */
	LEFT,			/* both end VM_RUN: bhyve decides */
};

struct msr {
	const char	*name;
	uint32_t	number;
	int		maker;
	enum answer	answer;
	uint64_t	value;
	uint64_t	written;
	uint64_t	refused;	/* writing this is a #GP(0); 0: none */
};

#define	NON_CANONICAL	0x0000800000000000ul

static const struct msr msrs[] = {
	/* The APIC: at fee00000, enabled, on the BSP (SDM 3, 11.4.4). */
	{ "APIC_BASE", 0x1b, BOTH, VALUE, 0xfee00900, 0, 0 },
	{ "SYSENTER_CS", 0x174, BOTH, KEPT, 0, 0x1234, 0 },
	{ "SYSENTER_ESP", 0x175, BOTH, KEPT, 0, 0x123456789a, 0 },
	{ "SYSENTER_EIP", 0x176, BOTH, KEPT, 0, 0x123456789b, 0 },
	{ "MCG_CAP", 0x179, BOTH, IGNORED, 0, 0xff, 0 },
	{ "MCG_STATUS", 0x17a, BOTH, IGNORED, 0, 0xff, 0 },
	/*
	 * 10 variable ranges, fixed ranges, write-combining (SDM 3, 12.11.1).
	 */
	{ "MTRRCAP", 0xfe, BOTH, READONLY, 0x50a, 0, 0x50a },
	{ "MTRR_DEF_TYPE", 0x2ff, BOTH, KEPT, 0, 0xc06, 0x1000 },
	{ "MTRR_PHYSBASE0", 0x200, BOTH, KEPT, 0, 0x80000006, 0x80000f06 },
	{ "MTRR_PHYSMASK0", 0x201, BOTH, KEPT, 0, 0xf80000800, 0xf80000900 },
	{ "MTRR_PHYSBASE9", 0x212, BOTH, KEPT, 0, 0xc0000000, 0xc0000100 },
	{ "MTRR_PHYSMASK9", 0x213, BOTH, KEPT, 0, 0xfc0000800, 0xfc00008ff },
	{ "MTRR_FIX64K", 0x250, BOTH, KEPT, 0, 0x0606060606060606, 0 },
	{ "MTRR_FIX16K_0", 0x258, BOTH, KEPT, 0, 0x0606060606060606, 0 },
	{ "MTRR_FIX16K_1", 0x259, BOTH, KEPT, 0, 0x0101010101010101, 0 },
	{ "MTRR_FIX4K_0", 0x268, BOTH, KEPT, 0, 0x0505050505050505, 0 },
	{ "MTRR_FIX4K_7", 0x26f, BOTH, KEPT, 0, 0x0404040404040404, 0 },
	/* SDM 3, 12.12.2: types 2 and 3 are reserved. */
	{ "PAT", 0x277, BOTH, KEPT, 0x0007040600070406, 0x0007010600070106,
	    0x0007040600070402 },
	{ "STAR", 0xc0000081, BOTH, KEPT, 0, 0x0023001000000000, 0 },
	{ "LSTAR", 0xc0000082, BOTH, KEPT, 0, 0xffffffff80001000,
	    NON_CANONICAL },
	{ "CSTAR", 0xc0000083, BOTH, KEPT, 0, 0xffffffff80002000, 0 },
	{ "SF_MASK", 0xc0000084, BOTH, KEPT, 0, 0x4700, 0 },
	{ "FS_BASE", 0xc0000100, BOTH, KEPT, 0, 0x123456789000,
	    NON_CANONICAL },
	{ "GS_BASE", 0xc0000101, BOTH, KEPT, 0, 0x123456789000,
	    NON_CANONICAL },
	{ "KERNEL_GS_BASE", 0xc0000102, BOTH, KEPT, 0, 0x123456789000,
	    NON_CANONICAL },
	/*
	 * There is nothing after the last fixed and the last variable range.
	 */
	{ "no MTRR 270", 0x270, BOTH, LEFT, 0, 0, 0 },
	{ "no MTRR 214", 0x214, BOTH, LEFT, 0, 0, 0 },
	{ "MISC_FEATURE_ENABLES", 0x140, INTEL, LEFT, 0, 0, 0 },
	{ "FEATURE_CONTROL", 0x3a, INTEL, LEFT, 0, 0, 0 },
	{ "BIOS_SIGN_ID", 0x8b, INTEL, LEFT, 0, 0, 0 },
	{ "VMX_BASIC", 0x480, INTEL, LEFT, 0, 0, 0 },
	{ "VMX_EPT_VPID_CAP", 0x48c, INTEL, LEFT, 0, 0, 0 },
	{ "RAPL_POWER_UNIT", 0x606, INTEL, LEFT, 0, 0, 0 },
	{ "DEBUGCTL", 0x1d9, INTEL, LEFT, 0, 0, 0 },
	{ "PERF_GLOBAL_CTRL", 0x38f, INTEL, LEFT, 0, 0, 0 },
	{ "SYSCFG", 0xc0010010, AMD, IGNORED, 0, 0xff, 0 },
	{ "INT_PENDING", 0xc0010055, AMD, IGNORED, 0, 0xff, 0 },
	{ "EXTFEATURES", 0xc0011005, AMD, IGNORED, 0, 0xff, 0 },
	{ "VM_CR", 0xc0010114, AMD, LEFT, 0, 0, 0 },
	{ "VM_HSAVE_PA", 0xc0010117, AMD, LEFT, 0, 0, 0 },
	{ "HWCR", 0xc0010015, AMD, LEFT, 0, 0, 0 },
	{ "PERF_CTL0", 0xc0010000, AMD, LEFT, 0, 0, 0 },
	{ "no such MSR 12345678", 0x12345678, BOTH, LEFT, 0, 0, 0 },
	{ "no such MSR c0011fff", 0xc0011fff, BOTH, LEFT, 0, 0, 0 },
};

static void
refused(struct vm *vm, const struct msr *msr, uint64_t value)
{
	check(!g_wrmsr(vm, msr->number, value) && vm->fault.vector == 13,
	    "%s: writing %#jx is no #GP(0)", msr->name, (uintmax_t)value);
}

static void
left(struct vm *vm, const struct msr *msr)
{
	uint64_t value;

	check(!g_rdmsr(vm, msr->number, &value) &&
	    vm->exit.exitcode == VM_EXITCODE_RDMSR,
	    "%s: reading it is answered by the kernel", msr->name);
	equal(msr->name, vm->exit.u.msr.code, msr->number);
	check(!g_wrmsr(vm, msr->number, 0x123456789abcdef0) &&
	    vm->exit.exitcode == VM_EXITCODE_WRMSR,
	    "%s: writing it is answered by the kernel", msr->name);
	equal(msr->name, vm->exit.u.msr.code, msr->number);
	equal("what is to be written", vm->exit.u.msr.wval,
	    0x123456789abcdef0);
}

static void
one_msr(struct vm *vm, const struct msr *msr)
{
	uint64_t value;

	if (msr->answer == LEFT) {
		left(vm, msr);
		return;
	}
	if (!g_rdmsr(vm, msr->number, &value)) {
		miss("%s cannot be read", msr->name);
		return;
	}
	equal(msr->name, value, msr->value);
	if (msr->answer == KEPT || msr->answer == IGNORED) {
		check(g_wrmsr(vm, msr->number, msr->written),
		    "%s cannot be written", msr->name);
		(void)g_rdmsr(vm, msr->number, &value);
		equal(msr->name, value, msr->answer == KEPT ? msr->written :
		    msr->value);
	}
	if (msr->refused != 0) {
		refused(vm, msr, msr->refused);
		if (g_rdmsr(vm, msr->number, &value) && msr->answer == KEPT)
			equal(msr->name, value, msr->written);
	}
}

static bool
ours(const struct msr *msr)
{
	return (msr->maker == BOTH || (msr->maker == INTEL) == intel);
}

static void
values(const void *arg)
{
	enum answer answer = *(const enum answer *)arg;
	struct vm *vm = vm_new();

	for (size_t i = 0; i < nitems(msrs); i++) {
		if (ours(&msrs[i]) && msrs[i].answer == answer)
			one_msr(vm, &msrs[i]);
	}
	vm_free(vm);
}

/* A VM's MSRs are not another VM's, and not the host's. */
static void
isolation(const void *arg __unused)
{
	struct vm *one = vm_new(), *other = vm_new();
	uint64_t value;

	for (size_t i = 0; i < nitems(msrs); i++) {
		if (ours(&msrs[i]) && msrs[i].answer == KEPT)
			(void)g_wrmsr(one, msrs[i].number, msrs[i].written);
	}
	for (size_t i = 0; i < nitems(msrs); i++) {
		if (!ours(&msrs[i]) || msrs[i].answer != KEPT)
			continue;
		if (g_rdmsr(other, msrs[i].number, &value))
			equal(msrs[i].name, value, msrs[i].value);
		if (g_rdmsr(one, msrs[i].number, &value))
			equal(msrs[i].name, value, msrs[i].written);
	}
	vm_free(one);
	vm_free(other);
}

/* SDM 4, table 2-2: branch trace and PEBS off, no SpeedStep, no MONITOR. */
static void
misc_enable(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t value = 0;

	if (!intel)
		skip(N_A "IA32_MISC_ENABLE is Intel's");
	check(g_rdmsr(vm, 0x1a0, &value), "MISC_ENABLE cannot be read");
	equal("MISC_ENABLE: bits 11, 12, 16, 18", value & 0x51800, 0x1800);
	check(g_wrmsr(vm, 0x1a0, value), "it cannot be written as it is");
	check(g_wrmsr(vm, 0x1a0, value ^ 1ul << 34),
	    "writing its XD bit is no longer ignored");
	check(!g_wrmsr(vm, 0x1a0, value ^ 1) &&
	    vm->exit.exitcode == VM_EXITCODE_WRMSR,
	    "another bit of it can be changed");
	check(g_rdmsr(vm, 0xce, &value), "PLATFORM_INFO cannot be read");
	equal("PLATFORM_INFO without the two ratios",
	    value & ~0xff000000ff00ul, 0);
	equal("PLATFORM_INFO: its ratios", value >> 40, value >> 8 & 0xff);
	vm_free(vm);
}

/* EFER: SDM 3, 2.2.1; APM 2, table 14-5. */
static void
efer(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t value = 0;
	uint32_t leaf[4];

	check(g_rdmsr(vm, 0xc0000080, &value), "EFER cannot be read");
	equal("EFER in 64-bit mode", value, EFER_LME | EFER_LMA | EFER_HOST);
	check(g_wrmsr(vm, 0xc0000080, value | EFER_SCE), "SCE cannot be set");
	(void)g_rdmsr(vm, 0xc0000080, &value);
	equal("EFER with SCE", value, EFER_LME | EFER_LMA | EFER_SCE |
	    EFER_HOST);
	h_cpuid(0x80000001, 0, leaf);
	if ((leaf[3] & AMDID_NX) != 0) {
		check(g_wrmsr(vm, 0xc0000080, value | EFER_NXE),
		    "NXE cannot be set");
		(void)g_rdmsr(vm, 0xc0000080, &value);
		equal("EFER with NXE", value & EFER_NXE, EFER_NXE);
	}
	/* LME while paging is on; reserved bits. */
	check(!g_wrmsr(vm, 0xc0000080, value & ~(uint64_t)EFER_LME),
	    "LME can be cleared while paging is on");
	check(!g_wrmsr(vm, 0xc0000080, value | 1ul << 60),
	    "a reserved bit can be set");
	check(!g_wrmsr(vm, 0xc0000080, value | 1ul << 16),
	    "reserved bit 16 can be set");
	(void)g_rdmsr(vm, 0xc0000080, &value);
	equal("EFER's long mode after it", value & (EFER_LME | EFER_LMA),
	    EFER_LME | EFER_LMA);
	vm_free(vm);
}

/* A guest cannot change AMD's microcode; a write is ignored. */
static void
microcode(const void *arg __unused)
{
	struct vm *vm = vm_new();

	if (intel)
		skip(N_A "Intel's microcode is handled by bhyve");
	check(g_wrmsr(vm, 0xc0010020, 0x12345678), "a write is not ignored");
	vm_free(vm);
}

/* x2APIC: SDM 3, table 11-6.  The MSRs work only in this mode. */
static void
x2apic(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t value = 0;

	check(vm_set_x2apic_state(vm->vcpu[0], X2APIC_ENABLED) == 0,
	    "x2APIC cannot be enabled");
	check(g_rdmsr(vm, 0x1b, &value), "APIC_BASE cannot be read");
	equal("APIC_BASE with x2APIC", value, 0xfee00d00);
	check(g_rdmsr(vm, 0x802, &value), "the id cannot be read");
	equal("the x2APIC's id", value, 0);
	check(g_rdmsr(vm, 0x803, &value), "the version cannot be read");
	equal("the version", value & 0xff, 0x14);
	check(g_rdmsr(vm, 0x80d, &value), "LDR cannot be read");
	equal("LDR", value, 1);
	check(g_rdmsr(vm, 0x80f, &value), "SVR cannot be read");
	equal("SVR", value, 0xff);
	check(g_wrmsr(vm, 0x80f, 0x1ff), "SVR cannot be written");
	check(g_rdmsr(vm, 0x80f, &value), "SVR cannot be read");
	equal("SVR", value, 0x1ff);
	check(g_wrmsr(vm, 0x808, 0x50), "TPR cannot be written");
	check(g_rdmsr(vm, 0x808, &value), "TPR cannot be read");
	equal("TPR", value, 0x50);
	/* ICR has 64 bits; what was written is read. */
	check(g_wrmsr(vm, 0x830, 0x0000000500000000ul | 0x000000c9),
	    "ICR cannot be written");
	check(g_rdmsr(vm, 0x830, &value), "ICR cannot be read");
	/* A processor's own APIC page may store the halves separately. */
	equal("ICR", value & (apicv ? 0xffffffff : ~0ul),
	    apicv ? 0xc9 : 0x00000005000000c9ul);
	vm_free(vm);
}

#define	ANSWER(a)	&(const enum answer){ a }
static const struct test tests[] = {
	{ "msr.fixed",
	    "MSRs with fixed values have them", values, ANSWER(VALUE) },
	{ "msr.kept", "an MSR returns what was written, and reserved bits "
	    "raise #GP(0)", values, ANSWER(KEPT) },
	{ "msr.ignored",
	    "writes to some MSRs are ignored", values, ANSWER(IGNORED) },
	{ "msr.readonly", "writes to read-only MSRs raise #GP(0)", values,
	    ANSWER(READONLY) },
	{ "msr.left", "an MSR for bhyve causes an exit with its number and "
	    "value", values, ANSWER(LEFT) },
	{ "msr.isolation", "each VM has its own MSRs", isolation, NULL },
	{ "msr.misc_enable",
	    "MISC_ENABLE and PLATFORM_INFO have the right bits", misc_enable,
	    NULL },
	{ "msr.efer", "EFER's bits can be set, and its consistency is "
	    "checked", efer, NULL },
	{ "msr.microcode", "an update of AMD's microcode is ignored", microcode,
	    NULL },
	{ "msr.x2apic",
	    "the x2APIC's MSRs work only in x2APIC mode", x2apic, NULL },
};

GROUP(msr, tests);
