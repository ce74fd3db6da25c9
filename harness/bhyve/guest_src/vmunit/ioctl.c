/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Rarely used functions of libvmmapi and ioctls: their results. */

#include <sys/param.h>
#include <sys/domainset.h>
#include <sys/ioctl.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices.h"
#include "second.h"

/* The host accesses the kernel's devices: it sees what the guest sees. */
static void
kernel_devices(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(0);
	struct vcpu *vcpu = vm->vcpu[0];
	uint64_t value = 0;

	check(vm_readwrite_kernemu_device(vcpu, LAPIC + L_VERSION, false, 4,
	    &value) == 0, "the local APIC is not read: %s", strerror(errno));
	equal("the local APIC's version", (uint32_t)value,
	    lapic(vm, L_VERSION));
	value = 0x30;
	check(vm_readwrite_kernemu_device(vcpu, LAPIC + L_TPR, true, 4,
	    &value) == 0, "the local APIC is not written: %s",
	    strerror(errno));
	value = 0;
	check(vm_readwrite_kernemu_device(vcpu, LAPIC + L_TPR, false, 4,
	    &value) == 0 && (uint32_t)value == 0x30, "TPR is %#jx",
	    (uintmax_t)value);
	value = 1;
	check(vm_readwrite_kernemu_device(vcpu, IOAPIC, true, 4, &value) == 0,
	    "the I/O APIC's index is not written: %s", strerror(errno));
	value = 0;
	check(vm_readwrite_kernemu_device(vcpu, IOAPIC + 0x10, false, 4,
	    &value) == 0 && (uint32_t)value == 0x001f0011,
	    "the I/O APIC's version is %#jx", (uintmax_t)value);
	value = 0;
	check(vm_readwrite_kernemu_device(vcpu, HPET, false, 8, &value) == 0,
	    "the HPET is not read: %s", strerror(errno));
	equal("the HPET's capabilities", value, hpet(vm, 0, 8));
	check(vm_readwrite_kernemu_device(vcpu, HPET, false, 4, &value) == 0,
	    "the HPET is not read: %s", strerror(errno));
	equal("their lower half", (uint32_t)value, hpet(vm, 0, 4));
	errno = 0;
	check(vm_readwrite_kernemu_device(vcpu, 0x1000, false, 4, &value) != 0 &&
	    errno == EINVAL, "memory: %s", strerror(errno));
	check(vm_readwrite_kernemu_device(vcpu, LAPIC - 4, false, 4, &value) !=
	    0, "below the local APIC");
	check(vm_readwrite_kernemu_device(vcpu, LAPIC + PAGE_SIZE, false, 4,
	    &value) != 0, "above the local APIC");
	vm_free(vm);
}

/* The mode of a vCPU's APIC is read as it was set; other modes are refused. */
static void
x2apic_state(const void *arg __unused)
{
	struct vm *vm = vm_new();
	enum x2apic_state state = X2APIC_STATE_LAST;

	for (int wanted = X2APIC_ENABLED; wanted >= X2APIC_DISABLED; wanted--) {
		check(vm_set_x2apic_state(vm->vcpu[0],
		    (enum x2apic_state)wanted) == 0, "%d is refused: %s",
		    wanted, strerror(errno));
		check(vm_get_x2apic_state(vm->vcpu[0], &state) == 0 &&
		    (int)state == wanted, "it is %d, not %d", (int)state,
		    wanted);
	}
	errno = 0;
	check(vm_set_x2apic_state(vm->vcpu[0], X2APIC_STATE_LAST) != 0 &&
	    errno == EINVAL, "no such state: %s", strerror(errno));
	vm_free(vm);
}

/* Every capability has a name, and no two have the same. */
static void
names(const void *arg __unused)
{
	for (int type = 0; type < VM_CAP_MAX; type++) {
		const char *name = vm_capability_type2name(type);

		/* The newest one may not have a name yet. */
		if (name == NULL)
			continue;
		equal(name, (unsigned)vm_capability_name2type(name),
		    (unsigned)type);
	}
	check(vm_capability_name2type("hlt_exit") == VM_CAP_HALT_EXIT &&
	    vm_capability_name2type("unrestricted_guest") ==
	    VM_CAP_UNRESTRICTED_GUEST, "names are others'");
	check(vm_capability_name2type("no such") < 0, "any name is one");
	check(vm_capability_type2name(-1) == NULL, "-1 has a name");
	check(vm_capability_type2name(VM_CAP_MAX) == NULL, "the end has a "
	    "name");
}

/*
 * Statistics can be read in parts: from any index on, and none after the last.
 */
