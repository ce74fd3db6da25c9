"""hw.vmm.mem_limit: memory within the limit is granted, a refusal leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.bhyve.batch import Batch
from harness.bhyve.l2 import L2, Exit
from harness.bhyve.vmm import LIMIT, MIB, Memory, Vmm
from harness.guest.freebsd import Guest

SAID = "that was all"
NO_MEMORY = "Cannot allocate memory"
pytestmark = [pytest.mark.patch]

PAGE_BYTES = 4096


@pytest.fixture
def limit(vmm: Vmm) -> Iterator[Callable[[int], None]]:
    """Set the limit, in bytes; after the test there is no limit again."""
    yield vmm.set_limit
    vmm.destroy_all()


def test_the_limit_is_the_total(guest: Guest, vmm: Vmm, limit: Callable[[int], None]) -> None:
    """mem_total is the limit if there is one, otherwise the host's memory"""
    before = vmm.memory
    limit(300 * MIB)
    limited = vmm.memory
    assert limited.total_bytes == limited.free_bytes == 300 * MIB
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
def test_exactly_the_limit_fits(batch: Callable[..., Batch]) -> None:
    """a VM that takes all memory up to the limit is made, and then another of one MiB is refused"""
    with batch() as ask:
        ask.limit(128 * MIB)
        ask.create("all", 128 * MIB)
        full = ask.memory()
        more = ask.refused("more", 1 * MIB)
        names, after = ask.names(), ask.memory()
    assert full.value.free_bytes == 0
    assert NO_MEMORY in more.value
    assert names.value == ["all"]
    assert after.value.allocated_bytes == 128 * MIB


@pytest.mark.vtx
@pytest.mark.tools
def test_the_edge_is_exact(batch: Callable[..., Batch]) -> None:
    """a limit one byte too small refuses a VM, and one byte too many is not enough for another"""
    with batch() as ask:
        ask.limit(32 * MIB - 1)
        edge, unused = ask.refused("edge", 32 * MIB), ask.memory()
        ask.limit(32 * MIB + 1)
        ask.create("edge", 32 * MIB)
        one_byte, page = ask.memory(), ask.refused("page", PAGE_BYTES)
        ask.limit(32 * MIB + PAGE_BYTES)
        ask.create("page", PAGE_BYTES)
        full = ask.memory()
    assert NO_MEMORY in edge.value
    assert unused.value.free_bytes == 32 * MIB - 1
    assert one_byte.value.free_bytes == 1
    assert NO_MEMORY in page.value
    assert full.value.free_bytes == 0


@pytest.mark.vtx
@pytest.mark.tools
@pytest.mark.freebsd("15.0")  # before, memory above 3 GiB has 1 GiB more: the hole up to 4 GiB
def test_limits_and_sizes_beyond_32_bits(batch: Callable[..., Batch]) -> None:
    """a VM of 5 GiB does not fit into 2 GiB, fits exactly into 5 GiB, and then no page is left"""
    gib = 1024 * MIB
    with batch() as ask:
        ask.limit(2 * gib)
        wide, unused = ask.refused("wide", 5 * gib), ask.memory()
        ask.limit(5 * gib)
        ask.create("wide", 5 * gib)
        full, page = ask.memory(), ask.refused("page", PAGE_BYTES)
        ask.limit(9 * gib)
        rom = ask.refused("rom", 0, 4 * gib + PAGE_BYTES)
        library, listing = ask.library_memory(), ask.listing()
    for refused in (wide, page, rom):
        assert NO_MEMORY in refused.value
    assert unused.value == Memory(2 * gib, 0, 2 * gib)
    assert full.value == Memory(5 * gib, 5 * gib, 0)
    assert library.value == listing.value.memory == Memory(9 * gib, 5 * gib, 4 * gib)


@pytest.mark.vtx
@pytest.mark.tools
def test_what_was_refused_is_not_held(batch: Callable[..., Batch]) -> None:
    """after refusals the whole limit is still available, and so is the memory of destroyed VMs"""
    with batch() as ask:
        ask.limit(64 * MIB)
        refused = [ask.refused("large", 65 * MIB) for _ in range(3)]
        full = []
        for _ in range(2):
            ask.create("whole", 64 * MIB)
            full.append(ask.memory())
            ask.destroy("whole")
        after = ask.memory()
    assert all(NO_MEMORY in each.value for each in refused)
    assert [each.value for each in full] == [Memory(64 * MIB, 64 * MIB, 0)] * 2
    assert after.value.allocated_bytes == 0


@pytest.mark.vtx
@pytest.mark.tools
def test_a_refused_vm_leaves_no_trace(batch: Callable[..., Batch]) -> None:
    """a VM above the limit gets ENOMEM, and no figure changes"""
    with batch() as ask:
        ask.limit(64 * MIB)
        before = ask.memory()
        refused = ask.refused("large", 65 * MIB)
        after, names = ask.memory(), ask.names()
    assert NO_MEMORY in refused.value
    assert after.value == before.value
    assert names.value == []


