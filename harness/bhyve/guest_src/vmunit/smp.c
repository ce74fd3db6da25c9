/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Several vCPUs: the destinations of IPIs, and APIC ids. */

#include <sys/sysctl.h>

#include <errno.h>
#include <string.h>

#include "devices.h"
#include "second.h"

/* A VM with this number of vCPUs, whose APICs are enabled. */
struct vm *
vm_with(int vcpus)
{
	struct vm *vm;
	unsigned most = 0;
	size_t size = sizeof(most);

	if (sysctlbyname("hw.vmm.maxcpu", &most, &size, NULL, 0) != 0 ||
	    most < (unsigned)vcpus)
		skip("hw.vmm.maxcpu is %u", most);
	vm = vm_with_lapic(H_EOI_LAPIC);
	for (int i = 1; i < vcpus; i++) {
		(void)vm_cpu(vm, i);
		vm->cpu = i;
		vm_mode(vm, LONG64);
		set_lapic(vm, L_SVR, 0x1ff);
	}
	vm->cpu = 0;
	return (vm);
}

static uint32_t
lapic_of(struct vm *vm, int vcpu, unsigned offset)
{
	uint32_t value;

	vm->cpu = vcpu;
	value = lapic(vm, offset);
	vm->cpu = 0;
	return (value);
}

static void
set_lapic_of(struct vm *vm, int vcpu, unsigned offset, uint32_t value)
{
	vm->cpu = vcpu;
	set_lapic(vm, offset, value);
	vm->cpu = 0;
}

/*
 * Read by this vCPU itself: if the processor delivers interrupts, one is in
 * the IRR only while the vCPU runs.
 */
static bool
requested(struct vm *vm, int vcpu, unsigned vector)
{
	bool there;

	vm->cpu = vcpu;
	there = lapic_bit(vm, L_IRR, vector);
	vm->cpu = 0;
	return (there);
}

static void
ids(const void *arg __unused)
{
	struct vm *vm = vm_with(4);

	for (int i = 0; i < 4; i++)
		equal_at("the id of vCPU", (unsigned)i,
		    lapic_of(vm, i, L_ID), (unsigned)i << 24);
	errno = 0;
	check(vm_activate_cpu(vm->vcpu[1]) != 0 && errno == EBUSY,
	    "vCPU 1 can be activated twice: %s", strerror(errno));
	vm_free(vm);
}

/*
 * Fixed IPIs from vCPU 0: the destination, and the set of vCPUs that get it.
 */
struct ipi {
	const char	*what;
	uint32_t	high, low;
	unsigned	who;		/* a bit for each vCPU */
};
static const struct ipi ipis[] = {
	{ "physical, 2", 2u << 24, 0x61, 0x4 },
	{ "physical, 0", 0, 0x62, 0x1 },
	{ "physical, no destination", 0x77u << 24, 0x63, 0 },
	{ "physical, all", 0xffu << 24, 0x64, 0xf },
	{ "to itself", 2u << 24, 0x40065, 0x1 },
	{ "to all", 2u << 24, 0x80066, 0xf },
	{ "to all others", 2u << 24, 0xc0067, 0xe },
	{ "logical, 1 and 3", 0xa0u << 24, 0x868, 0xa },
	{ "logical, no destination", 0x01u << 24, 0x869, 0 },
	{ "logical, all", 0xffu << 24, 0x86a, 0xf },
	{ "level, asserted", 2u << 24, 0xc06b, 0x4 },
	{ "level, not asserted", 2u << 24, 0x806c, 0 },
};

static void
fixed(const void *arg __unused)
{
	struct vm *vm = vm_with(4);

	/* Logical ids 10, 20, 40, 80, flat model. */
	for (int i = 0; i < 4; i++)
		set_lapic_of(vm, i, L_LDR, 0x10u << i << 24);
	for (size_t i = 0; i < nitems(ipis); i++) {
		set_lapic(vm, L_ICR_HIGH, ipis[i].high);
		set_lapic(vm, L_ICR, ipis[i].low);
		for (int cpu = 0; cpu < 4; cpu++) {
			bool got = requested(vm, cpu, ipis[i].low & 0xff);

			check(got == ((ipis[i].who >> cpu & 1) != 0),
			    "%s: vCPU %d %s it", ipis[i].what, cpu,
			    got ? "gets" : "does not get");
		}
	}
	vm_free(vm);
}

/* Cluster model: bits 7 to 4 of the logical id are the cluster (11.6.2.2). */
static void
clusters(const void *arg __unused)
{
	static const uint32_t logical[] = { 0x01, 0x02, 0x11, 0x12 };
	static const struct ipi to[] = {
		{ "cluster 0, both", 0x03u << 24, 0x871, 0x3 },
		{ "cluster 1, its second", 0x12u << 24, 0x872, 0x8 },
		{ "cluster 2", 0x23u << 24, 0x873, 0 },
		{ "all", 0xffu << 24, 0x874, 0xf },
	};
	struct vm *vm = vm_with(4);

	for (int i = 0; i < 4; i++) {
		set_lapic_of(vm, i, L_DFR, 0x0fffffff);
		set_lapic_of(vm, i, L_LDR, logical[i] << 24);
	}
	for (size_t i = 0; i < nitems(to); i++) {
		set_lapic(vm, L_ICR_HIGH, to[i].high);
		set_lapic(vm, L_ICR, to[i].low);
		for (int cpu = 0; cpu < 4; cpu++)
			check(requested(vm, cpu, to[i].low & 0xff) ==
			    ((to[i].who >> cpu & 1) != 0),
			    "%s: vCPU %d", to[i].what, cpu);
	}
	vm_free(vm);
}

/* MSIs and the I/O APIC to vCPUs other than vCPU 0. */
static void
from_devices(const void *arg __unused)
{
	struct vm *vm = vm_with(4);
	int got = 0;

	check(vm_lapic_msi(vm->ctx, LAPIC | 3u << 12, 0x81) == 0,
	    "an MSI is refused");
	check(requested(vm, 3, 0x81) && !requested(vm, 0, 0x81),
	    "an MSI is not vCPU 3's alone");
	check(vm_lapic_msi(vm->ctx, LAPIC | 0xffu << 12, 0x82) == 0,
	    "an MSI is refused");
	for (int cpu = 0; cpu < 4; cpu++)
		check(requested(vm, cpu, 0x82), "vCPU %d misses a broadcast",
		    cpu);
	/* Lowest priority, logical: one of them gets it. */
	for (int i = 0; i < 4; i++)
		set_lapic_of(vm, i, L_LDR, 1u << i << 24);
	check(vm_lapic_msi(vm->ctx, LAPIC | 0xeu << 12 | 0xc, 0x183) == 0,
	    "an MSI is refused");
	for (int cpu = 0; cpu < 4; cpu++)
		got += requested(vm, cpu, 0x83);
	check(got == 1 && !requested(vm, 0, 0x83),
	    "an MSI of lowest priority is for %d vCPUs", got);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "smp.ids", "each vCPU's APIC id is its number", ids, NULL },
	{ "smp.fixed",
	    "fixed IPIs reach the vCPUs that they address", fixed, NULL },
	{ "smp.clusters", "logical ids work in clusters", clusters, NULL },
	{ "smp.from_devices",
	    "MSIs reach the vCPUs that they address", from_devices,
	    NULL },
};

GROUP(smp, tests);
