/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Functions of libvmmapi itself, and the control device. */

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "vmunit.h"

#define	GIB		(1ul << 30)
#define	MIB		(1ul << 20)

static void
sizes(const void *arg __unused)
{
	static const struct { const char *text; size_t bytes; bool good; }
	    cases[] = {
		{ "256", 256 * MIB, true }, { "512m", 512 * MIB, true },
		{ "2G", 2 * GIB, true }, { "1048576", MIB, true },
		{ "3072K", 3 * MIB, true }, { "1T", 1024 * GIB, true },
		{ "0", 0, false }, { "", 0, false }, { "abc", 0, false },
		{ "12x", 0, false }, { "-1", 0, false },
	};
	size_t bytes;

	for (size_t i = 0; i < nitems(cases); i++) {
		int error;

		bytes = 0;
		error = vm_parse_memsize(cases[i].text, &bytes);
		if (!cases[i].good)
			continue;	/* differs between releases */
		check(error == 0 && bytes == cases[i].bytes, "\"%s\" is %zu",
		    cases[i].text, bytes);
	}
}

/* The library of FreeBSD 14 does not have it. */
extern vm_paddr_t vm_get_highmem_base(struct vmctx *) __weak_symbol;

/* Memory above 3 GiB is mapped above 4 GiB. */
static void
high_memory(const void *arg __unused)
{
	struct vm *vm = vm_bare();
	uint8_t *low, *high;

	if (vm_setup_memory(vm->ctx, 3 * GIB + 2 * MIB, VM_MMAP_ALL) != 0)
		fail("no memory: %s", strerror(errno));
	equal("low memory", vm_get_lowmem_size(vm->ctx), 3 * GIB);
	equal("high memory", vm_get_highmem_size(vm->ctx), 2 * MIB);
	if (vm_get_highmem_base != NULL)
		equal("where it begins", vm_get_highmem_base(vm->ctx),
		    4 * GIB);
	low = vm_map_gpa(vm->ctx, 3 * GIB - 1, 1);
	high = vm_map_gpa(vm->ctx, 4 * GIB + 2 * MIB - 1, 1);
	check(low != NULL && high != NULL, "its ends cannot be mapped");
	check(vm_map_gpa(vm->ctx, 3 * GIB - 1, 2) == NULL,
	    "memory at 3 GiB can be mapped");
	check(vm_map_gpa(vm->ctx, 4 * GIB + 2 * MIB - 1, 2) == NULL,
	    "memory beyond the end can be mapped");
	/* Lengths with which the end of the range wraps around. */
	check(vm_map_gpa(vm->ctx, 0x1000, (size_t)-0x800) == NULL,
	    "a length that wraps can be mapped");
	check(vm_map_gpa(vm->ctx, 4 * GIB + MIB, (size_t)-MIB) == NULL,
	    "a length that wraps can be mapped above 4 GiB");
	check(vm_map_gpa(vm->ctx, 4 * GIB - 1, 1) == NULL,
	    "memory below 4 GiB can be mapped");
	if (high != NULL) {
		*high = 0x3c;
		equal("back to an address", vm_rev_map_gpa(vm->ctx, high),
		    4 * GIB + 2 * MIB - 1);
		check(pread(vm->fd, high, 1, 4 * GIB + 2 * MIB - 1) == 1 &&
		    *high == 0x3c, "it is not the guest's memory");
	}
	vm_free(vm);
}

/* vm_copy_setup: a range of addresses on two pages that are not adjacent. */
static void
copies(const void *arg __unused)
{
	struct vm *vm = vm_new();
	struct vm_guest_paging paging = { .cr3 = cr3_of(LONG64, W_RAM),
	    .cpl = 0, .cpu_mode = CPU_MODE_64BIT,
	    .paging_mode = PAGING_MODE_64 };
	char text[32] = "across a boundary of pages";
	char back[32] = "";
	struct iovec iov[2];
	int fault = 1;

	/* The window's second page is the third page of A_DATA. */
	if (vm_copy_setup(vm->vcpu[0], &paging, WINDOW + PAGE_SIZE - 10, 27,
	    PROT_WRITE, iov, 2, &fault) != 0 || fault != 0)
		fail("it cannot be set up: %s", strerror(errno));
	vm_copyout(text, iov, 27);
	vm_copy_teardown(iov, 2);
	check(memcmp(vm->mem + A_DATA + PAGE_SIZE - 10, text, 10) == 0,
	    "its beginning is not there");
	check(memcmp(vm->mem + A_DATA + 2 * PAGE_SIZE, text + 10, 17) == 0,
	    "its end is not on the page that follows");
	if (vm_copy_setup(vm->vcpu[0], &paging, WINDOW + PAGE_SIZE - 10, 27,
	    PROT_READ, iov, 2, &fault) != 0 || fault != 0)
		fail("it cannot be set up to read");
	vm_copyin(iov, back, 27);
	vm_copy_teardown(iov, 2);
	check(memcmp(back, text, 27) == 0, "it reads as \"%.27s\"", back);
	/* A device cannot be copied to. */
	paging.cr3 = cr3_of(LONG64, W_DEVICE);
	check(vm_copy_setup(vm->vcpu[0], &paging, WINDOW, 8, PROT_READ, iov,
	    2, &fault) == EFAULT, "a device can be copied from");
	vm_free(vm);
}

