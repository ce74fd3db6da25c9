/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Print what each function returns, and errno where that says error. */

#include <errno.h>
#include <stdio.h>
#include <vmmapi.h>

int
main(void)
{
	size_t (*const functions[])(void) = {
		vmm_get_mem_allocated, vmm_get_mem_device, vmm_get_mem_total,
		vmm_get_mem_free
	};

	for (int i = 0; i < 4; i++) {
		size_t mem;

		errno = 0;
		mem = functions[i]();
		if (mem == (size_t)-1)
			printf("errno %d\n", errno);
		else
			printf("%zu\n", mem);
	}
	return (0);
}
