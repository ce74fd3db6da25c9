/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#include "../shim.h"

/* For the account alone: the shim and the drivers have the C library's. */
#define	malloc	shim_malloc
#define	free	shim_free
