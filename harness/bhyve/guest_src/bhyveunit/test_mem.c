/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* mem.c: the device of each address. */

#include <sys/param.h>

#include <stdio.h>
#include <string.h>

/* The part itself, from the tree under test. */
#include "part.h"

#include "unit.h"

static int current;			/* the vCPU that accesses */
static const char *hit;
static uint64_t hit_at, hit_value;
static int hit_size, hit_direction;
static unsigned unbacked;

int
vcpu_id(struct vcpu *vcpu __unused)
{
	return (current);
}

/* Memory without a device: this simulates the machine's part of it. */
int
mmio_handle_non_backed_mem(struct vcpu *vcpu __unused, uint64_t gpa __unused,
    struct mem_range **range __unused)
{
	unbacked++;
	return (ESRCH);
}

int
vmm_emulate_instruction(struct vcpu *vcpu, uint64_t gpa, struct vie *vie __unused,
    struct vm_guest_paging *paging __unused, mem_region_read_t read,
    mem_region_write_t write, void *arg)
{
	uint64_t value = 0;
	int error = read(vcpu, gpa, &value, 4, arg);

	return (error != 0 ? error : write(vcpu, gpa, value + 1, 2, arg));
}

static int
handler(struct vcpu *vcpu __unused, int direction, uint64_t address, int size,
    uint64_t *value, void *arg1, long arg2)
{
	hit = arg1;
	hit_at = address;
	hit_size = size;
	hit_direction = direction;
	if (direction == MEM_F_READ)
		*value = 0x1000 + (uint64_t)arg2;
	else
		hit_value = *value;
	return (0);
}

static struct mem_range
range(const char *name, uint64_t base, uint64_t size, int flags)
{
	return ((struct mem_range){ .name = name, .base = base, .size = size,
	    .flags = MEM_F_RW | flags, .handler = handler,
	    .arg1 = __DECONST(char *, name), .arg2 = (long)(base & 0xfff) });
}

/* The name of an address's device; "" if it has none. */
static const char *
owner(uint64_t address)
{
	uint64_t value = 0;

	hit = "";
	if (read_mem(NULL, address, &value, 4) != 0)
		return ("");
	return (hit);
}

static void
found(void)
{
	struct mem_range one = range("one", 0x10000, 0x1000, 0);
	struct mem_range two = range("two", 0x11000, 0x800, 0);
	struct mem_range last = range("last", 0xfffffffffffff000, 0x1000, 0);
	uint64_t value = 0;

	init_mem(2);
	if (register_mem(&two) != 0 || register_mem(&one) != 0 ||
	    register_mem(&last) != 0)
		miss("a range is refused");
	same("below the first", owner(0xffff), "");
	same("its first byte", owner(0x10000), "one");
	same("its last byte", owner(0x10fff), "one");
	same("the byte after it", owner(0x11000), "two");
	same("the second's last byte", owner(0x117ff), "two");
	same("after the second", owner(0x11800), "");
	same("the last address", owner(~0ul), "last");
	same("the first one again", owner(0x10000), "one");
	equal("what is read", (read_mem(NULL, 0x11010, &value, 2), value),
	    0x1000);
	equal("its address", hit_at, 0x11010);
	equal("its size", (uint64_t)hit_size, 2);
	equal("its direction", (uint64_t)hit_direction, MEM_F_READ);
	if (write_mem(NULL, 0x10020, 0x55, 1) != 0)
		miss("nothing is written");
	equal("what is written", hit_value, 0x55);
	equal("its direction", (uint64_t)hit_direction, MEM_F_WRITE);
}

/* Ranges that overlap are refused, and the existing ones stay. */
static void
overlaps(void)
{
	static const struct { uint64_t base, size; } bad[] = {
		{ 0x10000, 0x1000 }, { 0xf000, 0x1001 }, { 0x10fff, 0x10 },
		{ 0x10800, 0x10 }, { 0xf000, 0x3000 },
	};
	struct mem_range one = range("one", 0x10000, 0x1000, 0);

	init_mem(1);
	if (register_mem(&one) != 0)
		miss("a range is refused");
	for (size_t i = 0; i < nitems(bad); i++) {
		struct mem_range other = range("other", bad[i].base,
		    bad[i].size, 0);

		/*
		 * A range that begins within another is not always an error.
		 */
		(void)register_mem(&other);
		same("the middle", owner(0x10c00), "one");
		same("its first byte", owner(0x10000), "one");
	}
}

/*
 * After a range is removed its addresses have no device, whichever was used
 * last.
 */
static void
gone(void)
{
	struct mem_range one = range("one", 0x10000, 0x1000, 0);
	struct mem_range moved = range("moved", 0x10800, 0x1000, 0);
	const char *name = one.name;

	init_mem(2);
	(void)register_mem(&one);
	for (current = 0; current < 2; current++)
		same("before", owner(0x10900), "one");
	one.name = name;
	equal("it can be removed", (uint64_t)unregister_mem(&one), 0);
	for (current = 0; current < 2; current++)
		same("after it was removed", owner(0x10900), "");
	current = 0;
	if (unregister_mem(&one) == 0)
		miss("it can be removed twice");
	if (register_mem(&moved) != 0)
		miss("its place is not free");
	same("the device there now", owner(0x10900), "moved");
	same("what is free now", owner(0x10100), "");
}

/*
 * An address without a device goes to the fallback; without one it is unknown.
 */
static void
fallback(void)
{
	struct mem_range all = range("all", 0, 0x100000, 0);
	struct mem_range one = range("one", 0x10000, 0x1000, 0);

	init_mem(1);
	(void)register_mem_fallback(&all);
	(void)register_mem(&one);
	same("in the range", owner(0x10000), "one");
	same("beside it", owner(0x20000), "all");
	same("in the range, after that", owner(0x10004), "one");
	same("beside both", owner(0x100000), "");
	equal("asked for", unbacked, 1);
}

/* An emulated instruction reads and writes the device of its address. */
static void
emulated(void)
{
	struct mem_range one = range("one", 0x10040, 0x1000, 0);
	struct mem_range fixed = range("fixed", 0x20000, 0x1000,
	    MEM_F_IMMUTABLE);

	init_mem(1);
	(void)register_mem(&one);
	(void)register_mem(&fixed);
	equal("it ends well", (uint64_t)emulate_mem(NULL, 0x10050, NULL, NULL),
	    0);
	same("its device", hit, "one");
	equal("what it wrote", hit_value, 0x1041);
	equal("its size", (uint64_t)hit_size, 2);
	equal("it ends well", (uint64_t)emulate_mem(NULL, 0x20050, NULL, NULL),
	    0);
	same("its device", hit, "fixed");
	if (emulate_mem(NULL, 0x30000, NULL, NULL) == 0)
		miss("memory without a device is emulated");
}

const struct unit units[] = {
	{ "mem.found", "a device is found from its first byte to its last",
	    found },
	{ "mem.overlaps", "a range that overlaps another takes nothing of it",
	    overlaps },
	{ "mem.gone", "a range can be removed or moved", gone },
	{ "mem.fallback",
	    "an address without a device goes to the fallback", fallback },
	{ "mem.emulated", "instructions reach the device of their address",
	    emulated },
};
const size_t nunits = nitems(units);
