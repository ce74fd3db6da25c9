"""hw.vmm.mem_limit: memory within the limit is granted, a refusal leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.bhyve.l2 import L2, Exit
from harness.bhyve.vmm import LIMIT, MIB, Memory, Vmm
from harness.guest.freebsd import Guest
from harness.guest.ssh import CommandFailed

SAID = "that was all"
pytestmark = [pytest.mark.patch]

PAGE_BYTES = 4096


@pytest.fixture
def limit(guest: Guest) -> Iterator[Callable[[int], None]]:
    """Set the limit, in bytes; after the test there is no limit again."""

    def put(limit_bytes: int) -> None:
        guest.must(["sysctl", f"{LIMIT}={limit_bytes}"])

    yield put
    guest.run(["sysctl", f"{LIMIT}=0"])


def test_the_limit_is_the_total(guest: Guest, vmm: Vmm, limit: Callable[[int], None]) -> None:
    """mem_total is the limit if there is one, otherwise the host's memory"""
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
    """a VM that takes all memory up to the limit is made, and then another of one MiB is refused"""
    limit(128 * MIB)
    vm("all", 128 * MIB)
    assert vmm.mem_free_bytes == 0
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("more", 1 * MIB)
    assert vmm.names() == ["all"]
    assert vmm.mem_allocated_bytes == 128 * MIB


@pytest.mark.vtx
@pytest.mark.tools
def test_the_edge_is_exact(vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None]) -> None:
    """a limit one byte too small refuses a VM, and one byte too many is not enough for another"""
    limit(32 * MIB - 1)
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("edge", 32 * MIB)
    assert vmm.mem_free_bytes == 32 * MIB - 1
    limit(32 * MIB + 1)
    vm("edge", 32 * MIB)
    assert vmm.mem_free_bytes == 1
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("page", PAGE_BYTES)
    limit(32 * MIB + PAGE_BYTES)
    vm("page", PAGE_BYTES)
    assert vmm.mem_free_bytes == 0


@pytest.mark.vtx
@pytest.mark.tools
def test_limits_and_sizes_beyond_32_bits(
    vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None]
) -> None:
    """a VM of 5 GiB does not fit into 2 GiB, fits exactly into 5 GiB, and then no page is left"""
    gib = 1024 * MIB
    limit(2 * gib)
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("wide", 5 * gib)
    assert vmm.memory == Memory(2 * gib, 0, 2 * gib)
    limit(5 * gib)
    vm("wide", 5 * gib)
    assert vmm.memory == Memory(5 * gib, 5 * gib, 0)
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("page", PAGE_BYTES)
    limit(9 * gib)
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("rom", 0, 4 * gib + PAGE_BYTES)
    assert vmm.library_memory() == vmm.listing().memory == Memory(9 * gib, 5 * gib, 4 * gib)


@pytest.mark.vtx
@pytest.mark.tools
def test_what_was_refused_is_not_held(
    vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None]
) -> None:
    """after refusals the whole limit is still available, and so is the memory of destroyed VMs"""
    limit(64 * MIB)
    for _ in range(3):
        with pytest.raises(CommandFailed, match="Cannot allocate memory"):
            vm("large", 65 * MIB)
    for _ in range(2):
        vm("whole", 64 * MIB)
        assert vmm.memory == Memory(64 * MIB, 64 * MIB, 0)
        vmm.destroy("whole")
    assert vmm.mem_allocated_bytes == 0


@pytest.mark.vtx
@pytest.mark.tools
def test_a_refused_vm_leaves_no_trace(
    vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None]
) -> None:
    """a VM above the limit gets ENOMEM, and no figure changes"""
    limit(64 * MIB)
    before = vmm.memory
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("large", 65 * MIB)
    assert vmm.memory == before
    assert vmm.names() == []


