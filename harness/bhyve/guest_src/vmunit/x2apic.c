/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* The x2APIC (SDM 3, 11.12), and other than fixed IPIs. */

#include <errno.h>
#include <string.h>

#include "devices.h"
#include "second.h"

#define	MSR(offset)	(0x800u + (offset) / 0x10u)

/* A VM with this number of vCPUs in x2APIC mode, which are enabled. */
static struct vm *
vm_with_x2apics(int vcpus)
{
	struct vm *vm = vcpus > 1 ? vm_with(vcpus) : vm_new();

	for (int i = vcpus - 1; i >= 0; i--) {
		vm->cpu = i;
		if (vm_set_x2apic_state(vm->vcpu[i], X2APIC_ENABLED) != 0)
			fail("no x2APIC: %s", strerror(errno));
		if (!g_wrmsr(vm, MSR(L_SVR), 0x1ff))
			fail("SVR cannot be written");
	}
	return (vm);
}

static uint64_t
x2(struct vm *vm, int vcpu, unsigned offset)
{
	uint64_t value = ~0ul;

	vm->cpu = vcpu;
	check(g_rdmsr(vm, MSR(offset), &value), "register %#x of vCPU %d "
	    "cannot be read", offset, vcpu);
	vm->cpu = 0;
	return (value);
}

/* Table 11-6: the values of the registers after a reset. */
static void
registers(const void *arg __unused)
{
	static const struct { unsigned offset; uint64_t value; } wanted[] = {
		{ L_TPR, 0 }, { L_PPR, 0 }, { L_SVR, 0x1ff }, { L_ISR, 0 },
		{ L_ISR + 0x70, 0 }, { L_TMR, 0 }, { L_TMR + 0x70, 0 },
		{ L_IRR, 0 }, { L_IRR + 0x70, 0 }, { L_ESR, 0 },
		{ L_CMCI, MASKED }, { L_ICR, 0 }, { L_TIMER, MASKED },
		{ L_THERMAL, MASKED }, { L_PERF, MASKED },
		{ L_LINT0, MASKED }, { L_LINT1, MASKED }, { L_ERROR, MASKED },
		{ L_COUNT, 0 }, { L_CURRENT, 0 }, { L_DIVIDE, 0 },
	};
	struct vm *vm = vm_with_x2apics(4);

	for (int cpu = 0; cpu < 4; cpu++) {
		equal("the id", x2(vm, cpu, L_ID), (unsigned)cpu);
		/* 11.12.10.2: the upper half contains the cluster. */
		equal("the logical id", x2(vm, cpu, L_LDR), 1u << cpu);
		for (size_t i = 0; i < nitems(wanted); i++)
			equal_at("register", wanted[i].offset, x2(vm, cpu,
			    wanted[i].offset), wanted[i].value);
	}
	vm_free(vm);
}

/* The timer and an LVT entry by MSR; EOI and ISR. */
static void
used(const void *arg __unused)
{
	struct vm *vm = vm_with_x2apics(1);
	uint64_t first;

	handlers(vm, H_EXIT);
	check(g_wrmsr(vm, MSR(L_DIVIDE), 0xb), "the divisor is refused");
	check(g_wrmsr(vm, MSR(L_TIMER), 0x61), "the timer's LVT is refused");
	check(g_wrmsr(vm, MSR(L_COUNT), 0x7fffffff), "the count is refused");
	first = x2(vm, 0, L_CURRENT);
	check(first != 0 && x2(vm, 0, L_CURRENT) < first,
	    "the count stays at %#jx", (uintmax_t)first);
	check(g_wrmsr(vm, MSR(L_COUNT), 1000000), "the count is refused");
	(void)g_halt(vm);
	equal("interrupts", count(vm, 0x61), 1);
	equal("in service", x2(vm, 0, L_ISR + 0x30), 2);
	check(g_wrmsr(vm, MSR(L_EOI), 0), "EOI is refused");
	equal("in service after EOI", x2(vm, 0, L_ISR + 0x30), 0);
	check(g_wrmsr(vm, MSR(L_LINT0), 0x10700), "LINT0 is refused");
	equal("LINT0", x2(vm, 0, L_LINT0), 0x10700);
	check(g_wrmsr(vm, MSR(L_ESR), 0), "ESR is refused");
	/* Its page is now memory or nothing, but not the APIC. */
	(void)g_wrmsr(vm, MSR(L_TPR), 0x20);
	set_reg(vm, VM_REG_GUEST_RCX, LAPIC + L_TPR);
	set_reg(vm, VM_REG_GUEST_RAX, 0x70);
	RUN(vm, 0x89, 0x01);
	equal("TPR after its page was written", x2(vm, 0, L_TPR), 0x20);
	vm_free(vm);
}

