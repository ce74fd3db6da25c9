/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Instructions that a hypervisor handles: XSETBV, TSC, modes, VMX. */

#include <sys/types.h>

#include <machine/cpufunc.h>
#include <machine/psl.h>
#include <machine/specialreg.h>

#include <errno.h>
#include <string.h>

#include "vmunit.h"

static bool
has_xsave(struct vm *vm)
{
	uint64_t out[4];

	g_cpuid(vm, 1, 0, out);
	return ((out[2] & 1u << 26) != 0);
}

static void
set_osxsave(struct vm *vm)
{
	/* mov %cr4, %rax; or $0x40000, %eax; mov %rax, %cr4 */
	RUN(vm, 0x0f, 0x20, 0xe0, 0x0d, 0x00, 0x00, 0x04, 0x00, 0x0f, 0x22,
	    0xe0);
	expect_done(vm);
}

/* The vector that XSETBV raises, or -1. */
static int
xsetbv(struct vm *vm, uint32_t number, uint64_t value)
{
	set_reg(vm, VM_REG_GUEST_RAX, value & 0xffffffff);
	set_reg(vm, VM_REG_GUEST_RDX, value >> 32);
	set_reg(vm, VM_REG_GUEST_RCX, number);
	RUN(vm, 0x0f, 0x01, 0xd1);
	return (vm->fault.vector);
}

static uint64_t
xgetbv(struct vm *vm)
{
	set_reg(vm, VM_REG_GUEST_RCX, 0);
	RUN(vm, 0x0f, 0x01, 0xd0);
	expect_done(vm);
	return (reg(vm, VM_REG_GUEST_RAX) | reg(vm, VM_REG_GUEST_RDX) << 32);
}

/* SDM 2, "XSETBV"; SDM 1, 13.3: which bits must be set together. */
static void
xcr0(const void *arg __unused)
{
	static const struct { uint64_t value, needs; bool taken; } values[] = {
		{ 1, 1, true }, { 3, 3, true }, { 7, 7, true },
		{ 0, 0, false }, { 2, 0, false }, { 4, 0, false },
		{ 5, 0, false }, { 6, 0, false },
		/* half of MPX; parts of AVX-512 */
		{ 0x09, 0, false }, { 0x11, 0, false }, { 0x1b, 0x18, true },
		{ 0x27, 0, false }, { 0x67, 0, false }, { 0xe3, 0, false },
		{ 0xe7, 0xe0, true },
		{ 1ul << 63 | 1, 0, false }, { 1ul << 32 | 1, 0, false },
		{ 1ul << 40 | 3, 0, false },
	};
	struct vm *vm = vm_new();
	uint64_t out[4], now = 1;

	if (!has_xsave(vm))
		skip(N_A "a guest has no XSAVE here");
	g_cpuid(vm, 0xd, 0, out);
	set_osxsave(vm);
	equal("the first XCR0", xgetbv(vm), 1);
	for (size_t i = 0; i < nitems(values); i++) {
		bool taken = values[i].taken &&
		    (values[i].value & ~out[0]) == 0;
		int vector = xsetbv(vm, 0, values[i].value);

		check(vector == (taken ? -1 : 13),
		    "XCR0 %#jx: vector %d, it is %s",
		    (uintmax_t)values[i].value, vector,
		    taken ? "accepted" : "bad");
		if (taken)
			now = values[i].value;
		equal("XCR0", xgetbv(vm), now);
	}
	check(xsetbv(vm, 1, 1) == 13, "XCR1 can be written");
	vm_free(vm);
}

static void
xcr0_without(const void *arg __unused)
{
	struct vm *vm = vm_new();

	if (!has_xsave(vm))
		skip(N_A "a guest has no XSAVE here");
	check(xsetbv(vm, 0, 1) == 6, "XSETBV without CR4.OSXSAVE: vector %d",
	    vm->fault.vector);
	vm_free(vm);
}

static void
xcr0_isolation(const void *arg __unused)
{
	struct vm *one = vm_new(), *other = vm_new();

	if (!has_xsave(one))
		skip(N_A "a guest has no XSAVE here");
	set_osxsave(one);
	set_osxsave(other);
	check(xsetbv(one, 0, 3) == -1, "XCR0 cannot be 3");
	equal("the other's XCR0", xgetbv(other), 1);
	equal("XCR0", xgetbv(one), 3);
	vm_free(one);
	vm_free(other);
}

