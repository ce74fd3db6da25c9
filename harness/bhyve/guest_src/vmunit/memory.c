/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* A VM's memory: segments, mappings, and the edges of /dev/vmm/NAME. */

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <errno.h>
#include <string.h>
#include <unistd.h>

#if __has_include(<dev/vmm/vmm_mem.h>)
#include <dev/vmm/vmm_mem.h>
#endif

#include "vmunit.h"

#define	MIB		(1ul << 20)
#ifndef VM_MAX_MEMSEGS
#define	VM_MAX_MEMSEGS	4
#endif

static int
allocate(struct vm *vm, int segment, size_t length, const char *name)
{
	struct vm_memseg seg = { .segid = segment, .len = length };

	(void)strlcpy(seg.name, name, sizeof(seg.name));
	return (ioctl(vm->fd, VM_ALLOC_MEMSEG, &seg) == 0 ? 0 : errno);
}

static int
map(struct vm *vm, struct vm_memmap map)
{
	return (ioctl(vm->fd, VM_MMAP_MEMSEG, &map) == 0 ? 0 : errno);
}

static void
errors_of(const char *what, int got, int wanted)
{
	check(got == wanted, "%s: %s, not %s", what, strerror(got),
	    strerror(wanted));
}

static void
segments(const void *arg __unused)
{
	struct vm *vm = vm_bare();
	struct vm_memseg seg = { .segid = 0 };

	errors_of("segment -1", allocate(vm, -1, MIB, ""), EINVAL);
	errors_of("a segment too far", allocate(vm, VM_MAX_MEMSEGS, MIB, ""),
	    EINVAL);
	errors_of("length 0", allocate(vm, 0, 0, ""), EINVAL);
	errors_of("half a page", allocate(vm, 0, MIB + 2048, ""), EINVAL);
	check(ioctl(vm->fd, VM_GET_MEMSEG, &seg) == 0 && seg.len == 0,
	    "a segment that is not there has a length of %zu", seg.len);
	errors_of("1 MiB", allocate(vm, 0, MIB, ""), 0);
	errors_of("the same again", allocate(vm, 0, MIB, ""), EEXIST);
	errors_of("another length", allocate(vm, 0, 2 * MIB, ""), EINVAL);
	memset(seg.name, 'x', sizeof(seg.name));
	check(ioctl(vm->fd, VM_GET_MEMSEG, &seg) == 0 && seg.len == MIB,
	    "its length is %zu", seg.len);
	check(seg.name[0] == '\0', "system memory has a name");
	errors_of("device memory", allocate(vm, 1, MIB, "unit"), 0);
	seg.segid = 1;
	check(ioctl(vm->fd, VM_GET_MEMSEG, &seg) == 0 &&
	    strcmp(seg.name, "unit") == 0, "its name is \"%.16s\"", seg.name);
	errors_of("as system memory", allocate(vm, 1, MIB, ""), EINVAL);
	seg.segid = VM_MAX_MEMSEGS;
	check(ioctl(vm->fd, VM_GET_MEMSEG, &seg) != 0 && errno == EINVAL,
	    "reading a segment too far: %s", strerror(errno));
	vm_free(vm);
}