static void
by_parts(const void *arg __unused)
{
	struct vm *vm = vm_new();
	struct vm_stats whole = { .cpuid = 0 }, part = { .cpuid = 0 };
	int total;

	if (ioctl(vm->fd, VM_STATS, &whole) != 0)
		fail("none: %s", strerror(errno));
	for (total = 0; total < 1000 &&
	    vm_get_stat_desc(vm->ctx, total) != NULL; total++)
		continue;
	check(whole.num_entries == MIN(total, MAX_VM_STATS),
	    "%d at once, of %d", whole.num_entries, total);
	part.index = 5;
	check(ioctl(vm->fd, VM_STATS, &part) == 0 && part.num_entries ==
	    MIN(total - 5, MAX_VM_STATS), "from 5 on there are %d",
	    part.num_entries);
	part.index = total;
	check(ioctl(vm->fd, VM_STATS, &part) != 0 || part.num_entries == 0,
	    "after the last there are %d", part.num_entries);
	part.index = -1;
	errno = 0;
	check(ioctl(vm->fd, VM_STATS, &part) != 0 && errno == EINVAL,
	    "from -1 on: %s", strerror(errno));
	vm_free(vm);
}

/* A debugger stops and releases all vCPUs at once. */
static void
all_stopped(const void *arg __unused)
{
	struct vm *vm = vm_with(3);
	cpuset_t cpus;

	check(vm_suspend_all_cpus(vm->ctx) == 0, "not stopped: %s",
	    strerror(errno));
	check(vm_debug_cpus(vm->ctx, &cpus) == 0 && CPU_COUNT(&cpus) == 3,
	    "%d are stopped", CPU_COUNT(&cpus));
	for (int cpu = 2; cpu >= 0; cpu--) {
		vm->cpu = cpu;
		RUN(vm, 0x90);
		check(vm->exit.exitcode == VM_EXITCODE_DEBUG,
		    "vCPU %d: exit %s", cpu, exit_name(vm->exit.exitcode));
	}
	check(vm_resume_cpu(vm->vcpu[1]) == 0, "vCPU 1 does not continue: %s",
	    strerror(errno));
	check(vm_debug_cpus(vm->ctx, &cpus) == 0 && CPU_COUNT(&cpus) == 2 &&
	    !CPU_ISSET(1, &cpus), "%d are stopped, not 2", CPU_COUNT(&cpus));
	check(vm_resume_all_cpus(vm->ctx) == 0, "they do not continue: %s",
	    strerror(errno));
	check(vm_debug_cpus(vm->ctx, &cpus) == 0 && CPU_COUNT(&cpus) == 0,
	    "%d are stopped, not 0", CPU_COUNT(&cpus));
	vm->cpu = 0;
	RUN(vm, 0x90);
	expect_done(vm);
	vm_free(vm);
}

/* The set of vCPUs of an IPI, in buffers that are too small and too large. */
static void
set_sizes(const void *arg __unused)
{
	struct vm *vm = vm_with(1);
	unsigned char room[sizeof(cpuset_t) + 16];
	struct vm_run vmrun = { .vm_exit = &vm->exit,
	    .cpuset = (cpuset_t *)(void *)room };
	const size_t sizes[] = { 1, sizeof(cpuset_t), sizeof(room) };

	check(vm_set_capability(vm->vcpu[0], VM_CAP_IPI_EXIT, 1) == 0,
	    "no ipi_exit: %s", strerror(errno));
	for (size_t i = 0; i < nitems(sizes); i++) {
		/* INIT to itself: all vCPUs that it addresses must run. */
		set_lapic(vm, L_ICR_HIGH, 0);
		memset(room, 0xff, sizeof(room));
		set_reg(vm, VM_REG_GUEST_RCX, LAPIC + L_ICR);
		set_reg(vm, VM_REG_GUEST_RAX, 0x4500);
		code(vm, (const uint8_t []){ 0x89, 0x01 }, 2);
		vmrun.cpusetsize = sizes[i];
		do {
			if (vm_run(vm->vcpu[0], &vmrun) != 0)
				fail("VM_RUN: %s", strerror(errno));
		} while (vm->exit.exitcode == VM_EXITCODE_BOGUS ||
		    vm->exit.exitcode == VM_EXITCODE_REQIDLE);
		check(vm->exit.exitcode == VM_EXITCODE_IPI, "exit %s",
		    exit_name(vm->exit.exitcode));
		equal("the set", room[0], 1);
		for (size_t at = 1; at < sizeof(room); at++) {
			if (room[at] != (at < sizes[i] ? 0 : 0xff)) {
				miss("with room for %zu, byte %zu is %#x",
				    sizes[i], at, room[at]);
				break;
			}
		}
		(void)run(vm);
	}
	vm_free(vm);
}

