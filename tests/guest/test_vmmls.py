"""vmmls: what it lists, and how it says that it was used wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from harness.guest import Guest
from harness.vmm import MIB, Listed, Vmm

pytestmark = [pytest.mark.patch, pytest.mark.tools]

GIB = 1024 * MIB
EX_USAGE = 64
EX_NOINPUT = 66


def test_without_a_vm_the_list_is_empty(vmm: Vmm) -> None:
    """without a VM, vmmls lists none, gives the totals and succeeds"""
    listing = vmm.listing()
    assert listing.vms == ()
    assert listing.memory == vmm.memory


@pytest.mark.vtx
def test_names_and_memory_are_what_was_given(vmm: Vmm, vm: Callable[..., None]) -> None:
    """vmmls lists the names, sorted, with the memory that each was given"""
    vm("zeta", 64 * MIB)
    vm("alpha", 128 * MIB)
    assert vmm.listing().vms == (
        Listed("alpha", 128 * MIB, 128 * MIB, 0),
        Listed("zeta", 64 * MIB, 64 * MIB, 0),
    )


@pytest.mark.vtx
def test_memory_is_split_at_4_gib(vmm: Vmm, vm: Callable[..., None]) -> None:
    """a VM of 5 GiB shows what lies below 4 GiB in the guest and what above"""
    vm("big", 5 * GIB)
    (big,) = vmm.listing().vms
    assert big.memory_bytes == 5 * GIB
    assert big.lowmem_bytes == 3 * GIB
    assert big.highmem_bytes == 2 * GIB


@pytest.mark.vtx
def test_the_list_agrees_with_the_sysctls(vmm: Vmm, vm: Callable[..., None]) -> None:
    """what vmmls lists adds up to mem_allocated, and its totals are the sysctls'"""
    for number in range(5):
        vm(f"sum{number}", (number + 1) * 16 * MIB)
    listing = vmm.listing()
    assert sum(listed.memory_bytes or 0 for listed in listing.vms) == 240 * MIB
    assert listing.memory == vmm.memory
    assert listing.memory.allocated_bytes == 240 * MIB


@pytest.mark.vtx
def test_names_as_arguments_choose(vmm: Vmm, vm: Callable[..., None]) -> None:
    """names on the command line list these VMs alone; an unknown one is named and exits non-zero"""
    vm("wanted", 16 * MIB)
    vm("other", 16 * MIB)
    assert [listed.name for listed in vmm.listing("wanted").vms] == ["wanted"]
    result = vmm.vmmls("-H", "wanted", "nobody")
    assert result.exit_code == EX_NOINPUT
    assert "nobody" in result.stderr
    assert result.stdout.startswith("wanted")


@pytest.mark.vtx
def test_exact_and_human_sizes(vmm: Vmm, vm: Callable[..., None]) -> None:
    """sizes are human by default and exact bytes with -p; -H leaves out header and sum"""
    vm("sizes", 1536 * MIB)
    human = vmm.vmmls()
    assert human.ok, human.describe()
    assert human.stdout.splitlines()[0].split() == ["NAME", "MEMORY", "LOWMEM", "HIGHMEM"]
    assert human.stdout.splitlines()[1].split() == ["sizes", "1.5G", "1.5G", "0B"]
    exact = vmm.vmmls("-Hp")
    assert exact.stdout == f"sizes\t{1536 * MIB}\t{1536 * MIB}\t0\n"


@pytest.mark.vtx
def test_a_slash_in_a_name_is_found(vmm: Vmm, vm: Callable[..., None]) -> None:
    """a VM whose name has a slash is in a directory of its own, and listed"""
    vm("rack/one", 16 * MIB)
    assert [listed.name for listed in vmm.listing().vms] == ["rack/one"]


@pytest.mark.vtx
def test_an_escape_sequence_in_a_name_is_harmless(vmm: Vmm, vm: Callable[..., None]) -> None:
    """a name with an escape sequence reaches no terminal as it is"""
    vm("evil\x1b[31mred", 16 * MIB)
    for arguments in ((), ("-H",), ("--libxo", "json"), ("--libxo", "html")):
        result = vmm.vmmls(*arguments)
        assert result.ok, result.describe()
        assert "\x1b" not in result.stdout
        assert "evil" in result.stdout


@pytest.mark.vtx
def test_not_root_sees_names_but_no_sizes(guest: Guest, vmm: Vmm, vm: Callable[..., None]) -> None:
    """a user who may not open the VM still sees its name, and the host's figures"""
    vm("closed", 32 * MIB)
    command = f"{vmm.vmmls_path} --libxo json"
    said = guest.run(["su", "-m", "nobody", "-c", command])
    assert said.ok, said.describe()
    data = json.loads(said.stdout)["vmm"]
    assert data["virtual-machine"] == [{"name": "closed"}]
    assert data["allocated"] == 32 * MIB


@pytest.mark.parametrize("arguments", [("-x",), ("--nonsense",), ("-p", "-q")])
def test_bad_use_gets_a_usage_line(vmm: Vmm, arguments: tuple[str, ...]) -> None:
    """an unknown option gets a usage line and EX_USAGE"""
    result = vmm.vmmls(*arguments)
    assert result.exit_code == EX_USAGE, result.describe()
    assert "usage: vmmls" in result.stderr
    assert result.stdout == ""
