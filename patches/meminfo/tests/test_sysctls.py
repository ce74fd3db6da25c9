"""hw.vmm.mem_*: their types and rights, and exact counting of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.bhyve.batch import Answer, Batch
from harness.bhyve.vmm import LIMIT, MIB, SYSCTLS, USER_LIMIT, Vmm
from harness.guest.freebsd import Guest

pytestmark = [pytest.mark.patch]

RESERVED = "vm.swap_reserved"


def test_sysctls_are_unsigned_64_bit(guest: Guest) -> None:
    """the sysctls exist and are unsigned 64-bit numbers"""
    said = guest.must(["sysctl", "-t", *SYSCTLS]).splitlines()
    assert said == [f"{name}: uint64_t" for name in SYSCTLS]


def test_sysctls_are_described_and_read_only(guest: Guest) -> None:
    """the sysctls have descriptions, and writing them is refused"""
    descriptions = guest.must(["sysctl", "-d", *SYSCTLS]).splitlines()
    for name, line in zip(SYSCTLS, descriptions, strict=True):
        assert line.removeprefix(f"{name}:").strip()
    script = """
sysctl "$@" && for name; do sysctl "$name=0" >/dev/null 2>&1 && echo "$name was written"; done
sysctl "$@"
"""
    said = guest.script(script, *SYSCTLS).stdout.splitlines()
    assert said[: len(SYSCTLS)] == said[len(SYSCTLS) :]


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
def test_a_vm_costs_exactly_its_memory(batch: Callable[..., Batch], mib: int) -> None:
    """a VM of N MiB changes free and allocated by exactly N MiB, and gives it back"""
    with batch() as ask:
        first = ask.memory()
        ask.create("one", mib * MIB)
        middle = ask.memory()
        ask.destroy("one")
        after = ask.memory()
    before, during = first.value, middle.value
    assert during.allocated_bytes == before.allocated_bytes + mib * MIB
    assert during.free_bytes == before.free_bytes - mib * MIB
    assert during.total_bytes == before.total_bytes
    assert after.value == before


@pytest.mark.vtx
@pytest.mark.tools
def test_two_vms_add_up(batch: Callable[..., Batch]) -> None:
    """two VMs cost the sum of both; destroying one gives back only its part"""
    with batch() as ask:
        before = ask.memory()
        ask.create("first", 96 * MIB)
        ask.create("second", 160 * MIB)
        both = ask.memory()
        ask.destroy("first")
        one = ask.memory()
        ask.destroy("second")
        after = ask.memory()
    assert both.value.free_bytes == before.value.free_bytes - 256 * MIB
    assert one.value.allocated_bytes == before.value.allocated_bytes + 160 * MIB
    assert after.value == before.value


@pytest.mark.vtx
@pytest.mark.tools
def test_a_vm_without_memory_costs_nothing(batch: Callable[..., Batch]) -> None:
    """a VM without memory costs nothing"""
    with batch() as ask:
        before = ask.memory()
        ask.create("empty")
        names, during = ask.names(), ask.memory()
    assert names.value == ["empty"]
    assert during.value == before.value


@pytest.mark.vtx
@pytest.mark.tools
@pytest.mark.parametrize("devices", [(16 * MIB,), (16 * MIB, 32 * MIB)], ids=["rom", "rom-fb"])
def test_device_memory_has_a_figure_of_its_own(
    batch: Callable[..., Batch], devices: tuple[int, ...]
) -> None:
    """the memory of a boot ROM and a frame buffer is counted, but not as system memory"""
    with batch() as ask:
        first = ask.memory()
        ask.create("devices", 32 * MIB, *devices)
        middle = ask.memory()
        ask.destroy("devices")
        after = ask.memory()
    before, during = first.value, middle.value
    assert during.allocated_bytes == before.allocated_bytes + 32 * MIB
    assert during.device_bytes == before.device_bytes + sum(devices)
    assert during.free_bytes == before.free_bytes - 32 * MIB - sum(devices)
    assert after.value == before


@pytest.fixture
def lingering(vmm: Vmm) -> Iterator[Callable[[Answer[str]], None]]:
    """Ends processes that have a destroyed VM's memory, if the test has started them."""
    processes: list[Answer[str]] = []
    yield processes.append
    for process in processes:
        if process.known:
            vmm.end(process.value)


