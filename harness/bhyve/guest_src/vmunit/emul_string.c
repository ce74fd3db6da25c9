/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Emulated string instructions, absolute offsets, stacks and BEXTR. */

#include <machine/psl.h>
#include <machine/specialreg.h>

#include <stdio.h>
#include <string.h>

#include "emul.h"

static const unsigned sizes[] = { 1, 2, 4, 8 };

static void
begin(struct point *point, enum mode mode, unsigned size, const char *about)
{
	memset(point, 0, sizeof(*point));
	point->mode = mode;
	point->size = point->mem_bytes = size;
	point->about = about;
	point->rflags = 0x2;
	point->offset = OPERAND;
	point->operand = 0x8899aabbccddeeff;
	for (unsigned i = 0; i < nitems(point->gpr); i++)
		point->gpr[i] = 0x0102030405060708ul * (i + 1);
	point->gpr[SP] = STACK_TOP - (mode == LONG64 || mode == REAL ? 0 :
	    segment_base[SS]);
	if (mode == REAL)
		point->gpr[SP] = 0xfff0;
}

static void
put(struct point *point, uint8_t byte)
{
	point->bytes[point->length++] = byte;
}

static void
prefixes(struct point *point)
{
	bool wide = point->mode == LONG64 || point->mode == PROT32;

	if (point->size == (wide ? 2 : 4))
		put(point, 0x66);
}

static uint64_t
linear(enum mode mode, enum segment segment, uint64_t address)
{
	if (mode == LONG64)
		return (address);
	return (address - segment_base[segment]);
}

enum way { TO_DEVICE, FROM_DEVICE, INSIDE };

/*
 * MOVS (A4, A5): SDM 2, "MOVS".  The count is RCX, ECX or CX by address size,
 * and the index registers have the same size (SDM 2, "REP").
 */
static void
movs(enum mode mode, unsigned size, enum way way, uint8_t rep, unsigned times,
    bool down, bool short_address)
{
	struct point point;
	uint64_t source, target, far;

	begin(&point, mode, size, "movs");
	/*
	 * Memory in every window, on two pages that are not adjacent: those of
	 * the code that other tests run.
	 */
	far = WINDOW + 5 * PAGE_SIZE - (size == 1 ? 1 : size / 2);
	source = way == TO_DEVICE ? far : WINDOW + OPERAND;
	target = way == FROM_DEVICE ? far :
	    WINDOW + OPERAND + (way == INSIDE ? 0x20 : 0);
	if (down && times > 1) {
		source += (times - 1) * size;
		target += (times - 1) * size;
	}
	point.gpr[SI] = linear(mode, DS, source);
	point.gpr[DI] = linear(mode, ES, target);
	point.gpr[CX] = times;
	if (short_address) {
		put(&point, 0x67);
		point.gpr[SI] |= 0x7700000000ul;
		point.gpr[DI] |= 0x7700000000ul;
		point.gpr[CX] |= 0x7700000000ul;
	} else if (mode == PROT16)
		put(&point, 0x67);
	if (down)
		point.rflags |= PSL_D;
	if (rep != 0)
		put(&point, rep);
	prefixes(&point);
	if (size == 8)
		put(&point, 0x48);
	put(&point, size == 1 ? 0xa4 : 0xa5);
	/* Only two timers of the HPET are compared, no other bytes. */
	if (times * size > 8)
		point.mem_bytes = 1;
	compare(&point);
}

/*
 * Whether to try 32-bit addresses in 64-bit mode.  Bochs 3.0 aborts if a
 * repeated string instruction has them ("failed assertion", faststring.cc), so
 * emulators are not given such instructions.
 */
static bool
short_addresses(enum mode mode)
{

	return (mode == LONG64 && !emulated);
}

static void
run_movs(const void *arg)
{
	enum mode mode = *(const enum mode *)arg;

	for (unsigned i = 0; i < nitems(sizes); i++) {
		if (sizes[i] == 8 && mode != LONG64)
			continue;
		for (int way = TO_DEVICE; way <= INSIDE; way++) {
			movs(mode, sizes[i], (enum way)way, 0, 1, false, false);
			movs(mode, sizes[i], (enum way)way, 0xf3, 3, false,
			    false);
			movs(mode, sizes[i], (enum way)way, 0xf2, 2, true,
			    false);
			movs(mode, sizes[i], (enum way)way, 0xf3, 0, false,
			    false);
			if (short_addresses(mode))
				movs(mode, sizes[i], (enum way)way, 0xf3, 2,
				    false, true);
		}
	}
}

