/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * SVM: the requirements of vmm.ko on an AMD processor, a VMCB for a real-mode
 * L2, entry and exit.  Names and offsets follow the APM, volume 2, chapter
 * "Secure Virtual Machine" and appendix "Layout of VMCB".
 */

#include "cpu.h"
#include "probe.h"

/* The control area; bit n of an intercept word is intercept n. */
#define	VMCB_EXCEPTIONS		0x008
#define	VMCB_INTERCEPT1		0x00c
#define	VMCB_INTERCEPT2		0x010
#define	VMCB_IOPM		0x040
#define	VMCB_MSRPM		0x048
#define	VMCB_ASID		0x058
#define	VMCB_TLB_CONTROL	0x05c
#define	VMCB_VINTR		0x060
#define	VMCB_EXITCODE		0x070
#define	VMCB_EXITINFO1		0x078
#define	VMCB_EXITINFO2		0x080
#define	VMCB_NP_ENABLE		0x090
#define	VMCB_N_CR3		0x0b0
#define	VMCB_NRIP		0x0c8
/* The state save area: ES CS SS DS FS GS GDTR LDTR IDTR TR first. */
#define	VMCB_SEGMENTS		0x400
#define	VMCB_EFER		0x4d0
#define	VMCB_CR4		0x548
#define	VMCB_CR0		0x558
#define	VMCB_DR7		0x560
#define	VMCB_DR6		0x568
#define	VMCB_RFLAGS		0x570
#define	VMCB_RIP		0x578
#define	VMCB_RSP		0x5d8
#define	VMCB_RAX		0x5f8
#define	VMCB_PAT		0x668

#define	BIT(n)			(1U << (n))
#define	I1_INTR			BIT(0)
#define	I1_NMI			BIT(1)
#define	I1_CPUID		BIT(18)
#define	I1_HLT			BIT(24)
#define	I1_IO			BIT(27)
#define	I1_MSR			BIT(28)
#define	I1_SHUTDOWN		BIT(31)
#define	I2_VMRUN		BIT(0)		/* must be set */
#define	I2_VMMCALL		BIT(1)
#define	V_INTR_MASKING		(1UL << 24)
#define	FLUSH_ALL		1

#define	CODE_INTR		0x60
#define	CODE_CPUID		0x72
#define	CODE_HLT		0x78
#define	CODE_IO			0x7b
#define	CODE_VMMCALL		0x81
#define	CODE_NPF		0x400
#define	CODE_INVALID		(~0UL)

/* EXITINFO1 of a nested page fault. */
#define	NPF_P			0x1UL
#define	NPF_W			0x2UL
#define	NPF_U			0x4UL
#define	NPF_RSV			0x8UL
#define	NPF_FETCH		0x10UL
#define	NPF_FINAL		(1UL << 32)	/* not in L2's own tables */

#define	PAT_RESET		0x0007040600070406UL

static uint8_t vmcb[PAGE_SIZE] PAGE_ALIGNED;
static uint8_t host_vmcb[PAGE_SIZE] PAGE_ALIGNED;
static uint8_t hsave[PAGE_SIZE] PAGE_ALIGNED;
static uint8_t iopm[3 * PAGE_SIZE] PAGE_ALIGNED;
static uint8_t msrpm[2 * PAGE_SIZE] PAGE_ALIGNED;
static struct regs regs;
static uint64_t cpuid_nrip;

void	svm_enter(uint64_t, struct regs *, uint64_t);	/* vtrun.S */

#define	V8(off)		(*(volatile uint8_t *)&vmcb[off])
#define	V16(off)	(*(volatile uint16_t *)&vmcb[off])
#define	V32(off)	(*(volatile uint32_t *)&vmcb[off])
#define	V64(off)	(*(volatile uint64_t *)&vmcb[off])

static struct cpuid
svm_leaf(void)
{
	if (cpuid(0x80000000, 0).eax < 0x8000000a)
		return ((struct cpuid){ 0, 0, 0, 0 });
	return (cpuid(0x8000000a, 0));
}

