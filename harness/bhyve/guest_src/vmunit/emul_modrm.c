/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Emulated instructions with a ModRM byte: all registers, forms and numbers.
 */

#include <machine/psl.h>
#include <machine/specialreg.h>

#include <stdio.h>
#include <string.h>

#include "emul.h"

#define	WORDS	(SIZE_2 | SIZE_4 | SIZE_8)

/* Flags that are undefined afterwards (SDM 2, "Flags Affected"). */
#define	LOGIC	PSL_AF
#define	BITTEST	(PSL_V | PSL_N | PSL_AF | PSL_PF)

/* Every opcode of the tree's tables except strings, moffs, stack and VEX. */
const struct insn insns[] = {
	{ "add_03", { 0x03 }, 1, REGISTER, 0, WORDS, 0, 0, false },
	{ "or_0b", { 0x0b }, 1, REGISTER, 0, WORDS, 0, LOGIC, false },
	{ "and_23", { 0x23 }, 1, REGISTER, 0, WORDS, 0, LOGIC, false },
	{ "sub_2b", { 0x2b }, 1, REGISTER, 0, WORDS, 0, 0, false },
	{ "cmp_39", { 0x39 }, 1, REGISTER, 0, WORDS, 0, 0, false },
	{ "cmp_3b", { 0x3b }, 1, REGISTER, 0, WORDS, 0, 0, false },
	{ "mov_88", { 0x88 }, 1, REGISTER, 0, SIZE_1, 0, 0, false },
	{ "mov_89", { 0x89 }, 1, REGISTER, 0, WORDS, 0, 0, false },
	{ "mov_8a", { 0x8a }, 1, REGISTER, 0, SIZE_1, 0, 0, false },
	{ "mov_8b", { 0x8b }, 1, REGISTER, 0, WORDS, 0, 0, false },
	{ "movzx_b6", { 0x0f, 0xb6 }, 2, REGISTER, 0, WORDS, 1, 0, false },
	{ "movzx_b7", { 0x0f, 0xb7 }, 2, REGISTER, 0, SIZE_4 | SIZE_8, 2, 0,
	    false },
	{ "movsx_be", { 0x0f, 0xbe }, 2, REGISTER, 0, WORDS, 1, 0, false },
	{ "cmp_80", { 0x80 }, 1, 7, 1, SIZE_1, 0, 0, false },
	{ "or_81", { 0x81 }, 1, 1, WIDE, WORDS, 0, LOGIC, false },
	{ "and_81", { 0x81 }, 1, 4, WIDE, WORDS, 0, LOGIC, false },
	{ "cmp_81", { 0x81 }, 1, 7, WIDE, WORDS, 0, 0, false },
	{ "or_83", { 0x83 }, 1, 1, 1, WORDS, 0, LOGIC, false },
	{ "and_83", { 0x83 }, 1, 4, 1, WORDS, 0, LOGIC, false },
	{ "cmp_83", { 0x83 }, 1, 7, 1, WORDS, 0, 0, false },
	{ "mov_c6", { 0xc6 }, 1, 0, 1, SIZE_1, 0, 0, false },
	{ "mov_c7", { 0xc7 }, 1, 0, WIDE, WORDS, 0, 0, false },
	{ "test_f6", { 0xf6 }, 1, 0, 1, SIZE_1, 0, LOGIC, false },
	{ "test_f7", { 0xf7 }, 1, 0, WIDE, WORDS, 0, LOGIC, false },
	{ "bt_ba", { 0x0f, 0xba }, 2, 4, 1, WORDS, 0, BITTEST, false },
	{ "clflush_ae", { 0x0f, 0xae }, 2, 7, 0, SIZE_4, 1, 0, false },
};
const size_t insn_count = nitems(insns);

static const struct form by_si = { .base = SI, .index = NONE,
	.segment = PLAIN };

const struct insn *
insn_named(const char *name)
{
	for (size_t i = 0; i < insn_count; i++) {
		if (strcmp(insns[i].name, name) == 0)
			return (&insns[i]);
	}
	fail("no instruction %s", name);
}

static bool
fits(enum mode mode, unsigned size)
{
	return (mode == LONG64 || size != 8);
}

