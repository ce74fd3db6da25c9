/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Every existing ioctl, with arguments that are almost valid. */

#include <string.h>

#include "vmmfuzz.h"

static void
fill_vcpu(struct thread *self, void *arg)
{
	*(int *)arg = vcpu(&self->rng);
}

static void
fill_word(struct thread *self, void *arg)
{
	*(int *)arg = (int)number(&self->rng, 32);
}

static void
fill_words(struct thread *self, void *arg)
{
	int *words = arg;

	words[0] = vcpu(&self->rng);
	for (int i = 1; i < 16; i++)
		words[i] = (int)number(&self->rng, 64);
}

static void
fill_run(struct thread *self, void *arg)
{
	struct vm_run *run = arg;

	run->cpuid = vcpu(&self->rng);
	run->cpusetsize = number(&self->rng, 64);
	run->cpuset = pointer(&self->rng, sizeof(cpuset_t));
	run->vm_exit = pointer(&self->rng, sizeof(struct vm_exit));
}

static void
fill_memseg(struct thread *self, void *arg)
{
	struct vm_memseg *seg = arg;
	struct rng *rng = &self->rng;

	seg->segid = (int)number(rng, 12);
	seg->len = one_in(rng, 4) ? odd_number(rng) : below(rng, 8) << 20;
	if (one_in(rng, 3))
		(void)strlcpy(seg->name, one_in(rng, 2) ? "bootrom" : "fb",
		    sizeof(seg->name));
	else if (one_in(rng, 4))
		bytes(rng, seg->name, sizeof(seg->name));
#ifdef VM_MAXMEMDOM
	if (one_in(rng, 4)) {
		seg->ds_mask = pointer(rng, sizeof(domainset_t));
		seg->ds_mask_size = number(rng, 64);
		seg->ds_policy = (int)number(rng, 6);
	}
#endif
}

static void
fill_memmap(struct thread *self, void *arg)
{
	struct vm_memmap *map = arg;
	struct rng *rng = &self->rng;

	map->gpa = one_in(rng, 3) ? odd_number(rng) : below(rng, 16) << 20;
	map->segid = (int)number(rng, 12);
	map->segoff = one_in(rng, 3) ? (vm_ooffset_t)odd_number(rng) : 0;
	map->len = one_in(rng, 3) ? odd_number(rng) : below(rng, 8) << 20;
	map->prot = (int)number(rng, 8);
	map->flags = (int)number(rng, 3);
}

static void
fill_munmap(struct thread *self, void *arg)
{
	struct vm_munmap *map = arg;
	struct rng *rng = &self->rng;

	map->gpa = one_in(rng, 3) ? odd_number(rng) : below(rng, 16) << 20;
	map->len = one_in(rng, 3) ? odd_number(rng) : below(rng, 8) << 20;
}

static void
fill_register(struct thread *self, void *arg)
{
	struct vm_register *value = arg;

	value->cpuid = vcpu(&self->rng);
	value->regnum = reg(&self->rng);
	value->regval = odd_number(&self->rng);
}

static void
fill_segment(struct thread *self, void *arg)
{
	struct vm_seg_desc *value = arg;

	value->cpuid = vcpu(&self->rng);
	value->regnum = reg(&self->rng);
	value->desc.base = odd_number(&self->rng);
	value->desc.limit = (uint32_t)odd_number(&self->rng);
	value->desc.access = (uint32_t)odd_number(&self->rng);
}

static void
fill_registers(struct thread *self, void *arg)
{
	struct vm_register_set *set = arg;
	struct rng *rng = &self->rng;
	int *numbers = (int *)(void *)good;

	for (int i = 0; i < 64; i++)
		numbers[i] = reg(rng);
	set->cpuid = vcpu(rng);
	set->count = (unsigned)number(rng, VM_REG_LAST);
	set->regnums = pointer(rng, 4 * VM_REG_LAST);
	set->regvals = pointer(rng, 8 * VM_REG_LAST);
}

static void
fill_gla(struct thread *self, void *arg)
{
	struct vm_gla2gpa *gla = arg;
	struct rng *rng = &self->rng;

	gla->vcpuid = vcpu(rng);
	gla->prot = (int)number(rng, 8);
	gla->gla = odd_number(rng);
	gla->paging.cr3 = one_in(rng, 3) ? odd_number(rng) :
	    below(rng, 4096) << 12;
	gla->paging.cpl = (int)number(rng, 4);
	gla->paging.cpu_mode = (enum vm_cpu_mode)number(rng, 4);
	gla->paging.paging_mode = (enum vm_paging_mode)number(rng, 5);
}

