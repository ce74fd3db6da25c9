/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Bad calls to vmm: malformed and racing ioctls, sysctl writes, reads, writes
 * and mappings, all drawn from one seed.
 *
 * A run is a sequence of rounds.  Each is a process with a virtual machine of
 * its own and one or more threads, each with a stream of random numbers that
 * depends on seed, round and thread alone: a round is replayed without those
 * before it.  What a kernel that dies was doing stands on the console: every
 * call is written there, and drained, before it is made (-c), and is the
 * thread's name, which a trap's message shows.
 *
 * The parent makes no bad calls.  It ends a round that comes to a halt, and
 * counts one that even SIGKILL does not end as a hang.
 */

#include <sys/param.h>
#include <sys/ioccom.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysctl.h>
#include <sys/wait.h>

#include <machine/vmm.h>
#include <machine/vmm_dev.h>
/* 15 moved what is not the processor's own here. */
#if __has_include(<dev/vmm/vmm_dev.h>)
#include <dev/vmm/vmm_dev.h>
#endif
#if __has_include(<dev/vmm/vmm_mem.h>)
#include <dev/vmm/vmm_mem.h>
#endif

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <pthread.h>
#include <pthread_np.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <termios.h>
#include <unistd.h>

#define	ARG_BYTES	IOCPARM_MAX
#define	MAX_THREADS	4
#define	MAX_OIDS	128
#define	TICK_US		20000		/* how long a call may sleep */
#define	STALL_US	3000000		/* no call ends: the round is ended */
#define	HANG_US		10000000	/* SIGKILL does not help: it hangs */

struct rng {
	uint64_t	state;
};

struct thread {
	struct rng	rng;
	int		number;
	int		fd;		/* the round's VM */
	bool		first;
	uint32_t	calls;
	unsigned char	arg[ARG_BYTES] __aligned(16);
};

/* What outlives a round's process. */
struct shared {
	_Atomic uint64_t calls;
	_Atomic uint32_t at[MAX_THREADS];	/* call number + 1 of a round */
	_Atomic uint32_t op[MAX_THREADS];
	_Atomic uint32_t counts[128][ELAST + 2];
};

enum kind { IOCTL, CONTROL, RAW, SYSCTL, FILEIO, MAPPING };

struct op {
	const char	*name;
	enum kind	kind;
	unsigned long	cmd;
	void		(*fill)(struct thread *, void *);
	int		weight;
};

struct oid {
	int		mib[CTL_MAXNAME];
	size_t		length;
	bool		names_vm;
};

static struct shared *shared;
static struct oid oids[MAX_OIDS];
static size_t oid_count;
static uint64_t seed = 1;
static uint32_t round_number;
static int control = -1, console = -1;
static bool dry;
static char vm_name[32];
static char *good, *edge, *readonly;	/* 64 KiB; up to an unmapped page */

/*
 * Calls that are known to harm the stock module, each by the name of its story
 * in tests/known/; -x leaves them out.
 */
static const char *const harms[] = {
	"devmem-name", "lapic-msi", "rendezvous", "rtc-time", "vmcs-field",
};
static bool avoided[nitems(harms)];
enum harm { DEVMEM_NAME, LAPIC_MSI, RENDEZVOUS, RTC_TIME, VMCS_FIELD };

static _Atomic unsigned segments;

static uint64_t
next(struct rng *rng)
{
	uint64_t z;

	/* splitmix64 */
	z = rng->state += 0x9e3779b97f4a7c15;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return (z ^ (z >> 31));
}

static uint64_t
below(struct rng *rng, uint64_t limit)
{
	return (next(rng) % limit);
}

static bool
one_in(struct rng *rng, unsigned times)
{
	return (below(rng, times) == 0);
}

