/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Pieces of code for 64-bit mode, and instructions as functions: each is
 * written to the guest's memory and run there, and the result is read.
 */

#include <sys/types.h>

#include <machine/cpufunc.h>
#include <machine/specialreg.h>

#include <string.h>

#include "vmunit.h"

/*
 * Write code to A_CODE, followed by the end of a run; the next run starts
 * there.
 */
void
code(struct vm *vm, const uint8_t *bytes, size_t length)
{
	static const uint8_t end[] = { 0xe6, PORT_DONE, 0xeb, 0xfc };

	const int numbers[] = { VM_REG_GUEST_RIP, VM_REG_GUEST_RSP,
	    VM_REG_GUEST_RFLAGS };
	uint64_t values[] = { A_CODE, A_STACK, 2 };

	memcpy(vm->mem + A_CODE, bytes, length);
	memcpy(vm->mem + A_CODE + length, end, sizeof(end));
	/*
	 * The previous run may have ended in a handler, with the handler's
	 * stack.
	 */
	if (vm_set_register_set(vm->vcpu[vm->cpu], nitems(numbers), numbers,
	    values) != 0)
		fail("RIP, RSP and RFLAGS cannot be set");
}

static void
set_regs(struct vm *vm, uint64_t rax, uint64_t rcx, uint64_t rdx)
{
	const int numbers[] = { VM_REG_GUEST_RAX, VM_REG_GUEST_RCX,
	    VM_REG_GUEST_RDX };
	uint64_t values[] = { rax, rcx, rdx };

	if (vm_set_register_set(vm->vcpu[vm->cpu], nitems(numbers), numbers,
	    values) != 0)
		fail("registers cannot be set");
}

/* in (%dx), %al, %ax or %eax */
uint64_t
g_in(struct vm *vm, uint16_t port, int size)
{
	static const uint8_t byte[] = { 0xec }, word[] = { 0x66, 0xed },
	    dword[] = { 0xed };

	set_regs(vm, 0, 0, port);
	if (size == 1)
		code(vm, byte, sizeof(byte));
	else if (size == 2)
		code(vm, word, sizeof(word));
	else
		code(vm, dword, sizeof(dword));
	(void)run(vm);
	expect_done(vm);
	return (reg(vm, VM_REG_GUEST_RAX));
}

/* out %al, %ax or %eax, (%dx) */
void
g_out(struct vm *vm, uint16_t port, int size, uint32_t value)
{
	static const uint8_t byte[] = { 0xee }, word[] = { 0x66, 0xef },
	    dword[] = { 0xef };

	set_regs(vm, value, 0, port);
	if (size == 1)
		code(vm, byte, sizeof(byte));
	else if (size == 2)
		code(vm, word, sizeof(word));
	else
		code(vm, dword, sizeof(dword));
	(void)run(vm);
	expect_done(vm);
}

/* mov (%rcx), %eax or %rax */
uint64_t
g_read(struct vm *vm, uint64_t address, int size)
{
	static const uint8_t dword[] = { 0x8b, 0x01 },
	    qword[] = { 0x48, 0x8b, 0x01 };

	set_regs(vm, 0, address, 0);
	if (size == 4)
		code(vm, dword, sizeof(dword));
	else
		code(vm, qword, sizeof(qword));
	(void)run(vm);
	expect_done(vm);
	return (reg(vm, VM_REG_GUEST_RAX));
}

/* mov %eax or %rax, (%rcx) */
void
g_write(struct vm *vm, uint64_t address, int size, uint64_t value)
{
	static const uint8_t dword[] = { 0x89, 0x01 },
	    qword[] = { 0x48, 0x89, 0x01 };

	set_regs(vm, value, address, 0);
	if (size == 4)
		code(vm, dword, sizeof(dword));
	else
		code(vm, qword, sizeof(qword));
	(void)run(vm);
	expect_done(vm);
}

