/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Capabilities can be set, read, and have their effect.  Statistics count
 * exactly.
 */

#include <errno.h>
#include <string.h>
#include <time.h>

#include "devices.h"

struct capability {
	const char	*name;
	enum vm_cap_type type;
	bool		intel, amd;	/* can be set and cleared there */
};

static const struct capability capabilities[] = {
	{ "hlt_exit", VM_CAP_HALT_EXIT, true, true },
	{ "mtrap_exit", VM_CAP_MTRAP_EXIT, true, false },
	{ "pause_exit", VM_CAP_PAUSE_EXIT, true, true },
	{ "bpt_exit", VM_CAP_BPT_EXIT, true, true },
	{ "ipi_exit", VM_CAP_IPI_EXIT, true, true },
};

static void
set_and_got(const void *arg __unused)
{
	struct vm *vm = vm_new();
	int value;

	for (size_t i = 0; i < nitems(capabilities); i++) {
		const struct capability *it = &capabilities[i];
		bool ours = intel ? it->intel : it->amd;

		check(vm_capability_name2type(it->name) == (int)it->type,
		    "%s is not %d", it->name, it->type);
		if (!ours) {
			errno = 0;
			check(vm_set_capability(vm->vcpu[0], it->type, 1) !=
			    0, "%s can be set", it->name);
			continue;
		}
		/* The processor does not have this capability. */
		if (vm_get_capability(vm->vcpu[0], it->type, &value) != 0 &&
		    errno == ENOENT)
			continue;
		for (int wanted = 1; wanted >= 0; wanted--) {
			check(vm_set_capability(vm->vcpu[0], it->type,
			    wanted) == 0, "%s cannot be %d: %s", it->name,
			    wanted, strerror(errno));
			value = -1;
			check(vm_get_capability(vm->vcpu[0], it->type,
			    &value) == 0 && value == wanted,
			    "%s is %d, not %d", it->name, value, wanted);
		}
	}
	check(vm_get_capability(vm->vcpu[0], VM_CAP_UNRESTRICTED_GUEST,
	    &value) == 0 && value == 1, "the guest is not unrestricted");
	if (!intel)
		check(vm_set_capability(vm->vcpu[0],
		    VM_CAP_UNRESTRICTED_GUEST, 0) != 0,
		    "unrestricted_guest can be cleared on AMD");
	errno = 0;
	check(vm_set_capability(vm->vcpu[0], VM_CAP_MAX, 1) != 0 &&
	    errno == EINVAL, "no such capability: %s", strerror(errno));
	check(vm_get_capability(vm->vcpu[0], (enum vm_cap_type)-1, &value) !=
	    0 && errno == EINVAL, "capability -1: %s", strerror(errno));
	vm_free(vm);
}

/* PAUSE causes an exit if that is enabled; otherwise it is executed. */
static void
pause_exit(const void *arg __unused)
{
	struct vm *vm = vm_new();

	RUN(vm, 0xf3, 0x90);
	expect_done(vm);
	check(vm_set_capability(vm->vcpu[0], VM_CAP_PAUSE_EXIT, 1) == 0,
	    "it cannot be set: %s", strerror(errno));
	RUN(vm, 0xf3, 0x90);
	check(vm->exit.exitcode == VM_EXITCODE_PAUSE &&
	    vm->exit.rip == A_CODE && vm->exit.inst_length == 2,
	    "exit %s at %#jx, length %d", exit_name(vm->exit.exitcode),
	    (uintmax_t)vm->exit.rip, vm->exit.inst_length);
	(void)run(vm);
	expect_done(vm);
	vm_free(vm);
}

/* INT3 causes an exit with its length, or an exception in the guest. */
static void
bpt_exit(const void *arg __unused)
{
	struct vm *vm = vm_new();

	/*
	 * Raise an exception first, so that all its memory is mapped
	 * (fresh_soft_64).
	 */
	RUN(vm, 0x0f, 0x0b);
	check(vm_set_capability(vm->vcpu[0], VM_CAP_BPT_EXIT, 1) == 0,
	    "it cannot be set: %s", strerror(errno));
	RUN(vm, 0x90, 0xcc);
	check(vm->exit.exitcode == VM_EXITCODE_BPT &&
	    vm->exit.rip == A_CODE + 1 && vm->exit.u.bpt.inst_length == 1 &&
	    vm->exit.inst_length == 0, "exit %s at %#jx, lengths %d and %d",
	    exit_name(vm->exit.exitcode), (uintmax_t)vm->exit.rip,
	    vm->exit.u.bpt.inst_length, vm->exit.inst_length);
	check(vm_set_capability(vm->vcpu[0], VM_CAP_BPT_EXIT, 0) == 0,
	    "it cannot be cleared: %s", strerror(errno));
	RUN(vm, 0x90, 0xcc);
	check(vm->fault.vector == 3 && vm->fault.rip == A_CODE + 2,
	    "vector %d at %#jx", vm->fault.vector, (uintmax_t)vm->fault.rip);
	vm_free(vm);
}

