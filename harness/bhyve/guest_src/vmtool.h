/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef _VMTOOL_H_
#define	_VMTOOL_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vmctx;

/* Each ends the program with a message on failure. */
void	usage(void) __attribute__((__noreturn__));
size_t	number(const char *text);
struct vmctx *open_vm(const char *name);
void	forget_memory(struct vmctx *vm);
void	create(const char *name, size_t bytes, bool wired,
	    const size_t *devmem, int ndevmem);

void	read_sysctls(int argc, char **argv);
void	write_sysctl(const char *name, uint64_t value);
void	print_names(void);

/* Each returns the program's exit status. */
int	operate(int argc, char **argv);
int	steps(int argc, char **argv);
int	race(size_t creators, size_t rounds, size_t bytes);
int	watch(char *vmmls, size_t creators, size_t standing, size_t listings,
	    size_t bytes);

#endif /* !_VMTOOL_H_ */