/* True, and the MSR's value; false after #GP(0). */
bool
g_rdmsr(struct vm *vm, uint32_t msr, uint64_t *value)
{
	static const uint8_t rdmsr[] = { 0x0f, 0x32 };

	set_regs(vm, ~0ul, msr, ~0ul);
	code(vm, rdmsr, sizeof(rdmsr));
	(void)run(vm);
	if (vm->fault.vector == 13 && vm->fault.error == 0)
		return (false);
	/* The kernel leaves unknown ones to bhyve, whose -w decides. */
	if (vm->exit.exitcode == VM_EXITCODE_RDMSR)
		return (false);
	expect_done(vm);
	*value = reg(vm, VM_REG_GUEST_RAX) | reg(vm, VM_REG_GUEST_RDX) << 32;
	check(reg(vm, VM_REG_GUEST_RAX) >> 32 == 0 &&
	    reg(vm, VM_REG_GUEST_RDX) >> 32 == 0,
	    "rdmsr %#x leaves the upper halves of RAX and RDX", msr);
	return (true);
}

bool
g_wrmsr(struct vm *vm, uint32_t msr, uint64_t value)
{
	static const uint8_t wrmsr[] = { 0x0f, 0x30 };

	set_regs(vm, value & 0xffffffff, msr, value >> 32);
	code(vm, wrmsr, sizeof(wrmsr));
	(void)run(vm);
	if (vm->fault.vector == 13 && vm->fault.error == 0)
		return (false);
	if (vm->exit.exitcode == VM_EXITCODE_WRMSR)
		return (false);
	expect_done(vm);
	return (true);
}

/* RAX, RBX, RCX, RDX after CPUID, with all 64 bits. */
void
g_cpuid(struct vm *vm, uint64_t rax, uint64_t rcx, uint64_t out[4])
{
	static const uint8_t cpuid[] = { 0x0f, 0xa2 };

	set_reg(vm, VM_REG_GUEST_RBX, ~0ul);
	set_regs(vm, rax, rcx, ~0ul);
	code(vm, cpuid, sizeof(cpuid));
	(void)run(vm);
	expect_done(vm);
	out[0] = reg(vm, VM_REG_GUEST_RAX);
	out[1] = reg(vm, VM_REG_GUEST_RBX);
	out[2] = reg(vm, VM_REG_GUEST_RCX);
	out[3] = reg(vm, VM_REG_GUEST_RDX);
}

void
h_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	cpuid_count(leaf, subleaf, out);
}

/* How often the handler of this vector has run since handlers(). */
uint32_t
count(struct vm *vm, int vector)
{
	uint32_t number;

	memcpy(&number, vm->mem + A_COUNTS + vector * 4, sizeof(number));
	return (number);
}

/* Set what interrupt handlers do (H_*), and clear the counts. */
void
handlers(struct vm *vm, uint32_t flags)
{
	memset(vm->mem + A_COUNTS, 0, 1024);
	memcpy(vm->mem + A_FLAGS, &flags, sizeof(flags));
}

/* The number of counted interrupts of all vectors. */
static uint64_t
counted(const struct vm *vm)
{
	uint32_t each;
	uint64_t sum = 0;

	for (unsigned i = 0; i < 256; i++) {
		memcpy(&each, vm->mem + A_COUNTS + i * sizeof(each),
		    sizeof(each));
		sum += each;
	}
	return (sum);
}

/*
 * sti; hlt; cli: wait for an interrupt.  False if none can come.
 *
 * HLT also ends without an interrupt: vm_handle_hlt() returns to the guest if
 * its thread should yield the processor.  Then the guest halts again; the limit
 * is far above the number of times that a thread yields.
 */
bool
g_halt(struct vm *vm)
{
	uint64_t before = counted(vm);

	for (unsigned tries = 0; tries < 100; tries++) {
		RUN(vm, 0xfb, 0xf4, 0xfa);
		if (vm->exit.exitcode == VM_EXITCODE_SUSPENDED)
			return (false);
		if (vm->exit.exitcode == VM_EXITCODE_INOUT &&
		    vm->exit.u.inout.port == PORT_INTR)
			return (true);
		expect_done(vm);
		if (counted(vm) != before)
			break;
	}
	return (true);
}
