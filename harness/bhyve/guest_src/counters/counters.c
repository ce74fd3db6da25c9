/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Write the coverage counters of the loaded vmm.ko to standard output.  The
 * kernel has no run time library for this, so they are read from its memory,
 * between two symbols of the module.
 */

#include <sys/param.h>
#include <sys/linker.h>

#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sysexits.h>
#include <unistd.h>

#define	MODULE	"vmm.ko"
#define	START	"vmm_counters_start"
#define	END	"vmm_counters_end"
#define	MOST	(64UL << 20)

static uintptr_t
lookup(int module, char *name)
{
	struct kld_sym_lookup symbol;

	symbol.version = sizeof(symbol);
	symbol.symname = name;
	if (kldsym(module, KLDSYM_LOOKUP, &symbol) != 0)
		err(EX_UNAVAILABLE, "%s: not built for coverage: %s", MODULE,
		    name);
	return (symbol.symvalue);
}

int
main(void)
{
	char buffer[65536], end[] = END, start[] = START;
	uintptr_t at, last;
	ssize_t done;
	int memory, module;

	module = kldfind(MODULE);
	if (module < 0)
		err(EX_UNAVAILABLE, "%s", MODULE);
	at = lookup(module, start);
	last = lookup(module, end);
	if (last < at || last - at > MOST)
		errx(EX_SOFTWARE, "counters from %#jx to %#jx", (uintmax_t)at,
		    (uintmax_t)last);
	memory = open("/dev/kmem", O_RDONLY);
	if (memory < 0)
		err(EX_NOINPUT, "/dev/kmem");
	for (; at < last; at += done) {
		done = pread(memory, buffer, MIN(sizeof(buffer), last - at),
		    (off_t)at);
		if (done <= 0)
			err(EX_IOERR, "/dev/kmem at %#jx", (uintmax_t)at);
		if (fwrite(buffer, 1, done, stdout) != (size_t)done)
			err(EX_IOERR, "standard output");
	}
	if (fflush(stdout) != 0)
		err(EX_IOERR, "standard output");
	return (0);
}
