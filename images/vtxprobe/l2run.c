/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Runs L2 and checks it, in the same way for VMX and SVM.  l2.S goes
 * through its stages in a fixed order; each function here lets it run to
 * the next one and judges how it got there.
 */

#include "cpu.h"
#include "probe.h"

#define	SAMPLES		1001
#define	WARM_UP		16
#define	COST_TICKS	100		/* of 55 ms, for all of them */

uint8_t l2_data[PAGE_SIZE] PAGE_ALIGNED;
uint8_t l2_hole[PAGE_SIZE] PAGE_ALIGNED;
static uint8_t l2_code[PAGE_SIZE] PAGE_ALIGNED;
static const struct vt *vt;
static struct vexit x;
static uint32_t nonce;
static uint64_t samples[SAMPLES];

extern const uint8_t l2_code_start[], l2_code_end[];
extern const uint8_t l2_hello[], l2_read[], l2_have_read[], l2_write[],
    l2_have_written[], l2_io[], l2_vmcall[], l2_vmmcall[], l2_cost_at[],
    l2_hlt[];

#define	IP(label)	((uint64_t)(label) - (uint64_t)l2_code_start)
/* What L2 writes behind the compiler's back. */
#define	DATA(off)	(*(volatile uint32_t *)&l2_data[off])
#define	HOLE		(*(volatile uint32_t *)&l2_hole[L2_HOLE_OFF])
#define	ANYWHERE	(~0UL)

/* Pages for L2; returns what nested_init() does. */
uint64_t
l2_init(int svm)
{
	uint64_t root;
	uint32_t mode;

	memcpy(l2_code, l2_code_start, (size_t)(l2_code_end - l2_code_start));
	root = nested_init(svm);
	if (!fault("ept-unmapped"))
		nested_map(L2_CODE_GPA, l2_code, MAP_READ | MAP_EXEC);
	nested_map(L2_DATA_GPA, l2_data, MAP_READ | MAP_WRITE);

	/* Use a random value, so that no old data is the right answer. */
	nonce = (uint32_t)rdtsc() * 2654435761U;
	mode = svm ? MODE_SVM : 0;
	if (fault("l2-silent"))
		mode |= MODE_SILENT;
	if (fault("l2-spin"))
		mode |= MODE_SPIN;
	if (fault("wrong-gpa"))
		mode |= MODE_WRONG_GPA;
	if (fault("wrong-read"))
		mode |= MODE_WRONG_READ;
	if (fault("no-io"))
		mode |= MODE_NO_IO;
	if (fault("no-call"))
		mode |= MODE_NO_CALL;
	if (fault("no-cost"))
		mode |= MODE_NO_COST;
	if (fault("no-hlt"))
		mode |= MODE_NO_HLT;
	DATA(L2_NONCE) = nonce;
	DATA(L2_MODE) = mode;
	DATA(L2_RELEASE) = fault("no-interrupt");
	DATA(L2_CR0) = 0xffff;
	HOLE = nonce + 1;
	return (root);
}

void
l2_begin(const struct vt *v)
{
	vt = v;
}

/*
 * Let L2 run until it stops for another reason than the watchdog, or has
 * had its time.
 */
static void
go(void)
{
	int ticks;

	for (ticks = 0; ticks < WATCHDOG_TICKS; ticks++) {
		watchdog_arm(TICK_LONG);
		vt->enter(&x);
		if (x.kind != EXIT_INTERRUPT)
			break;
	}
	if (x.kind == EXIT_INTERRUPT)
		x.kind = EXIT_SILENT;
	watchdog_disarm();
}

