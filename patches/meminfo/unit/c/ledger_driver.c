/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * The ledger behind a pipe: one command a line on standard input, one answer a
 * line on standard output.
 *
 *	reserve BYTES | release BYTES		errno
 *	get NAME ROOM				errno, or 0 and the value
 *	set NAME VALUE LENGTH ROOT		errno
 */

#include <inttypes.h>
#include <string.h>

#include "shim.h"

#include <dev/vmm/vmm_mem_acct.h>

int
main(void)
{
	char line[256], name[128];
	uint64_t value;
	size_t len;
	int error, root;

	shim_load();
	while (fgets(line, sizeof(line), stdin) != NULL) {
		if (sscanf(line, "reserve %" SCNu64, &value) == 1) {
			printf("%d\n", vmm_mem_acct_reserve(value));
		} else if (sscanf(line, "release %" SCNu64, &value) == 1) {
			vmm_mem_acct_release(value);
			printf("0\n");
		} else if (sscanf(line, "get %127s %zu", name, &len) == 2) {
			error = shim_sysctl(name, &value, &len, NULL, 0, false);
			if (error == 0)
				printf("0 %" PRIu64 "\n", value);
			else
				printf("%d\n", error);
		} else if (sscanf(line, "set %127s %" SCNu64 " %zu %d", name,
		    &value, &len, &root) == 4) {
			printf("%d\n", shim_sysctl(name, NULL, NULL, &value,
			    len, root != 0));
		} else {
			fprintf(stderr, "not a command: %s", line);
			return (2);
		}
		fflush(stdout);
	}
	return (0);
}