/* The host's page tables for a guest's address: the last entry is a page. */
static void
page_entries(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t entries[4] = { 0 };
	int count = 0;

	RUN(vm, 0x90);
	expect_done(vm);
	check(vm_get_gpa_pmap(vm->ctx, A_CODE, entries, &count) == 0,
	    "it cannot be read: %s", strerror(errno));
	check(count >= 2 && count <= 4, "there are %d entries", count);
	for (int i = 0; i < count && i < 4; i++)
		check((entries[i] & 1) != 0, "entry %d is %#jx", i,
		    (uintmax_t)entries[i]);
	/* Without memory the walk ends at an entry that is not valid. */
	count = 0;
	memset(entries, 0, sizeof(entries));
	check(vm_get_gpa_pmap(vm->ctx, 1ul << 40, entries, &count) == 0,
	    "it cannot be read: %s", strerror(errno));
	check(count < 4 && (count == 0 || (entries[count - 1] & 1) == 0),
	    "there are %d entries, the last is %#jx", count,
	    (uintmax_t)entries[count > 0 ? count - 1 : 0]);
	vm_free(vm);
}

/* Memory from a NUMA domain; sets of domains that do not exist are refused. */
static void
domains(const void *arg __unused)
{
/* In FreeBSD 14 a host has such policies, but a VM's memory has none. */
#ifdef VM_MAXMEMDOM
	struct vm *vm = vm_bare();
	domainset_t set;
	struct vm_memseg seg = { .segid = 0, .len = 1ul << 20,
	    .ds_mask = &set, .ds_mask_size = sizeof(set),
	    .ds_policy = DOMAINSET_POLICY_PREFER };

	DOMAINSET_ZERO(&set);
	errno = 0;
	check(ioctl(vm->fd, VM_ALLOC_MEMSEG, &seg) != 0,
	    "an empty set is accepted");
	DOMAINSET_SET(0, &set);
	seg.ds_mask_size = 1;
	errno = 0;
	check(ioctl(vm->fd, VM_ALLOC_MEMSEG, &seg) != 0 && errno == ERANGE,
	    "a set of one byte: %s", strerror(errno));
	seg.ds_mask_size = 1ul << 20;
	errno = 0;
	check(ioctl(vm->fd, VM_ALLOC_MEMSEG, &seg) != 0 && errno == ERANGE,
	    "a set of 1 MiB: %s", strerror(errno));
	seg.ds_mask_size = sizeof(set);
	seg.ds_policy = 1000;
	errno = 0;
	check(ioctl(vm->fd, VM_ALLOC_MEMSEG, &seg) != 0 && errno == EINVAL,
	    "no such policy: %s", strerror(errno));
	seg.ds_policy = DOMAINSET_POLICY_PREFER;
	check(ioctl(vm->fd, VM_ALLOC_MEMSEG, &seg) == 0, "domain 0: %s",
	    strerror(errno));
	seg.len = 0;
	check(ioctl(vm->fd, VM_GET_MEMSEG, &seg) == 0 && seg.len == 1ul << 20,
	    "its length is %zu", seg.len);
	vm_free(vm);
#else
	skip(N_A "this FreeBSD has no domains for a VM's memory");
#endif
}

/* ISA lines are also pins of the I/O APIC: asserted, held and released. */
static void
isa_levels(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EXIT);

	route(vm, 11, LEVEL | 0x9b);
	check(vm_isa_assert_irq(vm->ctx, 11, 11) == 0, "refused: %s",
	    strerror(errno));
	window(vm);
	equal("interrupts", count(vm, 0x9b), 1);
	set_lapic(vm, L_EOI, 0);
	window(vm);
	equal("interrupts while it is asserted", count(vm, 0x9b), 2);
	check(vm_isa_deassert_irq(vm->ctx, 11, 11) == 0, "refused: %s",
	    strerror(errno));
	set_lapic(vm, L_EOI, 0);
	window(vm);
	equal("interrupts after its end", count(vm, 0x9b), 2);
	check(vm_isa_assert_irq(vm->ctx, 16, -1) != 0, "IRQ 16 is asserted");
	check(vm_isa_deassert_irq(vm->ctx, 16, -1) != 0,
	    "IRQ 16 is deasserted");
	check(vm_isa_assert_irq(vm->ctx, 11, 32) != 0, "pin 32 is asserted");
	vm_free(vm);
}

static const struct test tests[] = {
	{ "library.kernel_devices",
	    "the host can use the kernel's devices as the guest does",
	    kernel_devices, NULL },
	{ "library.x2apic_state",
	    "the mode of a vCPU's APIC can be set and read", x2apic_state,
	    NULL },
	{ "library.names", "every capability has its own name", names, NULL },
	{ "statistic.by_parts",
	    "statistics can be read in parts", by_parts, NULL },
	{ "smp.all_stopped",
	    "a debugger can stop all vCPUs at once", all_stopped, NULL },
	{ "smp.set_sizes", "an exit's set of vCPUs fits buffers of every "
	    "size", set_sizes, NULL },
	{ "memory.page_entries",
	    "the host's page tables for a guest can be read",
	    page_entries, NULL },
	{ "memory.domains",
	    "memory can come from a NUMA domain", domains, NULL },
	{ "ioapic.isa_levels",
	    "levels of ISA lines reach the I/O APIC", isa_levels, NULL },
};

GROUP(ioctl, tests);
