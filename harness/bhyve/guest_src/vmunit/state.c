/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * A vCPU's registers: after a reset, compared with another VM's, and the
 * effects of writing the control registers.
 */

#include <machine/psl.h>
#include <machine/specialreg.h>

#include <errno.h>
#include <string.h>

#include "vmunit.h"

/* SDM 3, table 10-1, after a reset; CR0 as in libvmmapi (no CD and NW). */
static void
after_reset(const void *arg __unused)
{
	static const struct { const char *name; int number; uint64_t value; }
	    wanted[] = {
		{ "RIP", VM_REG_GUEST_RIP, 0xfff0 },
		{ "RFLAGS", VM_REG_GUEST_RFLAGS, 2 },
		{ "CR2", VM_REG_GUEST_CR2, 0 }, { "CR3", VM_REG_GUEST_CR3, 0 },
		{ "RAX", VM_REG_GUEST_RAX, 0 }, { "RBX", VM_REG_GUEST_RBX, 0 },
		{ "RCX", VM_REG_GUEST_RCX, 0 },
		{ "RDX", VM_REG_GUEST_RDX, 0xf00 },
		{ "RSI", VM_REG_GUEST_RSI, 0 }, { "RDI", VM_REG_GUEST_RDI, 0 },
		{ "RBP", VM_REG_GUEST_RBP, 0 }, { "RSP", VM_REG_GUEST_RSP, 0 },
		{ "R8", VM_REG_GUEST_R8, 0 }, { "R15", VM_REG_GUEST_R15, 0 },
		{ "CS", VM_REG_GUEST_CS, 0xf000 },
		{ "DS", VM_REG_GUEST_DS, 0 }, { "SS", VM_REG_GUEST_SS, 0 },
		{ "LDTR", VM_REG_GUEST_LDTR, 0 }, { "TR", VM_REG_GUEST_TR, 0 },
		{ "DR6", VM_REG_GUEST_DR6, 0xffff0ff0 },
		{ "DR7", VM_REG_GUEST_DR7, 0x400 },
		{ "the interrupt shadow", VM_REG_GUEST_INTR_SHADOW, 0 },
	};
	static const struct { const char *name; int number; uint64_t base;
	    uint32_t limit, access; } segments[] = {
		{ "CS", VM_REG_GUEST_CS, 0xffff0000, 0xffff, 0x93 },
		{ "DS", VM_REG_GUEST_DS, 0, 0xffff, 0x93 },
		{ "ES", VM_REG_GUEST_ES, 0, 0xffff, 0x93 },
		{ "FS", VM_REG_GUEST_FS, 0, 0xffff, 0x93 },
		{ "GS", VM_REG_GUEST_GS, 0, 0xffff, 0x93 },
		{ "SS", VM_REG_GUEST_SS, 0, 0xffff, 0x93 },
		{ "LDTR", VM_REG_GUEST_LDTR, 0, 0xffff, 0x82 },
	};
	struct vm *vm = vm_new();
	uint64_t base;
	uint32_t limit, access;

	/* The values after use, not those of a new vCPU. */
	RUN(vm, 0x48, 0xc7, 0xc0, 0x55, 0x55, 0x55, 0x55);
	expect_done(vm);
	set_reg(vm, VM_REG_GUEST_R15, 15);
	set_reg(vm, VM_REG_GUEST_DR6, 0xffff4ff5);
	check(vcpu_reset(vm->vcpu[0]) == 0, "it cannot be reset: %s",
	    strerror(errno));
	for (size_t i = 0; i < nitems(wanted); i++)
		equal(wanted[i].name, reg(vm, wanted[i].number),
		    wanted[i].value);
	equal("EFER", reg(vm, VM_REG_GUEST_EFER), EFER_HOST);
	equal("CR0 without NE and ET", reg(vm, VM_REG_GUEST_CR0) & ~0x30ul, 0);
	equal("CR4 without VMXE", reg(vm, VM_REG_GUEST_CR4) & ~0x2000ul, 0);
	for (size_t i = 0; i < nitems(segments); i++) {
		if (vm_get_desc(vm->vcpu[0], segments[i].number, &base, &limit,
		    &access) != 0)
			fail("%s cannot be read", segments[i].name);
		equal(segments[i].name, base, segments[i].base);
		equal(segments[i].name, limit, segments[i].limit);
		equal(segments[i].name, access & 0xff, segments[i].access);
	}
	vm_free(vm);
}

