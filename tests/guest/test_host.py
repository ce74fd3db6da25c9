"""vmm together with other features of the host: jails, wired memory, the boot loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.bhyve.batch import Batch
from harness.bhyve.l2 import L2, Exit
from harness.bhyve.vmm import LIMIT, MIB, SYSCTLS, Vmm
from harness.guest.freebsd import Guest
from harness.guest.ssh import CommandFailed

pytestmark = [pytest.mark.patch, pytest.mark.vtx, pytest.mark.tools]

WIRED = "vm.stats.vm.v_user_wire_count"
MOST_WIRED = "vm.max_user_wired"
NO_MEMORY = "Cannot allocate memory"
LOADER = "/boot/loader.conf.local"


@pytest.fixture
def inside(guest: Guest, vmm: Vmm) -> Iterator[tuple[str, ...]]:
    """A jail that may use vmm: the words before a command that runs in it."""
    words = ("jexec", "vmmwb")
    guest.must(["jail", "-c", "name=vmmwb", "path=/", "allow.vmm", "persist"])
    yield words
    # On FreeBSD 14 the VMs of a jail stay when it ends.
    guest.run([*words, vmm.vmtool_path, "clean", "inside"])
    guest.must(["jail", "-r", "vmmwb"])


def test_a_jail_sees_its_own_vms(
    vmm: Vmm, batch: Callable[..., Batch], inside: tuple[str, ...]
) -> None:
    """in a jail vmmls lists only the jail's VMs, even if asked for another; the host sees all"""
    with batch() as ask:
        ask.create("outside", 16 * MIB)
        made = ask.run([*inside, vmm.vmtool_path, "create", "inside", str(32 * MIB)])
        seen = ask.run([*inside, vmm.vmmls_path, "-Hp"])
        other = ask.run([*inside, vmm.vmmls_path, "-Hp", "outside"])
        listing, both = ask.listing(), ask.memory()
        destroyed = ask.run([*inside, vmm.vmtool_path, "destroy", "inside"])
        one = ask.memory()
    for result in (made.value, seen.value, destroyed.value):
        assert result.ok, result.describe()
    assert seen.value.stdout == f"inside\troot\t1\tcreated\t{32 * MIB}\t0\t0\n"
    assert (other.value.exit_code, other.value.stdout) == (1, "")
    assert [listed.name for listed in listing.value.vms] == ["inside", "outside"]
    assert both.value.allocated_bytes == 48 * MIB
    assert one.value.allocated_bytes == 16 * MIB


def test_a_jail_reads_the_figures_and_sets_no_limit(
    batch: Callable[..., Batch], inside: tuple[str, ...]
) -> None:
    """in a jail the figures are the host's, and root of a jail cannot set the limit"""
    with batch() as ask:
        ask.create("counted", 16 * MIB)
        said = ask.run([*inside, "sysctl", "-n", *SYSCTLS])
        memory = ask.numbers(*SYSCTLS)
        wrote = ask.run([*inside, "sysctl", f"{LIMIT}={16 * MIB}"])
        limit = ask.number(LIMIT)
    assert tuple(map(int, said.value.stdout.split())) == memory.value
    assert not wrote.value.ok
    assert limit.value == 0


def test_wired_memory_is_counted_once(batch: Callable[..., Batch]) -> None:
    """a VM whose memory is wired (bhyve -S) counts as much as another, and gives all back"""
    with batch() as ask:
        first = ask.memory()
        page_bytes = ask.number("hw.pagesize")
        pages = [ask.number(WIRED)]
        ask.create("wired", 32 * MIB, wired=True)
        during, listing = ask.memory(), ask.listing()
        pages.append(ask.number(WIRED))
        ask.destroy("wired")
        after = ask.memory()
        pages.append(ask.number(WIRED))
    before = first.value
    assert during.value.allocated_bytes == before.allocated_bytes + 32 * MIB
    assert listing.value.vms[0].memory_bytes == 32 * MIB
    assert after.value == before
    least, most, last = (count.value for count in pages)
    assert most == least + 32 * MIB // page_bytes.value
    assert last == least


def test_memory_that_cannot_be_wired_leaves_no_trace(
    guest: Guest, batch: Callable[..., Batch]
) -> None:
    """a VM that is refused because its memory cannot be wired leaves no memory counted"""
    most, wired = guest.numbers(MOST_WIRED, WIRED)
    try:
        with batch() as ask:
            before = ask.memory()
            ask.set(MOST_WIRED, wired + 1024)
            stiff = ask.try_create("stiff", 32 * MIB, wired=True)
            ask.set(MOST_WIRED, most)
            after, names = ask.memory(), ask.names()
    except CommandFailed:
        guest.must(["sysctl", f"{MOST_WIRED}={most}"])
        raise
    assert NO_MEMORY in stiff.value.stderr, stiff.value.describe()
    assert after.value == before.value
    assert names.value == []


def test_a_guest_that_cannot_be_wired_leaves_no_memory(
    guest: Guest, vmm: Vmm, l2: Callable[..., L2]
) -> None:
    """bhyve -S cannot wire the memory, names the limit and ends: its VM has none of the memory"""
    before = vmm.memory
    most, wired = guest.must(["sysctl", "-n", MOST_WIRED, WIRED]).split()
    guest.must(["sysctl", f"{MOST_WIRED}={int(wired) + 1024}"])
    stiff = l2("stiff", 32)
    try:
        stiff.launch("-S", "-l", "bootrom,/nonexistent")
        assert stiff.wait_exit() == Exit.ERROR
    finally:
        guest.must(["sysctl", f"{MOST_WIRED}={most}"])
    assert MOST_WIRED in stiff.errors()
    assert [listed.memory_bytes for listed in vmm.listing().vms] == [0]
    assert vmm.memory == before


@pytest.mark.minutes
def test_loaded_and_limited_by_the_boot_loader(
    guest: Guest, vmm: Vmm, vm: Callable[..., None]
) -> None:
    """loaded by the boot loader with a limit set there, the module has the limit from the start"""
    lines = ('vmm_load="YES"', f'vmm_name="{vmm.loaded.path}"', f'{LIMIT}="96m"')
    guest.script('printf "%s\\n" "$@" >' + LOADER, *lines)
    try:
        guest.reboot()
        assert guest.sysctl(LIMIT) == str(96 * MIB)
        assert vmm.mem_free_bytes == vmm.mem_total_bytes == 96 * MIB
        assert [kld.path for kld in guest.klds() if kld.name == "vmm.ko"] == [vmm.loaded.path]
        vm("fits", 96 * MIB)
        with pytest.raises(CommandFailed, match="Cannot allocate memory"):
            vm("more", MIB)
    finally:
        vmm.destroy_all()
        guest.must(["rm", "-f", LOADER])
        guest.must(["kenv", "-u", LIMIT])
        vmm.reload()
    assert guest.sysctl(LIMIT) == "0"
