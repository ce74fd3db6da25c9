"""hw.vmm.mem_*: their types and rights, and exact counting of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.bhyve.vmm import LIMIT, MIB, SYSCTLS, USER_LIMIT, Vmm
from harness.guest.freebsd import Guest

pytestmark = [pytest.mark.patch]


def test_sysctls_are_unsigned_64_bit(guest: Guest) -> None:
    """the sysctls exist and are unsigned 64-bit numbers"""
    said = guest.must(["sysctl", "-t", *SYSCTLS]).splitlines()
    assert said == [f"{name}: uint64_t" for name in SYSCTLS]


def test_sysctls_are_described_and_read_only(guest: Guest) -> None:
    """the sysctls have descriptions, and writing them is refused"""
    descriptions = guest.must(["sysctl", "-d", *SYSCTLS]).splitlines()
    for name, line in zip(SYSCTLS, descriptions, strict=True):
        assert line.removeprefix(f"{name}:").strip()
    before = guest.must(["sysctl", *SYSCTLS])
    for name in SYSCTLS:
        assert not guest.run(["sysctl", f"{name}=0"]).ok
    assert guest.must(["sysctl", *SYSCTLS]) == before


def test_only_the_limit_can_be_written_or_tuned(guest: Guest) -> None:
    """of the figures only the limits are writable, and only they are a boot loader's tunables"""
    limits = [LIMIT] if guest.sysctl(USER_LIMIT) is None else [LIMIT, USER_LIMIT]
    for option in ("-W", "-T"):
        names = guest.must(["sysctl", "-N", option, "hw.vmm"]).split()
        assert sorted(name for name in names if "mem_" in name) == limits


def test_anybody_may_read_the_sysctls(guest: Guest) -> None:
    """a user who is not root can read the sysctls"""
    read = guest.run(["su", "-m", "nobody", "-c", f"/sbin/sysctl -n {' '.join(SYSCTLS)}"])
    assert read.ok, read.describe()
    assert [value.isdigit() for value in read.stdout.split()] == [True] * len(SYSCTLS)


def test_total_is_the_memory_of_the_host(guest: Guest, vmm: Vmm) -> None:
    """mem_total is the host's physical memory, in bytes, if no limit is set"""
    assert guest.sysctl(LIMIT) in (None, "0")
    assert vmm.mem_total_bytes == int(guest.must(["sysctl", "-n", "hw.physmem"]))


def test_without_a_vm_nothing_is_allocated(vmm: Vmm) -> None:
    """without a VM, allocated is 0 and free equals total"""
    assert vmm.names() == []
    memory = vmm.memory
    assert memory.allocated_bytes == memory.device_bytes == 0
    assert memory.free_bytes == memory.total_bytes > 0


@pytest.mark.vtx
@pytest.mark.tools
@pytest.mark.parametrize("mib", [1, 64, 513])
def test_a_vm_costs_exactly_its_memory(vmm: Vmm, vm: Callable[..., None], mib: int) -> None:
    """a VM of N MiB changes free and allocated by exactly N MiB, and gives it back"""
    before = vmm.memory
    vm("one", mib * MIB)
    during = vmm.memory
    assert during.allocated_bytes == before.allocated_bytes + mib * MIB
    assert during.free_bytes == before.free_bytes - mib * MIB
    assert during.total_bytes == before.total_bytes
    vmm.destroy("one")
    assert vmm.memory == before


@pytest.mark.vtx
@pytest.mark.tools
def test_two_vms_add_up(vmm: Vmm, vm: Callable[..., None]) -> None:
    """two VMs cost the sum of both; destroying one gives back only its part"""
    before = vmm.memory
    vm("first", 96 * MIB)
    vm("second", 160 * MIB)
    assert vmm.mem_free_bytes == before.free_bytes - 256 * MIB
    vmm.destroy("first")
    assert vmm.mem_allocated_bytes == before.allocated_bytes + 160 * MIB
    vmm.destroy("second")
    assert vmm.memory == before


@pytest.mark.vtx
@pytest.mark.tools
def test_a_vm_without_memory_costs_nothing(vmm: Vmm, vm: Callable[..., None]) -> None:
    """a VM without memory costs nothing"""
    before = vmm.memory
    vm("empty")
    assert vmm.names() == ["empty"]
    assert vmm.memory == before


@pytest.mark.vtx
@pytest.mark.tools
@pytest.mark.parametrize("devices", [(16 * MIB,), (16 * MIB, 32 * MIB)], ids=["rom", "rom-fb"])
def test_device_memory_has_a_figure_of_its_own(
    vmm: Vmm, vm: Callable[..., None], devices: tuple[int, ...]
) -> None:
    """the memory of a boot ROM and a frame buffer is counted, but not as system memory"""
    before = vmm.memory
    vm("devices", 32 * MIB, *devices)
    during = vmm.memory
    assert during.allocated_bytes == before.allocated_bytes + 32 * MIB
    assert during.device_bytes == before.device_bytes + sum(devices)
    assert during.free_bytes == before.free_bytes - 32 * MIB - sum(devices)
    vmm.destroy("devices")
    assert vmm.memory == before


