/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * VMX: turning it on and off, a VMCS for a real-mode L2, entry and exit.  Field
 * and bit names follow the SDM, volume 3, chapters "Virtual Machine Control
 * Structures", "VM Entries" and "VM Exits".
 */

#include "cpu.h"
#include "probe.h"
#include "vmx.h"

static uint8_t vmxon_region[PAGE_SIZE] PAGE_ALIGNED;
static uint8_t vmcs[PAGE_SIZE] PAGE_ALIGNED;
static uint8_t msr_bitmap[PAGE_SIZE] PAGE_ALIGNED;
static struct regs regs;
static uint64_t eptp;
static int launched;

#define	SLICES		4000
#define	SLICE_CYCLES	1000000

int	vmx_enter(struct regs *, int);		/* vtrun.S */
extern const uint8_t vmx_exit[], l2_code_start[], l2_spin[];

/* VMfailInvalid sets the carry, VMfailValid the zero flag. */
#define	VMX_INSTR(op, fail, ...)					\
	__asm__ volatile(op "; setbe %0" : "=qm" (fail) : __VA_ARGS__	\
	    : "cc", "memory")

static uint64_t
vmread(uint64_t field)
{
	uint64_t val;

	__asm__ volatile("vmread %1, %0" : "=r" (val) : "r" (field) : "cc");
	return (val);
}

static int
vmwrite(uint64_t field, uint64_t val)
{
	uint8_t fail;

	VMX_INSTR("vmwrite %1, %2", fail, "r" (val), "r" (field));
	return (fail);
}

static void
do_vmxon(void *p)
{
	uint64_t pa = (uint64_t)vmxon_region;
	uint8_t fail;

	VMX_INSTR("vmxon %1", fail, "m" (pa));
	*(int *)p = fail;
}

int
vmx_on(const struct row *r)
{
	uint64_t val;
	int fail, vector;

	(void)r;
	val = rdmsr(MSR_FEATURE_CONTROL);
	if ((val & FEATURE_CONTROL_LOCK) == 0)
		wrmsr(MSR_FEATURE_CONTROL, val | FEATURE_CONTROL_VMXON |
		    FEATURE_CONTROL_LOCK);
	/* Bits that VMX operation fixes: CR0 0x486/7, CR4 0x488/9. */
	lcr0((rcr0() | rdmsr(0x486)) & rdmsr(0x487));
	lcr4((rcr4() | CR4_VMXE | rdmsr(0x488)) & rdmsr(0x489));

	/* Here, not in vmx_vmcs(): INVEPT can be tried without a VMCS. */
	eptp = l2_init(0);

	*(uint32_t *)vmxon_region = rdmsr(MSR_VMX_BASIC) & 0x7fffffff;
	if (fault("no-vmxon"))
		*(uint32_t *)vmxon_region ^= 0x00ffff00;
	fail = 1;
	vector = guarded(do_vmxon, &fail);
	if (vector >= 0)
		detail("VMXON caused exception %d", vector);
	else if (fail)
		detail("VMXON failed (VMfailInvalid)");
	return (vector < 0 && !fail);
}

static void
do_leave(void *p)
{
	if (!fault("no-vmxoff"))
		__asm__ volatile("vmxoff" : : : "cc");
	lcr4(rcr4() & ~CR4_VMXE);
	(void)p;
}

/* As long as VMX operation lasts, clearing CR4.VMXE is a #GP. */
int
vmx_off(const struct row *r)
{
	int vector;

	(void)r;
	vector = guarded(do_leave, NULL);
	if (vector >= 0)
		detail("VMXOFF or clearing CR4.VMXE caused exception %d",
		    vector);
	return (vector < 0);
}

