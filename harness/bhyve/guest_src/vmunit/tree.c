/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* The tree's own vmm_instruction_emul.c, as bhyve compiles it in. */

#pragma clang diagnostic ignored "-Weverything"
#include <vmm_instruction_emul.c>
