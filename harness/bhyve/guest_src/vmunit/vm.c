/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Making, running and destroying virtual machines, and setting their mode. */

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <machine/psl.h>
#include <machine/specialreg.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmunit.h"

extern const char handlers64[], handlers64_end[];
extern const char handlers32[], handlers32_end[];
extern const char handlers16[], handlers16_end[];
extern volatile sig_atomic_t late;

static struct vm *common;
static unsigned made;

void
vm_name_next(char *name, size_t size)
{
	(void)snprintf(name, size, "vmunit%d.%u", (int)getpid(), made++);
}

/* A VM with a vCPU and no memory. */
struct vm *
vm_bare(void)
{
	struct vm *vm;

	if ((vm = calloc(1, sizeof(*vm))) == NULL)
		fail("no memory");
	vm_name_next(vm->name, sizeof(vm->name));
	if (vm_create(vm->name) != 0)
		fail("a VM cannot be made: %s", strerror(errno));
	if ((vm->ctx = vm_open(vm->name)) == NULL)
		fail("%s cannot be opened: %s", vm->name, strerror(errno));
	vm->fd = vm_get_device_fd(vm->ctx);
	vm->fault.vector = -1;
	(void)vm_cpu(vm, 0);
	return (vm);
}

/* The vCPU with this number, which is activated at its first use. */
struct vcpu *
vm_cpu(struct vm *vm, int number)
{
	struct vcpu *vcpu;

	if (vm->vcpu[number] != NULL)
		return (vm->vcpu[number]);
	if ((vcpu = vm_vcpu_open(vm->ctx, number)) == NULL)
		fail("vCPU %d cannot be opened: %s", number, strerror(errno));
	if (vm_activate_cpu(vcpu) != 0)
		fail("vCPU %d cannot be activated: %s", number,
		    strerror(errno));
	vm->vcpu[number] = vcpu;
	(void)vm_set_capability(vcpu, VM_CAP_UNRESTRICTED_GUEST, 1);
	if (vm_set_capability(vcpu, VM_CAP_HALT_EXIT, 1) != 0)
		fail("vCPU %d does not accept hlt_exit: %s", number,
		    strerror(errno));
	if (vm_set_x2apic_state(vcpu, X2APIC_DISABLED) != 0)
		fail("vCPU %d does not accept the xAPIC: %s", number,
		    strerror(errno));
	return (vcpu);
}

/* A VM in 64-bit mode with 2 MiB of memory, tables and handlers. */
struct vm *
vm_new(void)
{
	struct vm *vm = vm_bare();

	if (vm_setup_memory(vm->ctx, MEM_BYTES, VM_MMAP_ALL) != 0)
		fail("a VM gets no memory: %s", strerror(errno));
	if ((vm->mem = vm_map_gpa(vm->ctx, 0, MEM_BYTES)) == NULL)
		fail("a VM's memory cannot be mapped: %s", strerror(errno));
	make_tables(vm->mem);
	memcpy(vm->mem + A_HANDLERS, handlers64,
	    (size_t)(handlers64_end - handlers64));
	memcpy(vm->mem + A_HANDLERS32, handlers32,
	    (size_t)(handlers32_end - handlers32));
	memcpy(vm->mem + A_HANDLERS16, handlers16,
	    (size_t)(handlers16_end - handlers16));
	vm_mode(vm, LONG64);
	return (vm);
}

/* The VM that the tests of a group share; it is as the last test left it. */
struct vm *
vm_shared(void)
{
	if (common == NULL)
		common = vm_new();
	return (common);
}

/*
 * A test failed, or changed what others rely on: the next one gets a new VM.
 */
void
vm_forget_shared(void)
{
	if (common != NULL)
		vm_free(common);
	common = NULL;
}

void
vm_free(struct vm *vm)
{
	for (int i = 0; i < MAX_VCPUS; i++) {
		if (vm->vcpu[i] != NULL)
			vm_vcpu_close(vm->vcpu[i]);
	}
	if (vm == common)
		common = NULL;
	vm_destroy(vm->ctx);
	free(vm);
}

uint64_t
reg(struct vm *vm, int number)
{
	uint64_t value;

	if (vm_get_register(vm->vcpu[vm->cpu], number, &value) != 0)
		fail("register %d cannot be read: %s", number,
		    strerror(errno));
	return (value);
}

void
set_reg(struct vm *vm, int number, uint64_t value)
{
	if (vm_set_register(vm->vcpu[vm->cpu], number, value) != 0)
		fail("register %d cannot be set to %#jx: %s", number,
		    (uintmax_t)value, strerror(errno));
}

