/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#include_next <sys/queue.h>

/* What the C library's lacks. */
#undef SLIST_HEAD_INITIALIZER
#define	SLIST_HEAD_INITIALIZER(head)	{ NULL }
#undef SLIST_SWAP
#define	SLIST_SWAP(head1, head2, type) do {				\
	struct type *swap_first = SLIST_FIRST(head1);			\
	SLIST_FIRST(head1) = SLIST_FIRST(head2);			\
	SLIST_FIRST(head2) = swap_first;				\
} while (0)
