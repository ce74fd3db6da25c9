"""A guest inside the guest: VMs really run with the module, and their memory is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.bhyve.l2 import L2, Exit
from harness.bhyve.vmm import MIB, Vmm
from harness.guest.freebsd import Guest

pytestmark = [pytest.mark.vtx, pytest.mark.minutes]


def test_l2_runs_and_finds_its_memory(l2: Callable[..., L2]) -> None:
    """bhyve runs the boot ROM: L2 prints its marker, finds 48 MiB and powers off"""
    inner = l2("runs", 48)
    found = inner.start()
    assert (found.low_mib, found.high_mib) == (48, 0)
    assert inner.wait_exit("p") == Exit.POWER_OFF
    assert "L2ROM powers off" in inner.output()


def test_l2_touches_its_memory(l2: Callable[..., L2]) -> None:
    """L2 writes 24 MiB through EPT faults, and reads every page back unaltered"""
    inner = l2("touches")
    inner.start()
    assert inner.touch(24) == 0


@pytest.mark.patch
@pytest.mark.tools
def test_figures_before_during_and_after_l2(vmm: Vmm, l2: Callable[..., L2]) -> None:
    """vmmls and the sysctls agree before, while and after L2 runs and uses its memory"""
    before = vmm.listing()
    assert before.memory == vmm.memory
    inner = l2("figures", 40)
    inner.start()
    during = vmm.listing()
    assert [(vm.name, vm.memory_bytes) for vm in during.vms] == [("figures", 40 * MIB)]
    assert during.memory == vmm.memory
    assert during.memory.allocated_bytes == before.memory.allocated_bytes + 40 * MIB
    inner.touch(16)
    touched = vmm.listing()
    assert touched.memory == during.memory
    assert [vm.memory_bytes for vm in touched.vms] == [40 * MIB]
    assert [vm.state for vm in touched.vms] == ["running"]
    resident = [vm.resident_bytes or 0 for vm in (*during.vms, *touched.vms)]
    assert resident[1] >= resident[0] + 15 * MIB
    inner.end()
    assert vmm.listing() == before
    assert vmm.memory == before.memory


@pytest.mark.patch
@pytest.mark.tools
def test_three_l2_at_once(vmm: Vmm, l2: Callable[..., L2]) -> None:
    """three guests at once are listed, their memory is counted exactly, and they answer"""
    before = vmm.mem_allocated_bytes
    inners = [l2(f"trio{number}", 32 + number) for number in range(3)]
    for inner in inners:
        inner.start()
    assert [vm.name for vm in vmm.listing().vms] == ["trio0", "trio1", "trio2"]
    assert vmm.mem_allocated_bytes == before + (32 + 33 + 34) * MIB
    for inner in inners:
        assert inner.touch(4) == 0
    for inner in inners:
        inner.end()
    assert vmm.mem_allocated_bytes == before


@pytest.mark.patch
@pytest.mark.tools
def test_a_killed_l2_gives_everything_back(guest: Guest, vmm: Vmm, l2: Callable[..., L2]) -> None:
    """if bhyve is killed while L2 spins, the VM and its memory stay; destroying frees all"""
    before = vmm.memory
    inner = l2("killed", 64)
    inner.start()
    inner.send("s")
    inner.kill()
    assert guest.exists("/dev/vmm/killed")
    assert vmm.mem_allocated_bytes == before.allocated_bytes + 64 * MIB
    inner.end()
    assert vmm.memory == before
