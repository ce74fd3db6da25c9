/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* iov.c: lists of buffers. */

#include <sys/param.h>
#include <sys/uio.h>

#include <string.h>

/* The part itself, from the tree under test. */
#include "part.h"

#include "unit.h"

#define	PARTS	3

static char memory[PARTS][8];

/* Three buffers of 3, 5 and 8 bytes. */
static void
make(struct iovec *iov)
{
	static const size_t lengths[PARTS] = { 3, 5, 8 };

	for (int i = 0; i < PARTS; i++) {
		iov[i].iov_base = memory[i];
		iov[i].iov_len = lengths[i];
	}
}

static void
counts(void)
{
	struct iovec iov[PARTS];

	make(iov);
	for (int n = 0; n <= PARTS; n++)
		equal("bytes", count_iov(iov, n),
		    (size_t[]){ 0, 3, 8, 16 }[n]);
}

static void
truncates(void)
{
	struct iovec iov[PARTS];
	int n, wanted;

	for (size_t length = 0; length <= 20; length++) {
		make(iov);
		n = PARTS;
		truncate_iov(iov, &n, length);
		wanted = length == 0 ? 0 : length <= 3 ? 1 : length <= 8 ? 2 : 3;
		if (n != wanted)
			miss("cut to %zu bytes, %d buffers are left, not %d",
			    length, n, wanted);
		else if (count_iov(iov, n) != MIN(length, 16))
			miss("cut to %zu bytes, %zu are left", length,
			    count_iov(iov, n));
	}
}

static void
truncates_empty_buffers(void)
{
	struct iovec iov[PARTS];
	int n = PARTS;

	make(iov);
	iov[0].iov_len = 0;
	truncate_iov(iov, &n, 6);
	equal("bytes", count_iov(iov, n), 6);
}

static void
seeks(void)
{
	struct iovec iov[PARTS], rest[PARTS];
	int n;

	for (size_t seek = 0; seek < 16; seek++) {
		make(iov);
		n = -1;
		seek_iov(iov, PARTS, rest, &n, seek);
		if (count_iov(rest, n) != 16 - seek)
			miss("after %zu bytes there are %zu", seek,
			    count_iov(rest, n));
	}
}

static void
copies(void)
{
	static const char text[] = "0123456789abcdef";
	struct iovec iov[PARTS];
	void *flat = NULL;

	make(iov);
	equal("bytes in", (size_t)buf_to_iov(text, 16, iov, PARTS, 0), 16);
	equal("bytes out", (size_t)iov_to_buf(iov, PARTS, &flat), 16);
	if (memcmp(flat, text, 16) != 0)
		miss("the copied text is %.16s", (char *)flat);
	equal("bytes in at 6", (size_t)buf_to_iov("WXYZ", 4, iov, PARTS, 6), 4);
	equal("bytes out", (size_t)iov_to_buf(iov, PARTS, &flat), 16);
	if (memcmp(flat, "012345WXYZabcdef", 16) != 0)
		miss("the copied text is %.16s", (char *)flat);
}

const struct unit units[] = {
	{ "iov.count", "the length of a list is that of its buffers", counts },
	{ "iov.truncate", "a list is cut to each length", truncates },
	{ "iov.truncate_empty", "an empty buffer ends no list",
	    truncates_empty_buffers },
	{ "iov.seek", "a list continues after each offset", seeks },
	{ "iov.copy",
	    "bytes are copied in and out, also in the middle", copies },
};
const size_t nunits = nitems(units);