static int
expect(enum exit_kind kind, uint64_t rip)
{
	static const char *const names[] = {
		[EXIT_OTHER] = "something else",
		[EXIT_ENTRY_FAILED] = "a failed entry",
		[EXIT_CPUID] = "CPUID",
		[EXIT_NESTED] = "a nested paging fault",
		[EXIT_IO] = "I/O",
		[EXIT_CALL] = "a hypercall",
		[EXIT_INTERRUPT] = "an interrupt",
		[EXIT_HLT] = "HLT",
	};

	if (x.kind == kind && (rip == ANYWHERE || x.rip == rip))
		return (1);
	if (x.kind == EXIT_ENTRY_FAILED && x.error != 0)
		detail("VM entry failed: VM-instruction error %d", x.error);
	else if (x.kind == EXIT_ENTRY_FAILED)
		detail("VM entry failed: reason 0x%lx (invalid guest state), "
		    "information 0x%lx", x.reason, x.info);
	else if (x.kind == EXIT_SILENT)
		detail("L2 did not stop by itself; time was up at ip 0x%lx",
		    x.rip);
	else {
		detail("L2 stopped by %s at ip 0x%lx: reason 0x%lx "
		    "information 0x%lx guest-physical 0x%lx", names[x.kind],
		    x.rip, x.reason, x.info, x.gpa);
		if (rip == ANYWHERE)
			detail("expected %s", names[kind]);
		else
			detail("expected %s at ip 0x%lx", names[kind], rip);
	}
	return (0);
}

/* L2 reports its stage with CPUID. */
static int
expect_leaf(uint32_t leaf, uint64_t rip)
{
	if (!expect(EXIT_CPUID, rip))
		return (0);
	if ((uint32_t)vt->regs->rax != leaf) {
		detail("CPUID of leaf 0x%x, expected 0x%x",
		    (uint32_t)vt->regs->rax, leaf);
		return (0);
	}
	if (x.next_rip != x.rip + 2) {
		detail("CPUID is 2 bytes long, not %lu", x.next_rip - x.rip);
		return (0);
	}
	return (1);
}

static int
same(const char *what, uint32_t is, uint32_t should)
{
	if (is == should)
		return (1);
	detail("%s is 0x%x, expected 0x%x", what, is, should);
	return (0);
}

int
l2_launch(const struct row *r)
{
	(void)r;
	go();
	if (!expect_leaf(L2_HELLO, IP(l2_hello)))
		return (0);
	vt->regs->rbx = nonce + 2;
	if (fault("wrong-register"))
		vt->regs->rbx++;
	vt->set_rip(x.next_rip);
	return (1);
}

int
l2_memory(const struct row *r)
{
	(void)r;
	return (same("L2's answer", DATA(L2_ANSWER), nonce ^ L2_KEY));
}

int
l2_real_mode(const struct row *r)
{
	(void)r;
	if (!same("L2's CR0.PE", DATA(L2_CR0) & CR0_PE, 0))
		return (0);
	return (same("L2's CS", DATA(L2_CS), L2_CODE_SEG));
}

static int
fault_at_hole(uint64_t rip, int write)
{
	go();
	if (!expect(EXIT_NESTED, rip))
		return (0);
	if (x.gpa != L2_HOLE_GPA + L2_HOLE_OFF) {
		detail("%s at guest-physical 0x%lx, expected 0x%x",
		    vt->nested_name, x.gpa, L2_HOLE_GPA + L2_HOLE_OFF);
		return (0);
	}
	return (vt->check_nested(&x, write));
}

int
l2_fault_read(const struct row *r)
{
	(void)r;
	return (fault_at_hole(IP(l2_read), 0));
}

/* Here and below: the instruction that faulted runs again. */
int
l2_read_resumed(const struct row *r)
{
	unsigned prot = MAP_READ;

	(void)r;
	if (fault("no-readonly"))
		prot |= MAP_WRITE;
	if (!fault("no-resume"))
		nested_map(L2_HOLE_GPA, l2_hole, prot);
	vt->flush();
	go();
	if (!expect_leaf(L2_HAVE_READ, IP(l2_have_read)))
		return (0);
	vt->set_rip(x.next_rip);
	return (same("the word L2 read", DATA(L2_READ), nonce + 1));
}

int
l2_registers(const struct row *r)
{
	(void)r;
	return (same("L2's EBX", DATA(L2_REGISTERS), nonce + 2));
}

int
l2_fault_write(const struct row *r)
{
	(void)r;
	if (!fault_at_hole(IP(l2_write), 1))
		return (0);
	return (same("the word in the read-only page", HOLE, nonce + 1));
}

