/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * An instruction is executed on memory by the processor, and by emulation on a
 * device with the same bytes and registers: afterwards registers, flags and
 * memory must be equal.  Only the page tables differ.
 */

#include <machine/psl.h>
#include <machine/specialreg.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "emul.h"

#define	AROUND		64u	/* compared bytes, 32 below */
#define	FAR		(2u * PAGE_SIZE)

struct outcome {
	uint64_t	gpr[16], rip, rflags;
	uint8_t		data[2 * AROUND], stack[AROUND], far[AROUND];
	int		vector;
	uint64_t	error, cr2;
	int		reads, writes;
};

static const int gpr_numbers[] = {
	VM_REG_GUEST_RAX, VM_REG_GUEST_RCX, VM_REG_GUEST_RDX,
	VM_REG_GUEST_RBX, VM_REG_GUEST_RSP, VM_REG_GUEST_RBP,
	VM_REG_GUEST_RSI, VM_REG_GUEST_RDI, VM_REG_GUEST_R8, VM_REG_GUEST_R9,
	VM_REG_GUEST_R10, VM_REG_GUEST_R11, VM_REG_GUEST_R12,
	VM_REG_GUEST_R13, VM_REG_GUEST_R14, VM_REG_GUEST_R15,
	VM_REG_GUEST_RIP, VM_REG_GUEST_RFLAGS,
};
static const char *const names[] = { "RAX", "RCX", "RDX", "RBX", "RSP", "RBP",
	"RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15" };
static const char *const windows[] = { "memory", "a device", "the HPET" };
static const char *const modes[] = { "real", "16-bit", "32-bit", "64-bit" };

static struct device device;

static void
set_segment(struct vm *vm, int number, uint64_t base, uint32_t limit,
    uint32_t access)
{
	if (vm_set_desc(vm->vcpu[0], number, base, limit, access) != 0)
		fail("a segment cannot be set: %s", strerror(errno));
}

/* Set the mode, with the segment bases that the points expect. */
static void
enter(struct vm *vm, enum mode mode, enum window window)
{
	static const int numbers[] = { [ES] = VM_REG_GUEST_ES,
	    [SS] = VM_REG_GUEST_SS, [DS] = VM_REG_GUEST_DS,
	    [FS] = VM_REG_GUEST_FS, [GS] = VM_REG_GUEST_GS };
	static const uint32_t place[] = { A_DATA, DEVICE, HPET };

	if (mode == REAL) {
		/*
		 * Without paging: the segment leads to memory or to the
		 * device.
		 */
		if (vm->mode != REAL)
			vm_mode(vm, REAL);
		set_segment(vm, VM_REG_GUEST_CS, A_CODE, 0xffff, 0x9b);
		set_reg(vm, VM_REG_GUEST_CS, A_CODE >> 4);
		for (int i = ES; i <= GS; i++) {
			if (i != CS && i != SS)
				set_segment(vm, numbers[i], place[window],
				    0xffff, 0x93);
		}
		return;
	}
	if (vm->mode == mode)
		return;
	vm_mode(vm, mode);
	for (int i = ES; i <= GS; i++) {
		if (i != CS)
			set_segment(vm, numbers[i], segment_base[i],
			    0xffffffff, 0xc093);
	}
	if (mode != LONG64)
		set_segment(vm, VM_REG_GUEST_CS, segment_base[CS], 0xffffffff,
		    mode == PROT32 ? 0xc09b : 0x809b);
}

static unsigned
append(uint8_t *at, unsigned used, uint64_t value, unsigned bytes)
{
	memcpy(at + used, &value, bytes);
	return (used + bytes);
}

/*
 * Load the page tables before the instruction: only the processor's own
 * instruction empties all translation caches.
 */
static void
lay_code(struct vm *vm, const struct point *point, enum window window)
{
	uint8_t *at = (uint8_t *)vm->mem + A_CODE;
	unsigned used = 0;
	uint64_t to;

	if (point->mode == LONG64 || point->mode == PROT32) {
		used = append(at, used, 0xb8, 1);	/* mov $cr3, %eax */
		used = append(at, used, cr3_of(point->mode, window), 4);
		used = append(at, used, 0xd8220f, 3);	/* mov %eax, %cr3 */
	} else if (point->mode == PROT16) {
		used = append(at, used, 0xb866, 2);
		used = append(at, used, cr3_of(point->mode, window), 4);
		used = append(at, used, 0xd8220f, 3);
	}
	if (point->mode == LONG64) {
		used = append(at, used, 0xb848, 2);	/* mov $gpr[AX], %rax */
		used = append(at, used, point->gpr[AX], 8);
	} else {
		if (point->mode != PROT32)
			used = append(at, used, 0x66, 1);
		used = append(at, used, 0xb8, 1);
		used = append(at, used, point->gpr[AX], 4);
	}
	if (point->cross != 0) {
		/* The two pages of code in the window; jmp there. */
		to = WINDOW + 5 * PAGE_SIZE - point->cross;
		used = append(at, used, 0xe9, 1);
		used = append(at, used, to - (A_CODE + used + 4), 4);
		for (unsigned i = 0; i < point->length + 2; i++) {
			uint8_t byte = i < point->length ? point->bytes[i] :
			    i == point->length ? 0xe6 : PORT_DONE;

			if (i < point->cross)
				vm->mem[A_CODE2 + PAGE_SIZE - point->cross +
				    i] = (char)byte;
			else
				vm->mem[A_CODE2 + FAR + i - point->cross] =
				    (char)byte;
		}
		return;
	}
	while (used < A_INSN - A_CODE)
		used = append(at, used, 0x90, 1);	/* nop */
	memcpy(at + used, point->bytes, point->length);
	used += point->length;
	used = append(at, used, 0xe6 | PORT_DONE << 8, 2);
}

