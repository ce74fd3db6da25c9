"""What a check may need of the guest, by its marks, and how a missing one is reported."""

from __future__ import annotations

from collections.abc import Mapping

from harness import release as releases
from harness.image import store
from harness.run.session import Workbench

MARKERS = {
    "patch": "the claim belongs to the series; on the stock module it must fail",
    "vtx": "makes virtual machines, so the guest's processor must virtualize",
    "tools": "needs programs built for the guest, so a sysroot must have been imported",
    "minutes": "takes minutes in an emulator; --full (of `inv verify`) or --vmm-full runs it",
    "beside": "compares with the stock module; `inv verify --side-by-side` or --series runs it",
    "together(key)": "runs in the same guest as the others of its file with this key",
    "freebsd(release)": "needs FreeBSD of this release or a newer one, like 15.0",
}
"""Each mark, as `pytest --markers` shows it."""

NAMES = frozenset(name.partition("(")[0] for name in MARKERS)


def unmet(marks: Mapping[str, tuple[object, ...]], bench: Workbench) -> str:
    """Why a check with these marks (and their arguments) cannot run in this guest; empty if it can.

    ValueError for a mark that says nothing.
    """
    if "tools" in marks and bench.vmtool is None:
        line = store.trees_line(bench.options.release, sysroot=True)
        return f"needs programs built for the guest, and those need a sysroot; run {line}"
    if "vtx" in marks and bench.loaded is not None and not bench.loaded.virtualizes:
        return f"needs a processor that virtualizes: {bench.loaded.refusal}"
    if "freebsd" in marks:
        wanted = marks["freebsd"]
        oldest = releases.read(str(wanted[0])) if len(wanted) == 1 else None
        if oldest is None or not isinstance(wanted[0], str):
            raise ValueError('freebsd takes the oldest release that will do, as freebsd("15.0")')
        release = releases.parse(bench.options.release)
        if not release.has(oldest):
            return f"needs FreeBSD {oldest} or newer; this guest runs {release}"
    return ""
