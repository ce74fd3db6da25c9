"""The backend of a machine, the processor's vendor, and the emulators' processor models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness import backends
from harness.backends import KVM_IN_BOCHS as KVM_IN_BOCHS
from harness.errors import UsageError

Vendor = Literal["intel", "amd"]

VENDORS: tuple[Vendor, ...] = ("intel", "amd")
BACKENDS = backends.NAMES

BOCHS_RUNS = frozenset({"bochs", KVM_IN_BOCHS})
"""The backends whose emulator is Bochs."""

BOCHS_MODELS: dict[Vendor, str] = {"intel": "broadwell_ult", "amd": "zambezi"}
"""The processor models that Bochs is run with.

Of Intel's models that have all vmm.ko asks for, broadwell_ult advertises the lowest frequency:
FreeBSD takes its early delays from that number, and each is spent in instructions.  Of AMD's,
zambezi boots (see BOCHS_REFUSED).
"""

BOCHS_REFUSED = {
    "ryzen": "it announces TCE and refuses EFER.TCE, so FreeBSD resets for ever in its first lines"
}
"""Models of Bochs's that no operating system is booted on, and why; the bare-metal probe runs."""

_FLAGS: dict[Vendor, str] = {"intel": "vmx", "amd": "svm"}


@dataclass(frozen=True)
class Backend:
    """What a machine runs in (one of BACKENDS) and whose processor it has.

    Raises UsageError for an unknown name or vendor.
    """

    name: str
    vendor: Vendor = "intel"

    def __post_init__(self) -> None:
        if self.name not in BACKENDS:
            raise UsageError(backends.unknown(self.name))
        vendor_of(self.vendor)

    @property
    def flag(self) -> str:
        """The processor's flag for virtual machines: vmx or svm."""
        return _FLAGS[self.vendor]

    def __str__(self) -> str:
        """The name, with the vendor if the backend supports several."""
        return f"{self.name} as AMD" if self.vendor == "amd" else self.name


def vendor_of(text: str) -> Vendor:
    """The vendor that a user named; UsageError for an unknown one."""
    for vendor in VENDORS:
        if text == vendor:
            return vendor
    raise UsageError(f"--cpu-vendor {text}: no such vendor; use intel or amd")