static uint64_t
guest_tsc(struct vm *vm)
{
	RUN(vm, 0x0f, 0x31);
	expect_done(vm);
	return (reg(vm, VM_REG_GUEST_RAX) | reg(vm, VM_REG_GUEST_RDX) << 32);
}

/* The offset is 0 until the guest writes it: its TSC is the host's. */
static void
tsc(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t before, there, after, msr;

	for (int i = 0; i < 3; i++) {
		before = rdtsc();
		there = guest_tsc(vm);
		after = rdtsc();
		check(before <= there && there <= after,
		    "TSC %#jx is not between %#jx and %#jx", (uintmax_t)there,
		    (uintmax_t)before, (uintmax_t)after);
	}
	check(g_rdmsr(vm, 0x10, &msr), "the TSC's MSR cannot be read");
	check(after <= msr && msr <= rdtsc(), "the TSC's MSR is %#jx",
	    (uintmax_t)msr);
	vm_free(vm);
}

static void
tsc_written(const void *arg __unused)
{
	struct vm *vm = vm_new(), *other = vm_new();
	uint64_t before, there, start = 0x1234567890;

	if (!intel)
		skip(N_A "vmm.ko leaves a write of the TSC to "
		    "bhyve on AMD");
	before = rdtsc();
	check(g_wrmsr(vm, 0x10, start), "the TSC cannot be written");
	there = guest_tsc(vm);
	check(there >= start && there - start <= rdtsc() - before,
	    "the TSC is %#jx, it was set to %#jx", (uintmax_t)there,
	    (uintmax_t)start);
	before = rdtsc();
	there = guest_tsc(other);
	check(there >= before, "another VM's TSC has moved, too");
	vm_free(vm);
	vm_free(other);
}

/*
 * RDTSCP and RDPID work if the capability exists; otherwise they raise #UD,
 * except on AMD, where vmm.ko does not intercept them.
 */
static void
read_tscp(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t out[4];
	int have = 0;

	g_cpuid(vm, 0x80000001, 0, out);
	if (vm_get_capability(vm->vcpu[0], VM_CAP_RDTSCP, &have) != 0)
		have = 0;
	check(((out[3] & 1u << 27) != 0) == (have != 0),
	    "CPUID and VM_CAP_RDTSCP do not agree");
	if (have != 0 && intel)
		check(g_wrmsr(vm, 0xc0000103, 0x5a), "TSC_AUX is refused");
	if (have == 0 && !intel) {
		vm_free(vm);
		return;
	}
	RUN(vm, 0x0f, 0x01, 0xf9);
	if (have == 0) {
		check(vm->fault.vector == 6, "RDTSCP is executed");
	} else {
		expect_done(vm);
		if (intel)
			equal("RCX after RDTSCP", reg(vm, VM_REG_GUEST_RCX),
			    0x5a);
	}
	vm_free(vm);
}

/* A guest is not a hypervisor: #UD at privilege level 0. */
static void
no_hypervisor(const void *arg __unused)
{
	static const struct { const char *name; int maker; uint8_t code[3]; }
	    list[] = {
		{ "VMCALL", 1, { 0x0f, 0x01, 0xc1 } },
		{ "VMLAUNCH", 1, { 0x0f, 0x01, 0xc2 } },
		{ "VMRESUME", 1, { 0x0f, 0x01, 0xc3 } },
		{ "VMXOFF", 1, { 0x0f, 0x01, 0xc4 } },
		{ "VMRUN", 2, { 0x0f, 0x01, 0xd8 } },
		{ "VMLOAD", 2, { 0x0f, 0x01, 0xda } },
		{ "VMSAVE", 2, { 0x0f, 0x01, 0xdb } },
		{ "STGI", 2, { 0x0f, 0x01, 0xdc } },
		{ "CLGI", 2, { 0x0f, 0x01, 0xdd } },
		{ "MONITOR", 0, { 0x0f, 0x01, 0xc8 } },
		{ "MWAIT", 0, { 0x0f, 0x01, 0xc9 } },
	};
	struct vm *vm = vm_new();

	for (size_t i = 0; i < nitems(list); i++) {
		if (list[i].maker != 0 && (list[i].maker == 1) != intel)
			continue;
		code(vm, list[i].code, 3);
		(void)run(vm);
		check(vm->fault.vector == 6 && vm->fault.rip == A_CODE,
		    "%s: exit %s, vector %d", list[i].name,
		    exit_name(vm->exit.exitcode), vm->fault.vector);
	}
	vm_free(vm);
}

