/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * CPUID: what a guest sees of the host's, and what differs.  References are to
 * Intel's SDM 2, "CPUID", and AMD's APM 3, appendix E.
 */

#include <sys/types.h>
#include <sys/sysctl.h>

#include <machine/specialreg.h>

#include <string.h>

#include "vmunit.h"

enum { EAX, EBX, ECX, EDX };

/* A bit with a fixed value, whatever the host's is. */
struct bit {
	const char	*name;
	uint32_t	leaf;
	int		word;
	uint32_t	mask;
	bool		set;
};

static const struct bit bits[] = {
	{ "VMX", 1, ECX, 1u << 5, false },
	{ "SMX", 1, ECX, 1u << 6, false },
	{ "EIST", 1, ECX, 1u << 7, false },
	{ "TM2", 1, ECX, 1u << 8, false },
	{ "MONITOR", 1, ECX, 1u << 3, false },
	{ "PDCM", 1, ECX, 1u << 15, false },
	{ "TSC deadline", 1, ECX, 1u << 24, false },
	{ "OSXSAVE", 1, ECX, 1u << 27, false },
	{ "x2APIC", 1, ECX, 1u << 21, false },
	{ "hypervisor", 1, ECX, 1u << 31, true },
	{ "DS", 1, EDX, 1u << 21, false },
	{ "ACPI", 1, EDX, 1u << 22, false },
	{ "TM", 1, EDX, 1u << 29, false },
	{ "MCE", 1, EDX, 1u << 7, true },
	{ "MTRR", 1, EDX, 1u << 12, true },
	{ "MCA", 1, EDX, 1u << 14, true },
	{ "HTT", 1, EDX, 1u << 28, true },
	{ "APIC", 1, EDX, 1u << 9, true },
	{ "SVM", 0x80000001, ECX, 1u << 2, false },
	{ "IBS", 0x80000001, ECX, 1u << 10, false },
	{ "OSVW", 0x80000001, ECX, 1u << 9, false },
	{ "NodeId", 0x80000001, ECX, 1u << 19, false },
	{ "PerfCtrExtCore", 0x80000001, ECX, 1u << 23, false },
	{ "PerfCtrExtNB", 0x80000001, ECX, 1u << 24, false },
	{ "PerfTsc", 0x80000001, ECX, 1u << 27, false },
	{ "PerfCtrExtLLC", 0x80000001, ECX, 1u << 28, false },
	{ "MONITORX", 0x80000001, ECX, 1u << 29, false },
	{ "ARAT", 6, EAX, 1u << 2, true },
};

static void
fixed_bits(const void *arg __unused)
{
	struct vm *vm = vm_shared();
	uint64_t out[4];

	for (size_t i = 0; i < nitems(bits); i++) {
		g_cpuid(vm, bits[i].leaf, 0, out);
		if (bits[i].leaf == 6 && !intel)
			continue;
		check(((out[bits[i].word] & bits[i].mask) != 0) == bits[i].set,
		    "leaf %#x: %s is %s", bits[i].leaf, bits[i].name,
		    bits[i].set ? "clear" : "set");
	}
}

/* The upper halves of RAX and RCX are ignored, and those of results are 0. */
static void
upper_halves(const void *arg __unused)
{
	static const uint32_t leaves[] = { 0, 1, 2, 4, 6, 7, 0xa, 0xb, 0xd,
	    0xf, 0x10, 0x15, 0x40000000, 0x40000001, 0x80000000, 0x80000001,
	    0x80000002, 0x80000006, 0x80000007, 0x80000008 };
	struct vm *vm = vm_shared();
	uint64_t plain[4], high[4];

	for (size_t i = 0; i < nitems(leaves); i++) {
		g_cpuid(vm, leaves[i], 0, plain);
		g_cpuid(vm, 0xdeadbeef00000000ul | leaves[i],
		    0xfeedface00000000ul, high);
		for (int word = EAX; word <= EDX; word++) {
			equal_at("leaf with a high half", leaves[i],
			    high[word], plain[word]);
			equal_at("the high half after leaf", leaves[i],
			    plain[word] >> 32, 0);
		}
	}
}

