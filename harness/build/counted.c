/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * What a program or a library that is built for coverage is linked with, instead
 * of the compiler's run time library: it counts in a file, PATH.counters, where
 * PATH is the program's or the library's own.  All processes share the file, so
 * their counts are added, and what a process counted stays, however it ends.
 * Where the file cannot be written, the process runs as usual and counts for
 * nobody.
 */

#include <sys/types.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define	HIDDEN	__attribute__((visibility("hidden")))

/* The linker's script puts these around the counters, which fill whole pages. */
extern HIDDEN char vmm_counters_start[], vmm_counters_end[];

/*
 * Every object that counts refers to this.  It has a value so that there is a
 * .data, behind which the linker's script puts the counters.
 */
HIDDEN int __llvm_profile_runtime = 1;

/* It runs before main() and so before a program gives up what it may open. */
__attribute__((constructor))
static void
count_in_file(void)
{
	char own[PATH_MAX], path[PATH_MAX];
	Dl_info info;
	size_t length;
	int fd;

	length = (size_t)(vmm_counters_end - vmm_counters_start);
	if (length == 0 || dladdr(vmm_counters_start, &info) == 0 ||
	    realpath(info.dli_fname, own) == NULL)
		return;
	(void)snprintf(path, sizeof(path), "%s.counters", own);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	if (fd == -1)
		return;
	/* Processes of other users may count as well, whatever the mask is. */
	(void)fchmod(fd, 0666);
	if (ftruncate(fd, (off_t)length) == 0)
		(void)mmap(vmm_counters_start, length, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_FIXED | MAP_NOSYNC, fd, 0);
	(void)close(fd);
}
