/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Operations of the checks on virtual machines, by libvmmapi: a VM can get
 * memory without being run, and outlives this program.
 */

#include <sys/param.h>
#include <sys/domainset.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/user.h>

#include <machine/vmm.h>
#include <machine/vmm_dev.h>
/* 15.1 has VM_BOOTROM here; 14 has it in vmmapi.h. */
#if __has_include(<dev/vmm/vmm_mem.h>)
#include <dev/vmm/vmm_mem.h>
#endif

#include <err.h>
#include <errno.h>
#include <libutil.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include <vmmapi.h>

#include "vmtool.h"

/* Missing in the stock library; then the linker leaves them NULL. */
#pragma weak vmm_get_mem_total
#pragma weak vmm_get_mem_free
#pragma weak vmm_get_mem_allocated
#pragma weak vmm_get_mem_device
size_t	vmm_get_mem_total(void);
size_t	vmm_get_mem_free(void);
size_t	vmm_get_mem_allocated(void);
size_t	vmm_get_mem_device(void);

/* Device memory as bhyve makes it: the first segments past system memory. */
#define	DEVMEM_SEGMENTS	{ VM_BOOTROM, VM_FRAMEBUFFER }
#define	DEVMEM_NAMES	{ "bootrom", "framebuffer" }
#define	DEVMEM_MAX	2

#define	HIGHMEM_BASE	(4ULL * 1024 * 1024 * 1024)

void
usage(void)
{
	(void)fprintf(stderr,
	    "usage: vmtool create [-S] name [bytes [devmem-bytes ...]]\n"
	    "       vmtool destroy name ...\n"
	    "       vmtool clean name ...\n"
	    "       vmtool linger name bytes\n"
	    "       vmtool domains name count bytes\n"
	    "       vmtool misuse name\n"
	    "       vmtool memory\n"
	    "       vmtool churn prefix count bytes\n"
	    "       vmtool many prefix count bytes\n"
	    "       vmtool few prefix count\n"
	    "       vmtool race creators rounds bytes\n"
	    "       vmtool watch vmmls creators standing listings bytes\n"
	    "       vmtool sysctl name ...\n"
	    "       vmtool set sysctl value\n"
	    "       vmtool names\n"
	    "       vmtool steps [must|may|always count word ...] ...\n");
	exit(EX_USAGE);
}

size_t
number(const char *text)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 0);
	if (errno != 0 || *end != '\0' || end == text)
		errx(EX_USAGE, "%s: not a number", text);
	return (value);
}

struct vmctx *
open_vm(const char *name)
{
	struct vmctx *vm;

	if ((vm = vm_open(name)) == NULL)
		err(EX_NOINPUT, "%s: vm_open", name);
	return (vm);
}

static void
undo(struct vmctx *vm, const char *name, const char *what)
{
	int error;

	error = errno;
	vm_destroy(vm);
	errno = error;
	err(EX_OSERR, "%s: %s", name, what);
}

static void
forget_range(struct vmctx *vm, vm_paddr_t gpa, size_t len)
{
	void *base;

	base = len == 0 ? NULL : vm_map_gpa(vm, gpa, len);
	if (base != NULL && munmap(base, len) != 0)
		err(EX_OSERR, "munmap");
}

/* While this process has a VM's memory, destroying the VM does not free it. */
void
forget_memory(struct vmctx *vm)
{
	forget_range(vm, 0, vm_get_lowmem_size(vm));
	forget_range(vm, HIGHMEM_BASE, vm_get_highmem_size(vm));
}

/* After a failure everything is undone: the check examines only the host. */
void
create(const char *name, size_t bytes, bool wired, const size_t *devmem,
    int ndevmem)
{
	static const int segments[] = DEVMEM_SEGMENTS;
	static const char *const names[] = DEVMEM_NAMES;
	struct vmctx *vm;
	void *rom;

	if (vm_create(name) != 0)
		err(EX_OSERR, "%s: vm_create", name);
	vm = open_vm(name);
	if (wired)
		vm_set_memflags(vm, VM_MEM_F_WIRED);
	if (bytes != 0) {
		if (vm_setup_memory(vm, bytes, VM_MMAP_ALL) != 0)
			undo(vm, name, "vm_setup_memory");
		forget_memory(vm);
	}
	for (int i = 0; i < ndevmem; i++) {
		rom = vm_create_devmem(vm, segments[i], names[i], devmem[i]);
		if (rom == MAP_FAILED)
			undo(vm, name, "vm_create_devmem");
		(void)munmap(rom, devmem[i]);
	}
	vm_close(vm);
}