/* After a reset it runs in real mode, at the reset vector. */
static void
runs_after_reset(const void *arg __unused)
{
	/* mov $0x1234, %ax; out; in real mode */
	static const uint8_t bytes[] = { 0xb8, 0x34, 0x12, 0xe6, PORT_DONE };
	struct vm *vm = vm_new();

	RUN(vm, 0x90);
	expect_done(vm);
	check(vcpu_reset(vm->vcpu[0]) == 0, "it cannot be reset");
	vm->mode = REAL;
	memcpy(vm->mem + A_CODE, bytes, sizeof(bytes));
	check(vm_set_desc(vm->vcpu[0], VM_REG_GUEST_CS, A_CODE, 0xffff,
	    0x93) == 0, "CS cannot be set");
	set_reg(vm, VM_REG_GUEST_CS, A_CODE >> 4);
	set_reg(vm, VM_REG_GUEST_RIP, 0);
	(void)run(vm);
	expect_done(vm);
	equal("RAX", reg(vm, VM_REG_GUEST_RAX), 0x1234);
	vm_free(vm);
}

/* All named registers can be set and read. */
static void
set_and_got(const void *arg __unused)
{
	static const int numbers[] = { VM_REG_GUEST_RAX, VM_REG_GUEST_RBX,
	    VM_REG_GUEST_RCX, VM_REG_GUEST_RDX, VM_REG_GUEST_RSI,
	    VM_REG_GUEST_RDI, VM_REG_GUEST_RBP, VM_REG_GUEST_R8,
	    VM_REG_GUEST_R9, VM_REG_GUEST_R10, VM_REG_GUEST_R11,
	    VM_REG_GUEST_R12, VM_REG_GUEST_R13, VM_REG_GUEST_R14,
	    VM_REG_GUEST_R15, VM_REG_GUEST_RSP, VM_REG_GUEST_RIP,
	    VM_REG_GUEST_CR2, VM_REG_GUEST_DR0, VM_REG_GUEST_DR1,
	    VM_REG_GUEST_DR2, VM_REG_GUEST_DR3 };
	struct vm *vm = vm_new();
	uint64_t values[nitems(numbers)], got[nitems(numbers)];

	for (size_t i = 0; i < nitems(numbers); i++)
		values[i] = 0x111111111111ul * (i + 1) >> 1;
	check(vm_set_register_set(vm->vcpu[0], nitems(numbers), numbers,
	    values) == 0, "it cannot be set: %s", strerror(errno));
	check(vm_get_register_set(vm->vcpu[0], nitems(numbers), numbers,
	    got) == 0, "it cannot be read: %s", strerror(errno));
	for (size_t i = 0; i < nitems(numbers); i++) {
		equal_at("register", (unsigned)numbers[i], got[i], values[i]);
		equal_at("register, alone,", (unsigned)numbers[i],
		    reg(vm, numbers[i]), values[i]);
	}
	errno = 0;
	check(vm_get_register(vm->vcpu[0], VM_REG_LAST, got) != 0 &&
	    errno == EINVAL,
	        "a register that does not exist: %s", strerror(errno));
	check(vm_set_register(vm->vcpu[0], VM_REG_LAST + 100, 0) != 0 &&
	    errno == EINVAL,
	        "a register that does not exist: %s", strerror(errno));
	check(vm_get_register_set(vm->vcpu[0], 0, numbers, got) == 0 ||
	    errno == EINVAL, "an empty set: %s", strerror(errno));
	check(vm_set_register_set(vm->vcpu[0], VM_REG_LAST + 1, numbers,
	    values) != 0, "a set longer than there are registers");
	vm_free(vm);
}

