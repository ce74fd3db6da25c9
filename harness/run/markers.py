"""The marks of checks: what each needs of the guest, and the message if that is missing."""

from __future__ import annotations

from collections.abc import Mapping

from harness import release as releases
from harness.image import store
from harness.report.data import N_A
from harness.run.workbench import Workbench

MARKERS = {
    "patch": "the claim is about the series; on the stock module the check must fail",
    "vtx": "makes virtual machines, so the guest's processor must virtualize",
    "tools": "needs programs built for the guest, and so an imported sysroot",
    "minutes": "takes minutes in an emulator; --full (of `inv verify`) or --vmm-full runs it",
    "beside": "compares with the stock module; `inv verify --side-by-side` or --series runs it",
    "together(key)": "runs in the same guest as the other checks of its file with this key",
    "freebsd(release)": "needs FreeBSD of this release or a newer one, like 15.0",
}
"""The marks, as `pytest --markers` shows them."""

NAMES = frozenset(name.partition("(")[0] for name in MARKERS)


def unmet(marks: Mapping[str, tuple[object, ...]], bench: Workbench) -> str:
    """Why a check with these marks (and their arguments) cannot run in this guest; empty if it can.

    Raises ValueError for a mark without its argument.
    """
    if "tools" in marks and bench.vmtool is None:
        line = store.trees_line(bench.options.release, sysroot=True)
        return f"needs programs built for the guest, and those need a sysroot; run {line}"
    if "vtx" in marks and not bench.loaded.virtualizes:
        return f"needs a processor that virtualizes: {bench.loaded.refusal}"
    if "freebsd" in marks:
        wanted = marks["freebsd"]
        oldest = releases.read(str(wanted[0])) if len(wanted) == 1 else None
        if oldest is None or not isinstance(wanted[0], str):
            raise ValueError(
                'freebsd takes the oldest release that the check runs on, like freebsd("15.0")'
            )
        release = releases.parse(bench.options.release)
        if not release.has(oldest):
            return f"{N_A}needs FreeBSD {oldest} or newer; this guest runs {release}"
    return ""