static int
svm_cpuid(const struct row *r)
{
	uint32_t ecx = 0;

	if (cpuid(0x80000000, 0).eax >= 0x80000001)
		ecx = cpuid(0x80000001, 0).ecx;
	return (cap_bit(r, ecx, "CPUID 0x80000001 ECX", 2));
}

static int
vm_cr(const struct row *r)
{
	uint64_t val;
	int vector;

	vector = rdmsr_safe(MSR_VM_CR, &val);
	if (vector != 0) {
		detail("reading VM_CR caused exception %d", vector);
		return (0);
	}
	return (cap_bit(r, val, "VM_CR", 4));
}

/* ASID 0 is the host's. */
static int
asids(const struct row *r)
{
	uint32_t n;

	n = svm_leaf().ebx;
	if (n < 2)
		detail("CPUID 0x8000000a EBX: %u address spaces", n);
	return (cap_bit(r, n >= 2, "two or more", 0));
}

static int
feature(const struct row *r)
{
	return (cap_bit(r, svm_leaf().edx, "CPUID 0x8000000a EDX", r->bit));
}

struct msr_write {
	uint32_t	msr;
	uint64_t	val;
};

static void
do_wrmsr(void *p)
{
	const struct msr_write *w = p;

	wrmsr(w->msr, w->val);
}

static int
write_msr(const char *name, uint32_t msr, uint64_t val)
{
	struct msr_write w = { msr, val };
	int vector;

	vector = guarded(do_wrmsr, &w);
	if (vector >= 0)
		detail("writing %s caused exception %d", name, vector);
	return (vector < 0);
}

static int
svm_on(const struct row *r)
{
	(void)r;
	if (!fault("no-svme") &&
	    !write_msr("EFER", MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME))
		return (0);
	if ((rdmsr(MSR_EFER) & EFER_SVME) == 0) {
		detail("EFER = 0x%lx: SVME is 0", rdmsr(MSR_EFER));
		return (0);
	}
	return (write_msr("VM_HSAVE_PA", MSR_VM_HSAVE_PA, (uint64_t)hsave));
}

static int
svm_off(const struct row *r)
{
	(void)r;
	if (!fault("no-svm-off") &&
	    !write_msr("EFER", MSR_EFER, rdmsr(MSR_EFER) & ~EFER_SVME))
		return (0);
	if ((rdmsr(MSR_EFER) & EFER_SVME) != 0) {
		detail("EFER = 0x%lx: SVME is 1", rdmsr(MSR_EFER));
		return (0);
	}
	return (1);
}

static void
enter(struct vexit *x)
{
	uint64_t len = 0;

	*x = (struct vexit){ 0 };
	V64(VMCB_RAX) = regs.rax;
	svm_enter((uint64_t)vmcb, &regs, (uint64_t)host_vmcb);
	V8(VMCB_TLB_CONTROL) = 0;
	regs.rax = V64(VMCB_RAX);
	x->reason = V64(VMCB_EXITCODE);
	x->info = V64(VMCB_EXITINFO1);
	x->rip = V64(VMCB_RIP);
	switch (x->reason) {
	case CODE_CPUID:
		x->kind = EXIT_CPUID;
		cpuid_nrip = V64(VMCB_NRIP);
		len = 2;
		break;
	case CODE_HLT:
		x->kind = EXIT_HLT;
		len = 1;
		break;
	case CODE_VMMCALL:
		x->kind = EXIT_CALL;
		len = 3;
		break;
	case CODE_NPF:
		x->kind = EXIT_NESTED;
		x->gpa = V64(VMCB_EXITINFO2);
		break;
	case CODE_IO:
		/* Bits 4 to 6: one of 8, 16 and 32 bits. */
		x->kind = EXIT_IO;
		x->io_size = (int)(x->info >> 4 & 7);
		x->io_out = (x->info & 1) == 0;
		x->io_port = (int)(x->info >> 16 & 0xffff);
		len = V64(VMCB_EXITINFO2) - x->rip;
		break;
	case CODE_INTR:
		x->kind = EXIT_INTERRUPT;
		break;
	case CODE_INVALID:
		x->kind = EXIT_ENTRY_FAILED;
		break;
	default:
		x->kind = EXIT_OTHER;
	}
	/*
	 * Known lengths, not nRIP: whether nRIP is right is a question of
	 * its own, and L2 runs without it, which vmm.ko's guests do not.
	 */
	x->next_rip = x->rip + len;
}