/* A guest sees the registers that were set, and the host reads its values. */
static void
seen(const void *arg __unused)
{
	struct vm *vm = vm_new();

	set_reg(vm, VM_REG_GUEST_RBX, 0x1122334455667788);
	set_reg(vm, VM_REG_GUEST_R12, 0x8877665544332211);
	/* mov %rbx, %r13; mov %r12, %rbp; mov %rsp, %r14 */
	RUN(vm, 0x49, 0x89, 0xdd, 0x4c, 0x89, 0xe5, 0x49, 0x89, 0xe6);
	expect_done(vm);
	equal("R13", reg(vm, VM_REG_GUEST_R13), 0x1122334455667788);
	equal("RBP", reg(vm, VM_REG_GUEST_RBP), 0x8877665544332211);
	equal("R14", reg(vm, VM_REG_GUEST_R14), A_STACK);
	vm_free(vm);
}

/*
 * Each VM has its own debug registers; a breakpoint has no effect on another
 * VM.
 */
static void
debug_registers(const void *arg __unused)
{
	/* mov %rax to %dr0, %rbx to %dr1, %rcx to %dr2, %rdx to %dr3 */
	static const uint8_t set[] = { 0x0f, 0x23, 0xc0, 0x0f, 0x23, 0xcb,
	    0x0f, 0x23, 0xd1, 0x0f, 0x23, 0xda };
	/* the other direction */
	static const uint8_t get[] = { 0x0f, 0x21, 0xc0, 0x0f, 0x21, 0xcb,
	    0x0f, 0x21, 0xd1, 0x0f, 0x21, 0xda };
	static const int numbers[] = { VM_REG_GUEST_RAX, VM_REG_GUEST_RBX,
	    VM_REG_GUEST_RCX, VM_REG_GUEST_RDX };
	static const int drs[] = { VM_REG_GUEST_DR0, VM_REG_GUEST_DR1,
	    VM_REG_GUEST_DR2, VM_REG_GUEST_DR3 };
	struct vm *vms[2] = { vm_new(), vm_new() };

	for (uint64_t v = 0; v < 2; v++) {
		for (uint64_t i = 0; i < 4; i++)
			set_reg(vms[v], numbers[i], 0x1000 * (i + 1) + v);
		code(vms[v], set, sizeof(set));
		(void)run(vms[v]);
		expect_done(vms[v]);
	}
	for (uint64_t v = 0; v < 2; v++) {
		code(vms[v], get, sizeof(get));
		(void)run(vms[v]);
		expect_done(vms[v]);
		for (uint64_t i = 0; i < 4; i++) {
			equal_at("in the guest: DR", i, reg(vms[v],
			    numbers[i]), 0x1000 * (i + 1) + v);
			equal_at("from outside: DR", i, reg(vms[v], drs[i]),
			    0x1000 * (i + 1) + v);
		}
	}
	vm_free(vms[0]);
	vm_free(vms[1]);
}

/* DR0 is an instruction's address, enabled in DR7: #DB before it, DR6.B0. */
static void
breakpoint(const void *arg __unused)
{
	static const uint8_t nops[] = { 0x90, 0x90, 0x90, 0x90 };
	struct vm *one = vm_new(), *other = vm_new();

	code(one, nops, sizeof(nops));
	set_reg(one, VM_REG_GUEST_DR0, A_CODE + 2);
	set_reg(one, VM_REG_GUEST_DR7, 0x402);
	code(other, nops, sizeof(nops));
	check(run(other), "a breakpoint before any was set");
	(void)run(one);
	check(one->fault.vector == 1 && one->fault.rip == A_CODE + 2,
	    "vector %d at %#jx", one->fault.vector,
	    (uintmax_t)one->fault.rip);
	equal("DR6", reg(one, VM_REG_GUEST_DR6) & 0xf, 1);
	code(other, nops, sizeof(nops));
	check(run(other), "the other VM stops at the breakpoint: exit %s, "
	    "vector %d", exit_name(other->exit.exitcode),
	    other->fault.vector);
	equal("the other's DR6", reg(other, VM_REG_GUEST_DR6) & 0xf, 0);
	equal("the other's DR7", reg(other, VM_REG_GUEST_DR7), 0x400);
	vm_free(one);
	vm_free(other);
}

