/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Numbers that assembly, C and the linker script share. */

#ifndef LAYOUT_H
#define	LAYOUT_H

#define	PAYLOAD_ADDR	0x10000		/* where the boot sector loads it */
#define	PAYLOAD_SEG	0x1000
#define	TAIL_MAGIC	0x50585456	/* "VTXP" ends the payload */

/* Segment selectors, the same in the boot sector's table and the final one. */
#define	SEL_CODE64	0x08
#define	SEL_DATA	0x10
#define	SEL_CODE32	0x18
#define	SEL_TSS		0x20		/* two slots */

#define	COM1		0x3f8

/*
 * QEMU's isa-debug-exit turns a byte n into the exit code 2n + 1: 33, 35
 * and 37, none of which QEMU itself uses.
 */
#define	DEBUG_EXIT	0xf4
#define	EXIT_HELD	0x10
#define	EXIT_NOT_OK	0x11
#define	EXIT_BAIL	0x12

/*
 * The guest-physical memory of L2.  Addresses differ from the pages that
 * back them, so that an untranslated access would be noticed.
 */
#define	L2_CODE_SEG	0x1000
#define	L2_DATA_SEG	0x2000
#define	L2_HOLE_SEG	0x5000
#define	L2_CODE_GPA	0x10000
#define	L2_DATA_GPA	0x20000
#define	L2_HOLE_GPA	0x50000
#define	L2_HOLE_OFF	0x0a5c		/* what L2 touches there */
#define	L2_WRONG_OFF	0x0b5c		/* ... and under FAULT=wrong-gpa */

/* Words in L2's data page: L1 fills the first, L2 the second group. */
#define	L2_NONCE	0x00
#define	L2_MODE		0x04
#define	L2_RELEASE	0x08

#define	L2_ANSWER	0x10		/* nonce ^ L2_KEY */
#define	L2_CR0		0x14		/* what SMSW gave */
#define	L2_CS		0x18
#define	L2_REGISTERS	0x1c		/* EBX of L1's first CPUID answer */
#define	L2_READ		0x20		/* the word read from the hole */
#define	L2_READBACK	0x24		/* the same after L2 wrote it */

#define	L2_KEY		0x5a3c96e1

/* Bits of L2_MODE. */
#define	MODE_SVM	0x01		/* VMMCALL instead of VMCALL */
#define	MODE_SILENT	0x02
#define	MODE_WRONG_GPA	0x04
#define	MODE_SPIN	0x08
#define	MODE_NO_IO	0x10
#define	MODE_NO_CALL	0x20
#define	MODE_NO_COST	0x40
#define	MODE_NO_HLT	0x80
#define	MODE_WRONG_READ	0x100

/* CPUID leaves with which L2 says how far it is. */
#define	L2_HELLO	0x4c320001
#define	L2_HAVE_READ	0x4c320002
#define	L2_HAVE_WRITTEN	0x4c320003
#define	L2_RELEASED	0x4c320004
#define	L2_COST		0x4c320005
#define	L2_END		0x4c320006

#define	L2_IO_PORT	0x3f8		/* what a boot ROM would print on */
#define	L2_IO_BYTE	0x4c
#define	L2_CALL		0x4c320010	/* EAX of VMCALL and VMMCALL */

#endif /* LAYOUT_H */
