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
 *	seg ID LENGTH NAME	a memory segment; the name "-" is none
 *	map GPA LENGTH ID	a mapping, in any order
 *	open ERRNO		opening it fails
 *	fail COUNT ERRNO	all ioctls fail after COUNT of them
 *	dead COUNT ERRNO OPENS	so they do the first OPENS times it is opened
 *
 * $SHIM_MODULE=0 is a host without the module.  $SHIM_TOTAL, $SHIM_ALLOCATED
 * and $SHIM_FREE are the sysctls; one that is not set does not exist.  Where
 * $SHIM_TWICE is set, each VM is found twice.
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

/* machine/vmm.h and machine/vmm_dev.h; the structures differ by release */
typedef uint64_t vm_paddr_t;
typedef int64_t vm_ooffset_t;

struct vm_memmap {
	vm_paddr_t	gpa;
	int		segid;
	vm_ooffset_t	segoff;
	size_t		len;
	int		prot;
	int		flags;
};

struct vm_memseg {
	int		segid;
	size_t		len;
	char		name[16];
#if SHIM_RELEASE >= 15
	void		*ds_mask;
	size_t		ds_mask_size;
	int		ds_policy;
#endif
};

#define	VM_MEMSEG_NAME(m)	((m)->name[0] != '\0' ? (m)->name : NULL)
#if SHIM_RELEASE >= 15
#define	SHIM_SEGMENTS	11
#else
#define	SHIM_SEGMENTS	4
#endif

enum {
	VM_GET_MEMSEG = 0x7601,
	VM_MMAP_GETNEXT,
};

int	shim_open(const char *path, int flags);
int	shim_ioctl(int fd, unsigned long cmd, void *arg);
void	*shim_fts_open(char *const *paths, int options, void *compare);
int	modfind(const char *name);
int	sysctlbyname(const char *name, void *old, size_t *oldlen,
	    const void *new, size_t newlen);

/* libc */
size_t	shim_strlcpy(char *dst, const char *src, size_t size);
#define	strlcpy	shim_strlcpy

/* For the fuzzer: where output goes, and back to the start. */
extern FILE *shim_out, *shim_err;
void	shim_exit(int code) __dead2;
void	shim_reset(void);

#endif /* !SHIM_H */
