/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef _VMTOOL_H_
#define	_VMTOOL_H_

#include <stdbool.h>
#include <stddef.h>

struct vmctx;

/* Each ends the program with a message on failure. */
struct vmctx *open_vm(const char *name);
void	forget_memory(struct vmctx *vm);
void	create(const char *name, size_t bytes, bool wired,
	    const size_t *devmem, int ndevmem);

/* Each returns the program's exit status. */
int	race(size_t creators, size_t rounds, size_t bytes);
int	watch(char *vmmls, size_t creators, size_t standing, size_t listings,
	    size_t bytes);

#endif /* !_VMTOOL_H_ */