static uint64_t
odd_number(struct rng *rng)
{
	static const uint64_t odd[] = {
		0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 63, 64, 127, 128, 255, 256,
		4095, 4096, 4097, 65535, 65536, 1 << 20, INT_MAX, UINT_MAX,
		(uint64_t)INT_MAX + 1, (uint64_t)UINT_MAX + 1, -1ULL, -2ULL,
		-4096ULL, INT64_MAX, (uint64_t)INT64_MAX + 1,
		(uint64_t)INT32_MIN, 1ULL << 32, 3ULL << 30, 4ULL << 30,
		1ULL << 46, 1ULL << 47, 1ULL << 52, 0xfee00000, 0xfec00000,
		0xfed00000, 0xffff800000000000, 0xfffff80000000000,
		0xffffffff80200000,
	};
	uint64_t value;

	value = odd[below(rng, nitems(odd))];
	if (one_in(rng, 8))
		value += below(rng, 3) - 1;
	return (one_in(rng, 6) ? next(rng) : value);
}

/* Mostly small enough to be meant. */
static uint64_t
number(struct rng *rng, uint64_t limit)
{
	return (one_in(rng, 5) ? odd_number(rng) : below(rng, limit));
}

static void *
pointer(struct rng *rng, size_t length)
{
	switch (below(rng, 10)) {
	case 0:
		return (NULL);
	case 1:
		return (edge - below(rng, length + 1));
	case 2:
		return (readonly);
	case 3:
		return ((void *)(uintptr_t)odd_number(rng));
	default:
		return (good + below(rng, 64) * 8);
	}
}

static void
bytes(struct rng *rng, void *buffer, size_t length)
{
	unsigned char *at = buffer;

	for (size_t i = 0; i < length; i++)
		at[i] = next(rng);
}

static int
vcpu(struct rng *rng)
{
	return (one_in(rng, 6) ? (int)odd_number(rng) : (int)below(rng, 2));
}

static int
reg(struct rng *rng)
{
	/* Negative numbers name fields of the VMCS. */
	static const uint32_t fields[] = {
		0x0000, 0x0800, 0x0c00, 0x2000, 0x201a, 0x2800, 0x2c00, 0x4000,
		0x400c, 0x4012, 0x4402, 0x4800, 0x4c00, 0x6000, 0x6800, 0x6c00,
		0x6c14, 0x6c16,
	};

	if (one_in(rng, 10))
		return ((int)(0x80000000 | fields[below(rng, nitems(fields))]));
	return ((int)number(rng, VM_REG_LAST + 1));
}

static void
name_of_vm(struct rng *rng, char *name, size_t size)
{
	size_t length;

	/* Seldom the round's own: without it most calls only find it gone. */
	if (one_in(rng, 40)) {
		(void)snprintf(name, size, "%s", vm_name);
		return;
	}
	switch (below(rng, 8)) {
	case 0:
		bytes(rng, name, size);
		break;
	case 1:
		length = below(rng, size);
		memset(name, 'a' + (int)below(rng, 26), length);
		name[length] = '\0';
		break;
	case 2:
		(void)snprintf(name, size, "other%ju/%s",
		    (uintmax_t)below(rng, 3), one_in(rng, 2) ? "x" : "..");
		break;
	case 3:
		(void)snprintf(name, size, "other\"%c",
		    (int)below(rng, 255) + 1);
		break;
	default:
		(void)snprintf(name, size, "other%ju",
		    (uintmax_t)below(rng, 4));
	}
}

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
#ifdef DOMAINSET_POLICY_INVALID
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
	/* Seldom all of it: that takes long in an emulator. */
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

#define	VM_OP(name, fill, weight)	{ #name, IOCTL, name, fill, weight }

