/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* amd64/xmsr.c: the MSRs that bhyve(8) handles. */

#include <sys/param.h>
#include <sys/types.h>

#include <machine/cpufunc.h>
#include <machine/specialreg.h>

#include <stdio.h>
#include <string.h>

#include "unit.h"

/* A simulated processor of either vendor. */
static const char *maker;
static unsigned asked;

static void
pretend(u_int leaf __unused, u_int *answer)
{
	asked++;
	answer[0] = 0x16;
	memcpy(&answer[1], maker, 4);
	memcpy(&answer[3], maker + 4, 4);
	memcpy(&answer[2], maker + 8, 4);
}

#define	do_cpuid(leaf, answer)	pretend((leaf), (answer))
/* The part itself, from the tree under test. */
#include "part.h"
#undef do_cpuid

int raw_stdio;

struct known {
	uint32_t	number;
	uint64_t	value;
};

static void
be(const char *name)
{
	maker = name;
	equal("init_msr's error", (uint64_t)init_msr(), 0);
	if (asked == 0)
		skip("init_msr() does not look at the processor by do_cpuid()");
}

static void
reads(const struct known *known, size_t count)
{
	uint64_t value;
	int error;

	for (size_t i = 0; i < count; i++) {
		value = ~0UL;
		error = emulate_rdmsr(NULL, known[i].number, &value);
		if (error != 0)
			miss("MSR %#x is unknown", known[i].number);
		else if (value != known[i].value)
			miss("MSR %#x is %#jx, not %#jx", known[i].number,
			    (uintmax_t)value, (uintmax_t)known[i].value);
	}
}

static void
intel(void)
{
	static const struct known known[] = {
		{ 0x03a, 1 },		/* feature control: locked, no VMX */
		{ 0x08b, 0 },		/* microcode */
		{ 0x140, 0 },		/* misc feature enables */
		{ 0x611, 0 },		/* energy counters */
		{ 0x619, 0 },
		{ 0x639, 0 },
		{ 0x641, 0 },
	};
	uint64_t value;

	be("GenuineIntel");
	reads(known, nitems(known));
	if (emulate_rdmsr(NULL, 0x606, &value) != 0)
		miss("MSR 0x606, the energy unit, is unknown");
}

static void
amd(void)
{
	static const struct known known[] = {
		{ 0x0000008b, 0 },
		{ 0xc0010114, 0x10 },	/* VM_CR: SVM is disabled */
		{ 0xc0011029, 1 },
		{ 0xc001001f, 0 },
		{ 0xc0011020, 0 },
		{ 0xc0011021, 0 },
	};
	static const uint32_t written[] = {
		0xc0010015, 0xc001001f, 0xc0011020, 0xc0011021,
	};

	uint64_t value;

	be("AuthenticAMD");
	reads(known, nitems(known));
	if (emulate_rdmsr(NULL, 0xc0010015, &value) != 0)
		miss("MSR 0xc0010015, HWCR, is unknown");
	for (size_t i = 0; i < nitems(written); i++) {
		if (emulate_wrmsr(NULL, written[i], 0) != 0)
			miss("MSR %#x cannot be written", written[i]);
	}
}

static void
unknown(void)
{
	uint64_t value;

	be("GenuineIntel");
	for (uint32_t number = 0x40000000; number < 0x40000010; number++) {
		if (emulate_rdmsr(NULL, number, &value) == 0)
			miss("MSR %#x is known", number);
		if (emulate_wrmsr(NULL, number, 0) == 0)
			miss("MSR %#x can be written", number);
	}
}

const struct unit units[] = {
	{ "xmsr.intel",
	    "MSRs that guests of Intel processors use are known", intel },
	{ "xmsr.amd", "MSRs that guests of AMD processors use are known", amd },
	{ "xmsr.unknown", "other MSRs are unknown", unknown },
};
const size_t nunits = nitems(units);
