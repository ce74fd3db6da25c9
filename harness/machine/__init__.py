"""Virtual computers: one interface, two kinds of emulator beneath it."""

from __future__ import annotations

from harness.errors import UsageError
from harness.machine import bochs, qemu
from harness.machine.base import BACKENDS, Drive, Machine, Spec, Traits

__all__ = ["BACKENDS", "Drive", "Machine", "Spec", "Traits", "make", "traits"]

_TRAITS = {"kvm": qemu.KVM, "tcg": qemu.TCG, "bochs": bochs.TRAITS}


def traits(backend: str) -> Traits:
    """What a backend is like; UsageError for a name that is none."""
    try:
        return _TRAITS[backend]
    except KeyError:
        raise UsageError(
            f"--backend {backend}: there is no such backend; use one of auto, {', '.join(BACKENDS)}"
        ) from None


def make(backend: str, spec: Spec, *, vendor_flag: str = "vmx") -> Machine:
    """A machine that is not started yet.

    `vendor_flag` is the processor flag that KVM must be able to give the guest: vmx or svm.
    """
    kind = traits(backend)
    if kind is bochs.TRAITS:
        return bochs.BochsMachine(spec)
    return qemu.QemuMachine(spec, kind, vendor_flag)