static const struct op ops[] = {
	VM_OP(VM_RUN, fill_run, 3),
	VM_OP(VM_SUSPEND, fill_word, 1),
	VM_OP(VM_REINIT, fill_word, 2),
	VM_OP(VM_ALLOC_MEMSEG, fill_memseg, 8),
	VM_OP(VM_GET_MEMSEG, fill_memseg, 3),
	VM_OP(VM_MMAP_MEMSEG, fill_memmap, 8),
	VM_OP(VM_MMAP_GETNEXT, fill_memmap, 3),
	VM_OP(VM_MUNMAP_MEMSEG, fill_munmap, 4),
	VM_OP(VM_SET_REGISTER, fill_register, 4),
	VM_OP(VM_GET_REGISTER, fill_register, 3),
	VM_OP(VM_SET_SEGMENT_DESCRIPTOR, fill_segment, 3),
	VM_OP(VM_GET_SEGMENT_DESCRIPTOR, fill_segment, 2),
	VM_OP(VM_SET_REGISTER_SET, fill_registers, 3),
	VM_OP(VM_GET_REGISTER_SET, fill_registers, 3),
	VM_OP(VM_SET_KERNEMU_DEV, fill_device, 5),
	VM_OP(VM_GET_KERNEMU_DEV, fill_device, 3),
	VM_OP(VM_INJECT_EXCEPTION, fill_words, 3),
	VM_OP(VM_LAPIC_IRQ, fill_words, 3),
	VM_OP(VM_LAPIC_LOCAL_IRQ, fill_words, 3),
	VM_OP(VM_LAPIC_MSI, fill_msi, 3),
	VM_OP(VM_IOAPIC_ASSERT_IRQ, fill_word, 2),
	VM_OP(VM_IOAPIC_DEASSERT_IRQ, fill_word, 2),
	VM_OP(VM_IOAPIC_PULSE_IRQ, fill_word, 2),
	VM_OP(VM_IOAPIC_PINCOUNT, fill_word, 1),
	VM_OP(VM_ISA_ASSERT_IRQ, fill_words, 2),
	VM_OP(VM_ISA_DEASSERT_IRQ, fill_words, 2),
	VM_OP(VM_ISA_PULSE_IRQ, fill_words, 2),
	VM_OP(VM_ISA_SET_IRQ_TRIGGER, fill_words, 2),
	VM_OP(VM_SET_CAPABILITY, fill_words, 3),
	VM_OP(VM_GET_CAPABILITY, fill_words, 2),
	VM_OP(VM_BIND_PPTDEV, fill_words, 1),
	VM_OP(VM_UNBIND_PPTDEV, fill_words, 1),
	VM_OP(VM_MAP_PPTDEV_MMIO, fill_words, 1),
	VM_OP(VM_UNMAP_PPTDEV_MMIO, fill_words, 1),
	VM_OP(VM_PPTDEV_MSI, fill_words, 1),
	VM_OP(VM_PPTDEV_MSIX, fill_words, 1),
	VM_OP(VM_PPTDEV_DISABLE_MSIX, fill_words, 1),
	VM_OP(VM_INJECT_NMI, fill_vcpu, 2),
	VM_OP(VM_STATS, fill_words, 3),
	VM_OP(VM_STAT_DESC, fill_word, 2),
	VM_OP(VM_SET_X2APIC_STATE, fill_words, 2),
	VM_OP(VM_GET_X2APIC_STATE, fill_words, 2),
	VM_OP(VM_GET_HPET_CAPABILITIES, fill_word, 1),
	VM_OP(VM_SET_TOPOLOGY, fill_topology, 2),
	VM_OP(VM_GET_TOPOLOGY, fill_word, 1),
	VM_OP(VM_GET_GPA_PMAP, fill_pages, 3),
	VM_OP(VM_GLA2GPA, fill_gla, 3),
	VM_OP(VM_GLA2GPA_NOFAULT, fill_gla, 3),
	VM_OP(VM_ACTIVATE_CPU, fill_vcpu, 3),
	VM_OP(VM_GET_CPUS, fill_cpuset, 2),
	VM_OP(VM_SUSPEND_CPU, fill_vcpu, 1),
	VM_OP(VM_RESUME_CPU, fill_vcpu, 2),
	VM_OP(VM_SET_INTINFO, fill_words, 2),
	VM_OP(VM_GET_INTINFO, fill_words, 2),
	VM_OP(VM_RTC_WRITE, fill_words, 2),
	VM_OP(VM_RTC_READ, fill_word, 2),
	VM_OP(VM_RTC_SETTIME, fill_rtc_time, 2),
	VM_OP(VM_RTC_GETTIME, fill_word, 1),
	VM_OP(VM_RESTART_INSTRUCTION, fill_vcpu, 2),
	VM_OP(VM_SNAPSHOT_REQ, fill_bytes, 1),
	VM_OP(VM_RESTORE_TIME, fill_word, 1),
#ifdef VMMCTL_VM_CREATE
	{ "VMMCTL_VM_CREATE", CONTROL, VMMCTL_VM_CREATE, fill_control, 4 },
	{ "VMMCTL_VM_DESTROY", CONTROL, VMMCTL_VM_DESTROY, fill_control, 4 },
#endif
	{ "raw ioctl", RAW, 0, fill_bytes, 10 },
	{ "sysctl", SYSCTL, 0, fill_word, 14 },
	{ "read or write", FILEIO, 0, fill_word, 6 },
	{ "mmap", MAPPING, 0, fill_word, 5 },
};

