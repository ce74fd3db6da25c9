"""Virtual computers: one interface to two kinds of emulator, and to one inside the other."""

from __future__ import annotations

from dataclasses import replace

from harness import backends
from harness.errors import UsageError
from harness.machine import bochs, nested, qemu
from harness.machine.base import Machine
from harness.machine.models import BACKENDS, BOCHS_MODELS, KVM_IN_BOCHS, Backend
from harness.machine.spec import Drive, Spec, Traits

__all__ = ["BACKENDS", "Backend", "Drive", "Machine", "Spec", "Traits", "make", "traits"]

_TRAITS = {"kvm": qemu.KVM, "tcg": qemu.TCG, "bochs": bochs.TRAITS, KVM_IN_BOCHS: nested.TRAITS}


def traits(backend: str) -> Traits:
    """The properties of a backend; UsageError for an unknown name."""
    try:
        return _TRAITS[backend]
    except KeyError:
        raise UsageError(backends.unknown(backend)) from None


def make(backend: Backend | str, spec: Spec) -> Machine:
    """A machine that is not started yet; a backend's name by itself means Intel's processor.

    `spec.cpu` names another processor model than the backend's own.
    """
    chosen = Backend(backend) if isinstance(backend, str) else backend
    kind = traits(chosen.name)
    if kind is bochs.TRAITS:
        return bochs.BochsMachine(replace(spec, cpu=spec.cpu or BOCHS_MODELS[chosen.vendor]))
    if kind is nested.TRAITS:
        return nested.NestedMachine(spec, chosen)
    return qemu.QemuMachine(spec, kind, chosen.flag)