/* Each VM has its own XMM registers. */
static void
fpu(const void *arg __unused)
{
	/* CR4.OSFXSR: mov %cr4, %rax; or $0x200, %eax; mov %rax, %cr4 */
	static const uint8_t enable[] = { 0x0f, 0x20, 0xe0, 0x0d, 0x00, 0x02,
	    0x00, 0x00, 0x0f, 0x22, 0xe0 };
	/* movq %rbx, %xmm3; mov %xmm3 to %rcx */
	static const uint8_t load[] = { 0x66, 0x48, 0x0f, 0x6e, 0xdb };
	static const uint8_t store[] = { 0x66, 0x48, 0x0f, 0x7e, 0xd9 };
	struct vm *vms[2] = { vm_new(), vm_new() };

	for (uint64_t v = 0; v < 2; v++) {
		code(vms[v], enable, sizeof(enable));
		(void)run(vms[v]);
		expect_done(vms[v]);
		/*
		 * The first VM reads a new register: zero, not the host's
		 * value.
		 */
		code(vms[v], store, sizeof(store));
		(void)run(vms[v]);
		expect_done(vms[v]);
		equal("a fresh XMM3", reg(vms[v], VM_REG_GUEST_RCX), 0);
		set_reg(vms[v], VM_REG_GUEST_RBX, 0xabcdef00 + v);
		code(vms[v], load, sizeof(load));
		(void)run(vms[v]);
		expect_done(vms[v]);
	}
	for (uint64_t v = 0; v < 2; v++) {
		code(vms[v], store, sizeof(store));
		(void)run(vms[v]);
		expect_done(vms[v]);
		equal("XMM3", reg(vms[v], VM_REG_GUEST_RCX), 0xabcdef00 + v);
	}
	vm_free(vms[0]);
	vm_free(vms[1]);
}

/* A guest reads the CR0 and CR4 that it wrote, also bits that VMX fixes. */
static void
control_registers(const void *arg __unused)
{
	static const uint8_t cr0[] = { 0x0f, 0x22, 0xc0, 0x0f, 0x20, 0xc1 };
	static const uint8_t cr4[] = { 0x0f, 0x22, 0xe0, 0x0f, 0x20, 0xe1 };
	/* PG and PE, with and without NE, CD and NW, WP, TS */
	static const uint64_t cr0s[] = { 0x80000031, 0x80000011, 0x80010011,
	    0xe0000031, 0xc0000031, 0x8000003b, 0x80050033 };
	static const uint64_t cr4s[] = { 0x20, 0x30, 0xa0, 0x620, 0x6b8 };
	struct vm *vm = vm_new();

	RUN(vm, 0x0f, 0x20, 0xe1);
	equal("the first CR4, without VMXE", reg(vm, VM_REG_GUEST_RCX), 0x20);
	for (size_t i = 0; i < nitems(cr0s); i++) {
		set_reg(vm, VM_REG_GUEST_RAX, cr0s[i]);
		code(vm, cr0, sizeof(cr0));
		(void)run(vm);
		expect_done(vm);
		equal("CR0", reg(vm, VM_REG_GUEST_RCX), cr0s[i]);
	}
	for (size_t i = 0; i < nitems(cr4s); i++) {
		set_reg(vm, VM_REG_GUEST_RAX, cr4s[i]);
		code(vm, cr4, sizeof(cr4));
		(void)run(vm);
		expect_done(vm);
		equal("CR4", reg(vm, VM_REG_GUEST_RCX), cr4s[i]);
		equal("the host's CR4 without VMXE",
		    reg(vm, VM_REG_GUEST_CR4) & ~0x2000ul, cr4s[i]);
	}
	/* PAE cannot be cleared in 64-bit mode. */
	set_reg(vm, VM_REG_GUEST_RAX, 0);
	code(vm, cr4, sizeof(cr4));
	check(!run(vm) && vm->fault.vector == 13, "CR4.PAE can be cleared");
	vm_free(vm);
}