static const struct op *
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

/*
 * Whether a call is one of those to be left out, however it came about; one
 * that can be made harmless is.
 */
static bool
is_avoided(unsigned long cmd, void *arg)
{
	struct vm_memseg *seg = arg;
	const struct vm_lapic_msi *msi = arg;
	const struct vm_rtc_time *rtc = arg;
	const struct vm_readwrite_kernemu_device *device = arg;

	/* Valid, and never the same twice. */
	if (avoided[DEVMEM_NAME] && cmd == VM_ALLOC_MEMSEG &&
	    seg->name[0] != '\0')
		(void)snprintf(seg->name, sizeof(seg->name), "m%u",
		    atomic_fetch_add(&segments, 1));
	else if (avoided[DEVMEM_NAME] && cmd != VM_ALLOC_MEMSEG &&
	    (cmd & 0xff) == IOCNUM_ALLOC_MEMSEG)
		return (true);
	if (avoided[LAPIC_MSI] && cmd == VM_LAPIC_MSI &&
	    (msi->addr & 0xfff00000) != 0xfee00000)
		return (true);
	if (avoided[RTC_TIME] && cmd == VM_RTC_SETTIME &&
	    (rtc->secs < 0 || rtc->secs > INT32_MAX))
		return (true);
	if (avoided[VMCS_FIELD]) {
		if ((cmd == VM_SET_REGISTER || cmd == VM_GET_REGISTER) &&
		    ((const struct vm_register *)arg)->regnum < 0)
			return (true);
		if ((cmd == VM_SET_SEGMENT_DESCRIPTOR ||
		    cmd == VM_GET_SEGMENT_DESCRIPTOR) &&
		    ((const struct vm_seg_desc *)arg)->regnum < 0)
			return (true);
		/* Their numbers lie where another thread may change them. */
		if (cmd == VM_SET_REGISTER_SET || cmd == VM_GET_REGISTER_SET)
			return (true);
	}
	if (avoided[RENDEZVOUS] && cmd == VM_SET_KERNEMU_DEV &&
	    device->gpa >= 0xfec00000 && device->gpa < 0xfec01000)
		return (true);
	return (false);
}

static int
call_ioctl(struct thread *self, int fd, unsigned long cmd)
{
	return (ioctl(fd, cmd, self->arg) == 0 ? 0 : errno);
}

static int
call_sysctl(struct thread *self)
{
	struct rng *rng = &self->rng;
	const struct oid *oid;
	size_t length, old;
	char *value;

	if (oid_count == 0)
		return (ENOENT);
	oid = &oids[below(rng, oid_count)];
	value = (char *)self->arg;
	if (oid->names_vm && !one_in(rng, 4)) {
		name_of_vm(rng, value, 256);
		length = one_in(rng, 3) ? below(rng, 300) : strnlen(value, 255) + 1;
	} else {
		bytes(rng, value, 64);
		memcpy(value, &(uint64_t){ odd_number(rng) }, 8);
		length = one_in(rng, 3) ? below(rng, 4096) : one_in(rng, 2) ?
		    4 : 8;
	}
	old = number(rng, 512);
	if (sysctl(oid->mib, (u_int)oid->length, pointer(rng, 512),
	    one_in(rng, 3) ? NULL : &old, one_in(rng, 8) ?
	    pointer(rng, length) : value, length) == 0)
		return (0);
	return (errno);
}

