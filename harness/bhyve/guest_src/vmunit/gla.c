/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Translation of a guest's linear addresses by the kernel (VM_GLA2GPA): SDM 3,
 * chapter 4.  Every emulated string instruction and stack access uses it.
 */

#include <sys/mman.h>

#include <errno.h>
#include <string.h>

#include "vmunit.h"

#define	TOP		0x100000u	/* page tables, a page each */
#define	P		0x01ul
#define	RW		0x02ul
#define	US		0x04ul
#define	ACCESSED	0x20ul
#define	DIRTY		0x40ul
#define	PS		0x80ul

struct walk {
	const char	*what;
	enum vm_paging_mode paging;
	uint64_t	gla;
	/* The entries from the root down. */
	uint64_t	entry[5];
	int		levels;
	uint64_t	gpa;
};

/* Table n is at TOP + n pages; the last entry contains the result. */
#define	NEXT(n)		((TOP + 0x1000ul * (n)) | P | RW | US)

static const struct walk walks[] = {
	{ "32 bits, 4 KiB", PAGING_MODE_32, 0x00403123,
	    { NEXT(1), 0x00155000 | P | RW | US }, 2, 0x00155123 },
	{ "32 bits, 4 MiB", PAGING_MODE_32, 0x00c12345,
	    { 0x01800000 | P | RW | US | PS }, 1, 0x01812345 },
	{ "PAE, 4 KiB", PAGING_MODE_PAE, 0xc0403123,
	    { (TOP + 0x1000) | P, NEXT(2), 0x00155000 | P | RW | US }, 3,
	    0x00155123 },
	{ "PAE, 2 MiB, above 4 GiB", PAGING_MODE_PAE, 0x40234567,
	    { (TOP + 0x1000) | P, 0x123400000 | P | RW | US | PS }, 2,
	    0x123434567 },
	{ "4 levels, 4 KiB", PAGING_MODE_64, 0x0000123456789abc,
	    { NEXT(1), NEXT(2), NEXT(3), 0x00155000 | P | RW | US }, 4,
	    0x00155abc },
	{ "4 levels, 2 MiB", PAGING_MODE_64, 0xffff923456789abc,
	    { NEXT(1), NEXT(2), 0x40600000 | P | RW | US | PS }, 3,
	    0x40789abc },
	{ "4 levels, 1 GiB", PAGING_MODE_64, 0x0000123456789abc,
	    { NEXT(1), 0x1c0000000 | P | RW | US | PS }, 2, 0x1d6789abc },
	{ "5 levels, 4 KiB", PAGING_MODE_64_LA57, 0x0000123456789abc,
	    { NEXT(1), NEXT(2), NEXT(3), NEXT(4), 0x00155000 | P | RW | US },
	    5, 0x00155abc },
};

static void *
entry_at(struct vm *vm, const struct walk *walk, int level)
{
	uint64_t gla = walk->gla;
	unsigned index, depth;
	char *table = vm->mem + TOP + 0x1000 * level;

	switch (walk->paging) {
	case PAGING_MODE_32:
		index = (unsigned)(gla >> (level == 0 ? 22 : 12)) & 0x3ff;
		return (table + index * 4);
	case PAGING_MODE_PAE:
		if (level == 0)
			return (table + (gla >> 30 & 3) * 8);
		index = (unsigned)(gla >> (level == 1 ? 21 : 12)) & 0x1ff;
		return (table + index * 8);
	default:
		depth = walk->paging == PAGING_MODE_64 ? 3 : 4;
		index = (unsigned)(gla >> (12 + 9 *
		    (depth - (unsigned)level))) & 0x1ff;
		return (table + index * 8);
	}
}

static uint64_t
get_entry(struct vm *vm, const struct walk *walk, int level)
{
	uint64_t value = 0;

	memcpy(&value, entry_at(vm, walk, level),
	    walk->paging == PAGING_MODE_32 ? 4 : 8);
	return (value);
}

static void
set_entry(struct vm *vm, const struct walk *walk, int level, uint64_t value)
{
	memcpy(entry_at(vm, walk, level), &value,
	    walk->paging == PAGING_MODE_32 ? 4 : 8);
}

static void
lay(struct vm *vm, const struct walk *walk)
{
	memset(vm->mem + TOP, 0, 5 * 0x1000);
	for (int level = 0; level < walk->levels; level++)
		set_entry(vm, walk, level, walk->entry[level]);
}

static struct vm_guest_paging
paging_of(const struct walk *walk, int cpl)
{
	return ((struct vm_guest_paging){ .cr3 = TOP, .cpl = cpl,
	    .cpu_mode = walk->paging >= PAGING_MODE_64 ? CPU_MODE_64BIT :
	    CPU_MODE_PROTECTED, .paging_mode = walk->paging });
}

/* 0 and the address; 1 for a fault; -1 for an error. */
static int
translate(struct vm *vm, const struct walk *walk, int cpl, int prot,
    uint64_t gla, bool quiet, uint64_t *gpa)
{
	struct vm_guest_paging paging = paging_of(walk, cpl);
	int fault = 0, error;

	error = quiet ? vm_gla2gpa_nofault(vm->vcpu[0], &paging, gla, prot,
	    gpa, &fault) : vm_gla2gpa(vm->vcpu[0], &paging, gla, prot, gpa,
	    &fault);
	return (error != 0 ? -1 : fault);
}

