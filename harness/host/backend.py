"""Chooses the backend for a machine with given facts, and says why not another: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness import backends
from harness.debian import BOCHS, OTHER_BOCHS
from harness.errors import CannotError
from harness.host import device
from harness.host.facts import KVM_AMD, KVM_INTEL, HostFacts
from harness.host.refusal import Refusal
from harness.host.requirements import required_lacking
from harness.machine.models import (
    BOCHS_MODELS,
    KVM_IN_BOCHS,
    Backend,
    Vendor,
    vendor_of,
)

_QEMU = "qemu-system-x86_64"
_SETUP = "./inv setup"
_NAMES: dict[Vendor, str] = {"intel": "Intel", "amd": "AMD"}
_EMULATED: dict[Vendor, str] = {
    "intel": "VMX, EPT and unrestricted guest",
    "amd": "SVM, nested paging and NRIP save",
}
_NESTED_ON = {"Y", "y", "1"}


@dataclass(frozen=True)
class Decision:
    """The chosen backend, or None with the reason; `kvm` says why KVM cannot be used."""

    asked: str
    backend: Backend | None
    reason: str
    remedy: str = ""
    kvm: Refusal | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a backend that meets the request."""
        return self.backend is not None

    @property
    def virtualizes(self) -> bool:
        """Whether guests there can make virtual machines, as far as the facts show.

        The probe proves it.
        """
        return self.backend is not None and self.backend.name != "tcg"

    @property
    def name(self) -> str:
        """The backend's name; empty if there is none."""
        return self.backend.name if self.backend else ""

    def require(self) -> Backend:
        """The backend; CannotError with the cause and the remedy if there is none."""
        if self.backend is None:
            raise CannotError(f"{self.reason}; {self.remedy}" if self.remedy else self.reason)
        return self.backend


def decide(facts: HostFacts, asked: str = "auto", vendor: str = "") -> Decision:
    """Choose a backend and the guests' processor: `vendor` is intel, amd or empty for any.

    "auto" takes KVM where a guest truly gets what vmm.ko asks for, else Bochs; it never takes TCG,
    which can run no virtual machines, nor KVM in Bochs, which is slow.  A
    backend that is asked for by name is never replaced by another one.  Raises UsageError if the
    name is not known.
    """
    backends.require_known(asked)
    wanted = vendor_of(vendor) if vendor else None
    kvm = kvm_refusal(facts) or _vendor_refusal(facts, wanted)
    if asked == "tcg":
        refusal = _qemu_refusal(facts)
        if refusal:
            return Decision(asked, None, f"TCG: {refusal.cause}", refusal.remedy, kvm)
        reason = "asked for; it has no VMX, so no virtual machines inside"
        return Decision(asked, Backend("tcg", wanted or "intel"), reason)
    if asked == KVM_IN_BOCHS:
        nested = bochs_refusal(facts, wanted or "intel") or _qemu_refusal(facts)
        if nested:
            return Decision(asked, None, f"KVM in Bochs: {nested.cause}", nested.remedy, kvm)
        emulated = _EMULATED[wanted or "intel"]
        reason = f"Bochs emulates {emulated} for a Linux with KVM, whose guest this is"
        return Decision(asked, Backend(KVM_IN_BOCHS, wanted or "intel"), reason)
    if kvm is None and asked in {"auto", "kvm"}:
        if facts.kvm.guest and facts.kvm.guest.vmx:
            reason = "KVM gives guests VMX, EPT and unrestricted guest"
            return Decision(asked, Backend("kvm"), reason)
        reason = "KVM gives guests SVM, nested paging and NRIP save"
        return Decision(asked, Backend("kvm", "amd"), reason)
    if asked == "kvm":
        assert kvm is not None
        return Decision(asked, None, f"KVM cannot be used: {kvm.cause}", kvm.remedy, kvm)
    bochs = bochs_refusal(facts, wanted or "intel")
    if bochs is None:
        reason = f"Bochs emulates {_EMULATED[wanted or 'intel']}"
        if asked == "auto" and kvm is not None:
            reason += f"; KVM is not used: {kvm.cause}"
        return Decision(asked, Backend("bochs", wanted or "intel"), reason, kvm=kvm)
    if asked == "bochs":
        return Decision(asked, None, f"Bochs: {bochs.cause}", bochs.remedy, kvm)
    assert kvm is not None
    return Decision(
        asked, None, f"neither KVM ({kvm.cause}) nor Bochs ({bochs.cause})", bochs.remedy
    )


def kvm_refusal(facts: HostFacts) -> Refusal | None:
    """Why KVM here cannot run bhyve inside a guest, or None if it can."""
    return device.refusal(facts) or _guest_refusal(facts) or _qemu_refusal(facts)