static void
mappings(const void *arg __unused)
{
	static const struct { const char *what; struct vm_memmap map;
	    int error; } cases[] = {
		{ "no protection", { .len = MIB }, EINVAL },
		{ "protection 8", { .len = MIB, .prot = 8 }, EINVAL },
		{ "flag 4", { .len = MIB, .prot = 7, .flags = 4 }, EINVAL },
		{ "segment -1", { .segid = -1, .len = MIB, .prot = 7 },
		    EINVAL },
		{ "a segment too far", { .segid = VM_MAX_MEMSEGS, .len = MIB,
		    .prot = 7 }, EINVAL },
		{ "a segment that is not there", { .segid = 2, .len = MIB,
		    .prot = 7 }, EINVAL },
		{ "length 0", { .prot = 7 }, EINVAL },
		{ "beyond the segment", { .segoff = MIB, .len = MIB + 4096,
		    .prot = 7 }, EINVAL },
		{ "an odd address", { .gpa = 0x800, .len = MIB, .prot = 7 },
		    EINVAL },
		{ "an odd offset", { .segoff = 0x800, .len = MIB, .prot = 7 },
		    EINVAL },
		{ "an odd length", { .len = MIB - 0x800, .prot = 7 },
		    EINVAL },
		{ "around the end of addresses", { .gpa = ~0xffful,
		    .len = MIB, .prot = 7 }, EINVAL },
		{ "around the end of offsets", { .segoff = ~0xffffl,
		    .len = MIB, .prot = 7 }, EINVAL },
		{ "all of it", { .gpa = MIB, .len = 2 * MIB, .prot = 7 }, 0 },
		{ "beside it", { .segoff = MIB, .len = MIB, .prot = 7 }, 0 },
		{ "after it, a page", { .gpa = 3 * MIB, .len = 4096,
		    .prot = 1 }, 0 },
	};
	struct vm *vm = vm_bare();
	struct vm_munmap gone = { 0 };
	struct vm_memmap next = { 0 };

	errors_of("2 MiB", allocate(vm, 0, 2 * MIB, ""), 0);
	for (size_t i = 0; i < nitems(cases); i++)
		errors_of(cases[i].what, map(vm, cases[i].map),
		    cases[i].error);
	check(map(vm, (struct vm_memmap){ .gpa = 2 * MIB, .len = MIB,
	    .prot = 7 }) != 0, "what is mapped can be mapped again");
	/* They are listed in the order of addresses. */
	for (uint64_t gpa = 0; gpa <= 3 * MIB; gpa = next.gpa + next.len) {
		next = (struct vm_memmap){ .gpa = gpa };
		if (ioctl(vm->fd, VM_MMAP_GETNEXT, &next) != 0) {
			miss("nothing follows %#jx: %s", (uintmax_t)gpa,
			    strerror(errno));
			break;
		}
		equal("the next mapping", next.gpa, gpa);
		equal("its protection", (unsigned)next.prot,
		    gpa == 3 * MIB ? 1 : 7);
		equal("its offset", (uint64_t)next.segoff, gpa == 0 ? MIB : 0);
	}
	next.gpa = 3 * MIB + 4096;
	check(ioctl(vm->fd, VM_MMAP_GETNEXT, &next) != 0 && errno == ENOENT,
	    "after the last mapping: %s", strerror(errno));
	/* Only whole mappings can be removed. */
	gone = (struct vm_munmap){ .gpa = MIB, .len = MIB };
	check(ioctl(vm->fd, VM_MUNMAP_MEMSEG, &gone) != 0 && errno == EINVAL,
	    "half a mapping: %s", strerror(errno));
	gone.len = 2 * MIB;
	check(ioctl(vm->fd, VM_MUNMAP_MEMSEG, &gone) == 0,
	    "a mapping stays: %s", strerror(errno));
	check(ioctl(vm->fd, VM_MUNMAP_MEMSEG, &gone) != 0 && errno == EINVAL,
	    "a mapping can be removed twice: %s", strerror(errno));
	vm_free(vm);
}

/* Mappings up to the limit, and then ENOSPC. */
static void
too_many(const void *arg __unused)
{
	struct vm *vm = vm_bare();
	unsigned made = 0;
	int error = 0;

	errors_of("a page", allocate(vm, 0, 4096, ""), 0);
	while (made < 1000 && (error = map(vm, (struct vm_memmap){
	    .gpa = made * MIB, .len = 4096, .prot = 7 })) == 0)
		made++;
	errors_of("one mapping too many", error, ENOSPC);
	check(made >= 4, "%u mappings can be made", made);
	vm_free(vm);
}