static void
fill_cpuset(struct thread *self, void *arg)
{
	struct vm_cpuset *set = arg;

	set->which = (int)number(&self->rng, 3);
	set->cpusetsize = (int)number(&self->rng, 256);
	set->cpus = pointer(&self->rng, 128);
}

static void
fill_device(struct thread *self, void *arg)
{
	static const uint64_t bases[] = { 0xfee00000, 0xfec00000, 0xfed00000 };
	struct vm_readwrite_kernemu_device *device = arg;
	struct rng *rng = &self->rng;

	device->vcpuid = vcpu(rng);
	device->access_width = below(rng, 8);
	device->gpa = bases[below(rng, nitems(bases))] + below(rng, 4096);
	if (!one_in(rng, 4))
		device->gpa &= ~0xfULL;
	device->value = odd_number(rng);
}

static void
fill_rtc_time(struct thread *self, void *arg)
{
	struct vm_rtc_time *rtc = arg;

	rtc->secs = (time_t)odd_number(&self->rng);
}

static void
fill_msi(struct thread *self, void *arg)
{
	struct vm_lapic_msi *msi = arg;

	msi->msg = odd_number(&self->rng);
	msi->addr = 0xfee00000 + odd_number(&self->rng);
}

static void
fill_pages(struct thread *self, void *arg)
{
	struct vm_gpa_pte *pte = arg;

	pte->gpa = odd_number(&self->rng);
}

static void
fill_bytes(struct thread *self, void *arg)
{
	/* Rarely all of it, because that takes long in an emulator. */
	bytes(&self->rng, arg, one_in(&self->rng, 8) ? ARG_BYTES : 256);
}

static void
fill_topology(struct thread *self, void *arg)
{
	uint16_t *words = arg;

	for (int i = 0; i < 4; i++)
		words[i] = (uint16_t)number(&self->rng, 3);
}

#ifdef VMMCTL_VM_CREATE
static void
fill_control(struct thread *self, void *arg)
{
	struct vmmctl_vm_create *vm = arg;

	name_of_vm(&self->rng, vm->name, sizeof(vm->name));
	if (one_in(&self->rng, 6))
		vm->reserved[below(&self->rng, nitems(vm->reserved))] =
		    (int)odd_number(&self->rng);
}
#endif

