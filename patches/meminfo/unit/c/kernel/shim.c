/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#include <stdarg.h>
#include <string.h>

#include "shim.h"

long physmem = (16L << 30) >> PAGE_SHIFT;

void (*shim_pause)(void);
void (*shim_inside)(void);

struct ucred shim_cred;
static struct proc process = { .p_pid = 1 };
static struct thread thread = { .td_ucred = &shim_cred };
struct proc *curproc = &process;
struct thread *curthread = &thread;
uint64_t shim_swap_reserved;

static struct shim_sysinit *sysinits;
static struct shim_sysinit *sysuninits;
static struct sysctl_oid *oids;
static bool enabled;
static _Thread_local int locks_held;

static void
check(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "shim: %s\n", what);
		abort();
	}
}

void
shim_kassert(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "panic: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, "\n");
	va_end(ap);
}

void
mtx_init(struct mtx *m)
{
	check(!m->initialized, "mutex initialized twice");
	pthread_mutex_init(&m->lock, NULL);
	m->initialized = true;
}

void
mtx_lock(struct mtx *m)
{
	check(m->initialized, "mutex used before it is initialized");
	check(locks_held == 0, "mutex is not a leaf");
	pthread_mutex_lock(&m->lock);
	locks_held++;
}

void
mtx_unlock(struct mtx *m)
{
	check(locks_held == 1, "mutex is not held");
	locks_held--;
	pthread_mutex_unlock(&m->lock);
	if (shim_pause != NULL)
		shim_pause();
}

void
mtx_assert(struct mtx *m, int what)
{
	(void)what;
	check(m->initialized && locks_held == 1, "mutex is not held");
}

int
shim_kprintf(const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vfprintf(stderr, fmt, ap);
	va_end(ap);
	return (n);
}

int
ppsratecheck(struct timeval *last, int *count, int max)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	bool first;

	(void)last;
	check(locks_held == 0, "prints with a mutex held");
	pthread_mutex_lock(&lock);
	first = max < 0 || (*count)++ < max;
	pthread_mutex_unlock(&lock);
	return (first);
}

void *
shim_malloc(size_t size, struct malloc_type *type, int flags)
{
	(void)type;
	check(locks_held == 0, "waits for memory with a mutex held");
	check((flags & M_ZERO) != 0, "leaves memory as it is");
	return (calloc(1, size));
}

void
shim_free(void *p, struct malloc_type *type)
{
	(void)type;
	free(p);
}

/*
 * VM objects and pagers
 */

#define	TYPES	4

static const struct pagerops *pagertab[TYPES];
static struct vm_object *unused;
static pthread_mutex_t objects_lock = PTHREAD_MUTEX_INITIALIZER;
static int live[TYPES];		/* objects of each type */
static int inside[TYPES];	/* threads in the dealloc method of each */

static void
count(int *counter, int by)
{
	__atomic_fetch_add(counter, by, __ATOMIC_SEQ_CST);
}

static void
swap_dealloc(vm_object_t object)
{
	if (object->cred != NULL)
		__atomic_fetch_sub(&shim_swap_reserved, ptoa(object->size),
		    __ATOMIC_SEQ_CST);
	object->cred = NULL;
	object->type = OBJT_DEAD;
}

const struct pagerops swappagerops = {
	.pgo_kvme_type = KVME_TYPE_SWAP,
	.pgo_dealloc = swap_dealloc,
};

int
vm_pager_alloc_dyn_type(struct pagerops *ops, int base)
{
	check(base == OBJT_SWAP, "not derived from the swap pager");
	if (getenv("SHIM_NO_TYPE") != NULL)
		return (-1);
	for (int i = OBJT_FIRST_DYN; i < TYPES; i++) {
		if (pagertab[i] != NULL)
			continue;
		if (ops->pgo_dealloc == NULL)
			ops->pgo_dealloc = swappagerops.pgo_dealloc;
		pagertab[i] = ops;
		return (i);
	}
	return (-1);
}