static void
stos(enum mode mode, unsigned size, uint8_t rep, unsigned times, bool down,
    bool short_address)
{
	struct point point;
	uint64_t target = WINDOW + OPERAND;

	begin(&point, mode, size, "stos");
	if (down && times > 1)
		target += (times - 1) * size;
	point.gpr[DI] = mode == REAL ? target - WINDOW :
	    linear(mode, ES, target);
	point.gpr[CX] = times;
	if (mode == REAL) {
		/* Bits above the 16 must not change. */
		point.gpr[DI] |= 0x12340000;
		point.gpr[CX] |= 0x43210000;
	}
	if (short_address) {
		put(&point, 0x67);
		point.gpr[DI] |= 0x7700000000ul;
		point.gpr[CX] |= 0x7700000000ul;
	} else if (mode == PROT16)
		put(&point, 0x67);
	if (down)
		point.rflags |= PSL_D;
	if (rep != 0)
		put(&point, rep);
	prefixes(&point);
	if (size == 8)
		put(&point, 0x48);
	put(&point, size == 1 ? 0xaa : 0xab);
	if (times * size > 8)
		point.mem_bytes = 1;
	compare(&point);
}

static void
run_stos(const void *arg)
{
	enum mode mode = *(const enum mode *)arg;

	for (unsigned i = 0; i < nitems(sizes); i++) {
		if (sizes[i] == 8 && mode != LONG64)
			continue;
		stos(mode, sizes[i], 0, 1, false, false);
		stos(mode, sizes[i], 0, 1, true, false);
		stos(mode, sizes[i], 0xf3, 3, false, false);
		stos(mode, sizes[i], 0xf2, 2, true, false);
		stos(mode, sizes[i], 0xf3, 0, false, false);
		if (short_addresses(mode))
			stos(mode, sizes[i], 0xf3, 2, false, true);
	}
}

/*
 * A1 and A3: an offset as wide as addresses (SDM 2, 2.2.1.4).  In real mode
 * the tree decodes only string instructions.
 */
static void
run_moffs(const void *arg)
{
	static const uint8_t override[] = { 0, 0x26, 0x64, 0x65 };
	static const enum segment segment[] = { DS, ES, FS, GS };
	enum mode mode = *(const enum mode *)arg;
	unsigned wide = mode == LONG64 ? 8 : mode == REAL ? 2 : 4;
	struct point point;
	uint64_t address;

	for (unsigned i = 1; i < nitems(sizes); i++) {
		if (sizes[i] == 8 && mode != LONG64)
			continue;
		for (unsigned s = 0; s < nitems(override); s++) {
			for (uint8_t op = 0xa1; op <= 0xa3; op += 2) {
				begin(&point, mode, sizes[i], "mov moffs");
				if (override[s] != 0)
					put(&point, override[s]);
				if (mode == PROT16)
					put(&point, 0x67);
				prefixes(&point);
				if (sizes[i] == 8)
					put(&point, 0x48);
				put(&point, op);
				address = WINDOW + OPERAND;
				if (mode == REAL)
					address = OPERAND;
				else if (mode != LONG64 || s >= 2)
					address -= segment_base[segment[s]];
				for (unsigned b = 0; b < wide; b++)
					put(&point, (uint8_t)(address >> b * 8));
				compare(&point);
			}
		}
	}
}

/*
 * PUSH and POP of memory.  The stack pointer is 64 bits in 64-bit mode. 66
 * makes 16-bit operands, but 32-bit operands do not exist (SDM 1, 6.2.5).
 */