static void
addresses(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t gpa = 0;

	for (size_t i = 0; i < nitems(walks); i++) {
		lay(vm, &walks[i]);
		if (translate(vm, &walks[i], 0, PROT_READ, walks[i].gla, true,
		    &gpa) != 0) {
			miss("%s: not translated", walks[i].what);
			continue;
		}
		equal(walks[i].what, gpa, walks[i].gpa);
	}
	vm_free(vm);
}

/* Accessed on every level, dirty on the last one after writes (4.8). */
static void
bits(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t gpa;

	for (size_t i = 0; i < nitems(walks); i++) {
		const struct walk *walk = &walks[i];
		int last = walk->levels - 1;

		lay(vm, walk);
		(void)translate(vm, walk, 0, PROT_WRITE, walk->gla, true,
		    &gpa);
		equal(walk->what, get_entry(vm, walk, last),
		    walk->entry[last]);
		(void)translate(vm, walk, 0, PROT_READ, walk->gla, false,
		    &gpa);
		for (int level = 0; level < walk->levels; level++) {
			/* PAE's first level has neither. */
			if (walk->paging == PAGING_MODE_PAE && level == 0)
				continue;
			equal(walk->what, get_entry(vm, walk, level),
			    walk->entry[level] | ACCESSED);
		}
		(void)translate(vm, walk, 0, PROT_WRITE, walk->gla, false,
		    &gpa);
		equal(walk->what, get_entry(vm, walk, last),
		    walk->entry[last] | ACCESSED | DIRTY);
	}
	vm_free(vm);
}

/* A forbidden access is a #PF with error code and CR2 (4.7). */
static void
faults(const void *arg __unused)
{
	static const struct { int cpl, prot; uint64_t off; uint32_t code;
	    bool faults; } cases[] = {
		{ 0, PROT_READ, P, 0, true }, { 3, PROT_READ, P, 4, true },
		{ 0, PROT_WRITE, P, 2, true }, { 3, PROT_WRITE, P, 6, true },
		{ 3, PROT_READ, US, 5, true }, { 0, PROT_READ, US, 0, false },
		{ 3, PROT_WRITE, RW, 7, true }, { 3, PROT_READ, RW, 0, false },
		{ 0, PROT_WRITE, RW, 3, true },
	};
	uint64_t gpa, one, two;

	for (size_t i = 0; i < nitems(walks); i++) {
		const struct walk *walk = &walks[i];
		struct vm *vm = vm_new();

		for (size_t j = 0; j < nitems(cases); j++) {
			int last = walk->levels - 1;
			int got;

			lay(vm, walk);
			set_entry(vm, walk, last, walk->entry[last] &
			    ~cases[j].off);
			got = translate(vm, walk, cases[j].cpl, cases[j].prot,
			    walk->gla, true, &gpa);
			check(got == cases[j].faults, "%s, case %zu: %d",
			    walk->what, j, got);
			if (!cases[j].faults)
				continue;
			got = translate(vm, walk, cases[j].cpl, cases[j].prot,
			    walk->gla, false, &gpa);
			check(got == 1, "%s, case %zu: %d, not quietly",
			    walk->what, j, got);
			if (vm_get_intinfo(vm->vcpu[0], &one, &two) != 0)
				fail("VM_GET_INTINFO fails");
			equal("the exception", two, 0x80000b0eul |
			    (uint64_t)cases[j].code << 32);
			equal("CR2", reg(vm, VM_REG_GUEST_CR2), walk->gla);
			/* Deliver it, so that the next one can be injected. */
			RUN(vm, 0x90);
		}
		vm_free(vm);
	}
}

/* A non-canonical address is a #GP (only in 64-bit mode). */
static void
canonical(const void *arg __unused)
{
	static const uint64_t bad[] = { 0x0000800000000000, 0xffff7fffffffffff,
	    0x1000000000000000, 0x8000000000000000 };
	const struct walk *walk = &walks[4];
	struct vm *vm = vm_new();
	uint64_t gpa;

	lay(vm, walk);
	for (size_t i = 0; i < nitems(bad); i++) {
		check(translate(vm, walk, 0, PROT_READ, bad[i], true, &gpa) ==
		    1, "%#jx is translated", (uintmax_t)bad[i]);
	}
	/* A table outside of memory is an error, not a fault. */
	set_entry(vm, walk, 0, 0x7fff000ul | P | RW | US);
	check(translate(vm, walk, 0, PROT_READ, walk->gla, true, &gpa) == -1,
	    "a table that is not there is walked");
	vm_free(vm);
}

static const struct test tests[] = {
	{ "paging.addresses",
	    "linear addresses are translated in every paging mode",
	    addresses, NULL },
	{ "paging.bits",
	    "accessed and dirty bits are set as the manual says", bits, NULL },
	{ "paging.faults", "a forbidden access is a page fault", faults,
	    NULL },
	{ "paging.canonical",
	    "non-canonical addresses and missing tables are refused", canonical,
	    NULL },
};

GROUP(gla, tests);
