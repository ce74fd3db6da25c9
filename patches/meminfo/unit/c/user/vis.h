/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef SHIM_VIS_H
#define	SHIM_VIS_H

#define	VIS_OCTAL	0x01
#define	VIS_WHITE	0x1c
int	stravis(char **out, const char *src, int flags);

#endif /* !SHIM_VIS_H */
