/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * As much of the FreeBSD kernel as the ledger uses, on Linux: a mutex, sysctls,
 * the loader's environment, and a module's way from registration to use.  The
 * shim is stricter than the kernel: it aborts where a kernel would only hang
 * or fault one day.
 */

#ifndef SHIM_H
#define	SHIM_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define	__unused	__attribute__((__unused__))
#define	PAGE_SHIFT	12
#define	ctob(x)		((x) << PAGE_SHIFT)

#define	KASSERT(exp, msg) do {						\
	if (!(exp)) {							\
		shim_kassert msg;					\
		abort();						\
	}								\
} while (0)
#define	__assert_unreachable()	abort()

void	shim_kassert(const char *fmt, ...)
	    __attribute__((__format__(__printf__, 1, 2)));

extern long physmem;

/* The loader's environment is the process's. */
int	testenv(const char *name);
int	getenv_uint64(const char *name, uint64_t *data);
#define	TUNABLE_UINT64_FETCH(path, var)	getenv_uint64((path), (var))

struct mtx {
	pthread_mutex_t	lock;
	bool		initialized;
};

void	mtx_init(struct mtx *m);
void	mtx_lock(struct mtx *m);
void	mtx_unlock(struct mtx *m);

/* Start-up functions run in this order, and sysctls are registered before. */
enum {
	SI_SUB_TUNABLES	= 1,
	SI_SUB_LOCK	= 2,
	SI_SUB_DRIVERS	= 3,
};
enum {
	SI_ORDER_FIRST	= 1,
	SI_ORDER_ANY	= 9,
};

struct shim_sysinit {
	int			 sub;
	int			 order;
	void			(*func)(void *);
	void			*arg;
	struct shim_sysinit	*next;
};

void	shim_add_sysinit(struct shim_sysinit *si);

#define	SYSINIT(uniq, s, o, f, a)					\
	static void __attribute__((constructor))			\
	uniq##_add_sysinit(void)					\
	{								\
		static struct shim_sysinit si = {			\
			.sub = (s), .order = (o), .func = (f), .arg = (a) \
		};							\
		shim_add_sysinit(&si);					\
	}								\
	struct shim_hack

#define	MTX_DEF	0
#define	MTX_SYSINIT(uniq, m, desc, opts)				\
	static void							\
	uniq##_init(void *arg)						\
	{								\
		mtx_init(arg);						\
	}								\
	SYSINIT(uniq##_mtx, SI_SUB_LOCK, SI_ORDER_FIRST, uniq##_init, (m))

#define	CTLTYPE_U64	0x01
#define	CTLFLAG_RD	0x10
#define	CTLFLAG_WR	0x20
#define	CTLFLAG_TUN	0x40
#define	CTLFLAG_NOFETCH	0x80
#define	CTLFLAG_MPSAFE	0x100
#define	CTLFLAG_RW	(CTLFLAG_RD | CTLFLAG_WR)
#define	CTLFLAG_RWTUN	(CTLFLAG_RW | CTLFLAG_TUN)
#define	OID_AUTO	(-1)

struct sysctl_req {
	void		*oldptr;
	size_t		 oldlen;
	const void	*newptr;
	size_t		 newlen;
};

#define	SYSCTL_HANDLER_ARGS	struct sysctl_oid *oidp,		\
	void *arg1 __unused, intptr_t arg2 __unused, struct sysctl_req *req

struct sysctl_oid {
	const char	 *name;
	int		  access;
	void		 *arg1;
	intptr_t	  arg2;
	int		(*handler)(struct sysctl_oid *, void *, intptr_t,
			    struct sysctl_req *);
	const char	 *fmt;
	struct sysctl_oid *next;
};

int	sysctl_handle_64(SYSCTL_HANDLER_ARGS);
void	shim_add_sysctl(struct sysctl_oid *oid);

#define	SYSCTL_DECL(name)	struct shim_hack
#define	SYSCTL_PROC(parent, nbr, n, a, ptr, arg, h, f, descr)		\
	static void __attribute__((constructor))			\
	n##_add_sysctl(void)						\
	{								\
		static struct sysctl_oid oid = {			\
			.name = "hw.vmm." #n, .access = (a),		\
			.arg1 = (ptr), .arg2 = (arg), .handler = (h),	\
			.fmt = (f)					\
		};							\
		shim_add_sysctl(&oid);					\
	}								\
	struct shim_hack

/* For the drivers: load the module, and call sysctl(3). */
extern void (*shim_pause)(void);	/* called after every unlock, if set */
void	shim_load(void);
int	shim_sysctl(const char *name, void *old, size_t *oldlen,
	    const void *new, size_t newlen, bool root);

#endif /* !SHIM_H */
