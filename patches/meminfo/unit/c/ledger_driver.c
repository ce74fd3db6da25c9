/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * The account of guest memory behind a pipe: one command a line on standard
 * input, one answer a line on standard output.
 *
 *	alloc BYTES SYSMEM	errno, or 0 and the object's number
 *	die NUMBER		0; nobody has the object any more
 *	get NAME ROOM		errno, or 0 and the value
 *	set NAME VALUE LENGTH ROOT	errno
 *	user UID		0; who asks from now on
 *	swap			the bytes charged to users
 *	busy			1 if the module must not be unloaded
 *	unload			0
 */

#include <inttypes.h>
#include <string.h>

#include "shim.h"

#include <dev/vmm/vmm_mem.h>

#define	OBJECTS	4096

int
main(void)
{
	static vm_object_t objects[OBJECTS];
	char line[256], name[128];
	uint64_t value;
	size_t len, nobjects;
	int error, root, sysmem;
	unsigned uid;

	shim_load();
	nobjects = 0;
	while (fgets(line, sizeof(line), stdin) != NULL) {
		if (sscanf(line, "alloc %" SCNu64 " %d", &value,
		    &sysmem) == 2) {
			if (nobjects == OBJECTS)
				return (2);
			error = vmm_acct_alloc(value, sysmem != 0,
			    &objects[nobjects]);
			if (error == 0)
				printf("0 %zu\n", nobjects++);
			else
				printf("%d\n", error);
		} else if (sscanf(line, "die %zu", &len) == 1) {
			if (len >= nobjects || objects[len] == NULL)
				return (2);
			vm_object_deallocate(objects[len]);
			objects[len] = NULL;
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
		} else if (sscanf(line, "user %u", &uid) == 1) {
			shim_cred.cr_uid = shim_cred.cr_ruid = uid;
			printf("0\n");
		} else if (strcmp(line, "swap\n") == 0) {
			printf("%" PRIu64 "\n", shim_swap_reserved);
		} else if (strcmp(line, "busy\n") == 0) {
			printf("%d\n", vmm_acct_busy());
		} else if (strcmp(line, "unload\n") == 0) {
			shim_unload();
			printf("0\n");
		} else {
			fprintf(stderr, "not a command: %s", line);
			return (2);
		}
		fflush(stdout);
	}
	return (0);
}