static void
create_command(int argc, char **argv)
{
	size_t devmem[DEVMEM_MAX];
	int ndevmem;
	bool wired;

	wired = argc > 0 && strcmp(argv[0], "-S") == 0;
	argc -= wired;
	argv += wired;
	ndevmem = argc > 2 ? argc - 2 : 0;
	if (argc < 1 || ndevmem > DEVMEM_MAX)
		usage();
	for (int i = 0; i < ndevmem; i++)
		devmem[i] = number(argv[2 + i]);
	create(argv[0], argc > 1 ? number(argv[1]) : 0, wired, devmem, ndevmem);
}

/*
 * Start a process that outlives this one and has the memory of a destroyed VM
 * mapped, like a bhyve(8) that does not end. Print its number.
 */
static void
linger(const char *name, size_t bytes)
{
	struct vmctx *vm;
	pid_t pid;

	if (vm_create(name) != 0)
		err(EX_OSERR, "%s: vm_create", name);
	vm = open_vm(name);
	if (vm_setup_memory(vm, bytes, VM_MMAP_ALL) != 0)
		undo(vm, name, "vm_setup_memory");
	if ((pid = fork()) == -1)
		undo(vm, name, "fork");
	if (pid == 0) {
		/*
		 * Otherwise a reader of this program's output would wait for
		 * its end.
		 */
		(void)close(STDIN_FILENO);
		(void)close(STDOUT_FILENO);
		(void)close(STDERR_FILENO);
		vm_close(vm);
		for (;;)
			(void)pause();
	}
	vm_destroy(vm);
	(void)printf("%d\n", (int)pid);
}

#ifdef VM_MAXMEMDOM
/* The bytes that this process has mapped, with what is only reserved. */
static size_t
mapped(void)
{
	struct kinfo_vmentry *found;
	size_t bytes = 0;
	int count;

	if ((found = kinfo_getvmmap(getpid(), &count)) == NULL)
		err(EX_OSERR, "kinfo_getvmmap");
	for (int i = 0; i < count; i++)
		bytes += found[i].kve_end - found[i].kve_start;
	free(found);
	return (bytes);
}
#endif

/* The VM stays, so that the check sees its memory after a failure. */
static void
domains(const char *name, size_t count, size_t bytes)
{
#ifdef VM_MAXMEMDOM
	struct vm_mem_domain doms[VM_MAXMEMDOM];
	struct vmctx *vm;
	size_t before;
	int error;

	if (count > VM_MAXMEMDOM)
		usage();
	if (vm_create(name) != 0 && errno != EEXIST)
		err(EX_OSERR, "%s: vm_create", name);
	vm = open_vm(name);
	memset(doms, 0, sizeof(doms));
	for (size_t i = 0; i < count; i++) {
		doms[i].size = bytes;
		doms[i].ds_policy = DOMAINSET_POLICY_INVALID;
	}
	before = mapped();
	if (vm_setup_memory_domains(vm, VM_MMAP_ALL, doms, count) != 0) {
		error = errno;
		/* malloc(3) may have mapped some, but not that much. */
		if (mapped() > before + bytes / 2)
			errx(EX_SOFTWARE, "%s: refused, but %zu bytes stay "
			    "mapped", name, mapped() - before);
		errno = error;
		err(EX_OSERR, "%s: vm_setup_memory_domains", name);
	}
	vm_close(vm);
#else
	errx(EX_UNAVAILABLE, "%s: no %zu domains of %zu in this release", name,
	    count, bytes);
#endif
}

static void
tell(const char *what, bool ok)
{
	(void)printf("%s: %s\n", what, ok ? "done" : strerror(errno));
}

static void
give_back(struct vmctx *vm, const char *what, int segid)
{
#ifdef VM_FREE_MEMSEG
	tell(what, ioctl(vm_get_device_fd(vm), VM_FREE_MEMSEG, &segid) == 0);
#else
	(void)vm;
	(void)segid;
	(void)printf("%s: no such request\n", what);
#endif
}

/*
 * Make requests that the kernel must refuse, to a VM with 16 MB of system
 * memory and no boot ROM.
 */
static void
misuse(const char *name)
{
	const size_t mb = 1024 * 1024;
	struct vmctx *vm;

	vm = open_vm(name);
	tell("half a page", vm_create_devmem(vm, VM_BOOTROM, "bootrom",
	    2048) != MAP_FAILED);
	tell("no such segment", vm_create_devmem(vm, 1000, "bootrom", mb) !=
	    MAP_FAILED);
	tell("more than there are addresses", vm_create_devmem(vm, VM_BOOTROM,
	    "bootrom", (size_t)-4096) != MAP_FAILED);
	give_back(vm, "free what is not there", VM_BOOTROM);
	give_back(vm, "free a negative segment", -1);
	give_back(vm, "free no such segment", 1000);
	give_back(vm, "free what the guest has", VM_SYSMEM);
	tell("a boot ROM", vm_create_devmem(vm, VM_BOOTROM, "bootrom", mb) !=
	    MAP_FAILED);
	tell("the same of another size", vm_create_devmem(vm, VM_BOOTROM,
	    "bootrom", 2 * mb) != MAP_FAILED);
	give_back(vm, "free device memory", VM_BOOTROM);
	vm_close(vm);
}

