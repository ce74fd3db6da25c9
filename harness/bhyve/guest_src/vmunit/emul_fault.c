/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Emulated instructions that cannot be completed: the other operand, which is
 * in memory, faults.  Vector, error code, CR2 and registers are the
 * processor's, and the device has not been accessed.
 */

#include <machine/psl.h>
#include <machine/specialreg.h>

#include <string.h>

#include "emul.h"

#define	NOT_PRESENT	(WINDOW + 0x10000u)

static void
begin(struct point *point, enum mode mode, const char *about)
{
	memset(point, 0, sizeof(*point));
	point->mode = mode;
	point->size = 4;
	/* At the HPET's place the bytes cannot differ. */
	point->mem_bytes = 1;
	point->about = about;
	point->rflags = 0x2;
	point->offset = OPERAND;
	point->operand = 0x1122334455667788;
	for (unsigned i = 0; i < nitems(point->gpr); i++)
		point->gpr[i] = 0x0101010101010101ul * (i + 1);
	point->gpr[SP] = STACK_TOP - (mode == LONG64 ? 0 : segment_base[SS]);
	point->gpr[SI] = WINDOW + OPERAND -
	    (mode == LONG64 ? 0 : segment_base[DS]);
}

static void
put(struct point *point, const uint8_t *bytes, unsigned length)
{
	memcpy(point->bytes, bytes, length);
	point->length = length;
}

static const uint8_t movsl[] = { 0xa5 };
static const uint8_t rep_movsl[] = { 0xf3, 0xa5 };

/* From a device to an address that cannot be written. */
static void
targets_64(const void *arg __unused)
{
	static const struct { const char *what; uint64_t address; } bad[] = {
		{ "movs to a page that is not present", NOT_PRESENT },
		{ "movs to an address that is not canonical",
		    0x0000800000000000 },
		{ "movs across the end of what is present",
		    WINDOW + 6 * PAGE_SIZE - 2 },
	};
	struct point point;

	if (emulated && !intel)
		skip(N_A "Bochs as AMD does not load CR2 when a guest is "
		    "entered, so a fault of vmm.ko's has the host's");
	for (size_t i = 0; i < nitems(bad); i++) {
		begin(&point, LONG64, bad[i].what);
		point.gpr[DI] = bad[i].address;
		put(&point, movsl, sizeof(movsl));
		compare(&point);
		point.gpr[CX] = 2;
		put(&point, rep_movsl, sizeof(rep_movsl));
		compare(&point);
	}
}

/* Limits, and segments that cannot be written, in 32-bit mode. */
static void
segments_32(const void *arg __unused)
{
	/* The destination is bytes 0x100 to 0x103 of ES. */
	static const struct { const char *what; uint32_t limit, access; }
	    kinds[] = {
		{ "movs within a limit", 0x103, 0x4093 },
		{ "movs across a limit", 0x102, 0x4093 },
		{ "movs beyond a limit", 0x80, 0x4093 },
		{ "movs to a read-only segment", 0xfffff, 0x4091 },
		{ "movs to code", 0xfffff, 0x409b },
		{ "movs above an expand-down limit", 0xff, 0x4097 },
		{ "movs at an expand-down limit", 0x100, 0x4097 },
		{ "movs beyond 64 KiB, expand-down, 16 bits", 0x80, 0x0097 },
	};
	struct point point;

	for (size_t i = 0; i < nitems(kinds); i++) {
		begin(&point, PROT32, kinds[i].what);
		point.gpr[DI] = 0x100;
		point.segment = VM_REG_GUEST_ES;
		point.limit = kinds[i].limit;
		point.access = kinds[i].access;
		put(&point, movsl, sizeof(movsl));
		compare(&point);
	}
}

static const struct test tests[] = {
	{ "emul.fault_targets_64", "a string instruction faults if its memory "
	    "operand cannot be written",
	    targets_64, NULL },
	{ "emul.fault_segments_32", "a string instruction obeys the limit and "
	    "type of its other segment", segments_32, NULL },
};

GROUP(fault, tests);