static int
call_file(struct thread *self)
{
	struct rng *rng = &self->rng;
	size_t length;
	off_t at;
	ssize_t done;

	length = number(rng, 32768);
	at = one_in(rng, 2) ? (off_t)odd_number(rng) : (off_t)below(rng, 8 << 20);
	if (one_in(rng, 2))
		done = pread(self->fd, pointer(rng, length % 4096), length, at);
	else
		done = pwrite(self->fd, pointer(rng, length % 4096), length, at);
	return (done >= 0 ? 0 : errno);
}

static int
call_mmap(struct thread *self)
{
	struct rng *rng = &self->rng;
	char path[128];
	size_t length;
	off_t at;
	void *where;
	int error, fd;

	fd = -1;
	if (one_in(rng, 3)) {
		if (avoided[DEVMEM_NAME])
			(void)snprintf(path, sizeof(path), "/dev/vmm.io/%s.m%u",
			    vm_name, (unsigned)below(rng, 8));
		else
			(void)snprintf(path, sizeof(path), "/dev/vmm.io/%s.%s",
			    vm_name, one_in(rng, 2) ? "bootrom" : "fb");
		fd = open(path, O_RDWR);
	}
	length = one_in(rng, 3) ? odd_number(rng) : below(rng, 64) * PAGE_SIZE;
	at = one_in(rng, 3) ? (off_t)odd_number(rng) :
	    (off_t)below(rng, 64) * PAGE_SIZE;
	where = mmap(NULL, length, (int)below(rng, 8), one_in(rng, 4) ?
	    MAP_PRIVATE : MAP_SHARED, fd >= 0 ? fd : self->fd, at);
	error = where == MAP_FAILED ? errno : 0;
	/* A huge mapping that held would keep the round from having others. */
	if (error == 0)
		(void)munmap(where, length);
	if (fd >= 0)
		(void)close(fd);
	return (error);
}

static void
note(struct thread *self, const struct op *op, unsigned long cmd)
{
	char line[96];
	int length;

	length = snprintf(line, sizeof(line), "FUZZ %u.%d.%u %s %#lx\n",
	    round_number, self->number, self->calls, op->name, cmd);
	if (console >= 0) {
		(void)write(console, line, (size_t)length);
		(void)tcdrain(console);
	}
	if (dry)
		(void)fputs(line, stdout);
	(void)snprintf(line, sizeof(line), "%u.%d.%u", round_number,
	    self->number, self->calls);
	pthread_set_name_np(pthread_self(), line);
}

static void
make_call(struct thread *self)
{
	struct rng *rng = &self->rng;
	const struct op *op;
	unsigned long cmd;
	int error;
	bool skip;

	op = draw(rng);
	memset(self->arg, 0, 512);
	op->fill(self, self->arg);
	cmd = op->cmd;
	if (op->kind == RAW) {
		cmd = one_in(rng, 2) ? ops[below(rng, nitems(ops))].cmd :
		    _IOC((below(rng, 8) << 29), one_in(rng, 4) ? 'V' : 'v',
		    below(rng, 128), below(rng, IOCPARM_MAX));
	} else if ((op->kind == IOCTL || op->kind == CONTROL) &&
	    one_in(rng, 5)) {
		memcpy(self->arg + 4 * below(rng, 16),
		    &(uint64_t){ odd_number(rng) }, 8);
	}
	/* The system's own, which any file takes: FIOASYNC and the like. */
	if (op->kind == RAW && IOCGROUP(cmd) != 'v' && IOCGROUP(cmd) != 'V')
		cmd = _IO('v', below(rng, 128));
	skip = is_avoided(cmd, self->arg);
	note(self, op, cmd);
	atomic_store(&shared->op[self->number], (uint32_t)(op - ops));
	atomic_store(&shared->at[self->number], self->calls + 1);
	if (skip || dry)
		error = ELAST + 1;
	else switch (op->kind) {
	case CONTROL:
		error = call_ioctl(self, control, cmd);
		break;
	case RAW:
		error = call_ioctl(self, one_in(rng, 4) ? control : self->fd,
		    cmd);
		break;
	case SYSCTL:
		error = call_sysctl(self);
		break;
	case FILEIO:
		error = call_file(self);
		break;
	case MAPPING:
		error = call_mmap(self);
		break;
	default:
		error = call_ioctl(self, self->fd, cmd);
		break;
	}
	if (error < 0 || error > ELAST + 1)
		error = ELAST;
	atomic_fetch_add(&shared->counts[op - ops][error], 1);
	if (error <= ELAST)
		atomic_fetch_add(&shared->calls, 1);
	self->calls++;
}