/* Names of equal length, so that their order is that of their numbers. */
static const char *
numbered(const char *prefix, size_t i)
{
	static char name[256];

	(void)snprintf(name, sizeof(name), "%s%05zu", prefix, i);
	return (name);
}

static void
print(const char *what, size_t (*get)(void))
{
	size_t value;

	if (get == NULL)
		errx(EX_UNAVAILABLE, "libvmmapi has no vmm_get_mem_%s", what);
	errno = 0;
	if ((value = get()) == (size_t)-1)
		err(EX_OSERR, "vmm_get_mem_%s", what);
	(void)printf("%s %zu\n", what, value);
}

/* libvmmapi aborts where a name is too long for a VM. */
static void
clean(const char *name)
{
	char path[PATH_MAX];
	struct vmctx *vm;

	if (snprintf(path, sizeof(path), "/dev/vmm/%s", name) >=
	    (int)sizeof(path) || access(path, F_OK) != 0)
		return;
	if ((vm = vm_open(name)) != NULL)
		vm_destroy(vm);
}

/* One operation: its name and its arguments. */
int
operate(int argc, char **argv)
{
	struct vmctx *vm;
	size_t count;

	if (strcmp(argv[0], "create") == 0)
		create_command(argc - 1, argv + 1);
	else if (strcmp(argv[0], "destroy") == 0 && argc >= 2) {
		for (int i = 1; i < argc; i++)
			vm_destroy(open_vm(argv[i]));
	} else if (strcmp(argv[0], "clean") == 0 && argc >= 2) {
		for (int i = 1; i < argc; i++)
			clean(argv[i]);
	} else if (strcmp(argv[0], "memory") == 0 && argc == 1) {
		print("total", vmm_get_mem_total);
		print("allocated", vmm_get_mem_allocated);
		print("device", vmm_get_mem_device);
		print("free", vmm_get_mem_free);
	} else if (strcmp(argv[0], "linger") == 0 && argc == 3) {
		linger(argv[1], number(argv[2]));
	} else if (strcmp(argv[0], "misuse") == 0 && argc == 2) {
		misuse(argv[1]);
	} else if (strcmp(argv[0], "domains") == 0 && argc == 4) {
		domains(argv[1], number(argv[2]), number(argv[3]));
	} else if (strcmp(argv[0], "churn") == 0 && argc == 4) {
		count = number(argv[2]);
		for (size_t i = 0; i < count; i++) {
			create(numbered(argv[1], i), number(argv[3]), false,
			    NULL, 0);
			vm_destroy(open_vm(numbered(argv[1], i)));
		}
	} else if (strcmp(argv[0], "many") == 0 && argc == 4) {
		count = number(argv[2]);
		for (size_t i = 0; i < count; i++)
			create(numbered(argv[1], i), number(argv[3]), false,
			    NULL, 0);
	} else if (strcmp(argv[0], "few") == 0 && argc == 3) {
		count = number(argv[2]);
		for (size_t i = 0; i < count; i++) {
			if ((vm = vm_open(numbered(argv[1], i))) != NULL)
				vm_destroy(vm);
		}
	} else if (strcmp(argv[0], "race") == 0 && argc == 4) {
		return (race(number(argv[1]), number(argv[2]),
		    number(argv[3])));
	} else if (strcmp(argv[0], "watch") == 0 && argc == 6) {
		return (watch(argv[1], number(argv[2]), number(argv[3]),
		    number(argv[4]), number(argv[5])));
	} else if (strcmp(argv[0], "sysctl") == 0 && argc >= 2) {
		read_sysctls(argc - 1, argv + 1);
	} else if (strcmp(argv[0], "set") == 0 && argc == 3) {
		write_sysctl(argv[1], number(argv[2]));
	} else if (strcmp(argv[0], "names") == 0 && argc == 1) {
		print_names();
	} else if (strcmp(argv[0], "steps") == 0 && argc >= 2) {
		return (steps(argc - 1, argv + 1));
	} else
		usage();
	return (EX_OK);
}

int
main(int argc, char **argv)
{
	if (argc < 2)
		usage();
	return (operate(argc - 1, argv + 1));
}