@pytest.mark.vtx
@pytest.mark.tools
def test_memory_counts_until_nobody_has_it(
    vmm: Vmm, batch: Callable[..., Batch], lingering: Callable[[Answer[str]], None]
) -> None:
    """after a VM is destroyed its memory still counts while a process has it mapped"""
    with batch() as ask:
        before = ask.memory()
        first, second = ask.lingering("lingers", 96 * MIB), ask.lingering("lingers", 32 * MIB)
        lingering(first)
        lingering(second)
        names, both, listing = ask.names(), ask.memory(), ask.listing()
    vmm.end(first.value)
    one = vmm.memory
    vmm.end(second.value)
    assert names.value == []
    assert both.value.allocated_bytes == before.value.allocated_bytes + 128 * MIB
    assert listing.value.memory == both.value
    assert one.allocated_bytes == before.value.allocated_bytes + 32 * MIB
    assert vmm.memory == before.value


@pytest.mark.vtx
@pytest.mark.tools
def test_the_module_stays_while_memory_lives(
    vmm: Vmm,
    batch: Callable[..., Batch],
    lingering: Callable[[Answer[str]], None],
    reloaded: None,
) -> None:
    """the module cannot be unloaded, not even by force, while a process has a VM's memory"""
    with batch() as ask:
        process = ask.lingering("lingers", 16 * MIB)
        lingering(process)
        unloads = [ask.run(["kldunload", *options, "vmm"]) for options in ((), ("-f",))]
        ask.create("works", 16 * MIB)
        ask.destroy("works")
    for refused in unloads:
        assert not refused.value.ok
        assert "Device busy" in refused.value.stderr
    vmm.end(process.value)
    vmm.reload()
    assert vmm.mem_allocated_bytes == 0


@pytest.mark.vtx
@pytest.mark.tools
def test_memory_is_charged_to_its_user(
    vmm: Vmm, batch: Callable[..., Batch], lingering: Callable[[Answer[str]], None]
) -> None:
    """memory of VMs is part of vm.swap_reserved until its last reference is gone"""
    with batch() as ask:
        before = ask.number(RESERVED)
        ask.create("charged", 1024 * MIB, 16 * MIB)
        charged = ask.number(RESERVED)
        ask.destroy("charged")
        destroyed = ask.number(RESERVED)
        process = ask.lingering("lingers", 1024 * MIB)
        lingering(process)
        lingers = ask.number(RESERVED)
    # Other processes reserve and give back some pages meanwhile.
    assert 1039 * MIB <= charged.value - before.value < 1200 * MIB
    assert abs(destroyed.value - before.value) < 160 * MIB
    assert 1023 * MIB <= lingers.value - before.value < 1200 * MIB
    vmm.end(process.value)
    assert abs(vmm.guest.number(RESERVED) - before.value) < 160 * MIB


@pytest.mark.vtx
@pytest.mark.tools
def test_overcommit_leaves_nothing_free(vmm: Vmm, batch: Callable[..., Batch]) -> None:
    """VMs may be promised more memory than exists; free is then 0 and allocated stays exact"""
    before = vmm.memory
    with batch() as ask:
        ask.create("huge", before.total_bytes // MIB * MIB + 512 * MIB)
        middle = ask.memory()
        ask.destroy("huge")
        after = ask.memory()
    during = middle.value
    assert during.free_bytes == 0
    assert during.allocated_bytes > during.total_bytes == before.total_bytes
    assert after.value == before


@pytest.mark.vtx
@pytest.mark.tools
@pytest.mark.freebsd("15.0")  # before, memory above 3 GiB has 1 GiB more: the hole up to 4 GiB
def test_figures_beyond_32_bits_are_exact(batch: Callable[..., Batch]) -> None:
    """a VM of 5 GiB plus a page is counted to the byte"""
    with batch() as ask:
        ask.create("wide", 5 * 1024 * MIB + 4096)
        memory = ask.memory()
    assert memory.value.allocated_bytes == 5 * 1024 * MIB + 4096


@pytest.mark.vtx
@pytest.mark.tools
def test_the_library_agrees_with_the_sysctls(batch: Callable[..., Batch]) -> None:
    """libvmmapi's functions return the values of the sysctls"""
    with batch() as ask:
        before = ask.library_memory(), ask.memory()
        ask.create("lib", 128 * MIB, 16 * MIB)
        library, memory = ask.library_memory(), ask.memory()
    assert before[0].value == before[1].value
    assert library.value == memory.value
    assert memory.value.allocated_bytes >= 128 * MIB
    assert memory.value.device_bytes >= 16 * MIB


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