/* read(2) and write(2) at and beyond the edges; a hole contains zeros. */
static void
file_edges(const void *arg __unused)
{
	struct vm *vm = vm_bare();
	char byte = 'a', bytes[64];

	/* A page, a hole of one page, a read-only page. */
	errors_of("3 pages", allocate(vm, 0, 3 * 4096, ""), 0);
	errors_of("the first", map(vm, (struct vm_memmap){ .gpa = 0,
	    .len = 4096, .prot = 7 }), 0);
	errors_of("the last", map(vm, (struct vm_memmap){ .gpa = 2 * 4096,
	    .segoff = 2 * 4096, .len = 4096, .prot = 1 }), 0);
	check(pread(vm->fd, bytes, 64, 0) == 64, "not read at 0: %s",
	    strerror(errno));
	check(pwrite(vm->fd, &byte, 1, 4095) == 1, "not written at 4095: %s",
	    strerror(errno));
	check(pread(vm->fd, bytes, 1, 4095) == 1 && bytes[0] == 'a',
	    "the bytes written at 4095 are not there");
	memset(bytes, 'x', sizeof(bytes));
	check(pread(vm->fd, bytes, 64, 4096) == 64 && bytes[0] == 0 &&
	    bytes[63] == 0, "the hole is not zeros");
	errno = 0;
	check(pwrite(vm->fd, &byte, 1, 4096) < 0 && errno == EFAULT,
	    "a write to the hole: %s", strerror(errno));
	check(pread(vm->fd, bytes, 64, 2 * 4096) == 64,
	    "read-only memory is not read: %s", strerror(errno));
	errno = 0;
	check(pwrite(vm->fd, &byte, 1, 2 * 4096) < 0 && errno == EFAULT,
	    "a write to read-only memory: %s", strerror(errno));
	check(pread(vm->fd, bytes, 64, 3 * 4096 - 64) == 64,
	    "not read up to the end: %s", strerror(errno));
	errno = 0;
	check(pread(vm->fd, bytes, 1, 3 * 4096) < 0 && errno == EFAULT,
	    "a read at the end: %s", strerror(errno));
	errno = 0;
	check(pread(vm->fd, bytes, 64, 3 * 4096 - 32) <= 32,
	    "a read across the end");
	errno = 0;
	check(pread(vm->fd, bytes, 1, 1l << 50) < 0 && errno == EFAULT,
	    "a read far beyond: %s", strerror(errno));
	vm_free(vm);
}

static void
mmap_edges(const void *arg __unused)
{
	static const struct { const char *what; off_t offset; size_t length;
	    int prot; bool works; } cases[] = {
		{ "all of it", 0, 2 * MIB, PROT_READ | PROT_WRITE, true },
		{ "its last page", 2 * MIB - 4096, 4096, PROT_READ, true },
		{ "beyond its end", 2 * MIB - 4096, 8192, PROT_READ, false },
		{ "at its end", 2 * MIB, 4096, PROT_READ, false },
		{ "to execute", 0, 4096, PROT_READ | PROT_EXEC, false },
		{ "device memory", 16 * MIB, 4096, PROT_READ, false },
		{ "nothing", 64 * MIB, 4096, PROT_READ, false },
	};
	struct vm *vm = vm_new();
	void *there;

	if (vm_create_devmem(vm->ctx, VM_MAX_MEMSEGS - 1, "unit", MIB) ==
	    MAP_FAILED)
		fail("no device memory: %s", strerror(errno));
	check(vm_mmap_memseg(vm->ctx, 16 * MIB, VM_MAX_MEMSEGS - 1, 0, MIB,
	    PROT_READ | PROT_WRITE) == 0, "device memory is not mapped: %s",
	    strerror(errno));
	for (size_t i = 0; i < nitems(cases); i++) {
		errno = 0;
		there = mmap(NULL, cases[i].length, cases[i].prot, MAP_SHARED,
		    vm->fd, cases[i].offset);
		check((there != MAP_FAILED) == cases[i].works, "%s: %s",
		    cases[i].what, strerror(errno));
		if (there != MAP_FAILED)
			(void)munmap(there, cases[i].length);
	}
	vm_free(vm);
}