@pytest.mark.vtx
@pytest.mark.tools
def test_device_memory_needs_room_as_well(
    vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None]
) -> None:
    """the limit is for system and device memory together: naming a segment does not evade it"""
    limit(64 * MIB)
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("named", 0, 65 * MIB)
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("rom", 49 * MIB, 16 * MIB)
    assert vmm.memory == Memory(64 * MIB, 0, 64 * MIB, 0)
    vm("rom", 48 * MIB, 16 * MIB)
    assert vmm.memory == Memory(64 * MIB, 48 * MIB, 0, 16 * MIB)
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("page", PAGE_BYTES)


@pytest.mark.vtx
@pytest.mark.tools
def test_memory_of_a_vm_that_is_gone_is_no_room(
    vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None]
) -> None:
    """a VM that was destroyed while a process has its memory leaves no room for another"""
    limit(64 * MIB)
    process = vmm.lingering("lingers", 48 * MIB)
    try:
        with pytest.raises(CommandFailed, match="Cannot allocate memory"):
            vm("late", 32 * MIB)
        vm("small", 16 * MIB)
    finally:
        vmm.end(process)
    vm("late", 32 * MIB)
    assert vmm.memory == Memory(64 * MIB, 48 * MIB, 16 * MIB)


@pytest.mark.vtx
@pytest.mark.tools
@pytest.mark.freebsd("15.0")  # before, a VM's memory has no NUMA domains
def test_a_refused_domain_leaves_none_behind(
    vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None]
) -> None:
    """if the last of three NUMA domains is refused, nothing stays mapped; the VM may try again"""
    before = vmm.memory
    limit(64 * MIB)
    vm("numa")
    for _ in range(2):
        refused = vmm.domains("numa", 3, 24 * MIB)
        assert "Cannot allocate memory" in refused.stderr, refused.describe()
        assert vmm.memory == Memory(64 * MIB, 0, 64 * MIB)
        assert [listed.memory_bytes for listed in vmm.listing().vms] == [0]
    limit(72 * MIB)
    given = vmm.domains("numa", 3, 24 * MIB)
    assert given.ok, given.describe()
    assert vmm.memory == Memory(72 * MIB, 72 * MIB, 0)
    limit(0)
    vmm.destroy("numa")
    assert vmm.memory == before


@pytest.mark.vtx
@pytest.mark.tools
def test_a_refused_boot_rom_leaves_no_memory_behind(
    vmm: Vmm, l2: Callable[..., L2], limit: Callable[[int], None]
) -> None:
    """bhyve has no room for its boot ROM, names the limit and ends: a smaller guest then starts"""
    limit(48 * MIB)
    large = l2("rom", 40)
    large.launch("-l", "bootrom,/nonexistent")
    assert large.wait_exit() == Exit.ERROR
    assert "Cannot allocate memory" in large.errors()
    assert LIMIT in large.errors()
    assert vmm.memory == Memory(48 * MIB, 0, 48 * MIB)
    small = l2("rom", 32)
    assert small.start().low_mib == 32
    assert vmm.memory == Memory(48 * MIB, 32 * MIB, 0, 16 * MIB)


@pytest.mark.vtx
@pytest.mark.tools
def test_memory_of_a_guest_that_ended_stays_with_its_vm(
    vmm: Vmm, l2: Callable[..., L2], limit: Callable[[int], None]
) -> None:
    """a guest powers off: its VM has the memory until it is destroyed, and may be started again"""
    limit(48 * MIB)
    for _ in range(2):
        inner = l2("off", 32)
        inner.start()
        inner.send("p")
        assert inner.wait_exit() == Exit.POWER_OFF
        assert vmm.memory == Memory(48 * MIB, 32 * MIB, 0, 16 * MIB)
    inner.end()
    assert vmm.memory == Memory(48 * MIB, 0, 48 * MIB)


@pytest.mark.vtx
@pytest.mark.tools
def test_a_refusal_is_told_on_the_console(
    guest: Guest, vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None]
) -> None:
    """the kernel reports that the limit was the reason, because ENOMEM may have others"""
    limit(32 * MIB)
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("large", 33 * MIB)
    assert any(f"{LIMIT} leaves no {33 * MIB} bytes" in line for line in guest.dmesg())