def _vendor_refusal(facts: HostFacts, wanted: Vendor | None) -> Refusal | None:
    """Refuse another vendor: KVM's guests always have this machine's processor."""
    here: Vendor = "intel" if facts.kvm.guest and facts.kvm.guest.vmx else "amd"
    if wanted is None or wanted == here:
        return None
    return Refusal(
        f"this machine's processor is {_NAMES[here]}'s, but --cpu-vendor {wanted} was given",
        "--backend bochs emulates both",
    )


def bochs_refusal(facts: HostFacts, vendor: Vendor = "intel") -> Refusal | None:
    """Why Bochs cannot be used with a processor of `vendor`, or None if it can."""
    lacking = sorted(BOCHS & set(facts.packages_missing))
    if lacking:
        return Refusal(f"not installed: {', '.join(lacking)}", _SETUP)
    emulator = facts.emulators.get("bochs")
    if emulator is None:
        return Refusal("it is not installed", _SETUP)
    if emulator.problem.startswith(OTHER_BOCHS):
        # The problem's text contains the remedy.
        return Refusal(emulator.problem)
    if emulator.problem:
        return Refusal(f"{emulator.path}: {emulator.problem}", f"run {emulator.path} --help cpu")
    if (model := BOCHS_MODELS[vendor]) not in emulator.cpu_models:
        return Refusal(
            f"version {emulator.version} has no processor model {model}",
            f"install Bochs 2.7 or newer, built with {_EMULATED[vendor].split(',')[0]}",
        )
    return None


def _qemu_refusal(facts: HostFacts) -> Refusal | None:
    emulator = facts.emulators.get(_QEMU)
    if emulator is None:
        return Refusal(f"{_QEMU} is not installed", _SETUP)
    if emulator.problem:
        return Refusal(f"{emulator.path}: {emulator.problem}", f"run {emulator.path} --version")
    return None


def _setting(facts: HostFacts, module: str, names: Sequence[str]) -> str:
    """How to set parameters of a module; a built-in module cannot be loaded again."""
    here = facts.surroundings
    where = "on the container's host, " if here.container else ""
    if module in facts.kvm.built_in:
        words = " ".join(f"{module}.{name}=1" for name in names)
        return (
            f"{module} is built into the kernel: {where}add {words} to the kernel's command line "
            "(Debian: GRUB_CMDLINE_LINUX in /etc/default/grub, then "
            f"{'sudo update-grub' if where else here.as_root('update-grub')}) and reboot"
        )
    words = " ".join(f"{name}=1" for name in names)
    commands = (f"modprobe -r {module}", f"modprobe {module} {words}")
    return f"end all virtual machines, then {here.on_kernel(*commands)}"


def _guest_refusal(facts: HostFacts) -> Refusal | None:
    """Refuse if a guest's processor would lack VMX and SVM, or another requirement of vmm.ko."""
    kvm = facts.kvm
    guest = kvm.guest
    if guest is None:
        return Refusal("KVM does not say which processor a guest would get")
    if not guest.vmx and not guest.svm:
        for module in (KVM_INTEL, KVM_AMD):
            nested = kvm.parameters.get(f"{module}.nested")
            if module in kvm.modules and nested is not None and nested not in _NESTED_ON:
                return Refusal(
                    f"nesting is off ({module}.nested={nested})",
                    _setting(facts, module, ["nested"]),
                )
        if kvm.kind.startswith("software"):
            return Refusal(
                f"KVM here is {kvm.kind}: it gives guests neither VMX nor SVM",
                "only a host with real VT-x or AMD-V can; no setting of this machine helps",
            )
        return Refusal(f"KVM ({kvm.kind}) gives guests neither VMX nor SVM")
    if guest.vmx and not guest.msrs:
        why = f" ({kvm.msrs_error})" if kvm.msrs_error else ""
        return Refusal(
            f"KVM announces VMX but shows none of its capability registers{why}",
            "run Linux 4.17 or newer",
        )
    lacks = required_lacking(guest)
    if not lacks:
        return None
    names = ", ".join(lack.name for lack in lacks[:4]) + (", ..." if len(lacks) > 4 else "")
    off = [
        f"{name}={text}"
        for name, text in sorted(kvm.parameters.items())
        if not name.endswith(".nested") and text not in _NESTED_ON
    ]
    if off:
        module = off[0].partition(".")[0]
        return Refusal(
            f"a guest would lack {names} ({', '.join(off)})",
            _setting(facts, module, [item.partition(".")[2].partition("=")[0] for item in off]),
        )
    return Refusal(f"a guest would lack {names}")
