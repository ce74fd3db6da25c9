/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Bad calls to vmm: malformed and racing ioctls, sysctl writes, reads, writes
 * and mappings, all determined by one seed.
 *
 * A run is a sequence of rounds.  Each is a process with a virtual machine of
 * its own and one or more threads, each with a stream of random numbers that
 * depends only on seed, round and thread, so a round can be replayed without
 * those before it.  After a panic the console shows the call that caused it:
 * every call is written there, and drained, before it is made (-c), and becomes
 * the thread's name, which a trap's message contains.
 *
 * With -a each call's answer is printed, to be compared with another module's.
 * Then each round has one thread, and calls are left out whose answer depends
 * on time or on additions of a module.
 *
 * The parent makes no bad calls.  It ends a round that stalls, and counts one
 * that even SIGKILL does not end as a hang.
 */

#include <sys/param.h>
#include <sys/mman.h>
#include <sys/sysctl.h>

#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "vmmfuzz.h"

struct shared *shared;
struct oid oids[MAX_OIDS];
size_t oid_count;
uint32_t round_number;
int control = -1, console = -1;
bool answers, dry;
char vm_name[32];
char *good, *edge, *readonly;
bool avoided[HARMS];

uint64_t seed = 1;
static const char *const harms[HARMS] = {
	"any-run", "devmem-name", "lapic-msi", "rendezvous", "rtc-time",
	"vmcs-field",
};

/* Every sysctl below hw.vmm, including those that patches add. */
static void
find_oids(void)
{
	int query[CTL_MAXNAME + 2] = { CTL_SYSCTL, CTL_SYSCTL_NEXT };
	int name[CTL_MAXNAME + 2] = { CTL_SYSCTL, CTL_SYSCTL_NAME };
	char text[256];
	size_t length, root, size;
	struct oid *oid;

	root = CTL_MAXNAME;
	if (sysctlnametomib("hw.vmm", query + 2, &root) != 0)
		errx(EX_UNAVAILABLE, "there is no hw.vmm: vmm is not loaded");
	length = root;
	while (oid_count < MAX_OIDS) {
		oid = &oids[oid_count];
		size = sizeof(oid->mib);
		if (sysctl(query, (u_int)length + 2, oid->mib, &size, NULL, 0) != 0)
			break;
		oid->length = length = size / sizeof(int);
		memcpy(query + 2, oid->mib, size);
		memcpy(name + 2, oid->mib, size);
		size = sizeof(text);
		if (sysctl(name, (u_int)length + 2, text, &size, NULL, 0) != 0 ||
		    strncmp(text, "hw.vmm.", 7) != 0)
			break;
		oid->names_vm = strcmp(text, "hw.vmm.create") == 0 ||
		    strcmp(text, "hw.vmm.destroy") == 0;
		oid_count++;
		/* Few ioctls take a name, and these do most of the work. */
		if (oid->names_vm && oid_count + 8 < MAX_OIDS) {
			for (int i = 0; i < 8; i++)
				oids[oid_count++] = *oid;
		}
	}
}

static void
make_buffers(void)
{
	good = mmap(NULL, 65536 + PAGE_SIZE, PROT_READ | PROT_WRITE,
	    MAP_ANON | MAP_PRIVATE, -1, 0);
	readonly = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_ANON | MAP_PRIVATE, -1,
	    0);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
	    MAP_ANON | MAP_SHARED, -1, 0);
	if (good == MAP_FAILED || readonly == MAP_FAILED ||
	    shared == MAP_FAILED)
		err(EX_OSERR, "mmap");
	edge = good + 65536;
	(void)mprotect(edge, PAGE_SIZE, PROT_NONE);
}

static void
usage(void)
{
	(void)fprintf(stderr, "usage: vmmfuzz [-ad] [-c console] [-n calls] "
	    "[-p calls-per-round] [-r round] [-s seed] [-x harm] ...\n");
	exit(EX_USAGE);
}

static uint64_t
parse(const char *text)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 0);
	if (errno != 0 || end == text || *end != '\0')
		errx(EX_USAGE, "%s: not a number", text);
	return (value);
}

static void
avoid(const char *name)
{
	for (size_t i = 0; i < nitems(harms); i++) {
		if (strcmp(name, harms[i]) == 0) {
			avoided[i] = true;
			return;
		}
	}
	errx(EX_USAGE, "%s: no such harm", name);
}

static void
tell(uint32_t rounds)
{
	(void)printf("seed %ju\nrounds %u\ncalls %ju\n", (uintmax_t)seed, rounds,
	    (uintmax_t)atomic_load(&shared->calls));
	for (size_t i = 0; i < op_count; i++) {
		for (int error = 0; error <= ELAST + 1; error++) {
			uint32_t count = shared->counts[i][error];

			if (count != 0)
				(void)printf("count %d %u %s\n", error > ELAST ?
				    -1 : error, count, ops[i].name);
		}
	}
	(void)printf("end\n");
}

int
main(int argc, char **argv)
{
	uint64_t calls = 1000;
	uint32_t per_round = 200, rounds = 0, hung = 0;
	int option;

	while ((option = getopt(argc, argv, "ac:dn:p:r:s:x:")) != -1) {
		switch (option) {
		case 'a':
			answers = true;
			break;
		case 'c':
			if ((console = open(optarg, O_WRONLY | O_NOCTTY)) < 0)
				err(EX_NOINPUT, "%s", optarg);
			break;
		case 'd':
			dry = true;
			break;
		case 'n':
			calls = parse(optarg);
			break;
		case 'p':
			per_round = (uint32_t)parse(optarg);
			break;
		case 'r':
			round_number = (uint32_t)parse(optarg);
			break;
		case 's':
			seed = parse(optarg);
			break;
		case 'x':
			avoid(optarg);
			break;
		default:
			usage();
		}
	}
	if (argc != optind || calls == 0 || per_round == 0)
		usage();
	make_buffers();
	if (!dry) {
		find_oids();
		/* FreeBSD 14 has no such device, and no calls of it. */
#ifdef VMMCTL_VM_CREATE
		if ((control = open("/dev/vmmctl", O_RDWR)) < 0)
			err(EX_UNAVAILABLE, "/dev/vmmctl");
#endif
	}
	/*
	 * The bound is the number of requested calls, not of calls that were
	 * made.
	 */
	for (uint64_t left = calls; left > 0 && hung < 8; round_number++) {
		uint32_t now = (uint32_t)MIN(left, per_round);

		if (!run_round(now))
			hung++;
		left -= now;
		rounds++;
	}
	tell(rounds);
	return (hung != 0 ? 1 : 0);
}
