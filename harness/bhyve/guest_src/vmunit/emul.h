/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef _EMUL_H_
#define	_EMUL_H_

#include "vmunit.h"

/* The processor's register numbers. */
enum gpr { AX, CX, DX, BX, SP, BP, SI, DI, R8, R9, R10, R11, R12, R13, R14,
	R15, NONE, AH, CH, DH, BH };
enum segment { ES, CS, SS, DS, FS, GS, SEGMENTS, PLAIN = SEGMENTS };

#define	SIZE_1		0x01u
#define	SIZE_2		0x02u
#define	SIZE_4		0x04u
#define	SIZE_8		0x08u

/* An instruction with a memory operand, as in the manuals' opcode maps. */
struct insn {
	const char	*name;
	uint8_t		op[2];
	uint8_t		op_bytes;
	int		digit;		/* /0 to /7, or REGISTER */
	uint8_t		immediate;	/* bytes; WIDE: operand's, max 4 */
	uint8_t		sizes;
	uint8_t		mem_bytes;	/* 0: the operand's */
	uint64_t	undefined;	/* flags */
	bool		no_rex_w;	/* 64 bits without REX.W */
};
#define	REGISTER	(-1)
#define	WIDE		0xffu

/* How the operand is addressed. */
struct form {
	enum gpr	base, index;
	unsigned	scale;
	int		disp_bytes;	/* 0, 1 or 4 */
	int32_t		disp;
	enum segment	segment;	/* override; PLAIN: none */
	bool		rip;
	bool		addr32;		/* 67 in 64-bit mode */
};

/* One execution, which is done on memory and on devices. */
struct point {
	enum mode	mode;
	unsigned	size;
	uint8_t		bytes[24];
	unsigned	length;
	uint64_t	gpr[16];
	uint64_t	rflags;
	unsigned	offset;		/* of the operand in the window */
	uint64_t	operand;
	unsigned	mem_bytes;
	uint64_t	undefined;	/* flags */
	unsigned	cross;		/* bytes before a page's end; 0: none */
	unsigned	reads, writes;	/* of the device; 0: not counted */
	/* A data segment for this execution only; access 0: none. */
	int		segment;
	uint32_t	limit, access;
	const char	*about;
};

#define	OPERAND		0x110u		/* HPET: timer 0's FSB route, 64 bits */
#define	STACK_TOP	(A_STACK - 0x100u)
#define	A_INSN		(A_CODE + 32u)	/* after the code that loads tables */

extern const struct insn insns[];
extern const size_t insn_count;
const struct insn *insn_named(const char *);

extern const uint64_t segment_base[SEGMENTS];
void	make_point(struct point *, enum mode, const struct insn *, unsigned,
	    enum gpr, const struct form *, uint64_t, uint64_t);
void	aim(struct point *, const struct form *, unsigned);
void	compare(const struct point *);
uint64_t pattern(unsigned, unsigned);
#define	PATTERNS	8u

#endif /* !_EMUL_H_ */
