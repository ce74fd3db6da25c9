/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef _UNIT_H_
#define	_UNIT_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct inout_port;

/* A case: a claim about a part of bhyve(8). */
struct unit {
	const char	*name;
	const char	*what;
	void		(*func)(void);
};

/* Each file of tests has these. */
extern const struct unit units[];
extern const size_t nunits;

bool	equal(const char *, uint64_t, uint64_t);
bool	same(const char *, const char *, const char *);
void	miss(const char *, ...) __attribute__((__format__(__printf__, 1, 2)));
void	skip(const char *, ...) __attribute__((__format__(__printf__, 1, 2)));

/* Memory before an unmapped page, so that an access beyond it is a signal. */
void	*guarded(size_t, size_t);

/* The I/O ports that the part has registered. */
uint32_t port_in(int, int);
void	port_out(int, int, uint32_t);

#endif /* !_UNIT_H_ */