/*
 * First with all status flags set, then clear: flags that stay are found, too.
 */
static void
both_flags(struct point *point)
{
	point->rflags = 0x2 | PSL_C | PSL_PF | PSL_AF | PSL_Z | PSL_N | PSL_V;
	compare(point);
}

/* Every register as the operand, with every size. */
static void
registers(enum mode mode, const struct insn *insn)
{
	unsigned number = 0, last = mode == LONG64 ? R15 : DI;
	struct point point;

	for (unsigned size = 1; size <= 8; size *= 2) {
		if ((insn->sizes & size) == 0 || !fits(mode, size))
			continue;
		for (unsigned r = AX; r <= BH; r++) {
			if (size == 1 ? r > last && r < AH : r > last)
				continue;
			if (size == 1 && mode != LONG64 && r > BX && r < AH)
				continue;
			make_point(&point, mode, insn, size, (enum gpr)r,
			    &by_si, pattern(size, number),
			    pattern(size, number / 3 + 3));
			compare(&point);
			number++;
		}
	}
}

/* Pairs of numbers that set different flags. */
static void
numbers(enum mode mode, const struct insn *insn)
{
	unsigned step = mode == PROT16 ? 3 : 1;
	struct point point;

	for (unsigned size = 1; size <= 8; size *= 2) {
		if ((insn->sizes & size) == 0 || !fits(mode, size))
			continue;
		for (unsigned i = 0; i < 2 * PATTERNS; i += step) {
			make_point(&point, mode, insn, size, DX, &by_si,
			    pattern(insn->immediate == 1 ? 1 : size, i),
			    pattern(size, i < PATTERNS ? i * 5 + 3 : i));
			if (i % 2 != 0)
				both_flags(&point);
			else
				compare(&point);
		}
	}
}

/* Base registers, with every size of displacement. */
static void
bases(enum mode mode, const struct insn *insn)
{
	unsigned size = insn->sizes & SIZE_4 ? 4 : 1;
	struct form form = by_si;
	struct point point;

	for (unsigned base = AX; base <= (mode == LONG64 ? R15 : DI); base++) {
		form.base = (enum gpr)base;
		for (unsigned kind = 0; kind < 3; kind++) {
			form.disp_bytes = kind == 0 ? 0 : kind == 1 ? 1 : 4;
			form.disp = kind == 0 ? 0 : kind == 1 ? -8 : -0x12345;
			/* RBP and R13 always have a displacement. */
			if (kind == 0 && (base & 7) == BP)
				continue;
			make_point(&point, mode, insn, size, DX, &form,
			    pattern(4, base), pattern(4, base + 3));
			compare(&point);
		}
	}
}

/* Index registers and scales; no base; RIP; 67. */
static void
indices(enum mode mode, const struct insn *insn)
{
	struct form form = by_si;
	struct point point;
	unsigned size = insn->sizes & SIZE_4 ? 4 : 1;

	for (unsigned index = AX; index <= (mode == LONG64 ? R15 : DI);
	    index++) {
		if (index == SP)
			continue;
		form.index = (enum gpr)index;
		form.scale = index & 3;
		form.base = index == SI ? BP : SI;
		form.disp_bytes = form.base == BP ? 1 : 0;
		make_point(&point, mode, insn, size, DX, &form,
		    pattern(4, index), pattern(4, index + 3));
		compare(&point);
	}
	/* base + base * 1 */
	form = (struct form){ .base = DI, .index = DI, .segment = PLAIN };
	make_point(&point, mode, insn, size, DX, &form, pattern(4, 5),
	    pattern(4, 7));
	compare(&point);
	form = (struct form){ .base = NONE, .index = NONE, .segment = PLAIN };
	make_point(&point, mode, insn, size, DX, &form, pattern(4, 5),
	    pattern(4, 7));
	compare(&point);
	if (mode != LONG64)
		return;
	form.rip = true;
	make_point(&point, mode, insn, size, DX, &form, pattern(4, 5),
	    pattern(4, 7));
	compare(&point);
	form = by_si;
	form.addr32 = true;
	make_point(&point, mode, insn, size, DX, &form, pattern(4, 5),
	    pattern(4, 7));
	compare(&point);
}