static void
set_desc(struct vm *vm, int number, uint64_t base, uint32_t limit,
    uint32_t access)
{
	if (vm_set_desc(vm->vcpu[vm->cpu], number, base, limit, access) != 0)
		fail("descriptor %d cannot be set: %s", number,
		    strerror(errno));
}

#define	ACCESS_USABLE	0x093		/* present, writable, accessed */
#define	ACCESS_CODE	0x09b
#define	ACCESS_LONG	0x2000
#define	ACCESS_DEF32	0x4000
#define	ACCESS_GRAN	0x8000
#define	ACCESS_UNUSABLE	0x10000

/*
 * Set the mode of the current vCPU; paging is on except in real mode.
 * Selectors are those of the GDT in paging.c.
 */
void
vm_mode(struct vm *vm, enum mode mode)
{
	static const int data[] = { VM_REG_GUEST_DS, VM_REG_GUEST_ES,
	    VM_REG_GUEST_FS, VM_REG_GUEST_GS, VM_REG_GUEST_SS };
	uint32_t limit = mode == REAL ? 0xffff : 0xffffffff;
	uint32_t access = ACCESS_USABLE, code_access = ACCESS_CODE;
	uint64_t cr0 = CR0_NE, cr4 = 0, efer = 0;
	uint16_t selector = 0, code_selector = 0;

	if (mode != REAL) {
		cr0 |= CR0_PE | CR0_PG | CR0_WP;
		access |= ACCESS_GRAN | ACCESS_DEF32;
		code_access |= ACCESS_GRAN;
		selector = 0x10;
		code_selector = mode == LONG64 ? 0x08 :
		    mode == PROT32 ? 0x18 : 0x20;
		cr4 = mode == LONG64 ? CR4_PAE : CR4_PSE;
	}
	if (mode == PROT32)
		code_access |= ACCESS_DEF32;
	if (mode == LONG64) {
		code_access |= ACCESS_LONG;
		efer = EFER_LME | EFER_LMA;
	}
	set_reg(vm, VM_REG_GUEST_CR0, cr0);
	set_reg(vm, VM_REG_GUEST_CR4, cr4);
	set_reg(vm, VM_REG_GUEST_EFER, efer);
	set_reg(vm, VM_REG_GUEST_CR3, mode == REAL ? 0 : cr3_of(mode, W_RAM));
	set_desc(vm, VM_REG_GUEST_CS, 0, limit, code_access);
	set_reg(vm, VM_REG_GUEST_CS, code_selector);
	for (size_t i = 0; i < nitems(data); i++) {
		set_desc(vm, data[i], 0, limit, access);
		set_reg(vm, data[i], selector);
	}
	set_desc(vm, VM_REG_GUEST_TR, A_TSS, 0x67, 0x8b);
	set_reg(vm, VM_REG_GUEST_TR, 0x38);
	set_desc(vm, VM_REG_GUEST_LDTR, 0, 0xffff, ACCESS_UNUSABLE | 0x82);
	set_reg(vm, VM_REG_GUEST_LDTR, 0);
	set_desc(vm, VM_REG_GUEST_GDTR, A_GDT, 0xff, 0);
	if (mode == REAL)
		set_desc(vm, VM_REG_GUEST_IDTR, A_IVT, 0x3ff, 0);
	else if (mode == LONG64)
		set_desc(vm, VM_REG_GUEST_IDTR, A_IDT64, 0xfff, 0);
	else
		set_desc(vm, VM_REG_GUEST_IDTR, A_IDT32, 0x7ff, 0);
	set_reg(vm, VM_REG_GUEST_RFLAGS, PSL_KERNEL & ~PSL_I);
	set_reg(vm, VM_REG_GUEST_RSP, mode == REAL ? 0xfff0 : A_STACK);
	set_reg(vm, VM_REG_GUEST_DR7, 0x400);
	set_reg(vm, VM_REG_GUEST_INTR_SHADOW, 0);
	vm->mode = mode;
}

/* One VM_RUN; 0 or an errno. */
int
step(struct vm *vm, struct vcpu *vcpu)
{
	struct vm_run vmrun = { .vm_exit = &vm->exit, .cpuset = &vm->cpus,
	    .cpusetsize = sizeof(vm->cpus) };

	memset(&vm->exit, 0, sizeof(vm->exit));
	return (vm_run(vcpu, &vmrun) == 0 ? 0 : errno);
}

