/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#include_next <dirent.h>

#include "shim.h"

#define	getdirentries	shim_getdirentries