static void
enter(struct vexit *x)
{
	uint64_t info;
	int fail;

	*x = (struct vexit){ 0 };
	fail = vmx_enter(&regs, launched);
	if (fail != 0) {
		x->kind = EXIT_ENTRY_FAILED;
		x->error = fail == 1 ? -1 : (int)vmread(VMCS_INSTR_ERROR);
		return;
	}
	launched = 1;
	x->reason = vmread(VMCS_EXIT_REASON);
	x->info = vmread(VMCS_EXIT_QUAL);
	x->rip = vmread(VMCS_GUEST_RIP);
	if ((x->reason & REASON_ENTRY_FAILED) != 0) {
		x->kind = EXIT_ENTRY_FAILED;
		return;
	}
	x->next_rip = x->rip + vmread(VMCS_EXIT_INSTR_LEN);
	switch (x->reason) {
	case REASON_CPUID:
		x->kind = EXIT_CPUID;
		break;
	case REASON_HLT:
		x->kind = EXIT_HLT;
		break;
	case REASON_VMCALL:
		x->kind = EXIT_CALL;
		break;
	case REASON_EPT_VIOLATION:
		x->kind = EXIT_NESTED;
		x->gpa = vmread(VMCS_GPA);
		x->gla = vmread(VMCS_EXIT_GLA);
		break;
	case REASON_IO:
		x->kind = EXIT_IO;
		x->io_size = (int)(x->info & 7) + 1;
		x->io_out = (x->info & 8) == 0;
		x->io_port = (int)(x->info >> 16 & 0xffff);
		break;
	case REASON_EXTINT:
		/* Taken from the 8259 by the VM exit itself. */
		info = vmread(VMCS_EXIT_INTR_INFO);
		x->kind = EXIT_INTERRUPT;
		x->vector = (info >> 31 & 1) != 0 ? (int)(info & 0xff) : -1;
		watchdog_ack();
		break;
	default:
		x->kind = EXIT_OTHER;
	}
}

static void
set_rip(uint64_t rip)
{
	vmwrite(VMCS_GUEST_RIP, rip);
}

static int
invalidate(int vpid, uint64_t type, uint64_t what)
{
	struct {
		uint64_t	what, zero;
	} desc = { what, 0 };
	uint8_t fail;

	if (vpid)
		VMX_INSTR("invvpid %1, %2", fail, "m" (desc), "r" (type));
	else
		VMX_INSTR("invept %1, %2", fail, "m" (desc), "r" (type));
	return (fail);
}

/* What L1 changed in the EPT; a single context, as vmm.ko does. */
static void
flush(void)
{
	invalidate(0, 1, eptp);
}

/* SDM volume 3, table "Exit Qualification for EPT Violations". */
static int
check_nested(const struct vexit *x, int write)
{
	uint64_t mask, want;

	mask = QUAL_WRITE | QUAL_FETCH | QUAL_READABLE | QUAL_WRITABLE |
	    QUAL_EXECUTABLE | QUAL_GLA_VALID | QUAL_FINAL;
	want = QUAL_GLA_VALID | QUAL_FINAL;
	if (write)
		want |= QUAL_WRITE | QUAL_READABLE;
	else {
		want |= QUAL_READ;
		mask |= QUAL_READ;
	}
	if ((x->info & mask) != want) {
		detail("exit qualification 0x%lx, expected 0x%lx under the "
		    "mask 0x%lx", x->info, want, mask);
		return (0);
	}
	if (x->gla != L2_HOLE_GPA + L2_HOLE_OFF) {
		detail("guest-linear address 0x%lx, expected 0x%x", x->gla,
		    L2_HOLE_GPA + L2_HOLE_OFF);
		return (0);
	}
	return (1);
}

static const struct vt vt = {
	.nested_name = "EPT violation",
	.enter = enter,
	.set_rip = set_rip,
	.flush = flush,
	.check_nested = check_nested,
	.regs = &regs,
};

struct field {
	uint32_t	field;
	uint64_t	val;
};

static int
fill(const struct field *f, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++)
		if (vmwrite(f[i].field, f[i].val)) {
			detail("VMWRITE of field 0x%x failed: error %lu",
			    f[i].field, vmread(VMCS_INSTR_ERROR));
			return (0);
		}
	return (1);
}

/*
 * What stays 0 has to be written nevertheless: the SDM does not promise
 * that a zeroed page, cleared, reads as zeros.
 */
static int
fill_zeros(void)
{
	static const uint16_t zeros[] = {
		/* Page-fault masks, CR3 targets, MSR counts, event. */
		0x4006, 0x4008, 0x400a, 0x400e, 0x4010, 0x4014, 0x4016,
		/* CR0 and CR4 masks and shadows. */
		0x6000, 0x6002, 0x6004, 0x6006,
		/* L2's interruptibility, activity, debug exceptions. */
		0x4824, 0x4826, 0x6822,
		/* SYSENTER, L2's and L1's; L1's FS, GS and TR bases. */
		0x482a, 0x6824, 0x6826, 0x4c00, 0x6c10, 0x6c12,
		0x6c06, 0x6c08, 0x6c0a,
	};
	size_t i;

	for (i = 0; i < nitems(zeros); i++)
		if (!fill(&(struct field){ zeros[i], 0 }, 1))
			return (0);
	return (1);
}