/* A guest's last byte, and the first one after it. */
static void
guest_edges(const void *arg __unused)
{
	struct vm *vm = vm_new();

	vm->mem[MEM_BYTES - 1] = 0x5a;
	set_reg(vm, VM_REG_GUEST_RAX, 0);
	set_reg(vm, VM_REG_GUEST_RCX, MEM_BYTES - 1);
	RUN(vm, 0x8a, 0x01);			/* mov (%rcx), %al */
	expect_done(vm);
	equal("the last byte", reg(vm, VM_REG_GUEST_RAX), 0x5a);
	set_reg(vm, VM_REG_GUEST_RCX, MEM_BYTES);
	RUN(vm, 0x8a, 0x01);
	check(vm->exit.exitcode == VM_EXITCODE_INST_EMUL &&
	    vm->exit.u.inst_emul.gpa == MEM_BYTES, "exit %s, gpa %#jx",
	    exit_name(vm->exit.exitcode),
	    (uintmax_t)vm->exit.u.inst_emul.gpa);
	vm_free(vm);
}

/* Device memory: guest and host read what the other one writes. */
static void
device_memory(const void *arg __unused)
{
	struct vm *vm = vm_new();
	uint8_t *rom = vm_create_devmem(vm->ctx, VM_MAX_MEMSEGS - 1, "unit",
	    MIB);

	if (rom == MAP_FAILED)
		fail("no device memory: %s", strerror(errno));
	check(vm_mmap_memseg(vm->ctx, 16 * MIB, VM_MAX_MEMSEGS - 1, 0, MIB,
	    PROT_READ | PROT_WRITE) == 0, "not mapped: %s", strerror(errno));
	rom[MIB - 1] = 0x77;
	equal("what the guest reads", g_read(vm, 17 * MIB - 4, 4) >> 24, 0x77);
	g_write(vm, 16 * MIB, 8, 0x1122334455667788);
	equal("what the host reads", rom[7], 0x11);
	/* When it is unmapped, an access is an exit that no device handles. */
	check(vm_munmap_memseg(vm->ctx, 16 * MIB, MIB) == 0, "not unmapped");
	set_reg(vm, VM_REG_GUEST_RCX, 16 * MIB);
	RUN(vm, 0x8a, 0x01);
	check(vm->exit.exitcode == VM_EXITCODE_INST_EMUL, "exit %s after it "
	    "was unmapped", exit_name(vm->exit.exitcode));
	vm_free(vm);
}

/* Memory is zero at first, whatever the host used it for. */
static void
zeroed(const void *arg __unused)
{
	struct vm *vm = vm_bare();
	const uint64_t *words;
	size_t i;

	if (vm_setup_memory(vm->ctx, MEM_BYTES, VM_MMAP_ALL) != 0)
		fail("no memory: %s", strerror(errno));
	words = vm_map_gpa(vm->ctx, 0, MEM_BYTES);
	for (i = 0; i < MEM_BYTES / 8 && words[i] == 0; i += 61)
		continue;
	check(i >= MEM_BYTES / 8, "word %zu is %#jx", i, (uintmax_t)words[i]);
	check(vm_map_gpa(vm->ctx, MEM_BYTES - 1, 2) == NULL,
	    "memory beyond its end can be mapped");
	check(vm_map_gpa(vm->ctx, MEM_BYTES, 1) == NULL,
	    "memory at its end can be mapped");
	vm_free(vm);
}

static const struct test tests[] = {
	{ "memory.segments", "memory segments are created, and wrong ones "
	    "refused", segments, NULL },
	{ "memory.mappings",
	    "mappings are made and listed, and wrong ones refused", mappings,
	    NULL },
	{ "memory.too_many", "mappings can be made until there is no more "
	    "room", too_many, NULL },
	{ "memory.file_edges", "/dev/vmm/NAME can be read and written up to "
	    "every edge", file_edges, NULL },
	{ "memory.mmap_edges", "/dev/vmm/NAME can be mapped up to every edge",
	    mmap_edges, NULL },
	{ "memory.guest_edges", "a guest can use its last byte and nothing "
	    "after it", guest_edges, NULL },
	{ "memory.device_memory",
	    "host and guest share device memory", device_memory, NULL },
	{ "memory.zeroed", "a guest's memory is zero at first", zeroed, NULL },
};

GROUP(memory, tests);
