"""hw.vmm.mem_limit: what fits is given, what does not leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.guest import Guest
from harness.ssh import CommandFailed
from harness.vmm import MIB, Vmm

pytestmark = [pytest.mark.patch]

LIMIT = "hw.vmm.mem_limit"


@pytest.fixture
def limit(guest: Guest) -> Iterator[Callable[[int], None]]:
    """Set the limit, in bytes; there is none again after the test."""

    def put(limit_bytes: int) -> None:
        guest.must(["sysctl", f"{LIMIT}={limit_bytes}"])

    yield put
    guest.run(["sysctl", f"{LIMIT}=0"])


def test_the_limit_is_the_total(guest: Guest, vmm: Vmm, limit: Callable[[int], None]) -> None:
    """mem_total is the limit while there is one, and the host's memory again without it"""
    before = vmm.memory
    limit(300 * MIB)
    assert vmm.mem_total_bytes == vmm.mem_free_bytes == 300 * MIB
    limit(0)
    assert vmm.memory == before
    assert guest.must(["sysctl", "-t", LIMIT]).strip() == f"{LIMIT}: uint64_t"


def test_only_root_sets_the_limit(guest: Guest, vmm: Vmm) -> None:
    """a user who is not root cannot set the limit, and nobody can set it to -1"""
    before = vmm.memory
    for user, value in (("nobody", "1048576"), ("root", "-1")):
        command = f"/sbin/sysctl {LIMIT}={value}"
        assert not guest.run(["su", "-m", user, "-c", command]).ok
    assert guest.sysctl(LIMIT) == "0"
    assert vmm.memory == before


@pytest.mark.vtx
@pytest.mark.tools
def test_exactly_the_limit_fits(
    vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None]
) -> None:
    """a VM that takes all up to the limit is made, and one of a MiB more then is not"""
    limit(128 * MIB)
    vm("all", 128 * MIB)
    assert vmm.mem_free_bytes == 0
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("more", 1 * MIB)
    assert vmm.names() == ["all"]
    assert vmm.mem_allocated_bytes == 128 * MIB


@pytest.mark.vtx
@pytest.mark.tools
def test_a_refused_vm_leaves_no_trace(
    vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None]
) -> None:
    """a VM above the limit gets ENOMEM and changes nothing; device memory is not limited"""
    limit(64 * MIB)
    before = vmm.memory
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("large", 65 * MIB)
    assert vmm.memory == before
    assert vmm.names() == []
    vm("rom", 64 * MIB, 16 * MIB)
    assert vmm.mem_free_bytes == 0


@pytest.mark.vtx
@pytest.mark.tools
def test_a_lower_limit_evicts_nobody(
    vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None]
) -> None:
    """a limit below what is held leaves the VMs alone, frees nothing and gives nothing more"""
    vm("stays", 96 * MIB)
    limit(32 * MIB)
    memory = vmm.memory
    assert (memory.total_bytes, memory.allocated_bytes, memory.free_bytes) == (
        32 * MIB,
        96 * MIB,
        0,
    )
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("late", 1 * MIB)
    vmm.destroy("stays")
    assert vmm.mem_free_bytes == 32 * MIB


def test_a_reloaded_module_starts_from_nothing(
    guest: Guest, vmm: Vmm, limit: Callable[[int], None]
) -> None:
    """unloaded and loaded again, the module has no limit and holds nothing"""
    limit(64 * MIB)
    guest.must(["kldunload", "vmm"])
    guest.must(["kldload", vmm.loaded.path])
    assert guest.sysctl(LIMIT) == "0"
    assert vmm.mem_allocated_bytes == 0
    assert vmm.mem_total_bytes == int(guest.must(["sysctl", "-n", "hw.physmem"]))
