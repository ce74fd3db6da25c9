/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Measures the cost of each kind of VM exit.  A small guest executes the
 * instruction many times between two readings of its time-stamp counter and
 * stores the differences, which are sorted here.  A line for each kind:
 *
 *	NAME MEDIAN LOW HIGH ROUNDS EXITS
 *
 * Cycles of the guest's time-stamp counter; LOW and HIGH are the 10th and the
 * 90th of a hundred.  EXITS is the number of VM exits during this, as
 * vmm.ko counts them, or 0 if that was not read.
 *
 * The virtual machine is vmunit's (vm.c, paging.c), which is linked with this.
 */

#include <sys/types.h>

#include <machine/cpufunc.h>

#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "vmunit.h"

/* The place of the rounds' cycles, and the memory that is touched first. */
#define	A_RESULTS	0x00200000u
#define	A_FRESH		0x00400000u
#define	ROUNDS_MAX	0x80000u
#define	BENCH_BYTES	(16ul << 20)
#define	FRESH_PAGES	((BENCH_BYTES - A_FRESH) / PAGE_SIZE)
#define	A_PIECES	0x14000u	/* our own handlers */
#define	V_WAKE		0x50
#define	V_PING		0x51
#define	V_PONG		0x52
#define	A_ANSWERED	0x18000u
#define	A_STOP		0x18004u
#define	PORT_USER	0xe0u		/* only this program handles it */
#define	PORT_KERNEL	0x21u		/* the PIC's mask */
#define	MSR_KERNEL	0x2ffu		/* MTRRdefType, vmm.ko answers */
#define	MSR_USER	0x12345u	/* nothing handles it */

/* Functions that vm.c needs. */
volatile sig_atomic_t late;
bool intel, emulated, apicv;

void
fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	verrx(EX_SOFTWARE, format, arguments);
}

void
note(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vwarnx(format, arguments);
	va_end(arguments);
}

#define	CODE(_name) extern const uint8_t _name[], _name##_end[]
CODE(p_nothing);
CODE(p_cpuid);
CODE(p_port);
CODE(p_mmio);
CODE(p_msr);
CODE(p_page);
CODE(p_ipi);
CODE(p_hlt);
CODE(p_ping);
CODE(p_other);
CODE(h_wake);
CODE(h_ping);
CODE(h_pong);

