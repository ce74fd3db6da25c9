/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Exceptions in 64-bit, 32-bit and real mode: vector, error code and place
 * (SDM 3, chapter 6, table 6-1).  In a new VM the EPT maps nothing yet:
 * delivering the exception itself causes an EPT violation, and then it must be
 * delivered again.
 */

#include <machine/psl.h>
#include <machine/specialreg.h>

#include <errno.h>
#include <string.h>

#include "vmunit.h"

#define	NONE	(-1)

struct exception {
	const char	*name;
	uint8_t		code[24];
	size_t		length;
	int		vector;
	uint64_t	error;
	unsigned	rip;		/* offset in the code */
};

#define	CODE(...)	{ __VA_ARGS__ }, sizeof((const uint8_t []){ __VA_ARGS__ })

/* INT3, INTO and INT n are software interrupts. */
static bool
is_soft(const struct exception *exception)
{
	return (exception->vector == 3 || exception->vector == 4 ||
	    exception->vector > 31 || exception->code[0] == 0xcd);
}

static const struct exception in_64[] = {
	/* xor %ecx, %ecx; div %ecx */
	{ "#DE", CODE(0x31, 0xc9, 0xf7, 0xf1), 0, 0, 2 },
	{ "#BP", CODE(0xcc), 3, 0, 1 },
	{ "#UD", CODE(0x0f, 0x0b), 6, 0, 0 },
	/* mov %cr0, %rax; or $8, %eax; mov %rax, %cr0; fnop */
	{ "#NM", CODE(0x0f, 0x20, 0xc0, 0x83, 0xc8, 0x08, 0x0f, 0x22, 0xc0,
	    0xd9, 0xd0), 7, 0, 9 },
	/* mov $0x1237, %eax; mov %eax, %ds: beyond the GDT's end */
	{ "#GP of a selector", CODE(0xb8, 0x37, 0x12, 0x00, 0x00, 0x8e, 0xd8),
	    13, 0x1234, 5 },
	/* mov $1 << 47, %rax; mov (%rax), %al */
	{ "#GP of an address", CODE(0x48, 0xb8, 0, 0, 0, 0, 0, 0x80, 0, 0,
	    0x8a, 0x00), 13, 0, 10 },
	/* mov $1 << 47, %rbp; mov (%rbp), %al */
	{ "#SS", CODE(0x48, 0xbd, 0, 0, 0, 0, 0, 0x80, 0, 0, 0x8a, 0x45, 0x00),
	    12, 0, 10 },
	/* mov $WINDOW + 0x10000, %eax; mov (%rax), %al */
	{ "#PF of a read", CODE(0xb8, 0, 0, 0x01, 0x40, 0x8a, 0x00), 14, 0, 5 },
	{ "#PF of a write", CODE(0xb8, 0, 0, 0x01, 0x40, 0x88, 0x00), 14, 2,
	    5 },
	{ "int $0x1f", CODE(0xcd, 0x1f), 0x1f, 0, 2 },
	/*
	 * No guest has MONITOR and MWAIT.  xor %eax, %eax: AMD's processors
	 * check MONITOR's address first (APM 2, table 15-7).
	 */
	{ "#UD of MONITOR", CODE(0x31, 0xc0, 0x0f, 0x01, 0xc8), 6, 0, 2 },
	{ "#UD of MWAIT", CODE(0x0f, 0x01, 0xc9), 6, 0, 0 },
	/* xor %ecx, %ecx; mov $0x51, %eax: MOV has no LOCK prefix */
	{ "#UD of LOCK", CODE(0x31, 0xc9, 0xf0, 0xb8, 0x51, 0, 0, 0), 6, 0, 2 },
	/* pushf; orl $0x100, (%rsp); popf; nop; nop: a trap after the nop */
	{ "#DB", CODE(0x9c, 0x81, 0x0c, 0x24, 0x00, 0x01, 0x00, 0x00, 0x9d,
	    0x90, 0x90), 1, 0, 10 },
};

static const struct exception in_32[] = {
	{ "#DE", CODE(0x31, 0xc9, 0xf7, 0xf1), 0, 0, 2 },
	{ "#BP", CODE(0xcc), 3, 0, 1 },
	/* mov $0x7fffffff, %eax; inc %eax; into */
	{ "#OF", CODE(0xb8, 0xff, 0xff, 0xff, 0x7f, 0x40, 0xce), 4, 0, 7 },
	{ "#UD", CODE(0x0f, 0x0b), 6, 0, 0 },
	{ "#GP of a selector", CODE(0xb8, 0x37, 0x12, 0x00, 0x00, 0x8e, 0xd8),
	    13, 0x1234, 5 },
	{ "int $0x1f", CODE(0xcd, 0x1f), 0x1f, 0, 2 },
};