static void
run_stack(const void *arg)
{
	static const struct form by_si = { .base = SI, .index = NONE,
	    .segment = PLAIN };
	static const struct insn both[] = {
		{ "push_ff", { 0xff }, 1, 6, 0, 0, 0, 0, true },
		{ "pop_8f", { 0x8f }, 1, 0, 0, 0, 0, 0, true },
	};
	enum mode mode = *(const enum mode *)arg;
	struct point point;

	for (unsigned i = 1; i < nitems(sizes); i++) {
		if (mode == LONG64 ? sizes[i] == 4 : sizes[i] == 8)
			continue;
		for (unsigned b = 0; b < nitems(both); b++) {
			make_point(&point, mode, &both[b], sizes[i], NONE,
			    &by_si, 0, 0x8899aabbccddeeff);
			compare(&point);
			/*
			 * An unaligned stack, so that the operand is in two
			 * cache lines.
			 */
			point.gpr[SP] -= 5;
			compare(&point);
		}
	}
}

/* BEXTR: bits `start` to `start + length` of memory (SDM 2, "BEXTR"). */
static void
run_bextr(const void *arg)
{
	static const uint16_t fields[] = { 0x0800, 0x0804, 0x2000, 0x201f,
	    0x0020, 0x0140, 0xff00, 0x4000, 0x0010, 0x103f, 0x0141 };
	enum mode mode = *(const enum mode *)arg;
	struct point point;
	uint32_t leaf[4];

	h_cpuid(7, 0, leaf);
	if ((leaf[1] & CPUID_STDEXT_BMI1) == 0)
		skip(N_A "this processor has no BMI1");
	for (unsigned size = 4; size <= (mode == LONG64 ? 8u : 4u); size *= 2) {
		for (unsigned i = 0; i < nitems(fields); i++) {
			begin(&point, mode, size, "bextr");
			point.undefined = PSL_AF | PSL_N | PSL_PF;
			point.gpr[SI] = linear(mode, DS, WINDOW + OPERAND);
			point.gpr[DX] = fields[i] | 0xabcd0000;
			/* VEX.LZ.0F38.Wx F7 /r: bextr (%rsi), %rdx, %rbx */
			put(&point, 0xc4);
			put(&point, 0xe2);
			put(&point, (uint8_t)((size == 8 ? 0x80 : 0) |
			    (~DX & 0xf) << 3));
			put(&point, 0xf7);
			put(&point, BX << 3 | SI);
			compare(&point);
		}
	}
}

#define	IN(_mode)	&(const enum mode){ _mode }
static const struct test tests[] = {
	{ "emul.movs_16", "emulation of MOVS and REP MOVS gives the "
	    "processor's result", run_movs,
	    IN(PROT16) },
	{ "emul.movs_32", "emulation of MOVS and REP MOVS gives the "
	    "processor's result", run_movs,
	    IN(PROT32) },
	{ "emul.movs_64", "emulation of MOVS and REP MOVS gives the "
	    "processor's result", run_movs,
	    IN(LONG64) },
	{ "emul.stos_real",
	    "emulation of STOS and REP STOS gives the processor's result",
	    run_stos, IN(REAL) },
	{ "emul.stos_16", "emulation of STOS and REP STOS gives the "
	    "processor's result", run_stos,
	    IN(PROT16) },
	{ "emul.stos_32", "emulation of STOS and REP STOS gives the "
	    "processor's result", run_stos,
	    IN(PROT32) },
	{ "emul.stos_64", "emulation of STOS and REP STOS gives the "
	    "processor's result", run_stos,
	    IN(LONG64) },
	{ "emul.moffs_16", "emulation of MOV with an absolute offset gives the "
	    "processor's result",
	    run_moffs, IN(PROT16) },
	{ "emul.moffs_32", "emulation of MOV with an absolute offset gives the "
	    "processor's result",
	    run_moffs, IN(PROT32) },
	{ "emul.moffs_64", "emulation of MOV with an absolute offset gives the "
	    "processor's result",
	    run_moffs, IN(LONG64) },
	{ "emul.stack_32",
	    "emulation of PUSH and POP of memory gives the processor's result",
	    run_stack, IN(PROT32) },
	{ "emul.stack_64",
	    "emulation of PUSH and POP of memory gives the processor's result",
	    run_stack, IN(LONG64) },
	{ "emul.bextr_64",
	    "emulation of BEXTR gives the processor's result", run_bextr,
	    IN(LONG64) },
};

GROUP(string, tests);
