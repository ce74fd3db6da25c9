/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * What the checks do to virtual machines, said in libvmmapi's words: a VM can
 * be given memory without being run.  It outlives this program.
 */

#include <sys/types.h>

#include <machine/vmm.h>
/* Where 15.1 has VM_BOOTROM; 14 has it in vmmapi.h. */
#if __has_include(<dev/vmm/vmm_mem.h>)
#include <dev/vmm/vmm_mem.h>
#endif

#include <err.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include <vmmapi.h>

/* Absent from the stock library; the linker then leaves them NULL. */
#pragma weak vmm_get_mem_total
#pragma weak vmm_get_mem_free
#pragma weak vmm_get_mem_allocated
size_t	vmm_get_mem_total(void);
size_t	vmm_get_mem_free(void);
size_t	vmm_get_mem_allocated(void);

/* One past the last system memory segment, and what bhyve uses itself. */
#define	DEVMEM_SEGMENT	VM_BOOTROM

static void
usage(void)
{
	(void)fprintf(stderr,
	    "usage: vmtool create name [bytes [devmem-bytes]]\n"
	    "       vmtool destroy name ...\n"
	    "       vmtool clean name ...\n"
	    "       vmtool memory\n"
	    "       vmtool churn prefix count bytes\n");
	exit(EX_USAGE);
}

static size_t
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

static struct vmctx *
open_vm(const char *name)
{
	struct vmctx *vm;

	if ((vm = vm_open(name)) == NULL)
		err(EX_NOINPUT, "%s: vm_open", name);
	return (vm);
}

/* A failure takes back what was made: the check looks at the host alone. */
static void
create(const char *name, size_t bytes, size_t devmem)
{
	struct vmctx *vm;
	int error;

	if (vm_create(name) != 0)
		err(EX_OSERR, "%s: vm_create", name);
	vm = open_vm(name);
	if (bytes != 0 && vm_setup_memory(vm, bytes, VM_MMAP_ALL) != 0) {
		error = errno;
		vm_destroy(vm);
		errno = error;
		err(EX_OSERR, "%s: vm_setup_memory", name);
	}
	if (devmem != 0 && vm_create_devmem(vm, DEVMEM_SEGMENT, "bootrom",
	    devmem) == (void *)-1) {
		error = errno;
		vm_destroy(vm);
		errno = error;
		err(EX_OSERR, "%s: vm_create_devmem", name);
	}
	vm_close(vm);
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

int
main(int argc, char **argv)
{
	struct vmctx *vm;
	char name[64];
	size_t count;

	if (argc < 2)
		usage();
	if (strcmp(argv[1], "create") == 0 && argc >= 3 && argc <= 5) {
		create(argv[2], argc > 3 ? number(argv[3]) : 0,
		    argc > 4 ? number(argv[4]) : 0);
	} else if (strcmp(argv[1], "destroy") == 0 && argc >= 3) {
		for (int i = 2; i < argc; i++)
			vm_destroy(open_vm(argv[i]));
	} else if (strcmp(argv[1], "clean") == 0 && argc >= 3) {
		for (int i = 2; i < argc; i++) {
			if ((vm = vm_open(argv[i])) != NULL)
				vm_destroy(vm);
		}
	} else if (strcmp(argv[1], "memory") == 0 && argc == 2) {
		print("total", vmm_get_mem_total);
		print("allocated", vmm_get_mem_allocated);
		print("free", vmm_get_mem_free);
	} else if (strcmp(argv[1], "churn") == 0 && argc == 5) {
		count = number(argv[3]);
		for (size_t i = 0; i < count; i++) {
			(void)snprintf(name, sizeof(name), "%s%zu", argv[2],
			    i);
			create(name, number(argv[4]), 0);
			vm_destroy(open_vm(name));
		}
	} else
		usage();
	return (EX_OK);
}
