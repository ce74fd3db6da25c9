/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#include_next <fts.h>

#include "shim.h"

#define	fts_open	shim_fts_open
