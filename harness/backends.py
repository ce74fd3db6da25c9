"""The names of all backends: what a machine runs in.  Everything else about them is in machine/."""

from __future__ import annotations

KVM_IN_BOCHS = "kvm-in-bochs"

NAMES = ("kvm", "bochs", "tcg", KVM_IN_BOCHS)

_EXPLAINED = {KVM_IN_BOCHS: "kvm-in-bochs (KVM in a Linux in Bochs)"}


def listed(*without: str, first: str = "auto") -> str:
    """A list for help texts and messages: `first`, and all backends but those in `without`."""
    names = [first, *(_EXPLAINED.get(name, name) for name in NAMES if name not in without)]
    return f"{', '.join(names[:-1])} or {names[-1]}"