/* SDM 2: leaves beyond the highest basic one answer like the highest one. */
static void
beyond(const void *arg __unused)
{
	static const uint32_t pairs[][2] = { { 0x40000002, 0x40000001 },
	    { 0x4fffffff, 0x40000001 } };
	struct vm *vm = vm_shared();
	uint64_t basic[4], extended[4], got[4], wanted[4];
	uint32_t host[4];

	g_cpuid(vm, 0, 0, basic);
	g_cpuid(vm, 0x80000000, 0, extended);
	h_cpuid(0, 0, host);
	equal("the highest basic leaf", basic[EAX], host[EAX]);
	check(memcmp(&host[1], (uint32_t [3]){ (uint32_t)basic[EBX],
	    (uint32_t)basic[ECX], (uint32_t)basic[EDX] }, 12) == 0,
	    "the maker is not the host's");
	h_cpuid(0x80000000, 0, host);
	equal("the highest extended leaf", extended[EAX], host[EAX]);
	for (size_t i = 0; i < nitems(pairs); i++) {
		g_cpuid(vm, pairs[i][0], 0, got);
		g_cpuid(vm, pairs[i][1], 0, wanted);
		check(memcmp(got, wanted, sizeof(got)) == 0,
		    "leaf %#x does not answer as %#x", pairs[i][0],
		    pairs[i][1]);
	}
	g_cpuid(vm, extended[EAX] + 1, 0, got);
	g_cpuid(vm, extended[EAX], 0, wanted);
	check(memcmp(got, wanted, sizeof(got)) == 0,
	    "leaf %#jx does not answer as the highest extended one",
	    (uintmax_t)extended[EAX] + 1);
}

static void
hypervisor(const void *arg __unused)
{
	struct vm *vm = vm_shared();
	uint64_t out[4];
	char name[13] = "";

	g_cpuid(vm, 0x40000000, 0, out);
	memcpy(name, &out[EBX], 4);
	memcpy(name + 4, &out[ECX], 4);
	memcpy(name + 8, &out[EDX], 4);
	check(strcmp(name, "bhyve bhyve ") == 0, "it is called \"%s\"", name);
	check(out[EAX] >= 0x40000000 && out[EAX] < 0x40000100,
	    "its highest leaf is %#jx", (uintmax_t)out[EAX]);
	if (out[EAX] >= 0x40000001) {
		g_cpuid(vm, 0x40000001, 0, out);
		equal("leaf 40000001: EAX", out[EAX], 1);
		equal("leaf 40000001: EBX", out[EBX], 0);
		equal("leaf 40000001: ECX", out[ECX], 0);
		equal("leaf 40000001: EDX", out[EDX], 0);
	}
}

/*
 * How often vmm.ko has passed an unknown leaf through.  This also finds leaves
 * that are empty on this host.
 */
static long
unknown_leaves(void)
{
	long number = -1;
	size_t size = sizeof(number);

	(void)sysctlbyname("hw.vmm.bhyve_xcpuids", &number, &size, NULL, 0);
	return (number);
}

/* A guest needs none of these leaves: all are zero. */
static void
empty_leaves(const void *arg __unused)
{
	static const struct { uint32_t leaf, subleaf; } empty[] = {
		{ 0xa, 0 }, { 0xf, 0 }, { 0xf, 1 }, { 0x10, 0 }, { 0x10, 1 },
		{ 0x15, 0 }, { 7, 1 }, { 7, 2 } };
	struct vm *vm = vm_shared();
	uint64_t out[4], basic[4];
	long before;

	g_cpuid(vm, 0, 0, basic);
	for (size_t i = 0; i < nitems(empty); i++) {
		if (empty[i].leaf > basic[EAX])
			continue;
		before = unknown_leaves();
		g_cpuid(vm, empty[i].leaf, empty[i].subleaf, out);
		check(unknown_leaves() == before,
		    "leaf %#x is passed on from the host", empty[i].leaf);
		for (int word = EAX; word <= EDX; word++)
			equal_at("leaf", empty[i].leaf, out[word], 0);
	}
	g_cpuid(vm, 0x80000007, 0, out);
	equal("leaf 80000007: EAX", out[EAX], 0);
	equal("leaf 80000007: EBX", out[EBX], 0);
	equal("leaf 80000007: ECX", out[ECX], 0);
	equal("leaf 80000007: EDX without invariant TSC",
	    out[EDX] & ~0x100ul, 0);
	if (basic[EAX] >= 6) {
		g_cpuid(vm, 6, 0, out);
		equal("leaf 6: EAX", out[EAX], 4);
		equal("leaf 6: EBX", out[EBX], 0);
		equal("leaf 6: ECX", out[ECX], 0);
		equal("leaf 6: EDX", out[EDX], 0);
	}
}