@pytest.fixture
def lingering(vmm: Vmm) -> Iterator[Callable[[str, int], str]]:
    """A VM that is destroyed while a process has its memory; the process ends with the test."""
    processes: list[str] = []

    def make(name: str, memory_bytes: int) -> str:
        processes.append(vmm.lingering(name, memory_bytes))
        return processes[-1]

    yield make
    for process in processes:
        vmm.end(process)


@pytest.mark.vtx
@pytest.mark.tools
def test_memory_counts_until_nobody_has_it(vmm: Vmm, lingering: Callable[[str, int], str]) -> None:
    """after a VM is destroyed its memory still counts while a process has it mapped"""
    before = vmm.memory
    first = lingering("lingers", 96 * MIB)
    second = lingering("lingers", 32 * MIB)
    assert vmm.names() == []
    assert vmm.mem_allocated_bytes == before.allocated_bytes + 128 * MIB
    assert vmm.listing().memory == vmm.memory
    vmm.end(first)
    assert vmm.mem_allocated_bytes == before.allocated_bytes + 32 * MIB
    vmm.end(second)
    assert vmm.memory == before


@pytest.mark.vtx
@pytest.mark.tools
def test_the_module_stays_while_memory_lives(
    guest: Guest, vmm: Vmm, lingering: Callable[[str, int], str], reloaded: None
) -> None:
    """the module cannot be unloaded, not even by force, while a process has a VM's memory"""
    process = lingering("lingers", 16 * MIB)
    for options in ((), ("-f",)):
        refused = guest.run(["kldunload", *options, "vmm"])
        assert not refused.ok
        assert "Device busy" in refused.stderr
    vmm.create("works", 16 * MIB)
    vmm.destroy("works")
    vmm.end(process)
    vmm.reload()
    assert vmm.mem_allocated_bytes == 0


@pytest.mark.vtx
@pytest.mark.tools
def test_memory_is_charged_to_its_user(
    guest: Guest, vmm: Vmm, vm: Callable[..., None], lingering: Callable[[str, int], str]
) -> None:
    """memory of VMs is part of vm.swap_reserved until its last reference is gone"""

    def reserved() -> int:
        return int(guest.must(["sysctl", "-n", "vm.swap_reserved"]))

    before = reserved()
    vm("charged", 1024 * MIB, 16 * MIB)
    assert 1040 * MIB <= reserved() - before < 1200 * MIB
    vmm.destroy("charged")
    assert abs(reserved() - before) < 160 * MIB
    process = lingering("lingers", 1024 * MIB)
    assert 1024 * MIB <= reserved() - before < 1200 * MIB
    vmm.end(process)
    assert abs(reserved() - before) < 160 * MIB


@pytest.mark.vtx
@pytest.mark.tools
def test_overcommit_leaves_nothing_free(vmm: Vmm, vm: Callable[..., None]) -> None:
    """VMs may be promised more memory than exists; free is then 0 and allocated stays exact"""
    before = vmm.memory
    vm("huge", before.total_bytes // MIB * MIB + 512 * MIB)
    during = vmm.memory
    assert during.free_bytes == 0
    assert during.allocated_bytes > during.total_bytes == before.total_bytes
    vmm.destroy("huge")
    assert vmm.memory == before


@pytest.mark.vtx
@pytest.mark.tools
def test_figures_beyond_32_bits_are_exact(vmm: Vmm, vm: Callable[..., None]) -> None:
    """a VM of 5 GiB plus a page is counted to the byte"""
    vm("wide", 5 * 1024 * MIB + 4096)
    assert vmm.mem_allocated_bytes == 5 * 1024 * MIB + 4096


@pytest.mark.vtx
@pytest.mark.tools
def test_the_library_agrees_with_the_sysctls(vmm: Vmm, vm: Callable[..., None]) -> None:
    """libvmmapi's functions return the values of the sysctls"""
    assert vmm.library_memory() == vmm.memory
    vm("lib", 128 * MIB, 16 * MIB)
    memory = vmm.library_memory()
    assert memory == vmm.memory
    assert memory.allocated_bytes >= 128 * MIB
    assert memory.device_bytes >= 16 * MIB


@pytest.mark.tools
def test_the_library_works_without_a_vm(vmm: Vmm) -> None:
    """libvmmapi's functions need neither a VM nor a processor that virtualizes"""
    assert vmm.library_memory() == vmm.memory


@pytest.mark.tools
def test_the_library_says_when_there_is_no_module(guest: Guest, vmm: Vmm, unloaded: None) -> None:
    """without the module libvmmapi's functions fail, with errno, and do not load it"""
    said = guest.run([vmm.vmtool_path, "memory"])
    assert not said.ok
    assert "No such file or directory" in said.stderr
    assert not guest.run(["kldstat", "-q", "-m", "vmm"]).ok