static void
set_rip(uint64_t rip)
{
	V64(VMCB_RIP) = rip;
}

static void
flush(void)
{
	V8(VMCB_TLB_CONTROL) = FLUSH_ALL;
}

/* APM volume 2, "Nested versus Guest Page Faults, Fault Ordering". */
static int
check_nested(const struct vexit *x, int write)
{
	uint64_t want;

	want = NPF_FINAL | NPF_U | (write ? NPF_W | NPF_P : 0);
	if ((x->info & (want | NPF_P | NPF_W | NPF_RSV | NPF_FETCH)) == want)
		return (1);
	detail("EXITINFO1 0x%lx, expected 0x%lx", x->info, want);
	return (0);
}

static const struct vt vt = {
	.svm = 1,
	.nested_name = "nested page fault",
	.enter = enter,
	.set_rip = set_rip,
	.flush = flush,
	.check_nested = check_nested,
	.regs = &regs,
};

/* A processor as after INIT, but for CS:IP. */
static int
svm_vmcb(const struct row *r)
{
	unsigned i, seg;

	(void)r;
	V32(VMCB_EXCEPTIONS) = 0xffffffff;
	V32(VMCB_INTERCEPT1) = I1_INTR | I1_NMI | I1_CPUID | I1_HLT | I1_IO |
	    I1_MSR | I1_SHUTDOWN;
	V32(VMCB_INTERCEPT2) = I2_VMRUN | I2_VMMCALL;
	memset(iopm, 0xff, sizeof(iopm));
	memset(msrpm, 0xff, sizeof(msrpm));
	V64(VMCB_IOPM) = (uint64_t)iopm;
	V64(VMCB_MSRPM) = (uint64_t)msrpm;
	V32(VMCB_ASID) = 1;
	V8(VMCB_TLB_CONTROL) = FLUSH_ALL;
	V64(VMCB_VINTR) = V_INTR_MASKING;
	V64(VMCB_NP_ENABLE) = 1;
	V64(VMCB_N_CR3) = l2_init(1);

	/* Selector, attributes, limit, base. */
	for (i = 0; i < 10; i++) {
		seg = VMCB_SEGMENTS + 16 * i;
		V16(seg + 2) = i == 1 ? 0x09b : i == 7 ? 0x082 :
		    i == 9 ? 0x08b : 0x093;
		V32(seg + 4) = 0xffff;
	}
	V16(VMCB_SEGMENTS + 16) = L2_CODE_SEG;
	V64(VMCB_SEGMENTS + 16 + 8) = L2_CODE_GPA;
	/* VMRUN refuses a guest whose EFER.SVME is 0. */
	V64(VMCB_EFER) = fault("bad-vmcs") ? 0 : EFER_SVME;
	V64(VMCB_CR0) = CR0_ET;
	V64(VMCB_DR6) = 0xffff0ff0;
	V64(VMCB_DR7) = 0x400;
	V64(VMCB_RFLAGS) = 0x202;	/* IF: see vmx.c */
	V64(VMCB_RSP) = 0x1000;
	V64(VMCB_PAT) = PAT_RESET;
	l2_begin(&vt);
	return (l2_launch(r));
}

static int
nrip(const struct row *r)
{
	uint64_t want;

	(void)r;
	/* L1 has moved RIP behind the CPUID by now. */
	want = V64(VMCB_RIP);
	if (cpuid_nrip == want && !fault("wrong-nrip"))
		return (1);
	detail("nRIP 0x%lx after CPUID, expected 0x%lx", cpuid_nrip, want);
	return (0);
}

#define	M	R_MODULE
#define	R	R_RUN
#define	O	R_OPTIONAL

#define	FEATURE(name, desc, flags, bit)					\
	{ name, desc, flags, feature, { "svm.cpuid" }, 0, bit, 1 }
#define	STEP(name, desc, fn, ...)					\
	{ name, desc, R_L2, fn, { __VA_ARGS__ }, 0, 0, 0 }