int
l2_write_resumed(const struct row *r)
{
	uint32_t want;

	(void)r;
	if (!fault("no-write-resume"))
		nested_map(L2_HOLE_GPA, l2_hole, MAP_READ | MAP_WRITE);
	vt->flush();
	go();
	if (!expect_leaf(L2_HAVE_WRITTEN, IP(l2_have_written)))
		return (0);
	vt->set_rip(x.next_rip);
	want = (nonce + 1) ^ L2_KEY;
	if (!same("the word L2 wrote", HOLE, want))
		return (0);
	return (same("the word L2 read back", DATA(L2_READBACK), want));
}

int
l2_out(const struct row *r)
{
	(void)r;
	go();
	if (!expect(EXIT_IO, IP(l2_io)))
		return (0);
	vt->set_rip(x.next_rip);
	return (same("the direction (out)", (uint32_t)x.io_out, 1) &&
	    same("the size", (uint32_t)x.io_size, 1) &&
	    same("the port", (uint32_t)x.io_port, L2_IO_PORT) &&
	    same("the byte", vt->regs->rax & 0xff, L2_IO_BYTE));
}

int
l2_hypercall(const struct row *r)
{
	(void)r;
	go();
	if (!expect(EXIT_CALL, vt->svm ? IP(l2_vmmcall) : IP(l2_vmcall)))
		return (0);
	vt->set_rip(x.next_rip);
	return (same("EAX", (uint32_t)vt->regs->rax, L2_CALL));
}

/* L2 spins until L1, having got the processor back, releases it. */
int
l2_interrupt(const struct row *r)
{
	(void)r;
	watchdog_arm(TICK_SHORT);
	vt->enter(&x);
	watchdog_disarm();
	if (!expect(EXIT_INTERRUPT, ANYWHERE))
		return (0);
	if (!vt->svm && !same("the vector", (uint32_t)x.vector,
	    WATCHDOG_VECTOR))
		return (0);
	DATA(L2_RELEASE) = 1;
	go();
	if (!expect_leaf(L2_RELEASED, ANYWHERE))
		return (0);
	vt->set_rip(x.next_rip);
	return (1);
}

uint64_t
l2_cost(void)
{
	return (samples[SAMPLES / 2]);
}

static void
sort(uint64_t *a, int n)
{
	uint64_t v;
	int gap, i, j;

	for (gap = n / 2; gap > 0; gap /= 2)
		for (i = gap; i < n; i++) {
			v = a[i];
			for (j = i; j >= gap && a[j - gap] > v; j -= gap)
				a[j] = a[j - gap];
			a[j] = v;
		}
}

/*
 * A round trip is what it costs to handle the smallest exit: L2 stops, L1
 * reads why, moves the instruction pointer on and resumes L2.  Taken
 * between the same point of two rounds; rounds that an interrupt fell into
 * do not count.
 */
int
l2_round_trips(const struct row *r)
{
	uint64_t last, now;
	int n, ticks, valid;

	(void)r;
	last = 0;
	valid = 0;
	ticks = 0;
	watchdog_arm(TICK_LONG);
	for (n = -WARM_UP; n < SAMPLES;) {
		vt->enter(&x);
		now = rdtsc();
		if (x.kind == EXIT_INTERRUPT && ++ticks < COST_TICKS) {
			watchdog_arm(TICK_LONG);
			valid = 0;
			continue;
		}
		if (x.kind == EXIT_INTERRUPT)
			x.kind = EXIT_SILENT;
		if (!expect_leaf(L2_COST, IP(l2_cost_at))) {
			watchdog_disarm();
			detail("after %d of %d round trips", n + WARM_UP,
			    SAMPLES + WARM_UP);
			return (0);
		}
		if (valid) {
			if (n >= 0)
				samples[n] = now - last;
			n++;
		}
		valid = 1;
		last = now;
		vt->regs->rax = n < SAMPLES;
		vt->set_rip(x.next_rip);
	}
	watchdog_disarm();
	sort(samples, SAMPLES);
	detail("cpuid_roundtrip_cycles median=%lu min=%lu p90=%lu max=%lu "
	    "samples=%d", samples[SAMPLES / 2], samples[0],
	    samples[SAMPLES * 9 / 10], samples[SAMPLES - 1], SAMPLES);
	return (1);
}

int
l2_halt(const struct row *r)
{
	(void)r;
	go();
	return (expect(EXIT_HLT, IP(l2_hlt)));
}
