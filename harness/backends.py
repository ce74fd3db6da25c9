"""The names of all backends: what a machine runs in.  Everything else about them is in machine/."""

from __future__ import annotations

from harness.errors import UsageError

KVM_IN_BOCHS = "kvm-in-bochs"

NAMES = ("kvm", "bochs", "tcg", KVM_IN_BOCHS)

ASKED = ("auto", *NAMES)
"""What --backend takes."""

_EXPLAINED = {KVM_IN_BOCHS: "kvm-in-bochs (KVM in a Linux in Bochs)"}


def listed(*without: str, first: str = "auto") -> str:
    """A list for help texts and messages: `first`, and all backends but those in `without`."""
    names = [first, *(_EXPLAINED.get(name, name) for name in NAMES if name not in without)]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def unknown(asked: str) -> str:
    """The message for a name that is no backend."""
    return f"--backend {asked}: there is no such backend; use one of {', '.join(ASKED)}"


def require_known(asked: str) -> None:
    """Raises UsageError if `asked` is neither a backend nor auto."""
    if asked not in ASKED:
        raise UsageError(unknown(asked))