static int
fill_controls(void)
{
	uint32_t proc2;

	proc2 = vmx_control(PROC2, PROC2_EPT | PROC2_VPID |
	    PROC2_UNRESTRICTED, 0);
	const struct field f[] = {
		{ VMCS_CTL_PIN, vmx_control(PIN, PIN_EXTINT | PIN_NMI |
		    PIN_VIRTUAL_NMI, 0) },
		{ VMCS_CTL_PROC, vmx_control(PROC, PROC_SECONDARY | PROC_HLT |
		    PROC_IO | PROC_MSR_BITMAPS, PROC_CR3_LOAD |
		    PROC_CR3_STORE | PROC_IO_BITMAPS) },
		{ VMCS_CTL_PROC2, proc2 },
		{ VMCS_CTL_EXIT, vmx_control(EXIT, EXIT_SAVE_DEBUG |
		    EXIT_HOST_64 | EXIT_ACK_INTERRUPT | EXIT_SAVE_EFER |
		    EXIT_LOAD_EFER, 0) },
		{ VMCS_CTL_ENTRY, vmx_control(ENTRY, ENTRY_LOAD_DEBUG |
		    ENTRY_LOAD_EFER, ENTRY_IA32E) },
		/* L2 has no interrupt table: see its exceptions here. */
		{ VMCS_EXCEPTIONS, 0xffffffff },
		{ VMCS_MSR_BITMAP, (uint64_t)msr_bitmap },
		{ VMCS_EPTP, eptp },
	};

	if ((proc2 & PROC2_VPID) != 0 && vmwrite(VMCS_VPID, 1)) {
		detail("VMWRITE of the VPID failed");
		return (0);
	}
	return (fill(f, nitems(f)));
}

static int
fill_host(void)
{
	struct table_reg gdtr, idtr;
	unsigned i;

	gdtr = sgdt();
	idtr = sidt();
	const struct field f[] = {
		{ VMCS_HOST_CR0, rcr0() },
		{ VMCS_HOST_CR3, rcr3() },
		{ VMCS_HOST_CR4, rcr4() },
		{ VMCS_HOST_EFER, rdmsr(MSR_EFER) },
		{ VMCS_HOST_ES + 2, SEL_CODE64 },
		{ VMCS_HOST_ES + 12, SEL_TSS },
		{ VMCS_HOST_GDTR_BASE, gdtr.base },
		{ VMCS_HOST_IDTR_BASE, idtr.base },
		{ VMCS_HOST_RIP, (uint64_t)vmx_exit },
	};

	/* ES, SS, DS, FS and GS.  TR's base is 0: the TSS is never used. */
	for (i = 0; i < 6; i++)
		if (i != 1 && vmwrite(VMCS_HOST_ES + 2 * i, SEL_DATA))
			return (0);
	return (fill(f, nitems(f)));
}

/* A processor as after INIT, but for CS:IP. */
static int
fill_guest(void)
{
	uint64_t cr0, ar;
	unsigned i;

	/* Unrestricted: PE and PG may be 0 whatever 0x486 says. */
	cr0 = (rdmsr(0x486) & ~(CR0_PE | CR0_PG)) | CR0_ET;
	const struct field f[] = {
		{ VMCS_LINK, ~0UL },
		{ VMCS_GUEST_DEBUGCTL, 0 },
		{ VMCS_GUEST_EFER, 0 },
		{ VMCS_GUEST_CR0, cr0 },
		{ VMCS_GUEST_CR3, 0 },
		{ VMCS_GUEST_CR4, rdmsr(0x488) },
		{ VMCS_GUEST_DR7, 0x400 },
		{ VMCS_GUEST_RSP, 0x1000 },
		{ VMCS_GUEST_RIP, 0 },
		/*
		 * Bit 1 reads 1 always; VM entry refuses a 0.  IF is set
		 * because Bochs 2.7, contrary to the SDM, lets no interrupt
		 * end an L2 that was entered with IF clear.
		 */
		{ VMCS_GUEST_RFLAGS, fault("bad-vmcs") ? 0 : 0x202 },
		{ VMCS_GUEST_ES + 2, L2_CODE_SEG },
		{ VMCS_GUEST_ES_BASE + 2, L2_CODE_GPA },
	};

	/* ES CS SS DS FS GS LDTR TR, then GDTR and IDTR, which have no AR. */
	for (i = 0; i < 10; i++) {
		if (vmwrite(VMCS_GUEST_ES_LIMIT + 2 * i, 0xffff))
			return (0);
		if (vmwrite(VMCS_GUEST_ES_BASE + 2 * i, 0))
			return (0);
		if (i >= 8)
			continue;
		ar = 0x93;			/* data, writable, accessed */
		if (i == 1)
			ar = 0x9b;		/* code */
		else if (i == 6)
			ar = 0x10000;		/* unusable */
		else if (i == 7)
			ar = 0x8b;		/* TSS, busy */
		if (vmwrite(VMCS_GUEST_ES_AR + 2 * i, ar))
			return (0);
		if (vmwrite(VMCS_GUEST_ES + 2 * i, 0))
			return (0);
	}
	return (fill(f, nitems(f)));
}