void
vm_pager_free_dyn_type(int type)
{
	check(type >= OBJT_FIRST_DYN && type < TYPES && pagertab[type] != NULL,
	    "gives back a pager type that it does not have");
	check(__atomic_load_n(&live[type], __ATOMIC_SEQ_CST) == 0,
	    "unloaded while an object has its pager type");
	check(__atomic_load_n(&inside[type], __ATOMIC_SEQ_CST) == 0,
	    "unloaded while a thread is in its code");
	pagertab[type] = NULL;
}

vm_object_t
vm_object_allocate_dyn(int type, vm_pindex_t size, int flags)
{
	vm_object_t object;

	check(locks_held == 0, "waits for memory with a mutex held");
	check(type >= OBJT_FIRST_DYN && type < TYPES && pagertab[type] != NULL,
	    "an object of no pager");
	check((flags & OBJ_SWAP) != 0, "swapoff(8) does not find the object");
	pthread_mutex_lock(&objects_lock);
	if ((object = unused) != NULL)
		unused = object->next;
	pthread_mutex_unlock(&objects_lock);
	if (object == NULL) {
		object = calloc(1, sizeof(*object));
		pthread_mutex_init(&object->lock, NULL);
	}
	/* Its memory is not cleared; but nobody may lock it at random. */
	object->un_pager.swp.swp_priv = (void *)(uintptr_t)0xdeadc0de;
	object->type = type;
	object->size = size;
	object->cred = NULL;
	count(&live[type], 1);
	return (object);
}

/* The last reference goes. */
void
vm_object_deallocate(vm_object_t object)
{
	int type;

	check(locks_held == 0, "an object dies with a mutex held");
	shim_object_lock(object);
	type = object->type;
	check(type >= OBJT_FIRST_DYN && pagertab[type] != NULL,
	    "an object's pager is gone");
	count(&inside[type], 1);
	pagertab[type]->pgo_dealloc(object);
	check(object->type == OBJT_DEAD && object->cred == NULL,
	    "the swap pager did not give up the object");
	count(&live[type], -1);
	/* The method has not returned yet, as far as anybody can tell. */
	if (shim_inside != NULL)
		shim_inside();
	count(&inside[type], -1);
	shim_object_unlock(object);
	pthread_mutex_lock(&objects_lock);
	object->next = unused;
	unused = object;
	pthread_mutex_unlock(&objects_lock);
}

bool
swap_pager_init_object(vm_object_t object, void *handle, struct ucred *cred,
    vm_ooffset_t size, vm_ooffset_t offset)
{
	check(handle == NULL && offset == 0, "an object with a handle");
	/* An offset is signed, a segment's size is not. */
	check((vm_pindex_t)((uint64_t)size >> PAGE_SHIFT) == object->size,
	    "another size");
	if (cred != NULL) {
		if (getenv("SHIM_NO_SWAP") != NULL)
			return (false);
		__atomic_fetch_add(&shim_swap_reserved, (uint64_t)size,
		    __ATOMIC_SEQ_CST);
	}
	object->cred = cred;
	return (true);
}

void
shim_object_lock(vm_object_t object)
{
	check(locks_held == 0, "an object is locked with a mutex held");
	pthread_mutex_lock(&object->lock);
}

void
shim_object_unlock(vm_object_t object)
{
	pthread_mutex_unlock(&object->lock);
}

int
testenv(const char *name)
{
	return (getenv(name) != NULL);
}

/* As getenv_quad() has it: one suffix, and no care for what overflows. */
int
getenv_uint64(const char *name, uint64_t *data)
{
	const char *value, *suffix;
	char *end;
	uint64_t n;

	value = getenv(name);
	if (value == NULL)
		return (0);
	n = (uint64_t)strtoll(value, &end, 0);
	if (end == value || (end[0] != '\0' && end[1] != '\0'))
		return (0);
	if (end[0] != '\0') {
		static const char suffixes[] = "kKmMgGtT";

		suffix = strchr(suffixes, end[0]);
		if (suffix == NULL)
			return (0);
		n <<= 10 * ((suffix - suffixes) / 2 + 1);
	}
	*data = n;
	return (1);
}