/* The default segment of a base register, and overrides. */
static void
segments(enum mode mode, const struct insn *insn)
{
	static const enum gpr base[] = { SI, BP, SP };
	struct form form = by_si;
	struct point point;

	for (int segment = ES; segment <= PLAIN; segment++) {
		/* CS is not writable. */
		if (segment == CS && mode != LONG64 &&
		    strcmp(insn->name, "mov_8b") != 0)
			continue;
		for (unsigned i = 0; i < nitems(base); i++) {
			form.segment = (enum segment)segment;
			form.base = base[i];
			form.disp_bytes = base[i] == BP ? 1 : 0;
			make_point(&point, mode, insn, 4, DX, &form,
			    pattern(4, i), pattern(4, i + 4));
			compare(&point);
		}
	}
}

/* The instruction's bytes are on two pages. */
static void
crossings(enum mode mode, const struct insn *insn)
{
	struct form form = by_si;
	struct point point;

	form.disp_bytes = 4;
	form.disp = 0x100;
	make_point(&point, mode, insn, 4, DX, &form, pattern(4, 5),
	    pattern(4, 7));
	for (unsigned cut = 1; cut < point.length; cut++) {
		point.cross = cut;
		compare(&point);
	}
}

struct kind {
	const char	*name;
	const char	*what;
	void		(*func)(enum mode, const struct insn *);
	bool		all;		/* of all instructions, else of `some` */
};
static const struct kind kinds[] = {
	{ "registers",
	    "with every register and operand size", registers, true },
	{ "numbers", "with numbers that set different flags", numbers,
	    true },
	{ "bases", "with every base register and displacement", bases, false },
	{ "indices",
	    "with every index and scale, RIP and short addresses",
	    indices, false },
	{ "segments", "with every segment's base", segments, false },
	{ "crossings", "when its bytes are on two pages", crossings, false },
};
static const char *const some[] = { "mov_89", "mov_8b", "cmp_83", "mov_c7" };
static const char *const mode_names[] = { "real", "16", "32", "64" };

struct modrm {
	enum mode	mode;
	const struct insn *insn;
	const struct kind *kind;
};

static void
run_modrm(const void *arg)
{
	const struct modrm *modrm = arg;

	modrm->kind->func(modrm->mode, modrm->insn);
}

static bool
wanted(const struct insn *insn, const struct kind *kind, enum mode mode)
{
	if (kind->func == registers && insn->digit != REGISTER)
		return (false);
	/* There 32 bits need the prefix 66: another instruction. */
	if (mode == PROT16 && strcmp(insn->name, "clflush_ae") == 0)
		return (false);
	if (kind->all)
		return (true);
	for (size_t i = 0; i < nitems(some); i++) {
		if (strcmp(some[i], insn->name) == 0)
			return (mode != PROT16 || kind->func == crossings);
	}
	return (false);
}

static struct test tests[512];
static size_t used;

static void
add(enum mode mode, const struct insn *insn, const struct kind *kind)
{
	static struct modrm arguments[nitems(tests)];
	static char names[nitems(tests)][64], claims[nitems(tests)][96];

	if (!wanted(insn, kind, mode) || used == nitems(tests))
		return;
	arguments[used] = (struct modrm){ mode, insn, kind };
	(void)snprintf(names[used], sizeof(names[used]), "emul.%s_%s_%s",
	    insn->name, kind->name, mode_names[mode]);
	(void)snprintf(claims[used], sizeof(claims[used]),
	    "emulation gives the processor's result %s", kind->what);
	tests[used] = (struct test){ names[used], claims[used], run_modrm,
	    &arguments[used] };
	used++;
}

/* Made from instructions, modes and kinds, at the first call. */
static const struct test *
modrm_tests(size_t *count)
{
	if (used == 0) {
		for (int mode = PROT16; mode <= LONG64; mode++)
			for (size_t i = 0; i < insn_count; i++)
				for (size_t k = 0; k < nitems(kinds); k++)
					add((enum mode)mode, &insns[i],
					    &kinds[k]);
	}
	*count = used;
	return (tests);
}

const struct group modrm_group = { "emul", modrm_tests };
