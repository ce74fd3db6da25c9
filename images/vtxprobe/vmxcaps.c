/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * What IA32_VMX_* say, compared with what vmm.ko asks for: one row for each
 * control, so that the result contains the name of what is
 * missing.  SDM volume 3, appendix "VMX Capability Reporting Facility".
 */

#include "cpu.h"
#include "probe.h"
#include "vmx.h"

#define	BASIC_INS_OUTS	54
#define	BASIC_TRUE_CTLS	55

static const struct {
	const char	*name;
	uint32_t	msr, true_msr;
} controls[] = {
	[PIN] = { "pin-based controls", 0x481, 0x48d },
	[PROC] = { "processor-based controls", 0x482, 0x48e },
	[PROC2] = { "secondary controls", 0x48b, 0x48b },
	[EXIT] = { "VM-exit controls", 0x483, 0x48f },
	[ENTRY] = { "VM-entry controls", 0x484, 0x490 },
};

static uint32_t
control_msr(int ctl)
{
	if ((rdmsr(MSR_VMX_BASIC) >> BASIC_TRUE_CTLS & 1) != 0)
		return (controls[ctl].true_msr);
	return (controls[ctl].msr);
}

/*
 * What to write to a control field: `ones` as far as they may be 1, and
 * what must be 1.  Low half of the MSR: bits that must be 1; high half:
 * bits that may be.
 */
uint32_t
vmx_control(int ctl, uint32_t ones, uint32_t zeros)
{
	uint64_t val;

	val = rdmsr(control_msr(ctl));
	return (((ones & ~zeros) | (uint32_t)val) & (uint32_t)(val >> 32));
}

static int
vmx_cpuid(const struct row *r)
{
	return (cap_bit(r, cpuid(1, 0).ecx, "CPUID 1 ECX", 5));
}

/*
 * Unlocked, the register may be set by the first program (vmm.ko, or
 * vmxon() here); locked without the bit, VMXON is forbidden until reset.
 */
static int
feature_control(const struct row *r)
{
	uint64_t val;

	val = rdmsr(MSR_FEATURE_CONTROL);
	if ((val & FEATURE_CONTROL_LOCK) == 0)
		val |= FEATURE_CONTROL_VMXON;
	return (cap_bit(r, val, "IA32_FEATURE_CONTROL", 2));
}

static int
basic(const struct row *r)
{
	return (cap_bit(r, rdmsr(MSR_VMX_BASIC), "IA32_VMX_BASIC", r->bit));
}

/* A control that must be allowed to be r->want. */
static int
control(const struct row *r)
{
	uint64_t val;

	val = rdmsr(control_msr(r->reg));
	return (cap_bit(r, val, controls[r->reg].name,
	    r->want != 0 ? r->bit + 32 : r->bit));
}

static int
ept_vpid(const struct row *r)
{
	return (cap_bit(r, rdmsr(MSR_VMX_EPT_VPID_CAP),
	    "IA32_VMX_EPT_VPID_CAP", r->bit));
}

#define	M	R_MODULE
#define	R	R_RUN
#define	O	R_OPTIONAL

/* Controls of which vmm.ko needs the setting 1, and those it needs 0. */
#define	ONE(name, desc, flags, reg, bit)				\
	{ name, desc, flags, control, { "vmx.cpuid" }, reg, bit, 1 }
#define	ZERO(name, desc, flags, reg, bit)				\
	{ name, desc " can be off", flags, control, { "vmx.cpuid" },	\
	    reg, bit, 0 }
#define	ONE2(name, desc, flags, bit)					\
	{ name, desc, flags, control, { "procbased.secondary_controls" },\
	    PROC2, bit, 1 }
#define	EPT(name, desc, flags, bit)					\
	{ name, desc, flags, ept_vpid, { "procbased2.ept" }, 0, bit, 1 }
/* The steps of the L2 part. */
#define	STEP(name, desc, fn, ...)					\
	{ name, desc, R_L2, fn, { __VA_ARGS__ }, 0, 0, 0 }