@pytest.mark.vtx
@pytest.mark.tools
def test_device_memory_needs_room_as_well(batch: Callable[..., Batch]) -> None:
    """the limit is for system and device memory together: naming a segment does not evade it"""
    with batch() as ask:
        ask.limit(64 * MIB)
        named = ask.refused("named", 0, 65 * MIB)
        rom = ask.refused("rom", 49 * MIB, 16 * MIB)
        unused = ask.memory()
        ask.create("rom", 48 * MIB, 16 * MIB)
        full, page = ask.memory(), ask.refused("page", PAGE_BYTES)
    for refused in (named, rom, page):
        assert NO_MEMORY in refused.value
    assert unused.value == Memory(64 * MIB, 0, 64 * MIB, 0)
    assert full.value == Memory(64 * MIB, 48 * MIB, 0, 16 * MIB)


@pytest.mark.vtx
@pytest.mark.tools
def test_memory_of_a_vm_that_is_gone_is_no_room(vmm: Vmm, batch: Callable[..., Batch]) -> None:
    """a VM that was destroyed while a process has its memory leaves no room for another"""
    with batch(stay=True) as ask:
        ask.limit(64 * MIB)
        process = ask.lingering("lingers", 48 * MIB)
        late = ask.try_create("late", 32 * MIB)
        small = ask.try_create("small", 16 * MIB)
    vmm.end(process.value)
    assert NO_MEMORY in late.value.stderr, late.value.describe()
    assert small.value.ok, small.value.describe()
    with batch() as ask:
        ask.create("late", 32 * MIB)
        after = ask.memory()
    assert after.value == Memory(64 * MIB, 48 * MIB, 16 * MIB)


@pytest.mark.vtx
@pytest.mark.tools
@pytest.mark.freebsd("15.0")  # before, a VM's memory has no NUMA domains
def test_a_refused_domain_leaves_none_behind(batch: Callable[..., Batch]) -> None:
    """if the last of three NUMA domains is refused, nothing stays mapped; the VM may try again"""
    with batch() as ask:
        before = ask.memory()
        ask.limit(64 * MIB)
        ask.create("numa")
        tried = [(ask.domains("numa", 3, 24 * MIB), ask.memory(), ask.listing()) for _ in range(2)]
        ask.limit(72 * MIB)
        given, full = ask.domains("numa", 3, 24 * MIB), ask.memory()
        ask.limit(0)
        ask.destroy("numa")
        after = ask.memory()
    for refused, memory, listing in tried:
        assert NO_MEMORY in refused.value.stderr, refused.value.describe()
        assert memory.value == Memory(64 * MIB, 0, 64 * MIB)
        assert [listed.memory_bytes for listed in listing.value.vms] == [0]
    assert given.value.ok, given.value.describe()
    assert full.value == Memory(72 * MIB, 72 * MIB, 0)
    assert after.value == before.value


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
        assert inner.wait_exit("p") == Exit.POWER_OFF
        assert vmm.memory == Memory(48 * MIB, 32 * MIB, 0, 16 * MIB)
    inner.end()
    assert vmm.memory == Memory(48 * MIB, 0, 48 * MIB)


@pytest.mark.vtx
@pytest.mark.tools
def test_a_refusal_is_reported_on_the_console(batch: Callable[..., Batch]) -> None:
    """the kernel reports that the limit was the reason, because ENOMEM may have others"""
    with batch() as ask:
        ask.limit(32 * MIB)
        # The kernel reports at most one refusal a second, and another check may just have made one.
        ask.must(["sleep", "1.5"])
        refused = ask.refused("large", 33 * MIB)
        dmesg = ask.must(["dmesg"])
    assert NO_MEMORY in refused.value
    said = dmesg.value.splitlines()
    assert any(f"{LIMIT} leaves no {33 * MIB} bytes" in line for line in said)


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
def test_wrong_requests_change_nothing(batch: Callable[..., Batch], limit_mib: int) -> None:
    """each wrong request to allocate or free memory gets its error, and the figures stay exact"""
    with batch() as ask:
        ask.limit(limit_mib * MIB)
        first = ask.memory()
        ask.create("wrong", 16 * MIB)
        answers, during = ask.misuse("wrong"), ask.memory()
        ask.destroy("wrong")
        after = ask.memory()
    before, memory = first.value, during.value
    assert answers.value == MISUSE
    assert memory.allocated_bytes == before.allocated_bytes + 16 * MIB
    assert memory.device_bytes == before.device_bytes + 1 * MIB
    assert memory.free_bytes == before.free_bytes - 17 * MIB
    assert after.value == before


@pytest.mark.vtx
@pytest.mark.tools
def test_a_lower_limit_evicts_nobody(batch: Callable[..., Batch]) -> None:
    """a limit below the memory in use leaves the VMs alone, frees nothing and grants no more"""
    with batch() as ask:
        ask.create("stays", 96 * MIB)
        ask.limit(32 * MIB)
        memory, library, listing = ask.memory(), ask.library_memory(), ask.listing()
        names = ask.names()
        late = ask.refused("late", 1 * MIB)
        ask.destroy("stays")
        after = ask.memory()
    lowered = Memory(32 * MIB, 96 * MIB, 0)
    assert memory.value == library.value == listing.value.memory == lowered
    assert names.value == ["stays"]
    assert NO_MEMORY in late.value
    assert after.value.free_bytes == 32 * MIB


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
