/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * As much of FreeBSD's userland as vmmls and its libvmmapi functions use, on
 * Linux.  The directory vm in the working directory stands in for /dev/vmm, and
 * each plain file in it for a VM.  Its lines say what the VM answers:
 *
 *	mem SYSMEM DEVMEM LOWMEM HIGHMEM WIRED RESIDENT
 *	cpus SOCKETS CORES THREADS ACTIVE HALTED DEBUG	the last three are masks
 *	open ERRNO		opening it fails
 *	fail COUNT ERRNO	all ioctls fail after COUNT of them
 *	dead COUNT ERRNO	so they do because the VM was destroyed
 *	busy			its memory is being changed
 *
 * $SHIM_MODULE=0 is a host without the module.  $SHIM_TOTAL, $SHIM_ALLOCATED,
 * $SHIM_DEVICE and $SHIM_FREE are the sysctls; one that is not set does not
 * exist.  sleep() runs $SHIM_SLEEP in a shell and ends the program when that
 * fails; what it wrote to the file sysctls, as NAME=VALUE lines, holds from
 * then on.
 */

#ifndef SHIM_H
#define	SHIM_H

#include <sys/types.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define	__dead2		__attribute__((__noreturn__))

/* machine/vmm.h and machine/vmm_dev.h */
struct vm_memstat {
	uint64_t	sysmem;
	uint64_t	devmem;
	uint64_t	lowmem;
	uint64_t	highmem;
	uint64_t	wired;
	uint64_t	resident;
	uint64_t	_reserved[2];
};

struct vm_cpu_topology {
	uint16_t	sockets;
	uint16_t	cores;
	uint16_t	threads;
	uint16_t	maxcpus;
};

/* sys/cpuset.h */
typedef struct {
	uint64_t	bits[16];
} shim_cpuset_t;
#define	cpuset_t	shim_cpuset_t
#undef CPU_ZERO
#define	CPU_ZERO(p)	memset((p), 0, sizeof(*(p)))
#define	CPU_EMPTY(p)	shim_cpu_subset(&(shim_cpuset_t){ { 0 } }, (p))
#define	CPU_SUBSET(p, c)	shim_cpu_subset((p), (c))
bool	shim_cpu_subset(const shim_cpuset_t *p, const shim_cpuset_t *c);

struct vm_cpuset {
	int		which;
	int		cpusetsize;
	cpuset_t	*cpus;
};
#define	VM_ACTIVE_CPUS		0
#define	VM_SUSPENDED_CPUS	1
#define	VM_DEBUG_CPUS		2

enum {
	VM_GET_MEMSTAT = 0x7601,
	VM_GET_TOPOLOGY,
	VM_GET_CPUS,
};

struct stat;
int	shim_open(const char *path, int flags);
int	shim_ioctl(int fd, unsigned long cmd, void *arg);
int	shim_fstat(int fd, struct stat *sb);
int	shim_lstat(const char *path, struct stat *sb);
ssize_t	shim_getdirentries(int fd, char *buf, size_t size, off_t *base);
unsigned shim_sleep(unsigned seconds);
const char *shim_user_from_uid(uid_t uid, int nouser);
int	modfind(const char *name);
int	sysctlbyname(const char *name, void *old, size_t *oldlen,
	    const void *new, size_t newlen);

/* libc */
size_t	shim_strlcpy(char *dst, const char *src, size_t size);
#define	strlcpy	shim_strlcpy
long long shim_strtonum(const char *s, long long min, long long max,
	    const char **errstrp);
#define	strtonum	shim_strtonum

/* For the fuzzer: where output goes, and back to the start. */
extern FILE *shim_out, *shim_err;
void	shim_exit(int code) __dead2;
void	shim_reset(void);

#endif /* !SHIM_H */
