/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * The host's access to a vCPU's registers: at first, by name, after a reset.
 */

#include <machine/psl.h>
#include <machine/specialreg.h>

#include <errno.h>
#include <string.h>

#include "vmunit.h"

/* Before anything is set: some bits of DR6 and DR7 are always 1. */
static void
fresh(const void *arg __unused)
{
	struct vm *vm = vm_bare();

	equal("DR6", reg(vm, VM_REG_GUEST_DR6), 0xffff0ff0);
	equal("DR7", reg(vm, VM_REG_GUEST_DR7), 0x400);
	for (int i = 0; i < 4; i++)
		equal_at("DR", (unsigned)i, reg(vm, VM_REG_GUEST_DR0 + i), 0);
	equal("TPR", reg(vm, VM_REG_GUEST_TPR), 0);
	equal("the interrupt shadow", reg(vm, VM_REG_GUEST_INTR_SHADOW), 0);
	vm_free(vm);
}

/* What a debugger reads: bases of FS and GS, the kernel's GS, the TPR. */
static void
bases(const void *arg __unused)
{
	struct vm *vm = vm_new();

	check(vm_set_desc(vm->vcpu[0], VM_REG_GUEST_FS, 0x1234560000,
	    0xffffffff, 0xc093) == 0, "FS is refused");
	equal("FS' base", reg(vm, VM_REG_GUEST_FS_BASE), 0x1234560000);
	check(g_wrmsr(vm, 0xc0000101, 0x7654320000), "GS_BASE is refused");
	equal("GS' base", reg(vm, VM_REG_GUEST_GS_BASE), 0x7654320000);
	check(g_wrmsr(vm, 0xc0000102, 0x1357900000), "KERNEL_GS is refused");
	equal("the kernel's GS' base", reg(vm, VM_REG_GUEST_KGS_BASE),
	    0x1357900000);
	/* mov $9, %eax; mov %rax, %cr8 */
	RUN(vm, 0xb8, 9, 0, 0, 0, 0x44, 0x0f, 0x22, 0xc0);
	expect_done(vm);
	equal("TPR", reg(vm, VM_REG_GUEST_TPR), 9);
	vm_free(vm);
}

/* Fields of the VMCS or VMCB cannot be written by their numbers. */
static void
fields(const void *arg __unused)
{
	/* RIP, RFLAGS and RSP: VMCS encodings, and offsets in the VMCB. */
	static const uint32_t vmcs[] = { 0x8000681e, 0x80006820, 0x8000681c };
	static const uint32_t vmcb[] = { 0x80080578, 0x80080570, 0x800805d8 };
	const uint32_t *list = intel ? vmcs : vmcb;
	static const int bad[] = { VM_REG_LAST, VM_REG_LAST + 1, 1000,
	    0x7fffffff };
	struct vm *vm = vm_new();

	for (size_t i = 0; i < nitems(vmcs); i++) {
		errno = 0;
		check(vm_set_register(vm->vcpu[0], (int)list[i], 2) != 0 &&
		    errno == EINVAL, "field %#x can be written: %s", list[i],
		    strerror(errno));
	}
	for (size_t i = 0; i < nitems(bad); i++) {
		uint64_t value;

		errno = 0;
		check(vm_set_register(vm->vcpu[0], bad[i], 0) != 0 &&
		    errno == EINVAL, "register %d: %s", bad[i],
		    strerror(errno));
		check(vm_get_register(vm->vcpu[0], bad[i], &value) != 0 &&
		    errno == EINVAL, "register %d: %s", bad[i],
		    strerror(errno));
	}
	vm_free(vm);
}

