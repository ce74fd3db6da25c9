/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef _SECOND_H_
#define	_SECOND_H_

#include "vmunit.h"

struct vm *vm_with(int);

#endif /* !_SECOND_H_ */
