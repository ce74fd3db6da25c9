/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#include <sys/param.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <fcntl.h>
#include <pthread.h>
#include <pthread_np.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "vmmfuzz.h"

static _Atomic unsigned segments;

/*
 * Whether a call must be left out; a call that can be made harmless is changed
 * instead.
 */
static bool
is_avoided(unsigned long cmd, void *arg)
{
	struct vm_memseg *seg = arg;
	const struct vm_lapic_msi *msi = arg;
	const struct vm_rtc_time *rtc = arg;
	const struct vm_readwrite_kernemu_device *device = arg;

	if (avoided[ANY_RUN] && cmd == VM_RUN)
		return (true);
	/* Valid, but never the same twice. */
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
		/*
		 * Their numbers are in memory that another thread may change.
		 */
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
	/* A huge mapping that succeeds would prevent others in this round. */
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

/* A call's error, and its output if that is the same each time. */
static void
tell(const struct thread *self, const struct op *op, int error)
{
	uint64_t hash = 0xcbf29ce484222325;	/* FNV-1a */

	if (op->shown && error == 0) {
		for (size_t i = 0; i < IOCPARM_LEN(op->cmd); i++)
			hash = (hash ^ self->arg[i]) * 0x100000001b3;
	}
	(void)printf("answer %u.%u %d %jx %s\n", round_number, self->calls,
	    error > ELAST ? -1 : error, (uintmax_t)hash, op->name);
}

void
make_call(struct thread *self)
{
	struct rng *rng = &self->rng;
	const struct op *op;
	unsigned long cmd;
	int error;
	bool skip;

	do {
		op = draw(rng);
	} while (answers && !op->steady);
	memset(self->arg, 0, 512);
	op->fill(self, self->arg);
	cmd = op->cmd;
	if (op->kind == RAW) {
		cmd = one_in(rng, 2) ? ops[below(rng, op_count)].cmd :
		    _IOC((below(rng, 8) << 29), one_in(rng, 4) ? 'V' : 'v',
		    below(rng, 128), below(rng, IOCPARM_MAX));
	} else if ((op->kind == IOCTL || op->kind == CONTROL) &&
	    one_in(rng, 5)) {
		memcpy(self->arg + 4 * below(rng, 16),
		    &(uint64_t){ odd_number(rng) }, 8);
	}
	/*
	 * The system's own ioctls, which any file accepts: FIOASYNC and the
	 * like.
	 */
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
	if (answers)
		tell(self, op, error);
	self->calls++;
}
