/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Memory that is a device: an access ends VM_RUN with INST_EMUL, decoded by
 * the kernel, and the tree's code executes it, as in bhyve.
 */

#include <sys/param.h>

#include <machine/vmm.h>
#include <machine/vmm_instruction_emul.h>

#include <errno.h>
#include <string.h>

#include "vmunit.h"

static int
access_device(struct device *device, uint64_t gpa, void *value, int size,
    bool write)
{
	uint64_t offset = gpa - DEVICE;

	device->gpa = gpa;
	device->size = size;
	if (gpa < DEVICE || offset + (unsigned)size > sizeof(device->bytes)) {
		note("an access to %#jx, %d bytes", (uintmax_t)gpa, size);
		return (EFAULT);
	}
	if (write) {
		device->writes++;
		memcpy(device->bytes + offset, value, (size_t)size);
	} else {
		device->reads++;
		memset(value, 0, sizeof(uint64_t));
		memcpy(value, device->bytes + offset, (size_t)size);
	}
	return (0);
}

static int
read_device(struct vcpu *vcpu __unused, uint64_t gpa, uint64_t *value,
    int size, void *arg)
{
	return (access_device(arg, gpa, value, size, false));
}

static int
write_device(struct vcpu *vcpu __unused, uint64_t gpa, uint64_t value,
    int size, void *arg)
{
	return (access_device(arg, gpa, &value, size, true));
}

/* Functions that the tree's code needs. */
void	vm_inject_fault(struct vcpu *, int, int, int);

void
vm_inject_fault(struct vcpu *vcpu, int vector, int has_error, int error)
{
	if (vm_inject_exception(vcpu, vector, has_error, (uint32_t)error,
	    1) != 0)
		note("exception %d cannot be injected: %s", vector,
		    strerror(errno));
}

/* Called through `struct vm`; returns 0 or an errno. */
int
emulate_access(struct vm *vm)
{
	struct vie *vie = &vm->exit.u.inst_emul.vie;

	if (!vie->decoded) {
		note("the kernel did not decode the instruction at %#jx",
		    (uintmax_t)vm->exit.rip);
		return (EINVAL);
	}
	return (vmm_emulate_instruction(vm->vcpu[0], vm->exit.u.inst_emul.gpa,
	    vie, &vm->exit.u.inst_emul.paging, read_device, write_device,
	    vm->arg));
}