static const struct kind {
	const char	*name;
	const uint8_t	*begin, *end;
	uint64_t	argument;
	unsigned	divisor;	/* of the requested rounds */
	unsigned	exits;		/* the least number in each round */
} kinds[] = {
#define	KIND(_name, _code, _argument, _divisor, _exits)			\
	{ _name, _code, _code##_end, _argument, _divisor, _exits }
	KIND("nothing", p_nothing, 0, 1, 0),
	KIND("cpuid", p_cpuid, 0, 1, 1),
	KIND("port-kernel", p_port, PORT_KERNEL, 1, 1),
	KIND("port-user", p_port, PORT_USER, 4, 1),
	KIND("mmio-kernel", p_mmio, LAPIC + 0x30, 1, 1),
	KIND("mmio-user", p_mmio, DEVICE, 4, 1),
	KIND("msr-kernel", p_msr, MSR_KERNEL, 1, 1),
	KIND("msr-user", p_msr, MSR_USER, 4, 1),
	KIND("ipi-self", p_ipi, 0, 1, 1),
	KIND("hlt", p_hlt, 0, 2, 2),
	KIND("ipi-answered", p_ping, 0, 8, 2),
	KIND("ept-fault", p_page, A_FRESH, 0, 1),
};

static int
compare(const void *a, const void *b)
{
	uint64_t one = *(const uint64_t *)a, other = *(const uint64_t *)b;

	return (one < other ? -1 : one > other);
}

static void
line(const char *name, uint64_t *cycles, size_t count, uint64_t exits)
{
	qsort(cycles, count, sizeof(*cycles), compare);
	(void)printf("%s %ju %ju %ju %zu %ju\n", name,
	    (uintmax_t)cycles[count / 2], (uintmax_t)cycles[count / 10],
	    (uintmax_t)cycles[count - 1 - count / 10], count,
	    (uintmax_t)exits);
	(void)fflush(stdout);
}

/* A guest of 16 MiB, as vm_new() makes one of 2. */
static struct vm *
bench_vm(void)
{
	struct vm *vm = vm_bare();

	if (vm_setup_memory(vm->ctx, BENCH_BYTES, VM_MMAP_ALL) != 0)
		fail("a VM gets no memory: %s", strerror(errno));
	if ((vm->mem = vm_map_gpa(vm->ctx, 0, BENCH_BYTES)) == NULL)
		fail("a VM's memory cannot be mapped: %s", strerror(errno));
	make_tables(vm->mem);
	vm_mode(vm, LONG64);
	return (vm);
}

/* The number of the vCPU's exits, from vmm.ko's statistics. */
static uint64_t
left(struct vm *vm)
{
	static int index = -1;
	uint64_t *stats;
	struct timeval when;
	const char *name;
	int count;

	if ((stats = vm_get_stats(vm->vcpu[0], &when, &count)) == NULL)
		fail("there are no statistics: %s", strerror(errno));
	for (int i = 0; index < 0 && i < count; i++) {
		name = vm_get_stat_desc(vm->ctx, i);
		if (name != NULL &&
		    strcmp(name, "total number of vm exits") == 0)
			index = i;
	}
	if (index < 0)
		fail("vmm.ko does not count its exits");
	return (stats[index]);
}

/* Put our handler into the guest, and let a vector point to it. */
static void
handler(struct vm *vm, unsigned vector, const uint8_t *begin,
    const uint8_t *end, uint32_t where)
{
	uint64_t gate[2] = { (where & 0xffff) | 0x08ul << 16 |
	    0x8e00ul << 32 | (uint64_t)(where >> 16) << 48, 0 };

	memcpy(vm->mem + where, begin, (size_t)(end - begin));
	memcpy(vm->mem + A_IDT64 + vector * 16, gate, sizeof(gate));
}

/* Run up to PORT_DONE; exits for this program are skipped. */
static void
finish(struct vm *vm, struct vcpu *vcpu)
{
	struct vm_exit vme;
	cpuset_t cpus;
	struct vm_run vmrun = { .vm_exit = &vme, .cpuset = &cpus,
	    .cpusetsize = sizeof(cpus) };

	for (;;) {
		memset(&vme, 0, sizeof(vme));
		if (vm_run(vcpu, &vmrun) != 0)
			fail("VM_RUN fails: %s", strerror(errno));
		switch (vme.exitcode) {
		case VM_EXITCODE_INOUT:
			if (vme.u.inout.port == PORT_DONE)
				return;
			if (vme.u.inout.port == PORT_USER)
				continue;
			break;
		case VM_EXITCODE_BOGUS:
		case VM_EXITCODE_REQIDLE:
		case VM_EXITCODE_RDMSR:
		case VM_EXITCODE_INST_EMUL:
			continue;
		default:
			break;
		}
		vm->exit = vme;
		expect_done(vm);
	}
}

static void
set_lapic_on(struct vm *vm)
{
	/* movl $0x1ff, (%rcx); out %al, $PORT_DONE */
	static const uint8_t on[] = { 0xc7, 0x01, 0xff, 0x01, 0x00, 0x00,
	    0xe6, PORT_DONE };

	memcpy(vm->mem + A_CODE, on, sizeof(on));
	set_reg(vm, VM_REG_GUEST_RIP, A_CODE);
	set_reg(vm, VM_REG_GUEST_RCX, LAPIC + 0xf0);
	finish(vm, vm->vcpu[vm->cpu]);
}

struct other {
	struct vm	*vm;
	struct vcpu	*vcpu;
};

static void *
run_other(void *arg)
{
	struct other *other = arg;

	finish(other->vm, other->vcpu);
	return (NULL);
}

/* A second vCPU, which a thread runs; it halts, and answers IPIs. */
static pthread_t
second(struct vm *vm, struct other *other)
{
	pthread_t thread;

	other->vm = vm;
	other->vcpu = vm_cpu(vm, 1);
	vm->cpu = 1;
	vm_mode(vm, LONG64);
	set_lapic_on(vm);
	memcpy(vm->mem + A_CODE2, p_other, (size_t)(p_other_end - p_other));
	set_reg(vm, VM_REG_GUEST_RIP, A_CODE2);
	set_reg(vm, VM_REG_GUEST_RSP, A_STACK - 0x800);
	vm->cpu = 0;
	if (pthread_create(&thread, NULL, run_other, other) != 0)
		fail("no thread for the second vCPU");
	return (thread);
}

static void
begin(struct vm *vm, const uint8_t *first, const uint8_t *last,
    unsigned rounds, uint64_t argument)
{
	memcpy(vm->mem + A_CODE, first, (size_t)(last - first));
	set_reg(vm, VM_REG_GUEST_RIP, A_CODE);
	set_reg(vm, VM_REG_GUEST_RSP, A_STACK);
	set_reg(vm, VM_REG_GUEST_RFLAGS, 2);
	set_reg(vm, VM_REG_GUEST_R12, rounds);
	set_reg(vm, VM_REG_GUEST_R13, A_RESULTS);
	set_reg(vm, VM_REG_GUEST_R14, argument);
}

static void
measure(const struct kind *kind, unsigned wanted)
{
	struct vm *vm = bench_vm();
	struct other other;
	pthread_t thread = NULL;
	uint64_t before, exits, *cycles;
	uint32_t cycle, stop = 1;
	unsigned rounds;

	rounds = kind->divisor == 0 ? (unsigned)FRESH_PAGES :
	    MAX(wanted / kind->divisor, 16);
	handler(vm, V_WAKE, h_wake, h_wake_end, A_PIECES);
	handler(vm, V_PING, h_ping, h_ping_end, A_PIECES + 0x100);
	handler(vm, V_PONG, h_pong, h_pong_end, A_PIECES + 0x200);
	/* Touch the pages of the results before the guest writes to them. */
	memset(vm->mem + A_RESULTS, 0, rounds * sizeof(cycle));
	set_lapic_on(vm);
	if (kind->begin == p_ping)
		thread = second(vm, &other);
	/* Run once without measuring, so that first-time work is done. */
	if (kind->divisor != 0) {
		begin(vm, kind->begin, kind->end, 16, kind->argument);
		finish(vm, vm->vcpu[0]);
	}
	before = left(vm);
	begin(vm, kind->begin, kind->end, rounds, kind->argument);
	finish(vm, vm->vcpu[0]);
	exits = left(vm) - before;
	if (exits < (uint64_t)rounds * kind->exits)
		fail("%s: %u rounds took %ju exits, not at least %u "
		    "each", kind->name, rounds, (uintmax_t)exits,
		    kind->exits);
	if ((cycles = calloc(rounds, sizeof(*cycles))) == NULL)
		fail("no memory");
	for (unsigned i = 0; i < rounds; i++) {
		memcpy(&cycle, vm->mem + A_RESULTS + i * sizeof(cycle),
		    sizeof(cycle));
		cycles[i] = cycle;
	}
	line(kind->name, cycles, rounds, exits);
	free(cycles);
	if (thread != NULL) {
		memcpy(vm->mem + A_STOP, &stop, sizeof(stop));
		/* Its next interrupt makes it look. */
		if (vm_lapic_irq(other.vcpu, V_PING) != 0)
			fail("the second vCPU takes no interrupt: %s",
			    strerror(errno));
		(void)pthread_join(thread, NULL);
	}
	vm_free(vm);
}

/* VMs made, given 16 MiB and a vCPU, and destroyed: cycles of L1's counter. */
static void
measure_lives(unsigned rounds)
{
	uint64_t *made, *gone, t0, t1, t2;
	struct vm *vm;

	made = calloc(rounds, sizeof(*made));
	gone = calloc(rounds, sizeof(*gone));
	if (made == NULL || gone == NULL)
		fail("no memory");
	for (unsigned i = 0; i < rounds; i++) {
		t0 = rdtsc();
		vm = vm_bare();
		if (vm_setup_memory(vm->ctx, BENCH_BYTES, VM_MMAP_ALL) != 0)
			fail("a VM gets no memory: %s", strerror(errno));
		t1 = rdtsc();
		vm_free(vm);
		t2 = rdtsc();
		made[i] = t1 - t0;
		gone[i] = t2 - t1;
	}
	line("create", made, rounds, 0);
	line("destroy", gone, rounds, 0);
}

int
main(int argc, char **argv)
{
	unsigned rounds;

	if (argc < 2 || (rounds = (unsigned)atoi(argv[1])) < 16 ||
	    rounds > ROUNDS_MAX) {
		(void)fprintf(stderr, "usage: bench ROUNDS [KIND ...]\n");
		return (EX_USAGE);
	}
	for (size_t i = 0; i < nitems(kinds); i++) {
		bool wanted = argc == 2;

		for (int j = 2; j < argc; j++)
			wanted |= strcmp(argv[j], kinds[i].name) == 0;
		if (wanted)
			measure(&kinds[i], rounds);
	}
	if (argc == 2)
		measure_lives(MIN(rounds, 24));
	return (0);
}