/* In xAPIC mode the MSRs have no effect. */
static void
not_enabled(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(0);

	(void)g_wrmsr(vm, MSR(L_TPR), 0x50);
	equal("TPR", lapic(vm, L_TPR), 0);
	(void)g_wrmsr(vm, MSR(L_ICR), 0x40061);
	check(!lapic_bit(vm, L_IRR, 0x61), "an IPI was sent");
	vm_free(vm);
}

struct ipi {
	const char	*what;
	uint64_t	icr;
	unsigned	who;		/* a bit for each vCPU */
};

static const struct ipi ipis[] = {
	{ "physical, 3", 3ul << 32 | 0x61, 0x8 },
	{ "physical, no destination", 9ul << 32 | 0x62, 0 },
	{ "physical, no vCPU is 0xff", 0xfful << 32 | 0x63, 0 },
	{ "physical, all", 0xfffffffful << 32 | 0x64, 0xf },
	{ "logical, 1 and 3", 0xaul << 32 | 0x865, 0xa },
	{ "logical, cluster 1", 0x1000ful << 32 | 0x866, 0 },
	{ "logical, no destination", 0x10ul << 32 | 0x867, 0 },
	{ "to itself", 0x40068, 0x1 },
	{ "to all", 0x80069, 0xf },
	{ "to all others", 0xc006a, 0xe },
};

static void
sent(const void *arg __unused)
{
	struct vm *vm = vm_with_x2apics(4);

	for (size_t i = 0; i < nitems(ipis); i++) {
		unsigned vector = ipis[i].icr & 0xff;

		check(g_wrmsr(vm, MSR(L_ICR), ipis[i].icr), "%s: refused",
		    ipis[i].what);
		for (int cpu = 0; cpu < 4; cpu++) {
			bool got = (x2(vm, cpu, L_IRR + vector / 32 * 0x10) >>
			    vector % 32 & 1) != 0;

			check(got == ((ipis[i].who >> cpu & 1) != 0),
			    "%s: vCPU %d %s it", ipis[i].what, cpu,
			    got ? "gets" : "does not get");
		}
	}
	vm_free(vm);
}

/* MSIs with more than 8 bits of destination reach x2APIC ids (11.11.1). */
static void
msi(const void *arg __unused)
{
	struct vm *vm = vm_with_x2apics(4);

	check(vm_lapic_msi(vm->ctx, LAPIC | 2u << 12, 0x71) == 0 &&
	    vm_lapic_msi(vm->ctx, LAPIC | 0x6u << 12 | 0xc, 0x72) == 0,
	    "an MSI is refused");
	for (int cpu = 0; cpu < 4; cpu++) {
		uint64_t irr = x2(vm, cpu, L_IRR + 0x30);

		equal("physical", irr >> 17 & 1, cpu == 2);
		equal("logical", irr >> 18 & 1, cpu == 1 || cpu == 2);
	}
	vm_free(vm);
}

static bool
nmi_comes(struct vm *vm, int cpu)
{
	bool came;

	vm->cpu = cpu;
	RUN(vm, 0x90, 0x90);
	came = vm->fault.vector == 2;
	vm->cpu = 0;
	return (came);
}

