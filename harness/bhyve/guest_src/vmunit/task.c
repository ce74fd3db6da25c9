/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Task switches of 32-bit code: they end VM_RUN, with everything that bhyve
 * needs to execute them (SDM 3, 28.2, table 28-6).
 */

#include <machine/psl.h>

#include <errno.h>
#include <string.h>

#include "vmunit.h"

#define	NEW_TASK	0x40u		/* after the GDT's own entries */
#define	A_NEW_TSS	0x01900u
#define	GATE		0x50u
#define	AVAILABLE	0x89ul
#define	BUSY		0x8bul

struct way {
	const char	*name;
	uint8_t		code[24];
	size_t		length;
	enum task_switch_reason reason;
	uint64_t	type;		/* of the new task's descriptor */
	int		vector;		/* of a task gate; 0: none */
	int		ext;
	bool		has_code;
	uint32_t	errcode;
	unsigned	at;		/* offset of the instruction */
};

#define	CODE(...)	{ __VA_ARGS__ }, sizeof((const uint8_t []){ __VA_ARGS__ })

static const struct way ways[] = {
	/* ljmp $NEW_TASK, $0 */
	{ "JMP", CODE(0xea, 0, 0, 0, 0, NEW_TASK, 0), TSR_JMP, AVAILABLE, 0,
	    0, false, 0, 0 },
	/* lcall $NEW_TASK, $0 */
	{ "CALL", CODE(0x9a, 0, 0, 0, 0, NEW_TASK, 0), TSR_CALL, AVAILABLE, 0,
	    0, false, 0, 0 },
	{ "INT n", CODE(0xcd, GATE), TSR_IDT_GATE, AVAILABLE, GATE, 0, false,
	    0, 0 },
	/* pushf; orl $PSL_NT, (%esp); popf; iret */
	{ "IRET", CODE(0x9c, 0x81, 0x0c, 0x24, 0x00, 0x40, 0x00, 0x00, 0x9d,
	    0xcf), TSR_IRET, BUSY, 0, 0, false, 0, 9 },
	{ "#UD", CODE(0x0f, 0x0b), TSR_IDT_GATE, AVAILABLE, 6, 1, false, 0,
	    0 },
	/* mov $0x1237, %eax; mov %eax, %ds: #GP(0x1234) */
	{ "#GP", CODE(0xb8, 0x37, 0x12, 0x00, 0x00, 0x8e, 0xd8), TSR_IDT_GATE,
	    AVAILABLE, 13, 1, true, 0x1234, 5 },
};

static void
lay(struct vm *vm, const struct way *way)
{
	uint64_t tss = 0x67ul | (uint64_t)A_NEW_TSS << 16 | way->type << 40;
	uint64_t gate = (uint64_t)NEW_TASK << 16 | 0x8500ul << 32;
	uint32_t backlink = NEW_TASK;

	memcpy(vm->mem + A_GDT + NEW_TASK, &tss, sizeof(tss));
	memcpy(vm->mem + A_TSS, &backlink, sizeof(backlink));
	if (way->vector != 0)
		memcpy(vm->mem + A_IDT32 + way->vector * 8, &gate,
		    sizeof(gate));
}

static void
switched(const void *arg __unused)
{
	if (!intel)
		skip(N_A "svm.c leaves task switches to the processor");
	for (size_t i = 0; i < nitems(ways); i++) {
		const struct way *way = &ways[i];
		struct vm *vm = vm_new();
		const struct vm_task_switch *got = &vm->exit.u.task_switch;

		vm_mode(vm, PROT32);
		lay(vm, way);
		code(vm, way->code, way->length);
		(void)run(vm);
		if (vm->exit.exitcode != VM_EXITCODE_TASK_SWITCH) {
			miss("%s: exit %s, vector %d", way->name,
			    exit_name(vm->exit.exitcode), vm->fault.vector);
			vm_free(vm);
			continue;
		}
		check(got->reason == way->reason, "%s: reason %d, not %d",
		    way->name, got->reason, way->reason);
		check(got->tsssel == NEW_TASK, "%s: selector %#x", way->name,
		    got->tsssel);
		check(got->ext == way->ext, "%s: ext is %d", way->name,
		    got->ext);
		check((got->errcode_valid != 0) == way->has_code,
		    "%s: errcode_valid is %d", way->name, got->errcode_valid);
		if (way->has_code)
			equal(way->name, got->errcode, way->errcode);
		equal(way->name, vm->exit.rip, A_CODE + way->at);
		/* The switch of an event returns to the instruction itself. */
		equal(way->name, (unsigned)vm->exit.inst_length,
		    way->ext ? 0 : way->length - way->at);
		check(got->paging.paging_mode == PAGING_MODE_32 &&
		    got->paging.cpu_mode == CPU_MODE_PROTECTED &&
		    got->paging.cpl == 0 &&
		    got->paging.cr3 == cr3_of(PROT32, W_RAM),
		    "%s: paging %d, mode %d, CPL %d, CR3 %#jx", way->name,
		    got->paging.paging_mode, got->paging.cpu_mode,
		    got->paging.cpl, (uintmax_t)got->paging.cr3);
		vm_free(vm);
	}
}

static const struct test tests[] = {
	{ "exception.task_switch",
	    "a task switch causes an exit with its reason",
	    switched, NULL },
};

GROUP(task, tests);