static uint32_t thread_calls;

static void *
run_thread(void *arg)
{
	struct thread *self = arg;

	while (self->calls < thread_calls)
		make_call(self);
	atomic_store(&shared->at[self->number], UINT32_MAX);
	return (NULL);
}

static void
on_tick(int signal __unused)
{
}

static int
write_name(const char *oid, const char *name)
{
	return (sysctlbyname(oid, NULL, NULL, name, strlen(name)) == 0 ? 0 :
	    errno);
}

/* A VM worth calling: with a little memory, and with a vCPU that may run. */
static int
open_round(struct rng *rng)
{
	struct vm_memseg seg = { .segid = 0, .len = 4 << 20 };
	struct vm_memmap map = { .len = 4 << 20, .prot = PROT_READ |
	    PROT_WRITE | PROT_EXEC };
	struct vm_activate_cpu cpu = { .vcpuid = 0 };
	char path[64];
	int fd;

	(void)snprintf(vm_name, sizeof(vm_name), "fuzz%ju",
	    (uintmax_t)below(rng, 4));
	if (dry)
		return (-1);
	(void)write_name("hw.vmm.create", vm_name);
	(void)snprintf(path, sizeof(path), "/dev/vmm/%s", vm_name);
	if ((fd = open(path, O_RDWR)) < 0)
		err(EX_OSERR, "%s", path);
	if (!one_in(rng, 4) && ioctl(fd, VM_ALLOC_MEMSEG, &seg) == 0)
		(void)ioctl(fd, VM_MMAP_MEMSEG, &map);
	if (!one_in(rng, 3))
		(void)ioctl(fd, VM_ACTIVATE_CPU, &cpu);
	return (fd);
}

static void
round_body(uint32_t calls)
{
	static struct thread threads[MAX_THREADS];
	pthread_t ids[MAX_THREADS];
	struct rng rng = { seed * 0x100000001b3 + round_number };
	int count, fd;
	bool busy;

	(void)next(&rng);
	fd = open_round(&rng);
	/* Every third round is a race. */
	count = one_in(&rng, 3) ? 2 + (int)below(&rng, MAX_THREADS - 1) : 1;
	thread_calls = MAX(calls / (uint32_t)count, 1);
	for (int i = 0; i < count; i++) {
		threads[i].number = i;
		threads[i].fd = fd;
		threads[i].rng.state = next(&rng);
		if (dry)
			(void)run_thread(&threads[i]);
		else if (pthread_create(&ids[i], NULL, run_thread,
		    &threads[i]) != 0)
			errx(EX_OSERR, "cannot make a thread");
	}
	if (dry)
		_exit(0);
	/* Keep calls from sleeping, and VMs from running, for ever. */
	do {
		busy = false;
		(void)usleep(TICK_US);
		for (int i = 0; i < count; i++) {
			if (atomic_load(&shared->at[i]) != UINT32_MAX) {
				(void)pthread_kill(ids[i], SIGUSR1);
				busy = true;
			}
		}
	} while (busy);
	_exit(0);
}

