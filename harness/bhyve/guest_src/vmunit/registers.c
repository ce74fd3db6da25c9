/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Control registers with every general register, and registers that only the
 * host can read.
 */

#include <machine/psl.h>
#include <machine/specialreg.h>

#include <errno.h>
#include <string.h>

#include "vmunit.h"

static const int general[] = { VM_REG_GUEST_RAX, VM_REG_GUEST_RCX,
	VM_REG_GUEST_RDX, VM_REG_GUEST_RBX, VM_REG_GUEST_RSP, VM_REG_GUEST_RBP,
	VM_REG_GUEST_RSI, VM_REG_GUEST_RDI, VM_REG_GUEST_R8, VM_REG_GUEST_R9,
	VM_REG_GUEST_R10, VM_REG_GUEST_R11, VM_REG_GUEST_R12,
	VM_REG_GUEST_R13, VM_REG_GUEST_R14, VM_REG_GUEST_R15 };

/*
 * A MOV between a control register and a general one (SDM 2, "MOV - Move
 * to/from Control Registers").  Only the general register `which` has the
 * value.
 */
static bool
move(struct vm *vm, unsigned cr, unsigned which, bool to, uint64_t value,
    uint64_t others)
{
	uint8_t bytes[4];
	unsigned used = 0;

	/*
	 * REX.R is the fourth bit of CR8, REX.B that of the general register.
	 */
	if (cr >= 8 || which >= 8)
		bytes[used++] = (uint8_t)(0x40 | (cr >= 8 ? 4 : 0) |
		    (which >= 8 ? 1 : 0));
	bytes[used++] = 0x0f;
	bytes[used++] = to ? 0x22 : 0x20;
	bytes[used++] = (uint8_t)(0xc0 | (cr & 7) << 3 | (which & 7));
	code(vm, bytes, used);
	for (unsigned i = 0; i < nitems(general); i++)
		set_reg(vm, general[i], i == which ? value : others);
	return (run(vm));
}

struct control {
	unsigned	cr;
	uint64_t	value, others;
};

/*
 * A guest's value of a bit that vmm.ko controls is stored through every
 * register.  Bits 30 and 29 of CR0 are CD and NW; bit 16 is WP.
 */
static void
every_register(const void *arg)
{
	const struct control *control = arg;
	struct vm *vm = vm_new();

	for (unsigned which = 0; which < nitems(general); which++) {
		check(move(vm, control->cr, which, true, control->value,
		    control->others), "to CR%u from register %u: exit %s, "
		    "vector %d", control->cr, which,
		    exit_name(vm->exit.exitcode), vm->fault.vector);
		check(move(vm, control->cr, which, false, 0, 0x5555),
		    "from CR%u to register %u: exit %s, vector %d",
		    control->cr, which, exit_name(vm->exit.exitcode),
		    vm->fault.vector);
		equal_at("through register", which,
		    reg(vm, general[which]), control->value);
		check(move(vm, control->cr, 0, true, control->others,
		    control->value), "CR%u cannot be set back", control->cr);
	}
	vm_free(vm);
}

/*
 * CR4.VMXE: a processor without VMX, as CPUID shows it to the guest, raises
 * #GP(0).  vmm.ko accepts what the guest writes.
 */
static void
vmxe(const void *arg __unused)
{
	struct vm *vm;

	if (!intel)
		skip(N_A "on AMD vmm.ko does not see a guest's CR4");
	vm = vm_new();
	for (unsigned which = 0; which < nitems(general); which++) {
		if (!move(vm, 4, which, true, 0x20a0, 0x20)) {
			check(vm->fault.vector == 13 && vm->fault.error == 0,
			    "from register %u: exit %s, vector %d", which,
			    exit_name(vm->exit.exitcode), vm->fault.vector);
			continue;
		}
		(void)move(vm, 4, which, false, 0, 0x5555);
		equal_at("CR4 through register", which,
		    reg(vm, general[which]), 0x20a0);
		equal("the host's CR4 without VMXE",
		    reg(vm, VM_REG_GUEST_CR4) & ~0x2000ul, 0xa0);
		check(move(vm, 4, 0, true, 0x20, 0x20a0),
		    "it cannot be cleared");
	}
	vm_free(vm);
}

