"""Heavy use: races, thousands of listings, a thousand VMs, and leaks after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.bhyve import fuzz
from harness.bhyve.vmm import MIB, Listed, Vmm
from harness.guest import kernel_memory
from harness.guest.freebsd import Guest
from harness.run.workbench import Workbench

pytestmark = [pytest.mark.vtx, pytest.mark.tools]

minutes = pytest.mark.minutes
CREATORS = 8
LEAKY = 20
# The kernel's messages about lock orders, leaks and traps.
WARNINGS = ("lock order reversal", "Warning: memory type", "leaked memory", "panic", "Fatal trap")


@pytest.mark.patch
@pytest.mark.parametrize("cycles", [50, pytest.param(1000, marks=minutes)])
def test_cycles_leave_no_trace(vmm: Vmm, cycles: int) -> None:
    """VMs made and destroyed, one after another, leave all figures unchanged"""
    before = vmm.memory
    vmm.churn("churn", cycles, 48 * MIB)
    assert vmm.memory == before


@pytest.mark.patch
@pytest.mark.parametrize("rounds", [6, pytest.param(125, marks=minutes)])
def test_racing_creators_never_show_a_wrong_sum(vmm: Vmm, rounds: int) -> None:
    """8 threads make and destroy VMs, readers see only possible sums, and all memory is freed"""
    before = vmm.memory
    counts = vmm.race(CREATORS, rounds, 16 * MIB)
    assert counts["cycles"] == CREATORS * rounds
    assert counts["reads"] > 0
    assert counts["wrong"] == 0
    assert vmm.memory == before
    assert vmm.names() == []


@pytest.mark.patch
# If no VM stays, /dev/vmm itself appears and disappears.
# The two thousand listings are four checks, so that several guests can share them.
@pytest.mark.parametrize(
    ("standing", "listings"),
    [
        (0, 40),
        (20, 20),
        *(pytest.param(2, 500, marks=minutes, id=f"2-2000-{part}") for part in range(1, 5)),
    ],
)
def test_listings_while_vms_vanish(vmm: Vmm, standing: int, listings: int) -> None:
    """while VMs come and go every listing succeeds, has all VMs that stay, and no false one"""
    before = vmm.memory
    counts = vmm.watch(2, standing, listings, MIB)
    assert (counts["listings"], counts["wrong"]) == (listings, 0)
    assert counts["cycles"] > 0
    assert vmm.memory == before


# Destroyed after each check, because a later one unloads the module.
@pytest.fixture
def thousand(vmm: Vmm) -> Iterator[list[str]]:
    """A thousand VMs of 1 MiB, for the checks that need them."""
    with vmm.many("k", 1000, MIB) as names:
        yield names


@pytest.mark.patch
def test_a_thousand_vms_are_listed(vmm: Vmm, thousand: list[str]) -> None:
    """a thousand VMs are listed, sorted, with their memory and right sums; text and JSON agree"""
    listing = vmm.listing()
    assert listing.vms == tuple(
        Listed(name, "root", 1, "created", MIB, 0, 0, MIB, 0) for name in thousand
    )
    assert listing.memory == vmm.memory
    assert listing.memory.allocated_bytes == 1000 * MIB
    text = vmm.vmmls("-Hp")
    assert text.ok, text.describe()
    assert text.stdout == "".join(f"{name}\troot\t1\tcreated\t{MIB}\t0\t0\n" for name in thousand)


@pytest.mark.patch
@minutes
def test_a_thousand_names_as_arguments(vmm: Vmm, thousand: list[str]) -> None:
    """a thousand names on the command line are found, in any order"""
    listing = vmm.listing(*reversed(thousand))
    assert [listed.name for listed in listing.vms] == thousand


def test_vms_leave_no_kernel_memory_in_use(workbench: Workbench, guest: Guest, vmm: Vmm) -> None:
    """no type of kernel memory grows with each VM that is made and destroyed"""
    vmm.churn("warm", 1, MIB)
    before = kernel_memory.zones(guest)
    vmm.churn("leaky", LEAKY, 4 * MIB)
    seen = kernel_memory.suspicious(before, kernel_memory.zones(guest), LEAKY)
    # Only then the slow question of types decides.
    if fuzz.unknown_leaks(seen, fuzz.load_known(workbench.options.release)):
        types = kernel_memory.types(guest)
        vmm.churn("leaky", LEAKY, 4 * MIB)
        assert kernel_memory.grown(types, kernel_memory.types(guest), LEAKY) == {}


def test_unloading_leaks_nothing(
    guest: Guest, vmm: Vmm, vm: Callable[..., None], reloaded: None
) -> None:
    """after VMs were made, refused and destroyed, unloading the module leaves no memory in use"""
    vm("last", 8 * MIB, 16 * MIB)
    vmm.destroy("last")
    # This fails halfway, because it is more than a process can map.
    assert not guest.run([vmm.vmtool_path, "create", "halfway", str(1 << 50)]).ok
    before = guest.machine.console.mark
    guest.must(["kldunload", "vmm"])
    said = guest.machine.console.since(before)
    assert [line for line in said.splitlines() if any(word in line for word in WARNINGS)] == []


def test_the_kernel_logged_no_warning(guest: Guest, vmm: Vmm) -> None:
    """after all that, the kernel's messages report no lock order reversal, leak or trap"""
    vmm.churn("fear", 2, 16 * MIB)
    assert [line for line in guest.dmesg() if any(word in line for word in WARNINGS)] == []