static bool
reap(pid_t pid, useconds_t limit, int *status)
{
	for (useconds_t waited = 0; waited < limit; waited += TICK_US) {
		if (waitpid(pid, status, WNOHANG) == pid)
			return (true);
		(void)usleep(TICK_US);
	}
	return (false);
}

/* Destroy all VMs there are, which are ours. */
static void
destroy_all(void)
{
	char *const roots[] = { __DECONST(char *, "/dev/vmm"), NULL };
	FTSENT *entry;
	FTS *tree;

	if ((tree = fts_open(roots, FTS_PHYSICAL, NULL)) == NULL)
		return;
	while ((entry = fts_read(tree)) != NULL) {
		if (entry->fts_info == FTS_DEFAULT)
			(void)write_name("hw.vmm.destroy",
			    entry->fts_path + sizeof("/dev/vmm"));
	}
	(void)fts_close(tree);
}

static void
tell_hang(const char *what)
{
	(void)printf("hang %u %s", round_number, what);
	for (int i = 0; i < MAX_THREADS; i++) {
		uint32_t at = atomic_load(&shared->at[i]);

		if (at != 0 && at != UINT32_MAX)
			(void)printf(" %d.%u:%s", i, at - 1,
			    ops[atomic_load(&shared->op[i])].name);
	}
	(void)printf("\n");
	(void)fflush(stdout);
}

/* One round; false when a call of it hangs, or destroying its VMs does. */
static bool
run_round(uint32_t calls)
{
	uint64_t before, now;
	useconds_t idle;
	pid_t pid;
	int status;
	bool killed;

	for (int i = 0; i < MAX_THREADS; i++)
		atomic_store(&shared->at[i], 0);
	if ((pid = fork()) == 0)
		round_body(calls);
	if (pid < 0)
		err(EX_OSERR, "fork");
	killed = false;
	before = atomic_load(&shared->calls);
	for (idle = 0; !reap(pid, TICK_US, &status);) {
		now = atomic_load(&shared->calls);
		idle = now == before ? idle + TICK_US : 0;
		before = now;
		if (idle > STALL_US && !killed) {
			(void)kill(pid, SIGKILL);
			killed = true;
		}
		if (idle > HANG_US) {
			tell_hang("call");
			return (false);
		}
	}
	if (killed)
		tell_hang("stall");
	else if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
		(void)printf("exit %u %d\n", round_number, WEXITSTATUS(status));
	else if (WIFSIGNALED(status))
		(void)printf("signal %u %d\n", round_number, WTERMSIG(status));
	if ((pid = fork()) == 0) {
		destroy_all();
		_exit(0);
	}
	if (pid > 0 && !reap(pid, HANG_US, &status)) {
		tell_hang("destroy");
		return (false);
	}
	return (true);
}

/* Every sysctl below hw.vmm, whoever added it. */
static void
find_oids(void)
{
	int query[CTL_MAXNAME + 2] = { CTL_SYSCTL, CTL_SYSCTL_NEXT };
	int name[CTL_MAXNAME + 2] = { CTL_SYSCTL, CTL_SYSCTL_NAME };
	char text[256];
	size_t length, root, size;
	struct oid *oid;

	root = CTL_MAXNAME;
	if (sysctlnametomib("hw.vmm", query + 2, &root) != 0)
		errx(EX_UNAVAILABLE, "there is no hw.vmm: vmm is not loaded");
	length = root;
	while (oid_count < MAX_OIDS) {
		oid = &oids[oid_count];
		size = sizeof(oid->mib);
		if (sysctl(query, (u_int)length + 2, oid->mib, &size, NULL, 0) != 0)
			break;
		oid->length = length = size / sizeof(int);
		memcpy(query + 2, oid->mib, size);
		memcpy(name + 2, oid->mib, size);
		size = sizeof(text);
		if (sysctl(name, (u_int)length + 2, text, &size, NULL, 0) != 0 ||
		    strncmp(text, "hw.vmm.", 7) != 0)
			break;
		oid->names_vm = strcmp(text, "hw.vmm.create") == 0 ||
		    strcmp(text, "hw.vmm.destroy") == 0;
		oid_count++;
		/* Few take a name, and those do the work. */
		if (oid->names_vm && oid_count + 8 < MAX_OIDS) {
			for (int i = 0; i < 8; i++)
				oids[oid_count++] = *oid;
		}
	}
}