const struct row vmx_rows[] = {
	{ "cpu.long_mode", "64-bit mode", M, cpu_long_mode, { 0 }, 0, 0, 0 },
	{ "vmx.cpuid", "CPUID announces VMX", M | R, vmx_cpuid, { 0 },
	    0, 0, 1 },
	{ "vmx.feature_control", "firmware does not forbid VMXON", M | R,
	    feature_control, { "vmx.cpuid" }, 0, 0, 1 },
	{ "vmx.ins_outs_info", "VM exits describe INS and OUTS", M,
	    basic, { "vmx.cpuid" }, 0, BASIC_INS_OUTS, 1 },

	ONE("pinbased.extint_exiting", "external-interrupt exiting", M | R,
	    PIN, 0),
	ONE("pinbased.nmi_exiting", "NMI exiting", M, PIN, 3),
	ONE("pinbased.virtual_nmis", "virtual NMIs", M, PIN, 5),

	ONE("procbased.secondary_controls", "secondary controls", M | R,
	    PROC, 31),
	ONE("procbased.mwait_exiting", "MWAIT exiting", M, PROC, 10),
	ONE("procbased.monitor_exiting", "MONITOR exiting", M, PROC, 29),
	ONE("procbased.io_exiting", "unconditional I/O exiting", M | R,
	    PROC, 24),
	ONE("procbased.msr_bitmaps", "MSR bitmaps", M | R, PROC, 28),
	ONE("procbased.interrupt_window", "interrupt-window exiting", M,
	    PROC, 2),
	ONE("procbased.nmi_window", "NMI-window exiting", M, PROC, 22),
	ONE("procbased.cr8_load_exiting", "CR8-load exiting", M, PROC, 19),
	ONE("procbased.cr8_store_exiting", "CR8-store exiting", M, PROC, 20),
	ZERO("procbased.cr3_load_exiting", "CR3-load exiting", M, PROC, 15),
	ZERO("procbased.cr3_store_exiting", "CR3-store exiting", M, PROC, 16),
	ZERO("procbased.io_bitmaps", "use of I/O bitmaps", M, PROC, 25),
	ONE("procbased.hlt_exiting", "HLT exiting", R, PROC, 7),

	ONE("exit.save_debug_controls", "save debug controls at exit", M,
	    EXIT, 2),
	ONE("exit.host_64bit", "host address-space size", M | R, EXIT, 9),
	ONE("exit.ack_interrupt", "acknowledge interrupt on exit", M | R,
	    EXIT, 15),
	ONE("exit.save_efer", "save IA32_EFER at exit", M, EXIT, 20),
	ONE("exit.load_efer", "load IA32_EFER at exit", M | R, EXIT, 21),
	ONE("entry.load_debug_controls", "load debug controls at entry", M,
	    ENTRY, 2),
	ONE("entry.load_efer", "load IA32_EFER at entry", M | R, ENTRY, 15),
	ZERO("entry.smm", "entry to SMM", M, ENTRY, 10),
	ZERO("entry.dual_monitor", "deactivation of dual-monitor treatment",
	    M, ENTRY, 11),

	ONE2("procbased2.ept", "extended page tables", M | R, 1),
	EPT("ept.walk_length_4", "EPT page walks of four levels", M | R, 6),
	EPT("ept.write_back", "EPT structures in write-back memory", M | R,
	    14),
	EPT("ept.invept", "INVEPT", M | R, 20),
	EPT("ept.invept_single", "INVEPT of a single context", M, 25),
	EPT("ept.invept_all", "INVEPT of all contexts", M, 26),
	EPT("vpid.invvpid", "INVVPID", M, 32),
	EPT("vpid.invvpid_address", "INVVPID of an address", M, 40),
	EPT("vpid.invvpid_single", "INVVPID of a single context", M, 41),
	EPT("vpid.invvpid_all", "INVVPID of all contexts", M, 42),
	EPT("vpid.invvpid_globals",
	    "INVVPID of a single context, retaining globals", M, 43),
	/* The module can do without; a boot ROM, in real mode, cannot. */
	ONE2("procbased2.unrestricted_guest", "unrestricted guest", R, 7),

	ONE2("procbased2.vpid", "virtual-processor identifiers", O, 5),
	ONE("procbased.monitor_trap", "monitor trap flag", O, PROC, 27),
	ONE("procbased.pause_exiting", "PAUSE exiting", O, PROC, 30),
	ONE("procbased.tpr_shadow", "TPR shadow", O, PROC, 21),
	ONE2("procbased2.rdtscp", "RDTSCP and RDPID", O, 3),
	ONE2("procbased2.wbinvd_exiting", "WBINVD exiting", O, 6),
	ONE2("procbased2.invpcid", "INVPCID", O, 12),
	ONE2("procbased2.apic_accesses", "virtual APIC accesses", O, 0),
	ONE2("procbased2.x2apic_mode", "virtual x2APIC mode", O, 4),
	ONE2("procbased2.apic_registers", "APIC-register virtualization", O,
	    8),
	ONE2("procbased2.interrupt_delivery", "virtual-interrupt delivery",
	    O, 9),
	ONE("pinbased.posted_interrupts", "posted interrupts", O, PIN, 7),
	ONE("pinbased.preemption_timer", "VMX-preemption timer", O, PIN, 6),
	EPT("ept.execute_only", "EPT execute-only pages", O, 0),
	EPT("ept.pages_2m", "EPT pages of 2 MiB", O, 16),
	EPT("ept.pages_1g", "EPT pages of 1 GiB", O, 17),
	EPT("ept.accessed_dirty", "EPT accessed and dirty flags", O, 21),

	{ "vmxon", "VMXON", R_L2, vmx_on,
	    { "vmx.cpuid", "vmx.feature_control" }, 0, 0, 0 },
	{ "vmcs", "a VMCS cleared, loaded and filled", R_L2 | R_NEEDS_RUN,
	    vmx_vmcs, { "vmxon" }, 0, 0, 0 },
	STEP("invept", "INVEPT of every type", vmx_invept, "vmxon",
	    "ept.invept_single", "ept.invept_all"),
	STEP("invvpid", "INVVPID of every type", vmx_invvpid, "vmxon",
	    "vpid.invvpid"),
	STEP("l2.launch", "VMLAUNCH of a real-mode guest", l2_launch, "vmcs"),
	STEP("l2.memory", "L1 sees what L2 wrote", l2_memory, "l2.launch"),
	STEP("l2.real_mode", "L2 ran in real mode", l2_real_mode,
	    "l2.launch"),
	STEP("l2.ept_violation_read",
	    "reading an unmapped page is an EPT violation", l2_fault_read,
	    "l2.launch"),
	STEP("l2.read_resumed", "given the page, VMRESUME, and L2 reads it",
	    l2_read_resumed, "l2.ept_violation_read"),
	STEP("l2.registers", "L2 got the registers that L1 answered with",
	    l2_registers, "l2.read_resumed"),
	STEP("l2.ept_violation_write",
	    "writing a read-only page is an EPT violation", l2_fault_write,
	    "l2.read_resumed"),
	STEP("l2.write_resumed", "made writable, VMRESUME, and L2 writes it",
	    l2_write_resumed, "l2.ept_violation_write"),
	STEP("l2.io", "OUT to the serial port exits", l2_out,
	    "l2.write_resumed"),
	STEP("l2.vmcall", "VMCALL exits", l2_hypercall, "l2.io"),
	STEP("l2.interrupt", "a timer interrupt takes back the processor",
	    l2_interrupt, "l2.vmcall"),
	STEP("l2.cpuid_roundtrip", "1001 CPUID round trips", l2_round_trips,
	    "l2.interrupt"),
	STEP("l2.hlt", "HLT exits", l2_halt, "l2.cpuid_roundtrip"),
	STEP("vmxoff", "VMXOFF", vmx_off, "vmxon"),
	{ "l2.interrupt_masked",
	    "the timer interrupt, while L2's IF is clear", O | R_LAST,
	    vmx_interrupt_masked, { "l2.interrupt", "vmxoff",
	    "pinbased.preemption_timer" }, 0, 0, 0 },
};
const size_t vmx_nrows = nitems(vmx_rows);