/* The entries of PAE's directory, which the processor loads itself. */
static void
pdptes(const void *arg __unused)
{
	static const int numbers[] = { VM_REG_GUEST_PDPTE0,
	    VM_REG_GUEST_PDPTE1, VM_REG_GUEST_PDPTE2, VM_REG_GUEST_PDPTE3 };
	struct vm *vm = vm_new();

	if (!intel)
		skip(N_A "the VMCB has no PDPTEs");
	for (size_t i = 0; i < nitems(numbers); i++)
		set_reg(vm, numbers[i], 0x1000 * (i + 1) | 1);
	for (size_t i = 0; i < nitems(numbers); i++)
		equal_at("PDPTE", i, reg(vm, numbers[i]), 0x1000 * (i + 1) | 1);
	set_reg(vm, VM_REG_GUEST_ENTRY_INST_LENGTH, 3);
	equal("the instruction's length",
	    reg(vm, VM_REG_GUEST_ENTRY_INST_LENGTH), 3);
	vm_free(vm);
}

/*
 * Descriptors: base, limit and access rights can be set and read; other
 * registers have none.
 */
static void
descriptors(const void *arg __unused)
{
	static const struct { const char *name; int number; uint32_t access; }
	    all[] = {
		{ "ES", VM_REG_GUEST_ES, 0xc093 },
		{ "CS", VM_REG_GUEST_CS, 0xa09b },
		{ "SS", VM_REG_GUEST_SS, 0xc093 },
		{ "DS", VM_REG_GUEST_DS, 0xc091 },
		{ "FS", VM_REG_GUEST_FS, 0xc093 },
		{ "GS", VM_REG_GUEST_GS, 0x10000 },
		{ "TR", VM_REG_GUEST_TR, 0x8b },
		{ "LDTR", VM_REG_GUEST_LDTR, 0x82 },
		{ "GDTR", VM_REG_GUEST_GDTR, 0 },
		{ "IDTR", VM_REG_GUEST_IDTR, 0 },
	};
	static const int none[] = { -1, VM_REG_GUEST_RAX, VM_REG_GUEST_CR0,
	    VM_REG_LAST, 1000 };
	struct vm *vm = vm_new();
	uint64_t base;
	uint32_t limit, access;

	for (size_t i = 0; i < nitems(all); i++)
		check(vm_set_desc(vm->vcpu[0], all[i].number,
		    0x10000 * (i + 1), (uint32_t)(0x100 * (i + 1) - 1),
		    all[i].access) == 0, "%s cannot be set: %s", all[i].name,
		    strerror(errno));
	for (size_t i = 0; i < nitems(all); i++) {
		base = limit = access = 0;
		check(vm_get_desc(vm->vcpu[0], all[i].number, &base, &limit,
		    &access) == 0, "%s cannot be read: %s", all[i].name,
		    strerror(errno));
		check(base == 0x10000 * (i + 1) && limit == 0x100 * (i + 1) - 1,
		    "%s: base %#jx, limit %#x", all[i].name, (uintmax_t)base,
		    limit);
		if (i < 8)
			check((access & 0x10000) != 0 ?
			    (all[i].access & 0x10000) != 0 :
			    access == all[i].access, "%s: rights %#x, not %#x",
			    all[i].name, access, all[i].access);
	}
	for (size_t i = 0; i < nitems(none); i++) {
		errno = 0;
		check(vm_get_desc(vm->vcpu[0], none[i], &base, &limit,
		    &access) != 0 && errno == EINVAL, "reading %d: %s",
		    none[i], strerror(errno));
		errno = 0;
		check(vm_set_desc(vm->vcpu[0], none[i], 0, 0, 0x93) != 0 &&
		    errno == EINVAL, "setting %d: %s", none[i],
		    strerror(errno));
	}
	vm_free(vm);
}

/* Numbers that are not registers, alone and in sets. */
static void
no_registers(const void *arg __unused)
{
	static const int bad[] = { -1, VM_REG_LAST, VM_REG_LAST + 1, 4096,
	    -0x6c16 };
	struct vm *vm = vm_new();
	uint64_t value = 0;

	for (size_t i = 0; i < nitems(bad); i++) {
		int numbers[2] = { VM_REG_GUEST_RAX, bad[i] };
		uint64_t values[2] = { 0x77, 0x88 };

		check(vm_get_register(vm->vcpu[0], bad[i], &value) != 0,
		    "%d can be read", bad[i]);
		errno = 0;
		check(vm_set_register(vm->vcpu[0], bad[i], 1) != 0 &&
		    errno == EINVAL, "setting %d: %s", bad[i],
		    strerror(errno));
		check(vm_get_register_set(vm->vcpu[0], 2, numbers, values) !=
		    0, "%d can be read in a set", bad[i]);
		check(vm_set_register_set(vm->vcpu[0], 2, numbers, values) !=
		    0, "%d can be set in a set", bad[i]);
	}
	vm_free(vm);
}