/* CR0.PE cannot be cleared with PG set. */
static void
cr0_pe(const void *arg __unused)
{
	struct vm *vm;

	if (emulated && !intel)
		skip(N_A "Bochs as AMD ends itself when a guest clears CR0.PE "
		    "with PG set");
	vm = vm_new();
	set_reg(vm, VM_REG_GUEST_RAX, 0x80000030);
	RUN(vm, 0x0f, 0x22, 0xc0);
	check(vm->fault.vector == 13, "it can be cleared: exit %s",
	    exit_name(vm->exit.exitcode));
	vm_free(vm);
}

/* CR8 is bits 7 to 4 of the TPR (SDM 3, 11.8.6). */
static void
cr8(const void *arg __unused)
{
	/* mov %rax, %cr8; mov %cr8, %rcx */
	static const uint8_t both[] = { 0x44, 0x0f, 0x22, 0xc0, 0x44, 0x0f,
	    0x20, 0xc1 };
	struct vm *vm = vm_new();

	for (uint64_t priority = 0; priority < 16; priority += 5) {
		set_reg(vm, VM_REG_GUEST_RAX, priority);
		code(vm, both, sizeof(both));
		(void)run(vm);
		expect_done(vm);
		equal("CR8", reg(vm, VM_REG_GUEST_RCX), priority);
		equal("TPR", g_read(vm, LAPIC + 0x80, 4), priority << 4);
	}
	g_write(vm, LAPIC + 0x80, 4, 0x70);
	set_reg(vm, VM_REG_GUEST_RCX, 0);
	RUN(vm, 0x44, 0x0f, 0x20, 0xc1);
	expect_done(vm);
	equal("CR8 after TPR 0x70", reg(vm, VM_REG_GUEST_RCX), 7);
	set_reg(vm, VM_REG_GUEST_RAX, 0x10);
	code(vm, both, sizeof(both));
	check(!run(vm) && vm->fault.vector == 13 && vm->fault.error == 0,
	    "CR8 can be 16");
	vm_free(vm);
}

static const struct test tests[] = {
	{ "state.after_reset",
	    "a vCPU's registers have their reset values", after_reset,
	    NULL },
	{ "state.runs_after_reset", "a vCPU runs in real mode after a reset",
	    runs_after_reset, NULL },
	{ "state.set_and_got", "registers can be set and read, alone and in "
	    "sets", set_and_got, NULL },
	{ "state.seen", "a guest sees the registers that were set", seen,
	    NULL },
	{ "state.debug_registers", "each VM has its own debug registers",
	    debug_registers, NULL },
	{ "state.breakpoint",
	    "a breakpoint of one VM does not stop another", breakpoint, NULL },
	{ "state.fpu",
	    "each VM has its own XMM registers, which are zero at first", fpu,
	    NULL },
	{ "state.control_registers",
	    "a guest reads the CR0 and CR4 that it wrote",
	    control_registers, NULL },
	{ "state.cr0_pe",
	    "CR0.PE cannot be cleared while PG is set", cr0_pe, NULL },
	{ "state.cr8", "CR8 is the upper half of the TPR", cr8, NULL },
};

GROUP(state, tests);