/* In real mode exceptions have no error code. */
static const struct exception in_real[] = {
	{ "#DE", CODE(0x31, 0xc9, 0xf7, 0xf1), 0, 0, 2 },
	{ "#BP", CODE(0xcc), 3, 0, 1 },
	{ "#UD", CODE(0x0f, 0x0b), 6, 0, 0 },
	/* mov 0xffff, %ax: across the segment's limit */
	{ "#GP", CODE(0xa1, 0xff, 0xff), 13, 0, 0 },
	{ "int $0x1f", CODE(0xcd, 0x1f), 0x1f, 0, 2 },
};

/* A vCPU in a mode, with code that it will run. */
static uint64_t
prepare(struct vm *vm, enum mode mode, const uint8_t *bytes, size_t length)
{
	if (vm->mode != mode || mode != LONG64)
		vm_mode(vm, mode);
	code(vm, bytes, length);
	if (mode != REAL)
		return (A_CODE);
	if (vm_set_desc(vm->vcpu[0], VM_REG_GUEST_CS, A_CODE, 0xffff, 0x9b) !=
	    0)
		fail("CS cannot be set");
	set_reg(vm, VM_REG_GUEST_CS, A_CODE >> 4);
	set_reg(vm, VM_REG_GUEST_RIP, 0);
	set_reg(vm, VM_REG_GUEST_RSP, 0xfff0);
	return (0);
}

static void
expect_fault(struct vm *vm, const char *name, int vector, uint64_t error,
    uint64_t rip)
{
	(void)run(vm);
	if (vm->fault.vector < 0) {
		miss("%s: exit %s, no exception", name,
		    exit_name(vm->exit.exitcode));
		return;
	}
	check(vm->fault.vector == vector && vm->fault.error == error &&
	    vm->fault.rip == rip,
	    "%s: vector %d, error code %#jx at %#jx, not %d, %#jx at %#jx",
	    name, vm->fault.vector, (uintmax_t)vm->fault.error,
	    (uintmax_t)vm->fault.rip, vector, (uintmax_t)error,
	    (uintmax_t)rip);
}

struct set {
	enum mode	mode;
	const struct exception *exceptions;
	size_t		count;
	bool		fresh;		/* each in a new VM */
	bool		soft;		/* only software interrupts, or none */
};

static void
raised(const void *arg)
{
	const struct set *set = arg;
	struct vm *vm;

	/*
	 * The processor pushes the VMCB's nRIP then (APM 2, 15.20), which
	 * svm.c leaves as it was at the exit.
	 */
	if (set->soft && !intel)
		skip(N_A "on AMD vmm.ko repeats a software interrupt without "
		    "its next RIP");
	vm = set->fresh ? NULL : vm_new();
	for (size_t i = 0; i < set->count; i++) {
		const struct exception *it = &set->exceptions[i];
		uint64_t start;

		/*
		 * vmm delivers it again with the exit's error code, which the
		 * check at VM entry refuses in real mode.
		 */
		if (set->fresh && set->mode == REAL && it->vector == 13)
			continue;
		if (set->fresh && is_soft(it) != set->soft)
			continue;
		if (set->fresh)
			vm = vm_new();
		start = prepare(vm, set->mode, it->code, it->length);
		expect_fault(vm, it->name, it->vector, it->error,
		    start + it->rip);
		/* CR0.TS of #NM must not stay set. */
		vm->mode = NO_MODE;
		if (set->fresh)
			vm_free(vm);
	}
	if (!set->fresh)
		vm_free(vm);
}

/* CR2 contains the address of a page fault. */
static void
cr2(const void *arg __unused)
{
	static const uint8_t bytes[] = { 0xb8, 0x78, 0x56, 0x01, 0x40, 0x8a,
	    0x00 };
	struct vm *vm = vm_new();

	(void)prepare(vm, LONG64, bytes, sizeof(bytes));
	expect_fault(vm, "#PF", 14, 0, A_CODE + 5);
	equal("CR2", reg(vm, VM_REG_GUEST_CR2), 0x40015678);
	vm_free(vm);
}

/* VM_INJECT_EXCEPTION, as a fault: RIP does not move. */
static void
injected(const void *arg)
{
	static const struct { int vector; bool valid; uint32_t error; } kinds[]
	    = { { 0, false, 0 }, { 6, false, 0 }, { 10, true, 0x38 },
	    { 11, true, 0x18 }, { 12, true, 0x28 }, { 13, true, 0x1238 },
	    { 14, true, 7 }, { 17, true, 0 } };
	static const uint8_t nops[] = { 0x90, 0x90 };
	enum mode mode = *(const enum mode *)arg;
	struct vm *vm = vm_new();

	for (size_t i = 0; i < nitems(kinds); i++) {
		uint64_t start = prepare(vm, mode, nops, sizeof(nops));

		if (vm_inject_exception(vm->vcpu[0], kinds[i].vector,
		    kinds[i].valid, kinds[i].error, 1) != 0)
			fail("exception %d cannot be injected: %s",
			    kinds[i].vector, strerror(errno));
		expect_fault(vm, "injected", kinds[i].vector,
		    mode == REAL ? 0 : kinds[i].error, start);
		vm->mode = NO_MODE;
	}
	vm_free(vm);
}