/* Answers that are random or depend on time; only errors; errors and output. */
#define	VM_OP(name, fill, weight)					\
	{ #name, IOCTL, name, fill, weight, false, false }
#define	STEADY_OP(name, fill, weight)					\
	{ #name, IOCTL, name, fill, weight, true, false }
#define	SHOWN_OP(name, fill, weight)					\
	{ #name, IOCTL, name, fill, weight, true, true }

const struct op ops[] = {
	VM_OP(VM_RUN, fill_run, 3),
	STEADY_OP(VM_SUSPEND, fill_word, 1),
	STEADY_OP(VM_REINIT, fill_word, 2),
	STEADY_OP(VM_ALLOC_MEMSEG, fill_memseg, 8),
	STEADY_OP(VM_GET_MEMSEG, fill_memseg, 3),
	STEADY_OP(VM_MMAP_MEMSEG, fill_memmap, 8),
	SHOWN_OP(VM_MMAP_GETNEXT, fill_memmap, 3),
	STEADY_OP(VM_MUNMAP_MEMSEG, fill_munmap, 4),
	STEADY_OP(VM_SET_REGISTER, fill_register, 4),
	SHOWN_OP(VM_GET_REGISTER, fill_register, 3),
	STEADY_OP(VM_SET_SEGMENT_DESCRIPTOR, fill_segment, 3),
	SHOWN_OP(VM_GET_SEGMENT_DESCRIPTOR, fill_segment, 2),
	STEADY_OP(VM_SET_REGISTER_SET, fill_registers, 3),
	STEADY_OP(VM_GET_REGISTER_SET, fill_registers, 3),
	STEADY_OP(VM_SET_KERNEMU_DEV, fill_device, 5),
	STEADY_OP(VM_GET_KERNEMU_DEV, fill_device, 3),
	STEADY_OP(VM_INJECT_EXCEPTION, fill_words, 3),
	STEADY_OP(VM_LAPIC_IRQ, fill_words, 3),
	STEADY_OP(VM_LAPIC_LOCAL_IRQ, fill_words, 3),
	STEADY_OP(VM_LAPIC_MSI, fill_msi, 3),
	STEADY_OP(VM_IOAPIC_ASSERT_IRQ, fill_word, 2),
	STEADY_OP(VM_IOAPIC_DEASSERT_IRQ, fill_word, 2),
	STEADY_OP(VM_IOAPIC_PULSE_IRQ, fill_word, 2),
	SHOWN_OP(VM_IOAPIC_PINCOUNT, fill_word, 1),
	STEADY_OP(VM_ISA_ASSERT_IRQ, fill_words, 2),
	STEADY_OP(VM_ISA_DEASSERT_IRQ, fill_words, 2),
	STEADY_OP(VM_ISA_PULSE_IRQ, fill_words, 2),
	STEADY_OP(VM_ISA_SET_IRQ_TRIGGER, fill_words, 2),
	STEADY_OP(VM_SET_CAPABILITY, fill_words, 3),
	SHOWN_OP(VM_GET_CAPABILITY, fill_words, 2),
	VM_OP(VM_BIND_PPTDEV, fill_words, 1),
	VM_OP(VM_UNBIND_PPTDEV, fill_words, 1),
	VM_OP(VM_MAP_PPTDEV_MMIO, fill_words, 1),
	VM_OP(VM_UNMAP_PPTDEV_MMIO, fill_words, 1),
	VM_OP(VM_PPTDEV_MSI, fill_words, 1),
	VM_OP(VM_PPTDEV_MSIX, fill_words, 1),
	VM_OP(VM_PPTDEV_DISABLE_MSIX, fill_words, 1),
	STEADY_OP(VM_INJECT_NMI, fill_vcpu, 2),
	STEADY_OP(VM_STATS, fill_words, 3),
	VM_OP(VM_STAT_DESC, fill_word, 2),
	STEADY_OP(VM_SET_X2APIC_STATE, fill_words, 2),
	SHOWN_OP(VM_GET_X2APIC_STATE, fill_words, 2),
	SHOWN_OP(VM_GET_HPET_CAPABILITIES, fill_word, 1),
	STEADY_OP(VM_SET_TOPOLOGY, fill_topology, 2),
	SHOWN_OP(VM_GET_TOPOLOGY, fill_word, 1),
	STEADY_OP(VM_GET_GPA_PMAP, fill_pages, 3),
	SHOWN_OP(VM_GLA2GPA, fill_gla, 3),
	SHOWN_OP(VM_GLA2GPA_NOFAULT, fill_gla, 3),
	STEADY_OP(VM_ACTIVATE_CPU, fill_vcpu, 3),
	STEADY_OP(VM_GET_CPUS, fill_cpuset, 2),
	VM_OP(VM_SUSPEND_CPU, fill_vcpu, 1),
	STEADY_OP(VM_RESUME_CPU, fill_vcpu, 2),
	STEADY_OP(VM_SET_INTINFO, fill_words, 2),
	SHOWN_OP(VM_GET_INTINFO, fill_words, 2),
	STEADY_OP(VM_RTC_WRITE, fill_words, 2),
	STEADY_OP(VM_RTC_READ, fill_word, 2),
	VM_OP(VM_RTC_SETTIME, fill_rtc_time, 2),
	STEADY_OP(VM_RTC_GETTIME, fill_word, 1),
	STEADY_OP(VM_RESTART_INSTRUCTION, fill_vcpu, 2),
	VM_OP(VM_SNAPSHOT_REQ, fill_bytes, 1),
	VM_OP(VM_RESTORE_TIME, fill_word, 1),
#ifdef VMMCTL_VM_CREATE
	{ "VMMCTL_VM_CREATE", CONTROL, VMMCTL_VM_CREATE, fill_control, 4,
	    true, false },
	{ "VMMCTL_VM_DESTROY", CONTROL, VMMCTL_VM_DESTROY, fill_control, 4,
	    true, false },
#endif
	{ "raw ioctl", RAW, 0, fill_bytes, 10, false, false },
	{ "sysctl", SYSCTL, 0, fill_word, 14, false, false },
	{ "read or write", FILEIO, 0, fill_word, 6, true, false },
	{ "mmap", MAPPING, 0, fill_word, 5, false, false },
};

const size_t op_count = nitems(ops);

const struct op *
draw(struct rng *rng)
{
	static int total;
	int at;

	if (total == 0) {
		for (size_t i = 0; i < nitems(ops); i++)
			total += ops[i].weight;
	}
	at = (int)below(rng, (uint64_t)total);
	for (size_t i = 0;; i++) {
		if ((at -= ops[i].weight) < 0)
			return (&ops[i]);
	}
}