# Wrong requests and their answers.
MISUSE = {
    "half a page": "Invalid argument",
    "no such segment": "Invalid argument",
    "more than there are addresses": "Cannot allocate memory",
    "free what is not there": "Invalid argument",
    "free a negative segment": "Invalid argument",
    "free no such segment": "Invalid argument",
    "free what the guest has": "Device busy",
    "a boot ROM": "done",
    "the same of another size": "Invalid argument",
    "free device memory": "Invalid argument",
}


@pytest.mark.vtx
@pytest.mark.tools
@pytest.mark.parametrize("limit_mib", [0, 64])
def test_wrong_requests_change_nothing(
    vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None], limit_mib: int
) -> None:
    """each wrong request to allocate or free memory gets its error, and the figures stay exact"""
    limit(limit_mib * MIB)
    before = vmm.memory
    vm("wrong", 16 * MIB)
    assert vmm.misuse("wrong") == MISUSE
    memory = vmm.memory
    assert memory.allocated_bytes == before.allocated_bytes + 16 * MIB
    assert memory.device_bytes == before.device_bytes + 1 * MIB
    assert memory.free_bytes == before.free_bytes - 17 * MIB
    vmm.destroy("wrong")
    assert vmm.memory == before


@pytest.mark.vtx
@pytest.mark.tools
def test_a_lower_limit_evicts_nobody(
    vmm: Vmm, vm: Callable[..., None], limit: Callable[[int], None]
) -> None:
    """a limit below the memory in use leaves the VMs alone, frees nothing and grants no more"""
    vm("stays", 96 * MIB)
    limit(32 * MIB)
    lowered = Memory(32 * MIB, 96 * MIB, 0)
    assert vmm.memory == vmm.library_memory() == vmm.listing().memory == lowered
    assert vmm.names() == ["stays"]
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vm("late", 1 * MIB)
    vmm.destroy("stays")
    assert vmm.mem_free_bytes == 32 * MIB


def test_a_reloaded_module_starts_from_nothing(
    guest: Guest, vmm: Vmm, limit: Callable[[int], None], reloaded: None
) -> None:
    """after it is loaded again, the module has no limit and counts no memory"""
    limit(64 * MIB)
    vmm.reload()
    assert guest.sysctl(LIMIT) == "0"
    assert vmm.mem_allocated_bytes == 0
    assert vmm.mem_total_bytes == int(guest.must(["sysctl", "-n", "hw.physmem"]))


@pytest.fixture
def tuned(guest: Guest, vmm: Vmm, reloaded: None) -> Iterator[Callable[[str], str]]:
    """Load the module with the tunable set; returns the kernel's messages during that."""

    def load(value: str) -> str:
        mark = guest.machine.console.mark
        guest.must(["kenv", f"{LIMIT}={value}"])
        vmm.reload()
        # The kernel's messages may not have arrived yet; a word after them shows that all have.
        guest.must(["/bin/sh", "-c", f"echo {SAID} >/dev/console"])
        heard = guest.machine.console.talk(mark)
        heard.expect_any([SAID], "the console's last word", guest.deadline())
        return guest.machine.console.since(mark)

    yield load
    # The next load must not see it.
    guest.script('kenv -u "$1"; kldunload vmm', LIMIT, check=False)


def test_the_tunable_sets_the_limit(vmm: Vmm, tuned: Callable[[str], str]) -> None:
    """a limit set in the boot loader is in force from the start, in bytes or with a suffix"""
    for value, mib in (("134217728", 128), ("96m", 96)):
        said = tuned(value)
        assert vmm.memory == Memory(mib * MIB, 0, mib * MIB)
        assert LIMIT not in said


def test_a_bad_tunable_is_reported_and_ignored(
    guest: Guest, vmm: Vmm, tuned: Callable[[str], str]
) -> None:
    """a tunable that is not a size is reported on the console, and then there is no limit"""
    for value in ("lots", "-1"):
        assert f"{LIMIT} is not a size, ignored" in tuned(value), value
        assert guest.sysctl(LIMIT) == "0"
    assert vmm.mem_total_bytes == int(guest.must(["sysctl", "-n", "hw.physmem"]))