/* Table 11-3: an NMI can go to others or to an id. */
static void
nmis(const void *arg __unused)
{
	static const struct ipi kinds[] = {
		{ "to 1", 1ul << 56 | 0x400, 0x2 },
		{ "to all others", 0xc0400, 0xe },
		{ "to itself, which is invalid", 0x40400, 0 },
		{ "to all, which is invalid", 0x80400, 0 },
		{ "logical, 2 and 3", 0xc0ul << 56 | 0xc00, 0xc },
	};

	for (size_t i = 0; i < nitems(kinds); i++) {
		/* New VMs, because a delivered NMI waits for its IRET. */
		struct vm *vm = vm_with(4);

		for (int cpu = 0; cpu < 4; cpu++) {
			vm->cpu = cpu;
			set_lapic(vm, L_LDR, 0x10u << cpu << 24);
		}
		vm->cpu = 0;
		set_lapic(vm, L_ICR_HIGH, (uint32_t)(kinds[i].icr >> 32));
		set_lapic(vm, L_ICR, (uint32_t)kinds[i].icr);
		for (int cpu = 0; cpu < 4; cpu++) {
			bool got = nmi_comes(vm, cpu);

			check(got == ((kinds[i].who >> cpu & 1) != 0),
			    "an NMI %s: vCPU %d %s it", kinds[i].what, cpu,
			    got ? "gets" : "does not get");
		}
		vm_free(vm);
	}
}

/* Invalid combinations have no effect, and are delivered nowhere. */
static void
invalid(const void *arg __unused)
{
	static const struct { const char *what; uint32_t high, low; } bad[] = {
		{ "INIT to itself", 0, 0x44500 },
		{ "INIT to all", 0, 0x84500 },
		{ "SIPI to itself", 0, 0x4460b },
		{ "SIPI to all", 0, 0x8460b },
		{ "lowest priority to itself", 0, 0x44161 },
		{ "lowest priority to all", 0, 0x84161 },
		{ "SMI to itself", 0, 0x44200 },
		{ "reserved", 1u << 24, 0x4761 },
		{ "a level that is not asserted", 1u << 24, 0x8061 },
	};
	struct vm *vm = vm_with(2);

	for (size_t i = 0; i < nitems(bad); i++) {
		set_lapic(vm, L_ICR_HIGH, bad[i].high);
		set_reg(vm, VM_REG_GUEST_RCX, LAPIC + L_ICR);
		set_reg(vm, VM_REG_GUEST_RAX, bad[i].low);
		RUN(vm, 0x89, 0x01);
		check(vm->exit.exitcode == VM_EXITCODE_INOUT &&
		    vm->exit.u.inout.port == PORT_DONE, "%s: exit %s",
		    bad[i].what, exit_name(vm->exit.exitcode));
		for (int cpu = 0; cpu < 2; cpu++) {
			vm->cpu = cpu;
			check(!lapic_bit(vm, L_IRR, 0x61),
			    "%s: vCPU %d gets it", bad[i].what, cpu);
		}
		vm->cpu = 0;
	}
	vm_free(vm);
}

static const struct test tests[] = {
	{ "lapic.x2_registers",
	    "the x2APIC's registers have their reset values",
	    registers, NULL },
	{ "lapic.x2_used",
	    "timer, EOI and LVT of the x2APIC work", used, NULL },
	{ "lapic.x2_not_enabled",
	    "the x2APIC's MSRs change nothing in xAPIC mode",
	    not_enabled, NULL },
	{ "smp.x2_sent",
	    "the x2APIC's IPIs reach the vCPUs that they address", sent,
	    NULL },
	{ "smp.x2_msi", "MSIs reach x2APICs by their ids", msi, NULL },
	{ "smp.nmis",
	    "NMIs as IPIs reach the vCPUs that they address", nmis, NULL },
	{ "smp.invalid", "invalid IPIs change nothing", invalid, NULL },
};

GROUP(x2apic, tests);