/* Leaf 7: only features that the host has and that bhyve knows to be safe. */
static void
structured(const void *arg __unused)
{
	const uint32_t known[4] = { 0,
	    /* FSGSBASE BMI1 HLE AVX2 SMEP BMI2 ERMS INVPCID RTM AVX512* RDSEED
	     * SMAP SHA; by their numbers in SDM 2, table 3-8 */
	    1u << 0 | 1u << 3 | 1u << 4 | 1u << 5 | 1u << 7 | 1u << 8 | 1u << 9 |
	    1u << 10 | 1u << 11 | 1u << 16 | 1u << 17 | 1u << 18 | 1u << 20 |
	    1u << 26 | 1u << 27 | 1u << 28 | 1u << 29 | 1u << 30 | 1u << 31,
	    /* VAES VPCLMULQDQ RDPID */
	    1u << 9 | 1u << 10 | 1u << 22,
	    /* MD_CLEAR */
	    1u << 10 };
	struct vm *vm = vm_shared();
	uint64_t out[4], basic[4];
	uint32_t host[4];

	g_cpuid(vm, 0, 0, basic);
	if (basic[EAX] < 7)
		skip(N_A "this processor has no leaf 7");
	g_cpuid(vm, 7, 0, out);
	h_cpuid(7, 0, host);
	equal("leaf 7: EAX", out[EAX], 0);
	for (int word = EBX; word <= EDX; word++) {
		equal_at("bits the host lacks in word", (unsigned)word,
		    out[word] & ~host[word], 0);
		/*
		 * New features may be added; these are the ones known today.
		 */
		equal_at("unknown bits in word", (unsigned)word,
		    out[word] & ~known[word], 0);
	}
	/* These are safe for every guest and must not disappear. */
	equal("FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, SMAP", out[EBX] &
	    0x1003a9, host[EBX] & 0x1003a9);
}

/* Bit 27 of leaf 1 follows CR4.OSXSAVE (SDM 2, table 3-10). */
static void
osxsave(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t out[4];

	g_cpuid(vm, 1, 0, out);
	if ((out[ECX] & 1u << 26) == 0)
		skip(N_A "a guest has no XSAVE here");
	check((out[ECX] & 1u << 27) == 0, "OSXSAVE is set while CR4's is not");
	/* mov %cr4, %rax; or $0x40000, %eax; mov %rax, %cr4 */
	RUN(vm, 0x0f, 0x20, 0xe0, 0x0d, 0x00, 0x00, 0x04, 0x00, 0x0f, 0x22,
	    0xe0);
	expect_done(vm);
	g_cpuid(vm, 1, 0, out);
	check((out[ECX] & 1u << 27) != 0, "OSXSAVE is clear while CR4's is set");
	vm_free(vm);
}

/* Leaf D: only what XCR0 may contain; sizes follow the guest's XCR0. */
static void
extended_state(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t out[4], features[4];
	uint32_t host[4];

	g_cpuid(vm, 1, 0, features);
	if ((features[ECX] & 1u << 26) == 0)
		skip(N_A "a guest has no XSAVE here");
	g_cpuid(vm, 0xd, 0, out);
	h_cpuid(0xd, 0, host);
	equal("leaf D: EAX beyond the host's", out[EAX] & ~host[EAX], 0);
	equal("leaf D: x87 and SSE", out[EAX] & 3, 3);
	equal("leaf D: EDX", out[EDX] & ~host[EDX], 0);
	/* XCR0 is 1 after a reset: 512 and 64 bytes. */
	equal("leaf D: EBX with XCR0 1", out[EBX], 576);
	check(out[ECX] >= out[EBX] && out[ECX] <= host[ECX],
	    "leaf D: ECX is %#jx, the host's %#x", (uintmax_t)out[ECX],
	    host[ECX]);
	g_cpuid(vm, 0xd, 1, out);
	equal("leaf D.1: EAX without XSAVEOPT", out[EAX] & ~1ul, 0);
	equal("leaf D.1: EBX", out[EBX], 0);
	equal("leaf D.1: ECX", out[ECX], 0);
	g_cpuid(vm, 0xd, 62, out);
	equal("leaf D.62: EAX", out[EAX], 0);
	equal("leaf D.62: EBX", out[EBX], 0);
	vm_free(vm);
}