static uint8_t
filler(unsigned at)
{
	return ((uint8_t)(at * 37 + 11));
}

/* Set memory, device and HPET around the operand, before each run. */
static void
lay_data(struct vm *vm, const struct point *point, enum window window)
{
	uint8_t bytes[2 * AROUND];
	unsigned start = point->offset - 32;
	uint64_t value;

	for (unsigned i = 0; i < sizeof(bytes); i++)
		bytes[i] = filler(i);
	memcpy(bytes + 32, &point->operand, 8);
	if (window == W_HPET) {
		/* Only the FSB routes of two timers are compared. */
		for (unsigned i = 32; i < 96; i += 32) {
			memcpy(&value, bytes + i, 8);
			if (vm_readwrite_kernemu_device(vm->vcpu[0],
			    HPET + start + i, true, 8, &value) != 0)
				fail("the HPET is not written: %s",
				    strerror(errno));
		}
	} else if (window == W_DEVICE)
		memcpy(device.bytes + start, bytes, sizeof(bytes));
	else
		memcpy(vm->mem + A_DATA + start, bytes, sizeof(bytes));
	for (unsigned i = 0; i < AROUND; i++)
		vm->mem[STACK_TOP - 32 + i] = (char)filler(i + 128);
	/* Around the page boundary where a string's other operand is. */
	for (unsigned i = 0; i < AROUND / 2; i++) {
		vm->mem[A_CODE2 + PAGE_SIZE - AROUND / 2 + i] =
		    (char)filler(i + 50);
		vm->mem[A_CODE2 + FAR + i] = (char)filler(i + 77);
	}
	device.reads = device.writes = 0;
}

static void
fetch_data(struct vm *vm, const struct point *point, enum window window,
    struct outcome *outcome)
{
	unsigned start = point->offset - 32;

	if (window == W_HPET) {
		for (unsigned i = 32; i < 96; i += 32) {
			uint64_t value;

			if (vm_readwrite_kernemu_device(vm->vcpu[0],
			    HPET + start + i, false, 8, &value) != 0)
				fail("the HPET is not read: %s",
				    strerror(errno));
			memcpy(outcome->data + i, &value, 8);
		}
	} else if (window == W_DEVICE)
		memcpy(outcome->data, device.bytes + start,
		    sizeof(outcome->data));
	else
		memcpy(outcome->data, vm->mem + A_DATA + start,
		    sizeof(outcome->data));
	memcpy(outcome->stack, vm->mem + STACK_TOP - 32,
	    sizeof(outcome->stack));
	memcpy(outcome->far, vm->mem + A_CODE2 + PAGE_SIZE - AROUND / 2,
	    AROUND / 2);
	memcpy(outcome->far + AROUND / 2, vm->mem + A_CODE2 + FAR, AROUND / 2);
}

/* Do one run; false, and a note, if it does not end. */
static bool
execute(struct vm *vm, const struct point *point, enum window window,
    struct outcome *outcome)
{
	uint64_t values[nitems(gpr_numbers)];
	bool done;

