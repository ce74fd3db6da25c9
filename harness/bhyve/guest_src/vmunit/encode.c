/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Encodes instructions as in Intel's SDM, volume 2, chapter 2. */

#include <string.h>

#include "emul.h"

/*
 * The base of each segment.  In 64-bit mode the bases of ES, CS, SS and DS
 * must have no effect (SDM 1, 3.4.2.1); those of FS and GS have one in every
 * mode.
 */
const uint64_t segment_base[SEGMENTS] = {
	[ES] = 0x2000, [CS] = 0x100, [SS] = 0x3000, [DS] = 0x1000,
	[FS] = 0x4000, [GS] = 0x5000,
};

static void
put(struct point *point, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		point->bytes[point->length++] = (uint8_t)(value >> (i * 8));
}

static enum segment
segment_of(const struct form *form)
{
	if (form->segment != PLAIN)
		return (form->segment);
	/* SDM 2, table 2-1: with the base ESP or EBP the segment is SS. */
	return (form->base == SP || form->base == BP ? SS : DS);
}

static uint64_t
base_of(enum mode mode, const struct form *form)
{
	enum segment segment = segment_of(form);

	if (mode == LONG64 && segment != FS && segment != GS)
		return (0);
	return (segment_base[segment]);
}

static void
put_prefixes(struct point *point, const struct insn *insn, enum gpr r,
    const struct form *form)
{
	static const uint8_t override[] = { [ES] = 0x26, [CS] = 0x2e,
	    [SS] = 0x36, [DS] = 0x3e, [FS] = 0x64, [GS] = 0x65 };
	uint8_t rex = 0;

	if (form->segment != PLAIN)
		put(point, override[form->segment], 1);
	if (point->size == (point->mode == PROT16 ? 4 : 2))
		put(point, 0x66, 1);
	/* In 16-bit code the tree decodes only 32-bit addressing. */
	if (point->mode == PROT16 || form->addr32)
		put(point, 0x67, 1);
	if (point->mode != LONG64)
		return;
	if (point->size == 8 && !insn->no_rex_w)
		rex |= 0x48;
	if (insn->digit == REGISTER && r >= R8 && r <= R15)
		rex |= 0x44;
	if (form->index != NONE && form->index >= R8)
		rex |= 0x42;
	if (form->base != NONE && form->base >= R8)
		rex |= 0x41;
	/* With REX these are SPL, BPL, SIL and DIL, not AH, CH, DH and BH. */
	if (insn->digit == REGISTER && point->size == 1 && r >= SP && r <= DI)
		rex |= 0x40;
	if (rex != 0)
		put(point, rex, 1);
}

static void
put_address(struct point *point, unsigned field, const struct form *form,
    unsigned immediate, uint64_t target)
{
	unsigned mod = form->disp_bytes == 0 ? 0 : form->disp_bytes == 1 ? 1 : 2;
	unsigned low = form->base & 7;
	uint64_t next;

	if (form->rip) {
		put(point, field << 3 | 5, 1);
		next = A_INSN + point->length + 4 + immediate;
		put(point, target - next, 4);
		return;
	}
	if (form->base == NONE) {
		if (point->mode == LONG64 || form->index != NONE) {
			unsigned index = form->index == NONE ? 4 :
			    form->index & 7;

			put(point, field << 3 | 4, 1);
			put(point, form->scale << 6 | index << 3 | 5, 1);
		} else
			put(point, field << 3 | 5, 1);
		put(point, (uint32_t)form->disp, 4);
		return;
	}
	if (form->index != NONE || low == 4) {
		unsigned index = form->index == NONE ? 4 : form->index & 7;

		put(point, mod << 6 | field << 3 | 4, 1);
		put(point, form->scale << 6 | index << 3 | low, 1);
	} else
		put(point, mod << 6 | field << 3 | low, 1);
	put(point, (uint32_t)form->disp, (unsigned)form->disp_bytes);
}

/* Set the form's registers so that they address the operand. */
void
aim(struct point *point, const struct form *form, unsigned offset)
{
	uint64_t address = WINDOW + offset - base_of(point->mode, form);

	if (form->base == NONE)
		return;
	if (form->index != NONE && form->index != form->base)
		point->gpr[form->index] = 0x20;
	address -= (uint64_t)(int64_t)form->disp;
	if (form->index == form->base) {
		/* base + base * scale; only scale 1 is used */
		point->gpr[form->base] = address / 2;
		return;
	}
	if (form->index != NONE)
		address -= 0x20ul << form->scale;
	if (form->addr32 || point->mode != LONG64)
		address &= 0xffffffff;
	/* With 67 the processor ignores these bits. */
	if (form->addr32)
		address |= 0xdead00000000ul;
	point->gpr[form->base] = address;
}

/*
 * One instruction with operand size, register and form.  `first` is the value
 * of the register or the immediate, `second` is that of memory.
 */
void
make_point(struct point *point, enum mode mode, const struct insn *insn,
    unsigned size, enum gpr r, const struct form *form, uint64_t first,
    uint64_t second)
{
	unsigned field, immediate;
	struct form plain = *form;

	memset(point, 0, sizeof(*point));
	point->mode = mode;
	point->size = size;
	point->about = insn->name;
	point->rflags = 0x2;
	point->offset = OPERAND;
	point->mem_bytes = insn->mem_bytes != 0 ? insn->mem_bytes : size;
	point->operand = second;
	point->undefined = insn->undefined;
	for (unsigned i = 0; i < nitems(point->gpr); i++)
		point->gpr[i] = 0x1111111111111111ul * i ^ 0x00ff00ff00ff00fful;
	point->gpr[SP] = STACK_TOP - (mode == LONG64 ? 0 : segment_base[SS]);
	immediate = insn->immediate == WIDE ? MIN(size, 4) : insn->immediate;
	if (insn->digit != REGISTER)
		field = (unsigned)insn->digit;
	else if (r >= AH) {
		field = 4 + (r - AH);
		point->gpr[r - AH] = (first & 0xff) << 8 | 0x5500a5;
	} else {
		field = r & 7;
		point->gpr[r] = first;
	}
	put_prefixes(point, insn, r, form);
	for (unsigned i = 0; i < insn->op_bytes; i++)
		put(point, insn->op[i], 1);
	if (form->base == NONE && !form->rip)
		plain.disp = (int32_t)(WINDOW + OPERAND -
		    base_of(mode, form));
	put_address(point, field, &plain, immediate, WINDOW + OPERAND);
	put(point, first, immediate);
	aim(point, form, OPERAND);
}

/*
 * Numbers that set different flags, by operand size.  The bits above the
 * operand must have no effect.
 */
uint64_t
pattern(unsigned size, unsigned number)
{
	uint64_t all = size == 8 ? ~0ul : (1ul << size * 8) - 1;
	uint64_t sign = 1ul << (size * 8 - 1), above;

	above = 0x5aa55aa5c33cc33cul & ~all;
	switch (number % PATTERNS) {
	case 0:
		return (above);
	case 1:
		return (above | 1);
	case 2:
		return (above | all);
	case 3:
		return (above | sign);
	case 4:
		return (above | (sign - 1));
	case 5:
		return (above | (0x5555555555555555ul & all));
	case 6:
		return (above | (0xaaaaaaaaaaaaaaaaul & all));
	default:
		return (above | (0x0123456789abcd8ful & all));
	}
}
