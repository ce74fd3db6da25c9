/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * What the host shows without libvmmapi: sysctls and the nodes of VMs.
 */

#include <sys/param.h>
#include <sys/stat.h>
#include <sys/sysctl.h>

#include <err.h>
#include <fts.h>
#include <stdint.h>
#include <stdio.h>
#include <sysexits.h>

#include "vmtool.h"

/* Print sysctls that are whole numbers, a line each. */
void
read_sysctls(int argc, char **argv)
{
	union {
		uint64_t wide;
		uint32_t narrow;
	} value;
	size_t size;

	for (int i = 0; i < argc; i++) {
		value.wide = 0;
		size = sizeof(value);
		if (sysctlbyname(argv[i], &value, &size, NULL, 0) != 0)
			err(EX_UNAVAILABLE, "%s", argv[i]);
		if (size != sizeof(value.wide) && size != sizeof(value.narrow))
			errx(EX_UNAVAILABLE, "%s: not a number", argv[i]);
		(void)printf("%ju\n", size == sizeof(value.wide) ?
		    (uintmax_t)value.wide : (uintmax_t)value.narrow);
	}
}

void
write_sysctl(const char *name, uint64_t value)
{
	uint32_t narrow;
	size_t size;
	int error;

	narrow = (uint32_t)value;
	if (sysctlbyname(name, NULL, &size, NULL, 0) != 0)
		err(EX_UNAVAILABLE, "%s", name);
	if (size == sizeof(narrow))
		error = sysctlbyname(name, NULL, NULL, &narrow, size);
	else
		error = sysctlbyname(name, NULL, NULL, &value, sizeof(value));
	if (error != 0)
		err(EX_NOPERM, "%s", name);
}

/* Print the names of all VMs, as the file system has them. */
void
print_names(void)
{
	static char root[] = "/dev/vmm";
	char *paths[] = { root, NULL };
	FTSENT *entry;
	FTS *tree;

	if ((tree = fts_open(paths, FTS_PHYSICAL, NULL)) == NULL)
		err(EX_OSERR, "%s", root);
	while ((entry = fts_read(tree)) != NULL) {
		/* VMs may vanish meanwhile, and the folder with the last one. */
		if (entry->fts_info == FTS_DEFAULT &&
		    S_ISCHR(entry->fts_statp->st_mode))
			(void)printf("%s\n", entry->fts_path + sizeof(root));
	}
	(void)fts_close(tree);
}