static void
refused(const void *arg __unused)
{
	static const int never[] = { 8, 32, 255, -1 };
	static const uint8_t nops[] = { 0x90, 0x90 };
	struct vm *vm = vm_new();

	for (size_t i = 0; i < nitems(never); i++) {
		errno = 0;
		check(vm_inject_exception(vm->vcpu[0], never[i], 0, 0, 0) != 0 &&
		    errno == EINVAL, "exception %d: %s", never[i],
		    strerror(errno));
	}
	(void)prepare(vm, LONG64, nops, sizeof(nops));
	check(vm_inject_exception(vm->vcpu[0], 6, 0, 0, 1) == 0,
	    "#UD cannot be injected");
	errno = 0;
	check(vm_inject_exception(vm->vcpu[0], 13, 1, 0, 1) != 0 &&
	    errno == EBUSY, "a second one: %s", strerror(errno));
	expect_fault(vm, "the first", 6, 0, A_CODE);
	vm_free(vm);
}

#define	VALID		0x80000000ul
#define	EXCEPTION	(3ul << 8)
#define	ERROR		0x800ul
#define	WITH(v, e)	(VALID | EXCEPTION | (v) | \
	((e) < 0 ? 0 : ERROR | (uint64_t)(e) << 32))

/*
 * An exception while another event is delivered: SDM 3, table 6-5.  Two
 * contributory exceptions, or any but a benign one after #PF, are a double
 * fault.
 */
static void
nested(const void *arg __unused)
{
	static const struct { uint64_t first; int second, vector; } pairs[] = {
		{ WITH(13, 0), 13, 8 }, { WITH(14, 2), 13, 8 },
		{ WITH(14, 2), 14, 8 }, { WITH(0, -1), 12, 8 },
		{ WITH(13, 0), 14, 14 }, { WITH(6, -1), 13, 13 },
		{ VALID | 0x40, 13, 13 }, { VALID | 2 << 8 | 2, 14, 14 },
	};
	static const uint8_t nops[] = { 0x90, 0x90 };
	struct vm *vm = vm_new();
	uint64_t one, two;

	for (size_t i = 0; i < nitems(pairs); i++) {
		(void)prepare(vm, LONG64, nops, sizeof(nops));
		check(vm_set_intinfo(vm->vcpu[0], pairs[i].first) == 0,
		    "intinfo %#jx is refused: %s", (uintmax_t)pairs[i].first,
		    strerror(errno));
		check(vm_inject_exception(vm->vcpu[0], pairs[i].second, 1, 4,
		    1) == 0, "exception %d is refused", pairs[i].second);
		check(vm_get_intinfo(vm->vcpu[0], &one, &two) == 0,
		    "VM_GET_INTINFO fails");
		equal("the event", one, pairs[i].first);
		equal("the exception", two, WITH(pairs[i].second, 4l));
		expect_fault(vm, "nested", pairs[i].vector,
		    pairs[i].vector == 8 ? 0 : 4, A_CODE);
		vm->mode = NO_MODE;
	}
	vm_free(vm);
}

static void
intinfo_refused(const void *arg __unused)
{
	static const uint64_t bad[] = { VALID | EXCEPTION | 32,
	    VALID | 2 << 8 | 3, VALID | EXCEPTION | 13 | 0x1000,
	    VALID | EXCEPTION | 13 | 0x40000000 };
	struct vm *vm = vm_new();
	uint64_t one, two;

	for (size_t i = 0; i < nitems(bad); i++) {
		errno = 0;
		check(vm_set_intinfo(vm->vcpu[0], bad[i]) != 0 &&
		    errno == EINVAL, "intinfo %#jx: %s", (uintmax_t)bad[i],
		    strerror(errno));
	}
	check(vm_set_intinfo(vm->vcpu[0], 0x12) == 0, "0x12 is refused");
	check(vm_get_intinfo(vm->vcpu[0], &one, &two) == 0,
	    "it cannot be read");
	equal("an event that is not valid", one, 0);
	vm_free(vm);
}

/* An exception while #DF is delivered: the VM is suspended (triple fault). */
static void
triple(const void *arg __unused)
{
	static const uint8_t nops[] = { 0x90, 0x90 };
	struct vm *vm = vm_new();

	(void)prepare(vm, LONG64, nops, sizeof(nops));
	check(vm_set_intinfo(vm->vcpu[0], WITH(8, 0)) == 0, "#DF is refused");
	check(vm_inject_exception(vm->vcpu[0], 13, 1, 0, 1) == 0,
	    "#GP is refused");
	(void)run(vm);
	check(vm->exit.exitcode == VM_EXITCODE_SUSPENDED &&
	    vm->exit.u.suspended.how == VM_SUSPEND_TRIPLEFAULT,
	    "exit %s, %d", exit_name(vm->exit.exitcode),
	    vm->exit.u.suspended.how);
	vm_free(vm);
}

