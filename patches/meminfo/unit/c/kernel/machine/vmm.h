/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#include "../shim.h"
#include <dev/vmm/vmm_mem.h>
