/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#include_next <pwd.h>

#include "shim.h"

#define	user_from_uid	shim_user_from_uid