/* Step through one instruction at a time. */
static void
mtrap_exit(const void *arg __unused)
{
	static const uint8_t nops[] = { 0x90, 0x90, 0x90 };
	struct vm *vm = vm_new();

	if (!intel)
		skip(N_A "the monitor trap flag is Intel's");
	if (vm_set_capability(vm->vcpu[0], VM_CAP_MTRAP_EXIT, 1) != 0 &&
	    errno == ENOENT)
		skip(N_A "this processor has no monitor trap flag");
	check(vm_set_capability(vm->vcpu[0], VM_CAP_MTRAP_EXIT, 1) == 0,
	    "it cannot be set: %s", strerror(errno));
	code(vm, nops, sizeof(nops));
	for (unsigned i = 1; i <= 3; i++) {
		(void)run(vm);
		check(vm->exit.exitcode == VM_EXITCODE_MTRAP, "exit %s",
		    exit_name(vm->exit.exitcode));
		equal("RIP", reg(vm, VM_REG_GUEST_RIP), A_CODE + i);
	}
	check(vm_set_capability(vm->vcpu[0], VM_CAP_MTRAP_EXIT, 0) == 0,
	    "it cannot be cleared: %s", strerror(errno));
	(void)run(vm);
	expect_done(vm);
	vm_free(vm);
}

/* RFLAGS.TF causes one step, and the guest does not see it. */
static void
rflags_tf(const void *arg __unused)
{
	static const uint8_t nops[] = { 0x90, 0x90, 0x90 };
	struct vm *vm = vm_new();

	if (intel)
		skip(N_A "rflags_tf is AMD's");
	if (emulated)
		skip(N_A "Bochs resets its machine at a #DB that is "
		    "intercepted");
	code(vm, nops, sizeof(nops));
	if (vm_set_capability(vm->vcpu[0], VM_CAP_RFLAGS_TF, 1) != 0)
		fail("it cannot be set: %s", strerror(errno));
	(void)run(vm);
	check(vm->exit.exitcode == VM_EXITCODE_DB, "exit %s",
	    exit_name(vm->exit.exitcode));
	equal("RIP", reg(vm, VM_REG_GUEST_RIP), A_CODE + 1);
	check(vm_set_capability(vm->vcpu[0], VM_CAP_RFLAGS_TF, 0) == 0,
	    "it cannot be cleared: %s", strerror(errno));
	(void)run(vm);
	expect_done(vm);
	vm_free(vm);
}

static uint64_t
statistic(struct vm *vm, const char *wanted)
{
	struct timeval time;
	uint64_t *values;
	const char *name;
	int entries = 0;

	values = vm_get_stats(vm->vcpu[0], &time, &entries);
	if (values == NULL)
		fail("there are no statistics: %s", strerror(errno));
	for (int i = 0; i < entries; i++) {
		name = vm_get_stat_desc(vm->ctx, i);
		if (name != NULL && strcmp(name, wanted) == 0)
			return (values[i]);
	}
	fail("there is no statistic \"%s\"", wanted);
}

struct counter {
	const char	*name;
	uint8_t		code[8];
	size_t		length;
	uint64_t	by;		/* and one OUT at the end of the code */
};

static const struct counter counters[] = {
	{ "number of times cpuid was intercepted",
	    { 0x31, 0xc0, 0x0f, 0xa2, 0x31, 0xc0, 0x0f, 0xa2 }, 8, 2 },
	/* mov $0x1b, %ecx; rdmsr: APIC_BASE */
	{ "number of times rdmsr was intercepted",
	    { 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32 }, 7, 1 },
	/* mov $0x71, %edx; in (%dx), %al */
	{ "number of times in/out was intercepted",
	    { 0xba, 0x71, 0, 0, 0, 0xec }, 6, 2 },
	{ "number of vm exits handled in userspace", { 0x90 }, 1, 1 },
	/* mov $HPET, %ecx; mov (%rcx), %eax */
	{ "vm exits for instruction emulation",
	    { 0xb9, 0x00, 0x00, 0xd0, 0xfe, 0x8b, 0x01 }, 7, 1 },
};

