/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef SHIM_VMMAPI_H
#define	SHIM_VMMAPI_H

#include <stddef.h>

/* libvmmapi, from the series */
size_t	vmm_get_mem_allocated(void);
size_t	vmm_get_mem_device(void);
size_t	vmm_get_mem_total(void);
size_t	vmm_get_mem_free(void);

#endif /* !SHIM_VMMAPI_H */
