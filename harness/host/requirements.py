"""The requirements of vmm.ko for a processor, control by control, and what a processor lacks.

The rows contain what FreeBSD 15.1's sys/amd64/vmm checks when the module loads (intel/vmx.c and
ept.c, amd/svm.c) and what its virtual machines also use.  The names are those of the probe's test
lines, so that the results of `doctor` and `probe` can be compared.

The low half of a VMX control's register has the bits that must be 1, and the high half those that
may be 1 (SDM volume 3, appendix A.3 to A.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from harness.host.facts import Processor

FEATURE_CONTROL = 0x3A
VMX_BASIC = 0x480
EPT_VPID_CAP = 0x48C
_TRUE_CONTROLS_BIT = 55


class Need(Enum):
    """What needs it: loading vmm.ko, running virtual machines, or nothing necessarily."""

    MODULE = "vmm.ko does not load without it"
    RUN = "the virtual machines of the tests do not run without it"
    OPTIONAL = "vmm.ko uses it if it is there"


@dataclass(frozen=True)
class Field:
    """A group of controls: the register that reports it, and the one that reports it more exactly.

    `true_msr` is read instead if IA32_VMX_BASIC bit 55 is set; with `plain` set, the register is
    not a pair of halves but a word with one bit per feature.
    """

    name: str
    msr: int
    true_msr: int | None = None
    plain: bool = False


BASIC = Field("IA32_VMX_BASIC", VMX_BASIC, plain=True)
PIN = Field("pin-based controls", 0x481, 0x48D)
PROC = Field("processor-based controls", 0x482, 0x48E)
EXIT = Field("VM-exit controls", 0x483, 0x48F)
ENTRY = Field("VM-entry controls", 0x484, 0x490)
PROC2 = Field("secondary controls", 0x48B)
EPT = Field("IA32_VMX_EPT_VPID_CAP", EPT_VPID_CAP, plain=True)


@dataclass(frozen=True)
class Control:
    """One requirement: `bit` of `field` can be `want` (0: it must be possible to turn it off).

    `why` is the control's name in the SDM's table.
    """

    name: str
    field: Field
    bit: int
    need: Need
    why: str
    want: int = 1


M, R, O = Need.MODULE, Need.RUN, Need.OPTIONAL  # noqa: E741
VMX_CONTROLS: tuple[Control, ...] = (
    Control("vmx.ins_outs_info", BASIC, 54, M, "VM exits describe INS and OUTS"),
    Control("pinbased.extint_exiting", PIN, 0, M, "external-interrupt exiting"),
    Control("pinbased.nmi_exiting", PIN, 3, M, "NMI exiting"),
    Control("pinbased.virtual_nmis", PIN, 5, M, "virtual NMIs"),
    Control("procbased.secondary_controls", PROC, 31, M, "secondary controls"),
    Control("procbased.mwait_exiting", PROC, 10, M, "MWAIT exiting"),
    Control("procbased.monitor_exiting", PROC, 29, M, "MONITOR exiting"),
    Control("procbased.io_exiting", PROC, 24, M, "unconditional I/O exiting"),
    Control("procbased.msr_bitmaps", PROC, 28, M, "MSR bitmaps"),
    Control("procbased.interrupt_window", PROC, 2, M, "interrupt-window exiting"),
    Control("procbased.nmi_window", PROC, 22, M, "NMI-window exiting"),
    Control("procbased.cr8_load_exiting", PROC, 19, M, "CR8-load exiting"),
    Control("procbased.cr8_store_exiting", PROC, 20, M, "CR8-store exiting"),
    Control("procbased.cr3_load_exiting", PROC, 15, M, "CR3-load exiting can be off", want=0),
    Control("procbased.cr3_store_exiting", PROC, 16, M, "CR3-store exiting can be off", want=0),
    Control("procbased.io_bitmaps", PROC, 25, M, "use of I/O bitmaps can be off", want=0),
    Control("procbased.hlt_exiting", PROC, 7, R, "HLT exiting"),
    Control("exit.save_debug_controls", EXIT, 2, M, "save debug controls at exit"),
    Control("exit.host_64bit", EXIT, 9, M, "host address-space size"),
    Control("exit.ack_interrupt", EXIT, 15, M, "acknowledge interrupt on exit"),
    Control("exit.save_efer", EXIT, 20, M, "save IA32_EFER at exit"),
    Control("exit.load_efer", EXIT, 21, M, "load IA32_EFER at exit"),
    Control("entry.load_debug_controls", ENTRY, 2, M, "load debug controls at entry"),
    Control("entry.load_efer", ENTRY, 15, M, "load IA32_EFER at entry"),
    Control("entry.smm", ENTRY, 10, M, "entry to SMM can be off", want=0),
    Control("entry.dual_monitor", ENTRY, 11, M, "dual-monitor treatment can be off", want=0),
    Control("procbased2.ept", PROC2, 1, M, "extended page tables"),
    Control("ept.walk_length_4", EPT, 6, M, "EPT page walks of four levels"),
    Control("ept.write_back", EPT, 14, M, "EPT structures in write-back memory"),
    Control("ept.invept", EPT, 20, M, "INVEPT"),
    Control("ept.invept_single", EPT, 25, M, "INVEPT of a single context"),
    Control("ept.invept_all", EPT, 26, M, "INVEPT of all contexts"),
    Control("vpid.invvpid", EPT, 32, M, "INVVPID"),
    Control("vpid.invvpid_address", EPT, 40, M, "INVVPID of an address"),
    Control("vpid.invvpid_single", EPT, 41, M, "INVVPID of a single context"),
    Control("vpid.invvpid_all", EPT, 42, M, "INVVPID of all contexts"),
    Control("vpid.invvpid_globals", EPT, 43, M, "INVVPID of a context, retaining globals"),
    # The module loads without it, but a boot ROM starts in real mode and could not run.
    Control("procbased2.unrestricted_guest", PROC2, 7, R, "unrestricted guest"),
    Control("procbased2.vpid", PROC2, 5, O, "virtual-processor identifiers"),
    Control("procbased.monitor_trap", PROC, 27, O, "monitor trap flag"),
    Control("procbased.pause_exiting", PROC, 30, O, "PAUSE exiting"),
    Control("procbased.tpr_shadow", PROC, 21, O, "TPR shadow"),
    Control("procbased2.rdtscp", PROC2, 3, O, "RDTSCP and RDPID"),
    Control("procbased2.wbinvd_exiting", PROC2, 6, O, "WBINVD exiting"),
    Control("procbased2.invpcid", PROC2, 12, O, "INVPCID"),
    Control("procbased2.apic_accesses", PROC2, 0, O, "virtual APIC accesses"),
    Control("procbased2.x2apic_mode", PROC2, 4, O, "virtual x2APIC mode"),
    Control("procbased2.apic_registers", PROC2, 8, O, "APIC-register virtualization"),
    Control("procbased2.interrupt_delivery", PROC2, 9, O, "virtual-interrupt delivery"),
    Control("pinbased.posted_interrupts", PIN, 7, O, "posted interrupts"),
    Control("ept.execute_only", EPT, 0, O, "EPT execute-only pages"),
    Control("ept.pages_2m", EPT, 16, O, "EPT pages of 2 MiB"),
    Control("ept.pages_1g", EPT, 17, O, "EPT pages of 1 GiB"),
    Control("ept.accessed_dirty", EPT, 21, O, "EPT accessed and dirty flags"),
)

# CPUID 8000_000A EDX (APM volume 3, appendix E.4.9); amd/svm.c requires only these two.
SVM_FEATURES: tuple[tuple[str, int, str], ...] = (
    ("svm.npt", 0, "nested paging"),
    ("svm.nrip_save", 3, "the next instruction's address saved at exit"),
)


@dataclass(frozen=True)
class Lack:
    """A missing feature; `evidence` is the register and its value."""

    name: str
    why: str
    need: Need
    evidence: str


def lacking(processor: Processor) -> tuple[Lack, ...]:
    """What `processor` lacks of VMX or SVM, optional features too, in the order of vmm.ko's checks.

    For a processor that announces neither, only vmx.cpuid is reported, because all others follow
    from it.
    """
    if processor.vmx:
        return _vmx_lacking(processor)
    if processor.svm:
        return tuple(
            Lack(name, why, Need.MODULE, f"CPUID 8000_000A EDX 0x{processor.svm_edx:x}")
            for name, bit, why in SVM_FEATURES
            if not processor.svm_edx >> bit & 1
        )
    evidence = (
        f"CPUID 1 ECX 0x{processor.leaf1_ecx:x} has no bit 5, "
        f"8000_0001 ECX 0x{processor.ext1_ecx:x} no bit 2"
    )
    return (Lack("vmx.cpuid", "neither VMX nor SVM is announced", Need.MODULE, evidence),)


def required_lacking(processor: Processor) -> tuple[Lack, ...]:
    """The required features that are missing; empty means that virtual machines can run."""
    return tuple(lack for lack in lacking(processor) if lack.need is not Need.OPTIONAL)


def _vmx_lacking(processor: Processor) -> tuple[Lack, ...]:
    found: list[Lack] = []
    control = processor.msrs.get(FEATURE_CONTROL)
    # If the register is missing, the guest's firmware sets it.  If it is locked without the VMXON
    # bit, VMX cannot be turned on any more.
    if control is not None and control & 1 and not control >> 2 & 1:
        found.append(
            Lack(
                "vmx.feature_control",
                "firmware forbids VMXON",
                Need.MODULE,
                f"IA32_FEATURE_CONTROL 0x{control:x}",
            )
        )
    for demand in VMX_CONTROLS:
        evidence = _unmet(demand, processor)
        if evidence:
            found.append(Lack(demand.name, demand.why, demand.need, evidence))
    return tuple(found)


def _unmet(demand: Control, processor: Processor) -> str:
    """Why the requirement is not met, or an empty text."""
    field = demand.field
    index = field.msr
    basic = processor.msrs.get(VMX_BASIC, 0)
    if field.true_msr is not None and basic >> _TRUE_CONTROLS_BIT & 1:
        index = field.true_msr
    value = processor.msrs.get(index)
    if value is None:
        return f"MSR 0x{index:x} ({field.name}) is not there"
    bit = demand.bit + (32 if demand.want and not field.plain else 0)
    if value >> bit & 1 == demand.want:
        return ""
    return f"MSR 0x{index:x} ({field.name}) is 0x{value:x}: bit {bit} is {value >> bit & 1}"