static void
counted(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint64_t before, after, exits, all;

	/* In the first round memory is mapped, which causes more exits. */
	for (int round = 0; round < 2; round++) {
		for (size_t i = 0; i < nitems(counters); i++) {
			before = statistic(vm, counters[i].name);
			exits = statistic(vm, "total number of vm exits");
			code(vm, counters[i].code, counters[i].length);
			(void)run(vm);
			expect_done(vm);
			after = statistic(vm, counters[i].name);
			all = statistic(vm, "total number of vm exits");
			check(all - exits >= after - before,
			    "there were %ju exits", (uintmax_t)(all - exits));
			if (round == 1)
				equal(counters[i].name, after - before,
				    counters[i].by);
		}
	}
	vm_free(vm);
}

/*
 * Exits that the kernel handles do not count as exits to bhyve.  A signal or
 * the scheduler may cause one more, so the best of several tries counts.
 */
static void
userspace_counted(const void *arg __unused)
{
	static const char name[] = "number of vm exits handled in userspace";
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);
	uint64_t before, made = 0;

	for (unsigned tries = 0; tries < 5 && made != 1; tries++) {
		set_lapic(vm, L_ICR, 0x40000 | 0x61);
		before = statistic(vm, name);
		/*
		 * sti; hlt; cli, and ports of the PIC: the kernel handles all
		 * of them.
		 */
		RUN(vm, 0xfb, 0xf4, 0xfa, 0xe4, 0x21, 0xe4, 0x21);
		expect_done(vm);
		made = statistic(vm, name) - before;
	}
	equal("exits for bhyve", made, 1);
	vm_free(vm);
}

static void
devices_counted(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);
	uint64_t before;

	before = statistic(vm, "EOI without any in-service interrupt");
	set_lapic(vm, L_EOI, 0);
	/* An EOI is not an exit if the processor delivers interrupts. */
	if (!apicv)
		equal("EOIs without an interrupt", statistic(vm,
		    "EOI without any in-service interrupt") - before, 1);
	before = statistic(vm, "ipis sent from vcpu");
	set_lapic(vm, L_ICR_HIGH, 0);
	set_lapic(vm, L_ICR, 0x61);
	equal("IPIs sent", statistic(vm, "ipis sent from vcpu") - before, 1);
	window(vm);
	before = statistic(vm, "number of NMIs delivered to vcpu");
	check(vm_inject_nmi(vm->vcpu[0]) == 0, "an NMI is refused");
	RUN(vm, 0x90);
	equal("NMIs", statistic(vm, "number of NMIs delivered to vcpu") -
	    before, 1);
	vm_free(vm);
}

/* Every index up to the last has a name, and none after it. */
static void
names(const void *arg __unused)
{
	struct vm *vm = vm_new();
	int last = 0;

	while (last < 1000 && vm_get_stat_desc(vm->ctx, last) != NULL)
		last++;
	check(last > 20 && last < 1000, "there are %d statistics", last);
	check(vm_get_stat_desc(vm->ctx, -1) == NULL, "-1 has a name");
	equal("2 MiB of memory, at most, are resident",
	    statistic(vm, "Resident memory") > MEM_BYTES, 0);
	equal("wired memory", statistic(vm, "Wired memory"), 0);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "capability.set_and_got", "capabilities can be set and read again",
	    set_and_got, NULL },
	{ "capability.pause_exit",
	    "PAUSE causes an exit only if that is enabled", pause_exit,
	    NULL },
	{ "capability.bpt_exit",
	    "INT3 causes an exit only if that is enabled", bpt_exit,
	    NULL },
	{ "capability.mtrap_exit", "single steps work on Intel",
	    mtrap_exit, NULL },
	{ "capability.rflags_tf", "single steps work on AMD",
	    rflags_tf, NULL },
	{ "statistic.counted", "exits are counted exactly", counted, NULL },
	{ "statistic.userspace_counted",
	    "only exits to bhyve count as exits to bhyve",
	    userspace_counted, NULL },
	{ "statistic.devices_counted", "events of devices are counted",
	    devices_counted, NULL },
	{ "statistic.names", "every statistic has a name", names, NULL },
};

GROUP(capability, tests);