/* /dev/vmmctl must be opened for writing; reserved words must be zero. */
static void
control(const void *arg __unused)
{
#ifdef VMMCTL_VM_CREATE
	struct vmmctl_vm_create create = { .name = "vmunit-control" };
	struct vmmctl_vm_destroy destroy = { .name = "vmunit-control" };
	int fd;

	errno = 0;
	check(open("/dev/vmmctl", O_RDONLY) < 0 && errno == EPERM,
	    "for reading: %s", strerror(errno));
	if ((fd = open("/dev/vmmctl", O_RDWR)) < 0)
		fail("/dev/vmmctl: %s", strerror(errno));
	create.reserved[15] = 1;
	check(ioctl(fd, VMMCTL_VM_CREATE, &create) != 0 && errno == EINVAL,
	    "a reserved word: %s", strerror(errno));
	create.reserved[15] = 0;
	check(ioctl(fd, VMMCTL_VM_CREATE, &create) == 0, "create: %s",
	    strerror(errno));
	check(ioctl(fd, VMMCTL_VM_CREATE, &create) != 0 && errno == EEXIST,
	    "create again: %s", strerror(errno));
	destroy.reserved[0] = 1;
	check(ioctl(fd, VMMCTL_VM_DESTROY, &destroy) != 0 && errno == EINVAL,
	    "a reserved word: %s", strerror(errno));
	destroy.reserved[0] = 0;
	check(ioctl(fd, VMMCTL_VM_DESTROY, &destroy) == 0, "destroy: %s",
	    strerror(errno));
	check(ioctl(fd, VMMCTL_VM_DESTROY, &destroy) != 0 && errno == EINVAL,
	    "destroy again: %s", strerror(errno));
	check(ioctl(fd, _IO('V', 99)) != 0 && errno == ENOTTY,
	    "no such ioctl: %s", strerror(errno));
	(void)close(fd);
#else
	skip(N_A "this FreeBSD has no /dev/vmmctl");
#endif
}

static void
statistics(const void *arg __unused)
{
	struct vm *vm = vm_new();
	struct vm_stats stats = { .cpuid = 0 };
	struct vm_stat_desc desc = { .index = -1 };

	check(ioctl(vm->fd, VM_STATS, &stats) == 0 && stats.num_entries > 0,
	    "none: %s", strerror(errno));
	errno = 0;
	check(ioctl(vm->fd, VM_STAT_DESC, &desc) != 0 && errno == EINVAL,
	    "name -1: %s", strerror(errno));
	desc.index = 100000;
	check(ioctl(vm->fd, VM_STAT_DESC, &desc) != 0 && errno == EINVAL,
	    "name 100000: %s", strerror(errno));
	vm_free(vm);
}

/* The host's registers: its floating-point state survives a guest's run. */
static void
host_state(const void *arg __unused)
{
	/* CR4.OSFXSR; then movq %rbx, %xmm6 */
	static const uint8_t enable[] = { 0x0f, 0x20, 0xe0, 0x0d, 0x00, 0x02,
	    0x00, 0x00, 0x0f, 0x22, 0xe0, 0x66, 0x48, 0x0f, 0x6e, 0xf3 };
	struct vm *vm = vm_new();
	double before = 3.25, after;

	set_reg(vm, VM_REG_GUEST_RBX, 0xdeadbeefdeadbeef);
	code(vm, enable, sizeof(enable));
	__asm __volatile("movsd %0, %%xmm6" : : "m" (before) : "xmm6");
	(void)step(vm, vm->vcpu[0]);
	__asm __volatile("movsd %%xmm6, %0" : "=m" (after));
	check(after == before, "XMM6 was %f and is %f", before, after);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "library.sizes", "sizes of memory are parsed", sizes, NULL },
	{ "library.high_memory", "memory above 3 GiB goes above 4 GiB",
	    high_memory, NULL },
	{ "library.copies",
	    "copies across pages that are not adjacent work", copies,
	    NULL },
	{ "library.control", "/dev/vmmctl makes and destroys VMs, and refuses "
	    "wrong requests", control, NULL },
	{ "library.statistics",
	    "statistics that do not exist are refused", statistics, NULL },
	{ "library.host_state", "the host's registers survive a guest's run",
	    host_state, NULL },
};

GROUP(library, tests);