/*
 * NMI: vector 2; the next one waits until IRET (SDM 3, 6.7.1).  The handler
 * ends the run and has not returned when the second one comes.
 */
static void
nmi(const void *arg __unused)
{
	static const uint8_t nops[] = { 0x90, 0x90, 0x90, 0x90 };
	static const uint8_t on[] = { 0x90, 0x90, 0xe6, PORT_DONE, 0xeb, 0xfc };
	/* add $16, %rsp; iretq: drop what the handler has pushed */
	static const uint8_t back[] = { 0x48, 0x83, 0xc4, 0x10, 0x48, 0xcf };
	struct vm *vm = vm_new();
	uint64_t rflags = 2 | PSL_I;

	(void)prepare(vm, LONG64, nops, sizeof(nops));
	check(vm_inject_nmi(vm->vcpu[0]) == 0, "an NMI is refused");
	expect_fault(vm, "NMI", 2, 0, A_CODE);
	check(vm_inject_nmi(vm->vcpu[0]) == 0, "a second NMI is refused");
	memcpy(vm->mem + A_CODE + 0x100, on, sizeof(on));
	set_reg(vm, VM_REG_GUEST_RIP, A_CODE + 0x100);
	check(run(vm), "an NMI comes inside an NMI's handler: exit %s, "
	    "vector %d", exit_name(vm->exit.exitcode), vm->fault.vector);
	memcpy(vm->mem + A_CODE + 0x200, back, sizeof(back));
	/*
	 * svm.c waits for the end of the interrupt shadow that it puts after
	 * IRET in the same way as for an interrupt, so this works only with IF
	 * set.
	 */
	memcpy(vm->mem + reg(vm, VM_REG_GUEST_RSP) + 32, &rflags,
	    sizeof(rflags));
	set_reg(vm, VM_REG_GUEST_RIP, A_CODE + 0x200);
	(void)run(vm);
	check(vm->fault.vector == 2, "no NMI after IRET: exit %s, vector %d",
	    exit_name(vm->exit.exitcode), vm->fault.vector);
	vm_free(vm);
}

#define	SET(_mode, _list, _fresh, _soft)				\
	&(const struct set){ _mode, _list, nitems(_list), _fresh, _soft }
#define	IN(_mode)	&(const enum mode){ _mode }
static const struct test tests[] = {
	{ "exception.raised_64", "exceptions in 64-bit code have the right "
	    "vector, error code and place", raised,
	    SET(LONG64, in_64, false, false) },
	{ "exception.raised_32", "exceptions in 32-bit code have the right "
	    "vector, error code and place", raised,
	    SET(PROT32, in_32, false, false) },
	{ "exception.raised_real",
	    "exceptions in real mode have the right vector and place", raised,
	    SET(REAL, in_real, false, false) },
	{ "exception.fresh_64",
	    "exceptions are delivered when the EPT maps nothing yet",
	    raised, SET(LONG64, in_64, true, false) },
	{ "exception.fresh_soft_64",
	    "INT is delivered when the EPT maps nothing yet",
	    raised, SET(LONG64, in_64, true, true) },
	{ "exception.fresh_real", "exceptions in real mode are delivered when "
	    "the EPT maps nothing yet", raised, SET(REAL, in_real, true,
	    false) },
	{ "exception.fresh_soft_real", "INT in real mode is delivered when the "
	    "EPT maps nothing yet", raised, SET(REAL, in_real, true, true) },
	{ "exception.cr2",
	    "a page fault stores its address in CR2", cr2, NULL },
	{ "exception.injected_64",
	    "an injected exception is delivered in 64-bit mode",
	    injected, IN(LONG64) },
	{ "exception.injected_32",
	    "an injected exception is delivered in 32-bit mode",
	    injected, IN(PROT32) },
	{ "exception.injected_real", "an injected exception has no error code "
	    "in real mode", injected, IN(REAL) },
	{ "exception.refused",
	    "an invalid exception cannot be injected", refused, NULL },
	{ "exception.nested",
	    "nested exceptions become a double fault if the manual says so",
	    nested, NULL },
	{ "exception.intinfo", "bad event information is refused",
	    intinfo_refused, NULL },
	{ "exception.triple", "a fault during a double fault suspends the VM",
	    triple, NULL },
	{ "exception.nmi",
	    "an NMI waits until the previous one has returned", nmi,
	    NULL },
};

GROUP(exception, tests);
