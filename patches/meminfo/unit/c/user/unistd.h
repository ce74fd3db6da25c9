/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#include_next <unistd.h>

#include "shim.h"

#define	sleep	shim_sleep