const struct row svm_rows[] = {
	{ "cpu.long_mode", "64-bit mode", M, cpu_long_mode, { 0 }, 0, 0, 0 },
	{ "svm.cpuid", "CPUID announces SVM", M | R, svm_cpuid, { 0 },
	    0, 0, 1 },
	{ "svm.vm_cr", "firmware does not forbid SVM", M | R, vm_cr,
	    { "svm.cpuid" }, 0, 0, 0 },
	{ "svm.asids", "address-space identifiers for guests", M | R, asids,
	    { "svm.cpuid" }, 0, 0, 1 },
	FEATURE("svm.npt", "nested paging", M | R, 0),
	FEATURE("svm.nrip_save", "next RIP saved on exit", M, 3),

	FEATURE("svm.lbr", "last-branch virtualization", O, 1),
	FEATURE("svm.lock", "SVM lock", O, 2),
	FEATURE("svm.tsc_rate", "TSC rate control", O, 4),
	FEATURE("svm.vmcb_clean", "VMCB clean bits", O, 5),
	FEATURE("svm.flush_by_asid", "flush by ASID", O, 6),
	FEATURE("svm.decode_assist", "decode assist", O, 7),
	FEATURE("svm.pause_filter", "PAUSE intercept filter", O, 10),
	FEATURE("svm.pause_threshold", "PAUSE filter threshold", O, 12),
	FEATURE("svm.avic", "virtual interrupt controller", O, 13),

	{ "svm.enable", "EFER.SVME set, host save area given",
	    R_L2 | R_NEEDS_RUN, svm_on, { "svm.cpuid" }, 0, 0, 0 },
	STEP("l2.launch", "VMRUN of a real-mode guest", svm_vmcb,
	    "svm.enable"),
	STEP("l2.memory", "L1 sees what L2 wrote", l2_memory, "l2.launch"),
	STEP("l2.real_mode", "L2 ran in real mode", l2_real_mode,
	    "l2.launch"),
	STEP("l2.nrip", "nRIP points behind the CPUID", nrip, "l2.launch",
	    "svm.nrip_save"),
	STEP("l2.npt_fault_read",
	    "reading an unmapped page is a nested page fault", l2_fault_read,
	    "l2.launch"),
	STEP("l2.read_resumed", "given the page, VMRUN, and L2 reads it",
	    l2_read_resumed, "l2.npt_fault_read"),
	STEP("l2.registers", "L2 got the registers that L1 answered with",
	    l2_registers, "l2.read_resumed"),
	STEP("l2.npt_fault_write",
	    "writing a read-only page is a nested page fault",
	    l2_fault_write, "l2.read_resumed"),
	STEP("l2.write_resumed", "made writable, VMRUN, and L2 writes it",
	    l2_write_resumed, "l2.npt_fault_write"),
	STEP("l2.io", "OUT to the serial port exits", l2_out,
	    "l2.write_resumed"),
	STEP("l2.vmmcall", "VMMCALL exits", l2_hypercall, "l2.io"),
	STEP("l2.interrupt", "a timer interrupt takes back the processor",
	    l2_interrupt, "l2.vmmcall"),
	STEP("l2.cpuid_roundtrip", "1001 CPUID round trips", l2_round_trips,
	    "l2.interrupt"),
	STEP("l2.hlt", "HLT exits", l2_halt, "l2.cpuid_roundtrip"),
	STEP("svm.disable", "EFER.SVME cleared", svm_off, "svm.enable"),
};
const size_t svm_nrows = nitems(svm_rows);

void
svm_describe(void)
{
	struct cpuid c;
	uint64_t val;

	if (cpuid(0x80000000, 0).eax < 0x80000001 ||
	    (cpuid(0x80000001, 0).ecx & 1U << 2) == 0)
		return;
	if (rdmsr_safe(MSR_VM_CR, &val) != 0)
		say("# msr 0x%x VM_CR absent\n", MSR_VM_CR);
	else
		say("# msr 0x%x VM_CR 0x%016lx\n", MSR_VM_CR, val);
	c = svm_leaf();
	say("# cpuid 0x8000000a eax=0x%08x ebx=0x%08x ecx=0x%08x "
	    "edx=0x%08x\n", c.eax, c.ebx, c.ecx, c.edx);
}