static void
caches(const void *arg __unused)
{
	struct vm *vm = vm_new();

	/* wbinvd; invd; clts; invlpg (%rax) */
	RUN(vm, 0x0f, 0x09, 0x0f, 0x08, 0x0f, 0x06, 0x31, 0xc0, 0x0f, 0x01,
	    0x38);
	expect_done(vm);
	vm_free(vm);
}

/*
 * The guest itself changes from 32-bit code without paging to 64-bit code and
 * back (SDM 3, 10.8.5): EFER.LMA follows LME and CR0.PG.
 */
static void
long_mode(const void *arg __unused)
{
	static const uint8_t there[] = {
		0x0f, 0x20, 0xe0,		/* mov %cr4, %eax */
		0x0d, 0x20, 0x00, 0x00, 0x00,	/* or $PAE, %eax */
		0x0f, 0x22, 0xe0,		/* mov %eax, %cr4 */
		0xb9, 0x80, 0x00, 0x00, 0xc0,	/* mov $EFER, %ecx */
		0x0f, 0x32,			/* rdmsr */
		0x0d, 0x00, 0x01, 0x00, 0x00,	/* or $LME, %eax */
		0x0f, 0x30,			/* wrmsr */
		0x0f, 0x20, 0xc0,		/* mov %cr0, %eax */
		0x0d, 0x00, 0x00, 0x00, 0x80,	/* or $PG, %eax */
		0x0f, 0x22, 0xc0,		/* mov %eax, %cr0 */
		0x0f, 0x32,			/* rdmsr */
		0xea, 0x00, 0x01, 0x01, 0x00, 0x08, 0x00, /* ljmp $8, ... */
	};
	/* mov %rax, %rbx; mov $0x123456789abcdef0, %rdx; out */
	static const uint8_t in_64[] = { 0x48, 0x89, 0xc3, 0x48, 0xba, 0xf0,
	    0xde, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0xe6, PORT_DONE };
	struct vm *vm = vm_new();

	vm_mode(vm, PROT32);
	set_reg(vm, VM_REG_GUEST_CR0, CR0_PE | CR0_NE);
	set_reg(vm, VM_REG_GUEST_CR3, cr3_of(LONG64, W_RAM));
	code(vm, there, sizeof(there));
	memcpy(vm->mem + A_CODE + 0x100, in_64, sizeof(in_64));
	(void)run(vm);
	vm->mode = LONG64;
	expect_done(vm);
	equal("EFER in compatibility mode", reg(vm, VM_REG_GUEST_RBX),
	    EFER_LME | EFER_LMA | EFER_HOST);
	equal("RDX, all of it", reg(vm, VM_REG_GUEST_RDX), 0x123456789abcdef0);
	equal("EFER from outside", reg(vm, VM_REG_GUEST_EFER),
	    EFER_LME | EFER_LMA | EFER_HOST);
	vm_free(vm);
}