/* The raw capability registers, to verify the lines above. */
void
vmx_describe(void)
{
	static const struct {
		uint32_t	msr;
		const char	*name;
	} msrs[] = {
		{ MSR_FEATURE_CONTROL, "IA32_FEATURE_CONTROL" },
		{ MSR_VMX_BASIC, "IA32_VMX_BASIC" },
		{ 0x481, "IA32_VMX_PINBASED_CTLS" },
		{ 0x482, "IA32_VMX_PROCBASED_CTLS" },
		{ 0x483, "IA32_VMX_EXIT_CTLS" },
		{ 0x484, "IA32_VMX_ENTRY_CTLS" },
		{ 0x485, "IA32_VMX_MISC" },
		{ 0x486, "IA32_VMX_CR0_FIXED0" },
		{ 0x487, "IA32_VMX_CR0_FIXED1" },
		{ 0x488, "IA32_VMX_CR4_FIXED0" },
		{ 0x489, "IA32_VMX_CR4_FIXED1" },
		{ 0x48b, "IA32_VMX_PROCBASED_CTLS2" },
		{ 0x48c, "IA32_VMX_EPT_VPID_CAP" },
		{ 0x48d, "IA32_VMX_TRUE_PINBASED_CTLS" },
		{ 0x48e, "IA32_VMX_TRUE_PROCBASED_CTLS" },
		{ 0x48f, "IA32_VMX_TRUE_EXIT_CTLS" },
		{ 0x490, "IA32_VMX_TRUE_ENTRY_CTLS" },
		{ 0x491, "IA32_VMX_VMFUNC" },
	};
	uint64_t val;
	size_t i;

	if ((cpuid(1, 0).ecx & 1U << 5) == 0)
		return;
	for (i = 0; i < nitems(msrs); i++) {
		if (rdmsr_safe(msrs[i].msr, &val) != 0)
			say("# msr 0x%x %s absent\n", msrs[i].msr,
			    msrs[i].name);
		else
			say("# msr 0x%x %s 0x%016lx\n", msrs[i].msr,
			    msrs[i].name, val);
	}
}
