/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * As much of the FreeBSD kernel as the account of guest memory uses, on Linux:
 * a mutex, sysctls, the loader's environment, VM objects with their pagers, and
 * a module's way from registration to use and to its end.  The shim is stricter
 * than the kernel: it aborts where a kernel would only hang or fault one day.
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
#include <sys/time.h>
#include <sys/types.h>

#define	__unused	__attribute__((__unused__))
#define	PAGE_SHIFT	12
#define	ctob(x)		((x) << PAGE_SHIFT)
#define	atop(x)		((x) >> PAGE_SHIFT)
#define	ptoa(x)		((x) << PAGE_SHIFT)

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

/* The kernel's messages go to standard error. */
int	shim_kprintf(const char *fmt, ...)
	    __attribute__((__format__(__printf__, 1, 2)));
int	ppsratecheck(struct timeval *last, int *count, int max);

struct ucred {
	uid_t		cr_uid;
	uid_t		cr_ruid;
};
struct proc {
	pid_t		p_pid;
};
struct thread {
	struct ucred	*td_ucred;
};
extern struct ucred shim_cred;
extern struct proc *curproc;
extern struct thread *curthread;

struct malloc_type {
	const char	*name;
};
#define	MALLOC_DEFINE(t, n, d)	struct malloc_type t[1] = { { (n) } }
#define	M_WAITOK	1
#define	M_ZERO		2
void	*shim_malloc(size_t size, struct malloc_type *type, int flags);
void	shim_free(void *p, struct malloc_type *type);

/*
 * VM objects.  An object's lock outlives it, as UMA_ZONE_NOFREE has it.
 */
typedef uint64_t vm_size_t;
typedef uint64_t vm_pindex_t;
typedef int64_t vm_ooffset_t;
typedef struct vm_object *vm_object_t;

struct vm_object {
	pthread_mutex_t	lock;
	int		type;
	int		flags;
	vm_pindex_t	size;
	struct ucred	*cred;
	struct vm_object *next;			/* unused ones */
	union {
		struct {
			void	*swp_priv;
		} swp;
	} un_pager;
};

struct pagerops {
	int	pgo_kvme_type;
	void	(*pgo_dealloc)(vm_object_t);
};

#define	KVME_TYPE_SWAP	3
#define	OBJT_DEAD	0
#define	OBJT_SWAP	1
#define	OBJT_FIRST_DYN	2
#define	OBJ_COLORED	0x1
#define	OBJ_SWAP	0x2

extern const struct pagerops swappagerops;
int	vm_pager_alloc_dyn_type(struct pagerops *ops, int base);
void	vm_pager_free_dyn_type(int type);
vm_object_t vm_object_allocate_dyn(int type, vm_pindex_t size, int flags);
void	vm_object_deallocate(vm_object_t object);
bool	swap_pager_init_object(vm_object_t object, void *handle,
	    struct ucred *cred, vm_ooffset_t size, vm_ooffset_t offset);
void	shim_object_lock(vm_object_t object);
void	shim_object_unlock(vm_object_t object);
#define	VM_OBJECT_WLOCK(o)	shim_object_lock(o)
#define	VM_OBJECT_WUNLOCK(o)	shim_object_unlock(o)
extern uint64_t shim_swap_reserved;		/* bytes charged to users */

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
#define	MA_OWNED	1
void	mtx_assert(struct mtx *m, int what);

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
void	shim_add_sysuninit(struct shim_sysinit *si);

#define	SYSUNINIT(uniq, s, o, f, a)					\
	static void __attribute__((constructor))			\
	uniq##_add_sysuninit(void)					\
	{								\
		static struct shim_sysinit si = {			\
			.sub = (s), .order = (o), .func = (f), .arg = (a) \
		};							\
		shim_add_sysuninit(&si);				\
	}								\
	struct shim_hack

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
int	shim_handle_u64(SYSCTL_HANDLER_ARGS);
void	shim_add_sysctl(struct sysctl_oid *oid);

#define	SYSCTL_U64(parent, nbr, n, a, ptr, val, descr)			\
	SYSCTL_PROC(parent, nbr, n, (a) | CTLTYPE_U64 | CTLFLAG_MPSAFE,	\
	    (ptr), 0, shim_handle_u64, "QU", descr)
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

/* For the drivers: load the module, unload it, and call sysctl(3). */
extern void (*shim_pause)(void);	/* called after every unlock, if set */
extern void (*shim_inside)(void);	/* called in a pager's dealloc method */
void	shim_load(void);
void	shim_unload(void);
void	shim_reload(void);
int	shim_sysctl(const char *name, void *old, size_t *oldlen,
	    const void *new, size_t newlen, bool root);

#endif /* !SHIM_H */