/* vcpu_reset() clears everything that was set (SDM 3, table 10-1). */
static void
reset(const void *arg __unused)
{
	static const int general[] = { VM_REG_GUEST_RAX, VM_REG_GUEST_RBX,
	    VM_REG_GUEST_RCX, VM_REG_GUEST_RSI, VM_REG_GUEST_RDI,
	    VM_REG_GUEST_RBP, VM_REG_GUEST_RSP, VM_REG_GUEST_R8,
	    VM_REG_GUEST_R9, VM_REG_GUEST_R10, VM_REG_GUEST_R11,
	    VM_REG_GUEST_R12, VM_REG_GUEST_R13, VM_REG_GUEST_R14,
	    VM_REG_GUEST_R15, VM_REG_GUEST_CR2 };
	struct vm *vm = vm_new();

	for (size_t i = 0; i < nitems(general); i++)
		set_reg(vm, general[i], 0x5a5a0000 + i);
	set_reg(vm, VM_REG_GUEST_DR6, 0xffff4ff1);
	set_reg(vm, VM_REG_GUEST_DR7, 0x455);
	check(vcpu_reset(vm->vcpu[0]) == 0, "it fails: %s", strerror(errno));
	for (size_t i = 0; i < nitems(general); i++)
		equal_at("register", (unsigned)general[i],
		    reg(vm, general[i]), 0);
	equal("RDX", reg(vm, VM_REG_GUEST_RDX), 0xf00);
	equal("EFER", reg(vm, VM_REG_GUEST_EFER), EFER_HOST);
	equal("DR6", reg(vm, VM_REG_GUEST_DR6), 0xffff0ff0);
	equal("DR7", reg(vm, VM_REG_GUEST_DR7), 0x400);
	equal("the interrupt shadow", reg(vm, VM_REG_GUEST_INTR_SHADOW), 0);
	vm_free(vm);
}

/* An injected exception ends the shadow of STI and MOV SS. */
static void
shadow(const void *arg __unused)
{
	struct vm *vm = vm_new();

	/* sti; the OUT that ends the run has not been executed. */
	RUN(vm, 0xfb);
	expect_done(vm);
	check(reg(vm, VM_REG_GUEST_INTR_SHADOW) != 0,
	    "there is no shadow after STI");
	check(vm_inject_exception(vm->vcpu[0], 6, 0, 0, 1) == 0,
	    "#UD is refused");
	equal("the interrupt shadow", reg(vm, VM_REG_GUEST_INTR_SHADOW), 0);
	vm_free(vm);
}

/*
 * Open a VM to reinitialize it while it runs: refused, and it is still there.
 */
static void
open_reinit(const void *arg __unused)
{
#ifdef VMMAPI_OPEN_REINIT
	struct vm *vm = vm_new();
	struct vmctx *again;

	RUN(vm, 0x90);
	expect_done(vm);
	errno = 0;
	again = vm_openf(vm->name, VMMAPI_OPEN_CREATE | VMMAPI_OPEN_REINIT);
	check(again == NULL && errno == EBUSY, "it is opened: %s",
	    strerror(errno));
	if (again != NULL)
		vm_close(again);
	again = vm_openf(vm->name, 0);
	check(again != NULL,
	    "the VM does not exist any more: %s", strerror(errno));
	if (again != NULL)
		vm_close(again);
	RUN(vm, 0x90);
	expect_done(vm);
	vm_free(vm);
#else
	skip(N_A "this libvmmapi has no vm_openf()");
#endif
}

/*
 * The host's descriptor tables have the same limits after a run.  A VM exit
 * sets both limits to 0xffff (SDM 3, 28.5.2), which no kernel uses.  Since the
 * first VM after boot they may have been wrong already.
 */
static void
host_tables(const void *arg __unused)
{
	struct { uint16_t limit; uint64_t base; } __packed before[2], after[2];
	struct vm *vm = vm_new();
	uint16_t ldt[2];

	__asm __volatile("sgdt %0; sidt %1; sldt %2" : "=m" (before[0]),
	    "=m" (before[1]), "=m" (ldt[0]));
	RUN(vm, 0x90);
	expect_done(vm);
	__asm __volatile("sgdt %0; sidt %1; sldt %2" : "=m" (after[0]),
	    "=m" (after[1]), "=m" (ldt[1]));
	equal("the GDT's limit", after[0].limit, before[0].limit);
	check(after[0].limit != 0xffff, "the GDT's limit is 0xffff");
	equal("the IDT's limit: 256 gates", after[1].limit, 256 * 16 - 1);
	equal("the IDT's base", after[1].base, before[1].base);
	equal("the LDT", ldt[1], ldt[0]);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "state.fresh", "a new vCPU's debug registers and TPR have their "
	    "first values", fresh, NULL },
	{ "state.bases",
	    "a debugger can read segment bases and the TPR", bases, NULL },
	{ "state.fields",
	    "fields of the VMCS or VMCB cannot be written by number", fields,
	    NULL },
	{ "state.reset",
	    "a vCPU's reset clears all that was set", reset, NULL },
	{ "state.shadow", "an injected exception ends the interrupt shadow",
	    shadow, NULL },
	{ "state.open_reinit", "opening a running VM does not reinitialize it",
	    open_reinit, NULL },
	{ "state.host_tables", "the host's descriptor tables stay the same",
	    host_tables, NULL },
};

GROUP(fresh, tests);