/* Read what the handlers of guest.S left on the stack. */
static void
read_fault(struct vm *vm)
{
	uint64_t rsp = reg(vm, VM_REG_GUEST_RSP);
	unsigned wide = vm->mode == LONG64 ? 8 : vm->mode == REAL ? 2 : 4;
	uint64_t word[5] = { 0 };

	uint64_t base = 0;
	uint32_t limit, access;

	if (vm->mode == REAL)
		rsp &= 0xffff;
	if (vm->mode != LONG64 && vm_get_desc(vm->vcpu[vm->cpu], VM_REG_GUEST_SS,
	    &base, &limit, &access) == 0)
		rsp += base;
	for (unsigned i = 0; i < nitems(word); i++) {
		if (rsp + (i + 1) * wide > MEM_BYTES)
			return;
		memcpy(&word[i], vm->mem + rsp + i * wide, wide);
	}
	vm->fault = (struct fault){ .vector = (int)(word[0] & 0xff),
	    .error = word[1], .rip = word[2], .rflags = word[4] };
}

/*
 * Run the current vCPU until the next exit that matters; true if this is the
 * end of a piece of code (PORT_DONE).
 */
bool
run(struct vm *vm)
{
	int error;

	vm->fault.vector = -1;
	for (;;) {
		if (late)
			fail("the guest does not reach the end of its code; it "
			    "is at %#jx", (uintmax_t)reg(vm, VM_REG_GUEST_RIP));
		if ((error = step(vm, vm->vcpu[vm->cpu])) != 0) {
			note("VM_RUN fails: %s", strerror(error));
			vm->exit.exitcode = VM_EXITCODE_MAX;
			return (false);
		}
		switch (vm->exit.exitcode) {
		case VM_EXITCODE_BOGUS:		/* nothing for us to do */
		case VM_EXITCODE_REQIDLE:
			continue;
		case VM_EXITCODE_INST_EMUL:
			if (vm->emulate == NULL || vm->emulate(vm) != 0)
				return (false);
			continue;
		case VM_EXITCODE_INOUT:
			if (vm->exit.u.inout.in)
				return (false);
			if (vm->exit.u.inout.port == PORT_FAULT)
				read_fault(vm);
			return (vm->exit.u.inout.port == PORT_DONE);
		default:
			return (false);
		}
	}
}

const char *
exit_name(int code)
{
	static const char *const names[] = {
		"INOUT", "VMX", "BOGUS", "RDMSR", "WRMSR", "HLT", "MTRAP",
		"PAUSE", "PAGING", "INST_EMUL", "SPINUP_AP", "DEPRECATED1",
		"RENDEZVOUS", "IOAPIC_EOI", "SUSPENDED", "INOUT_STR",
		"TASK_SWITCH", "MONITOR", "MWAIT", "SVM", "REQIDLE", "DEBUG",
		"VMINSN", "BPT", "IPI", "DB",
	};

	if (code < 0 || (size_t)code >= nitems(names))
		return ("none");
	return (names[code]);
}

/* The last run must have reached the end of its code. */
void
expect_done(struct vm *vm)
{
	const struct vm_exit *exit = &vm->exit;

	if (exit->exitcode == VM_EXITCODE_INOUT && !exit->u.inout.in) {
		if (exit->u.inout.port == PORT_DONE)
			return;
		if (exit->u.inout.port == PORT_FAULT)
			fail("exception %d, error code %#jx, at %#jx",
			    vm->fault.vector, (uintmax_t)vm->fault.error,
			    (uintmax_t)vm->fault.rip);
	}
	if (exit->exitcode == VM_EXITCODE_VMX)
		fail("VMX exit: status %d, reason %u, qualification %#jx, "
		    "error %d of %d", exit->u.vmx.status,
		    exit->u.vmx.exit_reason,
		    (uintmax_t)exit->u.vmx.exit_qualification,
		    exit->u.vmx.inst_error, exit->u.vmx.inst_type);
	if (exit->exitcode == VM_EXITCODE_SVM)
		fail("SVM exit: %#jx, %#jx, %#jx",
		    (uintmax_t)exit->u.svm.exitcode,
		    (uintmax_t)exit->u.svm.exitinfo1,
		    (uintmax_t)exit->u.svm.exitinfo2);
	fail("exit %s at %#jx, not the end of the code",
	    exit_name(exit->exitcode), (uintmax_t)exit->rip);
}