/* IN and OUT for a port of bhyve exit with everything that bhyve needs. */
static void
ports(const void *arg __unused)
{
	static const struct { uint8_t code[3]; size_t length; unsigned bytes;
	    bool in; } kinds[] = {
		{ { 0xec }, 1, 1, true }, { { 0x66, 0xed }, 2, 2, true },
		{ { 0xed }, 1, 4, true }, { { 0xee }, 1, 1, false },
		{ { 0x66, 0xef }, 2, 2, false }, { { 0xef }, 1, 4, false },
	};
	struct vm *vm = vm_new();

	for (size_t i = 0; i < nitems(kinds); i++) {
		set_reg(vm, VM_REG_GUEST_RDX, 0x1234);
		set_reg(vm, VM_REG_GUEST_RAX, 0x8899aabbccddeeff);
		code(vm, kinds[i].code, kinds[i].length);
		(void)run(vm);
		check(vm->exit.exitcode == VM_EXITCODE_INOUT, "exit %s",
		    exit_name(vm->exit.exitcode));
		equal("port", vm->exit.u.inout.port, 0x1234);
		equal("bytes", vm->exit.u.inout.bytes, kinds[i].bytes);
		equal("in", vm->exit.u.inout.in, kinds[i].in);
		equal("string", vm->exit.u.inout.string, 0);
		equal("rep", vm->exit.u.inout.rep, 0);
		equal("EAX", vm->exit.u.inout.eax, 0xccddeeff);
		equal("RIP", vm->exit.rip, A_CODE);
		equal("length", (unsigned)vm->exit.inst_length,
		    kinds[i].length);
		/* It continues after the instruction. */
		(void)run(vm);
		expect_done(vm);
	}
	vm_free(vm);
}

/* INS and OUTS with REP, from the segment and with the address size used. */
static void
port_strings(const void *arg __unused)
{
	struct vm *vm = vm_new();
	const struct vm_inout_str *string = &vm->exit.u.inout_str;

	set_reg(vm, VM_REG_GUEST_RDX, 0x1234);
	set_reg(vm, VM_REG_GUEST_RCX, 5);
	set_reg(vm, VM_REG_GUEST_RSI, A_DATA + 0x10);
	set_reg(vm, VM_REG_GUEST_RDI, A_DATA + 0x20);
	RUN(vm, 0xf3, 0x66, 0x6f);		/* rep outsw */
	check(vm->exit.exitcode == VM_EXITCODE_INOUT_STR, "exit %s",
	    exit_name(vm->exit.exitcode));
	equal("bytes", string->inout.bytes, 2);
	equal("in", string->inout.in, 0);
	equal("rep", string->inout.rep, 1);
	equal("port", string->inout.port, 0x1234);
	equal("index", string->index, A_DATA + 0x10);
	equal("count", string->count, 5);
	equal("address size", (unsigned)string->addrsize, 8);
	equal("segment", (unsigned)string->seg_name, VM_REG_GUEST_DS);
	equal("mode", string->paging.cpu_mode, CPU_MODE_64BIT);
	equal("CR3", string->paging.cr3, cr3_of(LONG64, W_RAM));
	RUN(vm, 0x67, 0x6d);			/* insl, 32-bit addresses */
	check(vm->exit.exitcode == VM_EXITCODE_INOUT_STR, "exit %s",
	    exit_name(vm->exit.exitcode));
	equal("bytes", string->inout.bytes, 4);
	equal("in", string->inout.in, 1);
	equal("rep", string->inout.rep, 0);
	equal("index", string->index, A_DATA + 0x20);
	equal("count", string->count, 1);
	equal("address size", (unsigned)string->addrsize, 4);
	equal("segment", (unsigned)string->seg_name, VM_REG_GUEST_ES);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "instruction.xcr0",
	    "XSETBV accepts the values that SDM 1, 13.3 allows", xcr0,
	    NULL },
	{ "instruction.xcr0_without", "XSETBV without CR4.OSXSAVE raises #UD",
	    xcr0_without, NULL },
	{ "instruction.xcr0_isolation",
	    "each VM has its own XCR0", xcr0_isolation,
	    NULL },
	{ "instruction.tsc", "a guest reads the host's TSC", tsc, NULL },
	{ "instruction.tsc_written", "the TSC continues from a value that is "
	    "set, in this VM only", tsc_written, NULL },
	{ "instruction.rdtscp", "RDTSCP works if CPUID shows it", read_tscp,
	    NULL },
	{ "instruction.no_hypervisor",
	    "VMX and SVM instructions raise #UD", no_hypervisor,
	    NULL },
	{ "instruction.caches", "WBINVD, INVD, CLTS and INVLPG are executed",
	    caches, NULL },
	{ "instruction.long_mode", "a guest can enter 64-bit mode by itself",
	    long_mode, NULL },
	{ "instruction.ports",
	    "IN and OUT cause an exit with all details", ports,
	    NULL },
	{ "instruction.port_strings",
	    "INS and OUTS cause an exit with all details", port_strings, NULL },
};

GROUP(instruction, tests);
