/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Plain files stand in for device nodes. */
#include_next <sys/stat.h>

#include "../shim.h"

#undef S_ISCHR
#define	S_ISCHR	S_ISREG
#define	fstat	shim_fstat
#define	lstat	shim_lstat