/* The state that libvmmapi sets up for a FreeBSD kernel, 64 and 32 bits. */
static void
freebsd(const void *arg)
{
	bool wide = *(const bool *)arg;
	/* mov $0x5a, %eax; out %al, $PORT_DONE: the same in both modes */
	static const uint8_t bytes[] = { 0xb8, 0x5a, 0, 0, 0, 0xe6,
	    PORT_DONE };
	struct vm *vm = vm_new();
	uint64_t gdt[3] = { 1, 1, 1 };

	memcpy(vm->mem + A_CODE, bytes, sizeof(bytes));
	if (wide) {
		vm_setup_freebsd_gdt(gdt);
		check(gdt[0] == 0, "the null descriptor is not zero");
		check((gdt[1] >> 40 & 0x98) == 0x98 && (gdt[1] >> 53 & 1) == 1,
		    "the code's descriptor is %#jx", (uintmax_t)gdt[1]);
		memcpy(vm->mem + A_GDT, gdt, sizeof(gdt));
		check(vm_setup_freebsd_registers(vm->vcpu[0], A_CODE,
		    cr3_of(LONG64, W_RAM), A_GDT, A_STACK) == 0,
		    "it cannot be set up: %s", strerror(errno));
		equal("CR3", reg(vm, VM_REG_GUEST_CR3), cr3_of(LONG64, W_RAM));
		equal("long mode", reg(vm, VM_REG_GUEST_EFER) &
		    (EFER_LME | EFER_LMA), EFER_LME | EFER_LMA);
		equal("paging", reg(vm, VM_REG_GUEST_CR0) & (CR0_PE | CR0_PG),
		    CR0_PE | CR0_PG);
	} else {
		check(vm_setup_freebsd_registers_i386(vm->vcpu[0], A_CODE,
		    A_DATA, A_STACK) == 0, "it cannot be set up: %s",
		    strerror(errno));
		equal("no long mode", reg(vm, VM_REG_GUEST_EFER) &
		    (EFER_LME | EFER_LMA), 0);
		equal("no paging", reg(vm, VM_REG_GUEST_CR0) &
		    (CR0_PE | CR0_PG), CR0_PE);
		vm->mode = PROT32;
	}
	equal("RIP", reg(vm, VM_REG_GUEST_RIP), A_CODE);
	equal("RSP", reg(vm, VM_REG_GUEST_RSP), A_STACK);
	equal("CS", reg(vm, VM_REG_GUEST_CS), 8);
	equal("DS", reg(vm, VM_REG_GUEST_DS), 0x10);
	equal("RFLAGS", reg(vm, VM_REG_GUEST_RFLAGS), 2);
	(void)run(vm);
	expect_done(vm);
	equal("RAX", reg(vm, VM_REG_GUEST_RAX), 0x5a);
	vm_free(vm);
}

#define	CONTROL(_cr, _value, _others)					\
	&(const struct control){ _cr, _value, _others }
static const struct test tests[] = {
	{ "state.cr0_moves",
	    "CR0 can be moved through every general register", every_register,
	    CONTROL(0, 0xc0010031, 0x80000031) },
	{ "state.cr4_moves",
	    "CR4 can be moved through every general register", every_register,
	    CONTROL(4, 0x6a0, 0x20) },
	{ "state.cr8_moves",
	    "CR8 can be moved through every general register", every_register,
	    CONTROL(8, 9, 0) },
	{ "state.cr4_vmxe",
	    "setting CR4.VMXE is handled through every general register", vmxe,
	    NULL },
	{ "state.pdptes",
	    "PDPTEs and an instruction's length can be read", pdptes,
	    NULL },
	{ "state.descriptors", "descriptors are read as they are set",
	    descriptors, NULL },
	{ "state.no_registers",
	    "numbers that are not registers are refused", no_registers,
	    NULL },
	{ "library.freebsd_64",
	    "libvmmapi sets up a vCPU for a 64-bit kernel", freebsd,
	    &(const bool){ true } },
	{ "library.freebsd_32",
	    "libvmmapi sets up a vCPU for a 32-bit kernel", freebsd,
	    &(const bool){ false } },
};

GROUP(registers, tests);
