/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* amd64/e820.c: the memory map for firmware. */

#include <sys/param.h>

#include <errno.h>
#include <string.h>

/* The part itself, from the tree under test. */
#include "part.h"

#include "unit.h"

#define	LOW	(512UL << 20)
#define	HIGH	(1UL << 30)
#define	FOUR_G	(4UL << 30)

int raw_stdio;

static struct e820_entry table[64];
static size_t entries;

size_t
vm_get_lowmem_size(struct vmctx *ctx __unused)
{
	return (LOW);
}

size_t
vm_get_highmem_size(struct vmctx *ctx __unused)
{
	return (HIGH);
}

int
qemu_fwcfg_add_file(const char *name, const uint32_t size, void *const data)
{
	if (strcmp(name, "etc/e820") != 0 || size > sizeof(table))
		return (EINVAL);
	memcpy(table, data, size);
	entries = size / sizeof(table[0]);
	return (0);
}

static void
finish(void)
{
	uint64_t end = 0;

	equal("e820_finalize's error", (uint64_t)e820_finalize(), 0);
	for (size_t i = 0; i < entries; i++) {
		if (table[i].base < end)
			miss("entry %zu at %#jx overlaps the one before", i,
			    (uintmax_t)table[i].base);
		if (table[i].length == 0)
			miss("entry %zu at %#jx is empty", i,
			    (uintmax_t)table[i].base);
		end = table[i].base + table[i].length;
	}
}

static uint64_t
total(uint32_t type)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < entries; i++) {
		if (table[i].type == type)
			sum += table[i].length;
	}
	return (sum);
}

static bool
has(uint64_t base, uint64_t end, uint32_t type)
{
	for (size_t i = 0; i < entries; i++) {
		if (table[i].base == base && table[i].type == type &&
		    table[i].length == end - base)
			return (true);
	}
	miss("no entry is [%#jx, %#jx) of type %u", (uintmax_t)base,
	    (uintmax_t)end, type);
	return (false);
}

static void
start(void)
{
	equal("e820_init's error", (uint64_t)e820_init(NULL), 0);
}

static void
plain(void)
{
	start();
	finish();
	has(0, 0xa0000, E820_TYPE_MEMORY);
	has(0x100000, LOW, E820_TYPE_MEMORY);
	has(FOUR_G, FOUR_G + HIGH, E820_TYPE_MEMORY);
	equal("entries", entries, 3);
}

/* Reserve [base, end); exactly this range must be returned. */
static void
reserve(uint64_t base, uint64_t end, enum e820_memory_type type)
{
	equal("the address", e820_alloc(base, end - base, E820_ALIGNMENT_NONE,
	    type, E820_ALLOCATE_SPECIFIC), base);
}

static void
splits(void)
{
	start();
	reserve(0x200000, 0x300000, E820_TYPE_RESERVED);
	reserve(0x100000, 0x110000, E820_TYPE_ACPI);
	reserve(LOW - 0x1000, LOW, E820_TYPE_NVS);
	finish();
	has(0x100000, 0x110000, E820_TYPE_ACPI);
	has(0x110000, 0x200000, E820_TYPE_MEMORY);
	has(0x200000, 0x300000, E820_TYPE_RESERVED);
	has(0x300000, LOW - 0x1000, E820_TYPE_MEMORY);
	has(LOW - 0x1000, LOW, E820_TYPE_NVS);
	equal("memory", total(E820_TYPE_MEMORY),
	    0xa0000 + (LOW - 0x100000) + HIGH - 0x111000);
}

static void
replaces(void)
{
	start();
	reserve(0, 0xa0000, E820_TYPE_RESERVED);
	reserve(FOUR_G, FOUR_G + HIGH, E820_TYPE_RESERVED);
	finish();
	has(0, 0xa0000, E820_TYPE_RESERVED);
	has(FOUR_G, FOUR_G + HIGH, E820_TYPE_RESERVED);
	equal("entries", entries, 3);
}

static void
merges(void)
{
	start();
	reserve(0x400000, 0x500000, E820_TYPE_RESERVED);
	reserve(0x500000, 0x600000, E820_TYPE_RESERVED);
	reserve(0x300000, 0x400000, E820_TYPE_RESERVED);
	reserve(0x600000, 0x700000, E820_TYPE_ACPI);
	finish();
	has(0x300000, 0x600000, E820_TYPE_RESERVED);
	has(0x600000, 0x700000, E820_TYPE_ACPI);
	equal("entries", entries, 6);
}

static void
allocates(void)
{
	uint64_t high, low, any;

	start();
	high = e820_alloc(LOW, 0x10000, 0x10000, E820_TYPE_RESERVED,
	    E820_ALLOCATE_HIGHEST);
	low = e820_alloc(0x150000, 0x10000, 0x10000, E820_TYPE_RESERVED,
	    E820_ALLOCATE_LOWEST);
	any = e820_alloc(0, 0x1000, 0x1000, E820_TYPE_RESERVED,
	    E820_ALLOCATE_ANY);
	equal("the highest", high, LOW - 0x10000);
	equal("the lowest", low, 0x150000);
	if (any == 0 || any % 0x1000 != 0)
		miss("any is %#jx", (uintmax_t)any);
	finish();
}

static void
refuses(void)
{
	start();
	reserve(0x200000, 0x300000, E820_TYPE_RESERVED);
	equal("over another", e820_alloc(0x280000, 0x1000, 1,
	    E820_TYPE_RESERVED, E820_ALLOCATE_SPECIFIC), 0);
	equal("in a hole", e820_alloc(0xb0000, 0x1000, 1, E820_TYPE_RESERVED,
	    E820_ALLOCATE_SPECIFIC), 0);
	equal("over the end", e820_alloc(LOW - 0x1000, 0x2000, 1,
	    E820_TYPE_RESERVED, E820_ALLOCATE_SPECIFIC), 0);
	equal("after all", e820_alloc(FOUR_G + HIGH, 0x1000, 1,
	    E820_TYPE_RESERVED, E820_ALLOCATE_SPECIFIC), 0);
	finish();
	equal("entries", entries, 5);
}

const struct unit units[] = {
	{ "e820.plain", "memory below and above 4 GiB, and the VGA hole",
	    plain },
	{ "e820.split", "a reserved range is cut out of memory", splits },
	{ "e820.replace", "an entry may replace another completely", replaces },
	{ "e820.merge", "adjacent entries of one type are merged", merges },
	{ "e820.allocate", "the highest, the lowest or any address can be "
	    "requested", allocates },
	{ "e820.refuse", "ranges that are not memory are not granted", refuses },
};
const size_t nunits = nitems(units);
