"""Requirements on any series of patches, compared with the stock module."""

from __future__ import annotations

import itertools

import pytest

from harness.bhyve import fuzz
from harness.bhyve.vmm import MIB, Vmm
from harness.build import bmake
from harness.guest import kernel_memory
from harness.guest.freebsd import Guest
from harness.run.workbench import Workbench

_CYCLES = 40


@pytest.mark.beside
def test_no_new_warnings(workbench: Workbench) -> None:
    """the series compiles without new warnings, compared with the stock source"""
    assert workbench.stock_build is not None
    stock, series = (
        bmake.warning_lines(build.log.read_text(errors="replace"))
        for build in (workbench.stock_build, workbench.build)
    )
    assert sorted((series - stock).elements()) == []


@pytest.mark.vtx
@pytest.mark.tools
def test_vms_leave_no_zone_or_page_in_use(workbench: Workbench, guest: Guest, vmm: Vmm) -> None:
    """VMs leave no more items of kernel memory zones and no more wired pages in use than on
    stock
    """
    vmm.churn("warm", 10, 4 * MIB)
    seen = [kernel_memory.zones(guest)]
    for batch in ("first", "second"):
        vmm.churn(batch, _CYCLES, 4 * MIB)
        seen.append(kernel_memory.zones(guest))
    # The figures of a running system vary; a leak grows with each VM.
    growing = {
        name: [count.get(name, 0) for count in seen]
        for name in seen[-1].keys() - kernel_memory.BOUNDED
        if all(
            after.get(name, 0) - before.get(name, 0) >= _CYCLES
            for before, after in itertools.pairwise(seen)
        )
    }
    unknown = fuzz.unknown_leaks(growing, fuzz.load_known(workbench.options.release))
    assert {name: growing[name] for name in unknown} == {}
