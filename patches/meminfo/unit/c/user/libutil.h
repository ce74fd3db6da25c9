/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef SHIM_LIBUTIL_H
#define	SHIM_LIBUTIL_H

#include <stddef.h>
#include <stdint.h>

#define	HN_DECIMAL	0x01
#define	HN_NOSPACE	0x02
#define	HN_B		0x04
#define	HN_AUTOSCALE	0x20
int	humanize_number(char *buf, size_t size, int64_t number,
	    const char *suffix, int scale, int flags);

#endif /* !SHIM_LIBUTIL_H */