static void
make_buffers(void)
{
	good = mmap(NULL, 65536 + PAGE_SIZE, PROT_READ | PROT_WRITE,
	    MAP_ANON | MAP_PRIVATE, -1, 0);
	readonly = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_ANON | MAP_PRIVATE, -1,
	    0);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
	    MAP_ANON | MAP_SHARED, -1, 0);
	if (good == MAP_FAILED || readonly == MAP_FAILED ||
	    shared == MAP_FAILED)
		err(EX_OSERR, "mmap");
	edge = good + 65536;
	(void)mprotect(edge, PAGE_SIZE, PROT_NONE);
}

static void
usage(void)
{
	(void)fprintf(stderr, "usage: vmmfuzz [-d] [-c console] [-n calls] "
	    "[-p calls-per-round] [-r round] [-s seed] [-x harm] ...\n");
	exit(EX_USAGE);
}

static uint64_t
parse(const char *text)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 0);
	if (errno != 0 || end == text || *end != '\0')
		errx(EX_USAGE, "%s: not a number", text);
	return (value);
}

static void
avoid(const char *name)
{
	for (size_t i = 0; i < nitems(harms); i++) {
		if (strcmp(name, harms[i]) == 0) {
			avoided[i] = true;
			return;
		}
	}
	errx(EX_USAGE, "%s: no such harm", name);
}

static void
tell(uint32_t rounds)
{
	(void)printf("seed %ju\nrounds %u\ncalls %ju\n", (uintmax_t)seed, rounds,
	    (uintmax_t)atomic_load(&shared->calls));
	for (size_t i = 0; i < nitems(ops); i++) {
		for (int error = 0; error <= ELAST + 1; error++) {
			uint32_t count = shared->counts[i][error];

			if (count != 0)
				(void)printf("count %d %u %s\n", error > ELAST ?
				    -1 : error, count, ops[i].name);
		}
	}
	(void)printf("end\n");
}

int
main(int argc, char **argv)
{
	struct sigaction tick = { .sa_handler = on_tick };
	uint64_t calls = 1000;
	uint32_t per_round = 200, rounds = 0, hung = 0;
	int option;

	while ((option = getopt(argc, argv, "c:dn:p:r:s:x:")) != -1) {
		switch (option) {
		case 'c':
			if ((console = open(optarg, O_WRONLY | O_NOCTTY)) < 0)
				err(EX_NOINPUT, "%s", optarg);
			break;
		case 'd':
			dry = true;
			break;
		case 'n':
			calls = parse(optarg);
			break;
		case 'p':
			per_round = (uint32_t)parse(optarg);
			break;
		case 'r':
			round_number = (uint32_t)parse(optarg);
			break;
		case 's':
			seed = parse(optarg);
			break;
		case 'x':
			avoid(optarg);
			break;
		default:
			usage();
		}
	}
	if (argc != optind || calls == 0 || per_round == 0)
		usage();
	make_buffers();
	if (!dry) {
		find_oids();
		if ((control = open("/dev/vmmctl", O_RDWR)) < 0)
			err(EX_UNAVAILABLE, "/dev/vmmctl");
	}
	(void)sigaction(SIGUSR1, &tick, NULL);
	/* Bounded by what is asked for, not by what succeeded in being called. */
	for (uint64_t left = calls; left > 0 && hung < 8; round_number++) {
		uint32_t now = (uint32_t)MIN(left, per_round);

		if (!run_round(now))
			hung++;
		left -= now;
		rounds++;
	}
	tell(rounds);
	return (hung != 0 ? 1 : 0);
}
