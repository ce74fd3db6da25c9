/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Many threads make memory and give it up while others read and set the limit.
 * Whatever is read must have been true at some moment:
 *
 * - Each walker holds one of two sizes of its own at any time: it makes the
 *   other before it gives up the first.  In every sum at least one of the two
 *   must be found, and no other bit.
 * - What is free is one of the totals ever set, less such a sum, or 0.
 * - Once a lower limit was set, what is held only shrinks until it is met.
 * - A thread that is refused adds nothing: at the end nothing is held.
 * - Once nothing is held the module can be unloaded, also while a thread that
 *   gave up the last of it has not left the module's code.
 */

#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "shim.h"

#include <dev/vmm/vmm_mem.h>

#define	WALKERS		3
#define	FIRST(i)	(1ULL << (12 + 2 * (i)))
#define	SECOND(i)	(1ULL << (13 + 2 * (i)))
#define	ALL		((1ULL << (12 + 2 * WALKERS)) - (1ULL << 12))
#define	LIMIT_A		(ALL + 4096)
#define	LIMIT_B		(ALL + (1ULL << 30))

static atomic_bool stop;

/*
 * Now and then a thread sleeps where it has just let go of the lock, so that
 * others get in between, also on one busy processor.
 */
static void
dawdle(void)
{
	static _Thread_local uint32_t state;
	const struct timespec moment = { .tv_nsec = 20000 };

	if (state == 0)
		state = (uint32_t)(uintptr_t)&state | 1;
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	if (state % 16 == 0)
		nanosleep(&moment, NULL);
}

static void
die(const char *what, uint64_t a, uint64_t b)
{
	fprintf(stderr, "%s: %#jx %#jx\n", what, (uintmax_t)a, (uintmax_t)b);
	_Exit(1);
}

static uint64_t
get(const char *name)
{
	uint64_t value;
	size_t len;

	len = sizeof(value);
	if (shim_sysctl(name, &value, &len, NULL, 0, false) != 0)
		die(name, 0, 0);
	return (value);
}

static void
set_limit(uint64_t limit)
{
	if (shim_sysctl("hw.vmm.mem_limit", NULL, NULL, &limit, sizeof(limit),
	    true) != 0)
		die("set", limit, 0);
}

static vm_object_t
make(uint64_t len)
{
	vm_object_t object;

	if (vmm_acct_alloc(len, true, &object) != 0)
		die("refused", len, 0);
	return (object);
}

static bool
possible(uint64_t sum)
{
	for (int i = 0; i < WALKERS; i++) {
		if ((sum & (FIRST(i) | SECOND(i))) == 0)
			return (false);
	}
	return ((sum & ~ALL) == 0);
}

static vm_object_t firsts[WALKERS];

static void *
walk(void *arg)
{
	vm_object_t second;
	int i;

	i = (int)(intptr_t)arg;
	while (!stop) {
		second = make(SECOND(i));
		vm_object_deallocate(firsts[i]);
		firsts[i] = make(FIRST(i));
		vm_object_deallocate(second);
	}
	return (NULL);
}

static void *
flip_limit(void *arg)
{
	while (!stop) {
		set_limit(LIMIT_A);
		set_limit(LIMIT_B);
	}
	return (arg);
}

static void *
read_numbers(void *arg)
{
	uint64_t available, sum, total;

	while (!stop) {
		sum = get("hw.vmm.mem_allocated");
		if (!possible(sum))
			die("allocated", sum, 0);
		total = get("hw.vmm.mem_total");
		if (total != LIMIT_A && total != LIMIT_B)
			die("total", total, 0);
		available = get("hw.vmm.mem_free");
		if (!possible(LIMIT_A - available) &&
		    !possible(LIMIT_B - available))
			die("free", available, 0);
	}
	return (arg);
}

static void *
nibble(void *arg)
{
	vm_object_t object;

	while (!stop) {
		if (vmm_acct_alloc(4096, true, &object) == 0)
			vm_object_deallocate(object);
	}
	return (arg);
}

static void
run(int rounds, void *(*const *functions)(void *), size_t n,
    void (*during)(int))
{
	pthread_t threads[16];

	stop = false;
	for (size_t i = 0; i < n; i++)
		pthread_create(&threads[i], NULL, functions[i],
		    (void *)(intptr_t)i);
	during(rounds);
	stop = true;
	for (size_t i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
}

/* The main thread reads too; the rest is the others' work. */
static void
look(int rounds)
{
	for (int i = 0; i < rounds; i++) {
		if (!possible(get("hw.vmm.mem_allocated")))
			die("allocated", 0, 0);
	}
}

/*
 * A page is reserved and released over and over.  With the limit at what is
 * held besides, each page already reserved goes and no other comes.
 */
static void
squeeze(int rounds)
{
	uint64_t held, now;

	for (int i = 0; i < rounds / 2; i++) {
		set_limit(LIMIT_B);
		held = get("hw.vmm.mem_allocated");
		set_limit(1ULL << 20);
		held = get("hw.vmm.mem_allocated");
		for (int j = 0; j < 20; j++) {
			now = get("hw.vmm.mem_allocated");
			if (now > held)
				die("grew under the limit", held, now);
			held = now;
		}
	}
}

static void
take_time(void)
{
	const struct timespec moment = { .tv_nsec = 300000 };

	nanosleep(&moment, NULL);
}

static void *
give_up(void *arg)
{
	vm_object_deallocate(arg);
	return (NULL);
}

/* The one who unloads waits for nobody but asks, as kldunload(8) does. */
static void
unload(int rounds)
{
	pthread_t threads[4];

	for (int i = 0; i < rounds; i++) {
		for (int j = 0; j < 4; j++)
			pthread_create(&threads[j], NULL, give_up, make(4096));
		while (vmm_acct_busy())
			continue;
		shim_unload();
		for (int j = 0; j < 4; j++)
			pthread_join(threads[j], NULL);
		shim_reload();
	}
}

int
main(int argc, char **argv)
{
	void *(*const walkers[])(void *) = {
		walk, walk, walk, flip_limit, read_numbers
	};
	void *(*const nibblers[])(void *) = { nibble, nibble, nibble };
	vm_object_t big;
	int rounds;

	rounds = argc > 1 ? atoi(argv[1]) : 1000;
	shim_load();
	shim_pause = dawdle;
	set_limit(LIMIT_B);
	for (int i = 0; i < WALKERS; i++)
		firsts[i] = make(FIRST(i));
	run(rounds, walkers, 5, look);
	for (int i = 0; i < WALKERS; i++)
		vm_object_deallocate(firsts[i]);
	if (get("hw.vmm.mem_allocated") != 0)
		die("left over", get("hw.vmm.mem_allocated"), 0);

	big = make(1ULL << 20);
	run(rounds, nibblers, 3, squeeze);
	vm_object_deallocate(big);
	if (get("hw.vmm.mem_allocated") != 0)
		die("left over", get("hw.vmm.mem_allocated"), 0);

	set_limit(0);
	shim_inside = take_time;
	unload(rounds / 20);
	if (shim_swap_reserved != 0)
		die("charged", shim_swap_reserved, 0);
	return (0);
}