	enter(vm, point->mode, window);
	if (point->access != 0)
		/* Its base is memory in every window. */
		set_segment(vm, point->segment, A_DATA + 0x3800, point->limit,
		    point->access);
	lay_data(vm, point, window);
	lay_code(vm, point, window);
	memcpy(values, point->gpr, sizeof(point->gpr));
	values[16] = point->mode == LONG64 ? A_CODE :
	    point->mode == REAL ? 0 : A_CODE - segment_base[CS];
	values[17] = point->rflags;
	if (vm_set_register_set(vm->vcpu[0], nitems(gpr_numbers), gpr_numbers,
	    values) != 0)
		fail("registers cannot be set: %s", strerror(errno));
	vm->emulate = emulate_access;
	vm->arg = &device;
	done = run(vm);
	vm->emulate = NULL;
	if (!done && vm->fault.vector < 0) {
		note("on %s: exit %s at %#jx", windows[window],
		    exit_name(vm->exit.exitcode), (uintmax_t)vm->exit.rip);
		return (false);
	}
	if (vm_get_register_set(vm->vcpu[0], nitems(gpr_numbers), gpr_numbers,
	    values) != 0)
		fail("registers cannot be read: %s", strerror(errno));
	memcpy(outcome->gpr, values, sizeof(outcome->gpr));
	outcome->rip = done ? values[16] : vm->fault.rip;
	outcome->rflags = done ? values[17] : vm->fault.rflags;
	outcome->vector = vm->fault.vector;
	outcome->error = done ? 0 : vm->fault.error;
	outcome->cr2 = vm->fault.vector == 14 ? reg(vm, VM_REG_GUEST_CR2) : 0;
	outcome->reads = device.reads;
	outcome->writes = device.writes;
	fetch_data(vm, point, window, outcome);
	/* The handler has its own CS: set everything again. */
	if (!done || point->access != 0)
		vm->mode = NO_MODE;
	return (true);
}

static bool
differ(const struct point *point, enum window window, const struct outcome *a,
    const struct outcome *b)
{
	uint64_t mask = point->mode == LONG64 ? ~0ul : 0xffffffff;
	bool found = false;

#define	SAME(what, x, y) do {						\
	uint64_t _x = (x), _y = (y);					\
	if (_x != _y) {							\
		note("%s: %#jx on memory, %#jx on %s", what,		\
		    (uintmax_t)_x, (uintmax_t)_y, windows[window]);	\
		found = true;						\
	}								\
} while (0)
	SAME("exception", (uint64_t)(int64_t)a->vector,
	    (uint64_t)(int64_t)b->vector);
	SAME("error code", a->error, b->error);
	SAME("CR2", a->cr2, b->cr2);
	for (unsigned i = 0; i < (point->mode == LONG64 ? 16 : 8); i++)
		SAME(names[i], a->gpr[i] & mask, b->gpr[i] & mask);
	SAME("RIP", a->rip, b->rip);
	SAME("RFLAGS", a->rflags & ~(point->undefined | PSL_RF),
	    b->rflags & ~(point->undefined | PSL_RF));
	if (window == W_HPET) {
		for (unsigned i = 32; i < 96; i += 32) {
			uint64_t x, y;

			memcpy(&x, a->data + i, 8);
			memcpy(&y, b->data + i, 8);
			SAME("operand", x, y);
		}
	} else if (memcmp(a->data, b->data, sizeof(a->data)) != 0) {
		for (unsigned i = 0; i < sizeof(a->data); i++) {
			char text[32];

			(void)snprintf(text, sizeof(text), "byte %d",
			    (int)i - 32);
			SAME(text, a->data[i], b->data[i]);
		}
	}
	if (a->vector < 0) {
		for (unsigned i = 0; i < sizeof(a->stack); i++)
			SAME("stack", a->stack[i], b->stack[i]);
		for (unsigned i = 0; i < sizeof(a->far); i++)
			SAME("memory", a->far[i], b->far[i]);
	}
	if (window == W_DEVICE && point->reads + point->writes != 0) {
		if (b->reads != (int)point->reads ||
		    b->writes != (int)point->writes) {
			note("%d reads and %d writes of the device, not %u "
			    "and %u", b->reads, b->writes, point->reads,
			    point->writes);
			found = true;
		}
	}
	return (found);
}

static void
tell(const struct point *point)
{
	char text[64] = "";

	for (unsigned i = 0; i < point->length; i++)
		(void)snprintf(text + strlen(text),
		    sizeof(text) - strlen(text), "%02x ", point->bytes[i]);
	miss("^ %s, %s, operand size %u: %sat operand %#jx, RAX %#jx, RCX "
	    "%#jx", point->about, modes[point->mode], point->size, text,
	    (uintmax_t)point->operand, (uintmax_t)point->gpr[AX],
	    (uintmax_t)point->gpr[CX]);
}

/* Execute a point in all places; each difference from memory is an error. */
void
compare(const struct point *point)
{
	struct vm *vm = vm_shared();
	struct outcome memory, other;
	bool hpet = point->mem_bytes >= 4 && point->cross == 0;
	bool bad = false;

	if (!execute(vm, point, W_RAM, &memory)) {
		tell(point);
		vm_forget_shared();
		return;
	}
	for (int window = W_DEVICE; window < WINDOWS; window++) {
		if (window == W_HPET && !hpet)
			continue;
		if (!execute(vm, point, (enum window)window, &other)) {
			tell(point);
			vm_forget_shared();
			return;
		}
		if (differ(point, (enum window)window, &memory, &other))
			bad = true;
	}
	if (bad)
		tell(point);
}
