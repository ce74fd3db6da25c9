/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * The test rows and their TAP lines (version 13).
 */

#include "probe.h"

#define	MAXROWS		128

static const struct row *rows;
static size_t nrows;
static uint8_t held[MAXROWS];
static int failed;
static char notes[1024];
static size_t notes_len;

/* A line of explanation, printed below the test line it belongs to. */
void
detail(const char *fmt, ...)
{
	va_list ap;

	if (notes_len + 4 >= sizeof(notes))
		return;
	notes[notes_len++] = '#';
	notes[notes_len++] = ' ';
	va_start(ap, fmt);
	notes_len += (size_t)format(notes + notes_len,
	    sizeof(notes) - notes_len - 1, fmt, ap);
	va_end(ap);
	notes[notes_len++] = '\n';
	notes[notes_len] = '\0';
}

static size_t
find(const char *name)
{
	size_t i;

	for (i = 0; i < nrows; i++)
		if (strcmp(rows[i].name, name) == 0)
			return (i);
	bail_out("no test is called %s", name);
}

int
tap_held(const char *name)
{
	return (held[find(name)]);
}

int
tap_failed(void)
{
	return (failed);
}

/* The first failed row that row i needs, or NULL. */
static const char *
missing(size_t i)
{
	const struct row *r = &rows[i];
	size_t j, n;

	for (n = 0; n < nitems(r->needs) && r->needs[n] != NULL; n++) {
		j = find(r->needs[n]);
		if (j >= i)
			bail_out("%s needs the later %s", r->name,
			    r->needs[n]);
		if (!held[j])
			return (r->needs[n]);
	}
	if ((r->flags & R_NEEDS_RUN) != 0)
		for (j = 0; j < i; j++)
			if ((rows[j].flags & R_RUN) != 0 && !held[j])
				return (rows[j].name);
	return (NULL);
}

/*
 * Rows that may hang the whole machine come last, after the verdict: all
 * that counts has been said by then.
 */
static size_t
nrows_after(void)
{
	size_t i, n;

	for (i = n = 0; i < nrows; i++)
		n += (rows[i].flags & R_LAST) != 0;
	return (n);
}

/* Whether all rows with one of `flags` passed. */
static int
all_held(unsigned flags)
{
	size_t i;

	for (i = 0; i < nrows; i++)
		if ((rows[i].flags & flags) != 0 && !held[i])
			return (0);
	return (1);
}

static const char *
first_failed(void)
{
	size_t i;

	for (i = 0; i < nrows; i++)
		if (!held[i] && (rows[i].flags & R_OPTIONAL) == 0)
			return (rows[i].name);
	return ("none");
}

static void
verdict(const char *vt)
{
	int svm;

	svm = strcmp(vt, "svm") == 0;
	say("# verdict vt=%s module=%d", tap_held(svm ? "svm.cpuid" :
	    "vmx.cpuid") ? vt : "none", all_held(R_MODULE));
	if (svm)
		say(" npt=%d nrip=%d", tap_held("svm.npt"),
		    tap_held("svm.nrip_save"));
	else
		say(" ept=%d unrestricted=%d", tap_held("procbased2.ept"),
		    tap_held("procbased2.unrestricted_guest"));
	say(" l2=%d failed=%d first_missing=%s", all_held(R_L2), failed,
	    first_failed());
	if (nrows_after() != 0)
		say(" after=%lu", nrows_after());
	if (tap_held("l2.cpuid_roundtrip"))
		say(" cpuid_roundtrip_cycles=%lu", l2_cost());
	say("\n");
}

static void
run(size_t i)
{
	const struct row *r;
	const char *miss;
	int optional;

	r = &rows[i];
	notes_len = 0;
	notes[0] = '\0';
	miss = missing(i);
	if (miss != NULL)
		detail("not run: needs %s", miss);
	else
		held[i] = r->fn(r) != 0;
	/* A TODO that passes would read as a surprise. */
	optional = (r->flags & R_OPTIONAL) != 0;
	say("%s %lu - %s: %s%s\n", held[i] ? "ok" : "not ok", i + 1,
	    r->name, r->desc,
	    !held[i] && optional ? " # TODO optional" : "");
	say("%s", notes);
	if (!held[i] && !optional)
		failed++;
}

void
tap_run(const char *vt, const struct row *table, size_t n)
{
	size_t i, before;

	rows = table;
	nrows = n;
	if (n > MAXROWS)
		bail_out("%lu rows are too many", n);
	before = n - nrows_after();
	say("1..%lu\n", n);
	for (i = 0; i < before; i++)
		run(i);
	verdict(vt);
	for (; i < n; i++)
		run(i);
}