int
vmx_vmcs(const struct row *r)
{
	uint64_t pa = (uint64_t)vmcs;
	uint8_t fail;

	(void)r;
	*(uint32_t *)vmcs = rdmsr(MSR_VMX_BASIC) & 0x7fffffff;
	memset(msr_bitmap, 0xff, sizeof(msr_bitmap));

	VMX_INSTR("vmclear %1", fail, "m" (pa));
	if (fail) {
		detail("VMCLEAR failed");
		return (0);
	}
	VMX_INSTR("vmptrld %1", fail, "m" (pa));
	if (fail) {
		detail("VMPTRLD failed");
		return (0);
	}
	if (!fill_zeros() || !fill_controls() || !fill_host() ||
	    !fill_guest())
		return (0);
	if (fault("vmcs-field") && !fill(&(struct field){ 0x7ffe, 0 }, 1))
		return (0);
	if (vmread(VMCS_HOST_RIP) != (uint64_t)vmx_exit) {
		detail("VMREAD gives back 0x%lx for 0x%lx",
		    vmread(VMCS_HOST_RIP), (uint64_t)vmx_exit);
		return (0);
	}
	l2_begin(&vt);
	return (1);
}

/*
 * External-interrupt exiting must work whatever L2's IF is.  If it does not,
 * only the VMX-preemption timer returns here: after each slice the 8259 is read
 * for an interrupt that is pending and was not delivered.  A lower hypervisor
 * that makes this timer from its own interrupts hangs in that case, as KVM in
 * Bochs does.
 */
int
vmx_interrupt_masked(const struct row *r)
{
	struct vexit x;
	int i, late;

	/* The rows before it have left VMX operation. */
	launched = 0;
	if (!vmx_on(r) || !vmx_vmcs(r))
		return (0);
	vmwrite(VMCS_CTL_PIN, vmx_control(PIN, PIN_EXTINT | PIN_NMI |
	    PIN_VIRTUAL_NMI | PIN_PREEMPTION_TIMER, 0));
	vmwrite(VMCS_GUEST_RFLAGS, 2);
	vmwrite(VMCS_GUEST_RIP, (uint64_t)(l2_spin - l2_code_start));
	watchdog_arm(TICK_SHORT);
	/* The first time the two may have come together. */
	for (i = late = 0; i < SLICES && late < 2; i++) {
		vmwrite(VMCS_PREEMPTION_TIMER,
		    SLICE_CYCLES >> (rdmsr(MSR_VMX_MISC) & 0x1f));
		enter(&x);
		if (x.kind == EXIT_INTERRUPT)
			break;
		if (x.reason != REASON_TIMER) {
			detail("exit reason 0x%lx", x.reason);
			break;
		}
		late += watchdog_pending();
	}
	watchdog_disarm();
	vmx_off(r);
	if (x.kind != EXIT_INTERRUPT)
		detail("%s", late != 0 ? "an interrupt is pending, but L2 "
		    "keeps the processor" : "no interrupt");
	return (x.kind == EXIT_INTERRUPT);
}

int
vmx_invept(const struct row *r)
{
	uint64_t type;

	(void)r;
	/* 1: a single context, 2: all contexts. */
	for (type = 1; type <= 2; type++)
		if (invalidate(0, fault("bad-invept") ? 9 : type, eptp)) {
			detail("INVEPT type %lu failed", type);
			return (0);
		}
	return (1);
}

int
vmx_invvpid(const struct row *r)
{
	uint64_t type;

	(void)r;
	/* 0: an address, 1: a context, 2: all, 3: one without globals. */
	for (type = 0; type <= 3; type++)
		if (invalidate(1, fault("bad-invvpid") ? 9 : type,
		    type == 2 ? 0 : 1)) {
			detail("INVVPID type %lu failed", type);
			return (0);
		}
	return (1);
}