/* The topology set by VM_SET_TOPOLOGY: 1 package, 2 cores, 2 threads. */
static void
topology(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t out[4];
	uint16_t sockets, cores, threads, most;

	if (vm_set_topology(vm->ctx, 1, 2, 2, 0) != 0)
		skip("hw.vmm.maxcpu is less than 4");
	check(vm_get_topology(vm->ctx, &sockets, &cores, &threads, &most) == 0,
	    "the topology cannot be read");
	check(sockets == 1 && cores == 2 && threads == 2,
	    "the topology is %u, %u, %u", sockets, cores, threads);
	g_cpuid(vm, 1, 0, out);
	equal("leaf 1: logical processors", out[EBX] >> 16 & 0xff, 4);
	equal("leaf 1: APIC id", out[EBX] >> 24, 0);
	if (intel) {
		g_cpuid(vm, 4, 0, out);
		equal("leaf 4.0: cores", out[EAX] >> 26, 1);
		equal("leaf 4.0: threads that share", out[EAX] >> 14 & 0xfff,
		    1);
		g_cpuid(vm, 0xb, 0, out);
		equal("leaf B.0: shift", out[EAX], 1);
		equal("leaf B.0: threads", out[EBX], 2);
		equal("leaf B.0: level", out[ECX], 0x100);
		equal("leaf B.0: id", out[EDX], 0);
		g_cpuid(vm, 0xb, 1, out);
		equal("leaf B.1: shift", out[EAX], 2);
		equal("leaf B.1: threads", out[EBX], 4);
		equal("leaf B.1: level", out[ECX], 0x201);
		g_cpuid(vm, 0xb, 2, out);
		equal("leaf B.2: shift", out[EAX], 0);
		equal("leaf B.2: threads", out[EBX], 0);
		equal("leaf B.2: level", out[ECX], 2);
	} else {
		g_cpuid(vm, 0x80000008, 0, out);
		equal("leaf 80000008: threads - 1", out[ECX] & 0xff, 3);
		equal("leaf 80000008: id bits", out[ECX] >> 12 & 0xf, 2);
		equal("leaf 80000008: EBX without CLZERO, IRPERF, XSAVEERPTR",
		    out[EBX] & ~7ul, 0);
		g_cpuid(vm, 0, 0, out);
		for (uint32_t i = 0; out[EAX] >= 0xb && i < 2; i++) {
			uint64_t leaf_b[4];

			/*
			 * The AMD processors that vmm.ko shows do not have
			 * this leaf.
			 */
			g_cpuid(vm, 0xb, i, leaf_b);
			for (int word = EAX; word <= EDX; word++)
				equal_at("leaf B", i, leaf_b[word], 0);
		}
		g_cpuid(vm, 0x80000000, 0, out);
		for (uint32_t i = 0; out[EAX] >= 0x8000001d && i < 6; i++) {
			uint64_t cache[4];

			/*
			 * This includes the empty entry after the last cache.
			 */
			g_cpuid(vm, 0x8000001d, i, cache);
			check((cache[EAX] >> 14 & 0xfff) < 4, "leaf 8000001D.%u:"
			    " a cache is shared by %u processors of 4", i,
			    (unsigned)(cache[EAX] >> 14 & 0xfff) + 1);
		}
	}
	vm_free(vm);
}

/* Leaves that are passed through equal the host's. */
static void
passed(const void *arg __unused)
{
	static const uint32_t leaves[] = { 0, 2, 3, 0x80000000, 0x80000002,
	    0x80000003, 0x80000004, 0x80000006 };
	struct vm *vm = vm_shared();
	uint64_t out[4], basic[4];
	uint32_t host[4];

	g_cpuid(vm, 0, 0, basic);
	for (size_t i = 0; i < nitems(leaves); i++) {
		if (leaves[i] < 0x80000000 && leaves[i] > basic[EAX])
			continue;
		g_cpuid(vm, leaves[i], 0, out);
		h_cpuid(leaves[i], 0, host);
		for (int word = EAX; word <= EDX; word++)
			equal_at("leaf", leaves[i], out[word], host[word]);
	}
	g_cpuid(vm, 0x80000008, 0, out);
	h_cpuid(0x80000008, 0, host);
	equal("address widths", out[EAX], host[EAX]);
	g_cpuid(vm, 1, 0, out);
	h_cpuid(1, 0, host);
	equal("the processor's signature", out[EAX], host[EAX]);
	/* SSE3 SSSE3 CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES, and FPU to SSE2 */
	equal("leaf 1: ECX, harmless ones", out[ECX] & 0x02d82201,
	    host[ECX] & 0x02d82201);
	equal("leaf 1: EDX, harmless ones", out[EDX] & 0x0781817f,
	    host[EDX] & 0x0781817f);
}

static const struct test tests[] = {
	{ "cpuid.fixed_bits", "CPUID hides some features from every guest and "
	    "shows others to every guest", fixed_bits, NULL },
	{ "cpuid.upper_halves", "CPUID ignores and clears the upper halves of "
	    "registers", upper_halves, NULL },
	{ "cpuid.beyond", "leaves beyond the highest one answer like the "
	    "highest one", beyond, NULL },
	{ "cpuid.hypervisor",
	    "leaf 40000000 contains bhyve's name", hypervisor, NULL },
	{ "cpuid.empty_leaves",
	    "leaves that no guest needs are zero", empty_leaves, NULL },
	{ "cpuid.structured",
	    "leaf 7 shows only known features that the host has",
	    structured, NULL },
	{ "cpuid.osxsave",
	    "CPUID's OSXSAVE follows CR4.OSXSAVE", osxsave, NULL },
	{ "cpuid.extended_state",
	    "the sizes in leaf D follow XCR0", extended_state, NULL },
	{ "cpuid.topology", "CPUID shows the topology that was set", topology,
	    NULL },
	{ "cpuid.passed",
	    "leaves that are passed through are the host's", passed,
	    NULL },
};

GROUP(cpuid, tests);
