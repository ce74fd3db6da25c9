/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef SHIM_XO_H
#define	SHIM_XO_H

#include <sys/types.h>

/* libxo: text and JSON, and only the roles and modifiers that vmmls uses */
typedef struct xo_handle xo_handle_t;
typedef int xo_style_t;
#define	XO_STYLE_TEXT	0
#define	XO_STYLE_JSON	2
xo_style_t xo_get_style(xo_handle_t *handle);
void	xo_no_setlocale(void);
int	xo_parse_args(int argc, char **argv);
void	xo_set_version(const char *version);
ssize_t	xo_open_container(const char *name);
ssize_t	xo_close_container(const char *name);
ssize_t	xo_open_list(const char *name);
ssize_t	xo_close_list(const char *name);
ssize_t	xo_open_instance(const char *name);
ssize_t	xo_close_instance(const char *name);
ssize_t	xo_emit(const char *fmt, ...);
ssize_t	xo_flush(void);
ssize_t	xo_finish(void);
void	xo_error(const char *fmt, ...)
	    __attribute__((__format__(__printf__, 1, 2)));
void	xo_warn(const char *fmt, ...)
	    __attribute__((__format__(__printf__, 1, 2)));
void	xo_warnx(const char *fmt, ...)
	    __attribute__((__format__(__printf__, 1, 2)));
void	xo_err(int code, const char *fmt, ...)
	    __attribute__((__noreturn__, __format__(__printf__, 2, 3)));
void	xo_errx(int code, const char *fmt, ...)
	    __attribute__((__noreturn__, __format__(__printf__, 2, 3)));

#endif /* !SHIM_XO_H */
