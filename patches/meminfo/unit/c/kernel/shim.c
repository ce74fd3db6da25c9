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

static struct shim_sysinit *sysinits;
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

void
shim_add_sysinit(struct shim_sysinit *si)
{
	struct shim_sysinit **p;

	for (p = &sysinits; *p != NULL; p = &(*p)->next) {
		if ((*p)->sub > si->sub ||
		    ((*p)->sub == si->sub && (*p)->order > si->order))
			break;
	}
	si->next = *p;
	*p = si;
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