static void
insert(struct shim_sysinit **p, struct shim_sysinit *si)
{
	for (; *p != NULL; p = &(*p)->next) {
		if ((*p)->sub > si->sub ||
		    ((*p)->sub == si->sub && (*p)->order > si->order))
			break;
	}
	si->next = *p;
	*p = si;
}

void
shim_add_sysinit(struct shim_sysinit *si)
{
	insert(&sysinits, si);
}

void
shim_add_sysuninit(struct shim_sysinit *si)
{
	insert(&sysuninits, si);
}

void
shim_add_sysctl(struct sysctl_oid *oid)
{
	check((oid->access & CTLFLAG_MPSAFE) != 0, "sysctl wants Giant");
	check(strcmp(oid->fmt, "QU") == 0 &&
	    (oid->access & CTLTYPE_U64) != 0, "sysctl is not 64-bit unsigned");
	oid->next = oids;
	oids = oid;
}

/* Registration, where tunables are fetched; start-up; use. */
void
shim_load(void)
{
	struct sysctl_oid *oid;
	struct sysctl_req req;
	uint64_t value;

	for (oid = oids; oid != NULL; oid = oid->next) {
		if ((oid->access & CTLFLAG_TUN) == 0 ||
		    (oid->access & CTLFLAG_NOFETCH) != 0 ||
		    getenv_uint64(oid->name, &value) == 0)
			continue;
		memset(&req, 0, sizeof(req));
		req.newptr = &value;
		req.newlen = sizeof(value);
		(void)oid->handler(oid, oid->arg1, oid->arg2, &req);
	}
	for (struct shim_sysinit *si = sysinits; si != NULL; si = si->next)
		si->func(si->arg);
	enabled = true;
}

/* The sysctls are gone before the last functions run. */
void
shim_unload(void)
{
	enabled = false;
	for (struct shim_sysinit *si = sysuninits; si != NULL; si = si->next)
		si->func(si->arg);
	for (int i = 0; i < TYPES; i++)
		check(pagertab[i] == NULL, "a pager type is left behind");
}

/* Again, but the mutex and the account are as they were. */
void
shim_reload(void)
{
	for (struct shim_sysinit *si = sysinits; si != NULL; si = si->next) {
		if (si->sub >= SI_SUB_DRIVERS)
			si->func(si->arg);
	}
	enabled = true;
}

/* A thread that writes at this moment does so in one piece. */
int __attribute__((__no_sanitize__("thread")))
shim_handle_u64(SYSCTL_HANDLER_ARGS)
{
	uint64_t value;

	value = *(volatile uint64_t *)arg1;
	return (sysctl_handle_64(oidp, &value, arg2, req));
}

int
sysctl_handle_64(SYSCTL_HANDLER_ARGS)
{
	(void)oidp;
	check(locks_held == 0, "copy in or out with a mutex held");
	if (req->oldptr != NULL) {
		if (req->oldlen < sizeof(uint64_t))
			return (ENOMEM);
		memcpy(req->oldptr, arg1, sizeof(uint64_t));
	}
	req->oldlen = sizeof(uint64_t);
	if (req->newptr == NULL)
		return (0);
	if (req->newlen != sizeof(uint64_t))
		return (EINVAL);
	memcpy(arg1, req->newptr, sizeof(uint64_t));
	return (0);
}

int
shim_sysctl(const char *name, void *old, size_t *oldlen, const void *new,
    size_t newlen, bool root)
{
	struct sysctl_oid *oid;
	struct sysctl_req req;
	int error;

	for (oid = oids; oid != NULL; oid = oid->next) {
		if (strcmp(oid->name, name) == 0)
			break;
	}
	if (oid == NULL || !enabled)
		return (ENOENT);
	if (new != NULL && ((oid->access & CTLFLAG_WR) == 0 || !root))
		return (EPERM);
	memset(&req, 0, sizeof(req));
	req.oldptr = old;
	req.oldlen = oldlen != NULL ? *oldlen : 0;
	req.newptr = new;
	req.newlen = newlen;
	error = oid->handler(oid, oid->arg1, oid->arg2, &req);
	check(locks_held == 0, "mutex left locked");
	if (error == 0 && oldlen != NULL)
		*oldlen = req.oldlen;
	return (error);
}
