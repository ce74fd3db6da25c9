"""vmm together with other features of the host: jails, wired memory, the boot loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.bhyve.l2 import L2, Exit
from harness.bhyve.vmm import LIMIT, MIB, Vmm
from harness.guest.freebsd import Guest
from harness.guest.ssh import CommandFailed, Result

pytestmark = [pytest.mark.patch, pytest.mark.vtx, pytest.mark.tools]

WIRED = "vm.stats.vm.v_user_wire_count"
MOST_WIRED = "vm.max_user_wired"
LOADER = "/boot/loader.conf.local"

Inside = Callable[..., Result]


@pytest.fixture
def inside(guest: Guest) -> Iterator[Inside]:
    """Run a command in a jail that may use vmm."""
    guest.must(["jail", "-c", "name=vmmwb", "path=/", "allow.vmm", "persist"])
    yield lambda *command: guest.run(["jexec", "vmmwb", *command])
    guest.must(["jail", "-r", "vmmwb"])


def test_a_jail_sees_its_own_vms(vmm: Vmm, vm: Callable[..., None], inside: Inside) -> None:
    """in a jail vmmls lists only the jail's VMs, even if asked for another; the host sees all"""
    vm("outside", 16 * MIB)
    said = inside(vmm.vmtool_path, "create", "inside", str(32 * MIB))
    assert said.ok, said.describe()
    try:
        seen = inside(vmm.vmmls_path, "-Hp")
        assert seen.ok, seen.describe()
        assert seen.stdout == f"inside\troot\t1\tcreated\t{32 * MIB}\t0\t0\n"
        other = inside(vmm.vmmls_path, "-Hp", "outside")
        assert (other.exit_code, other.stdout) == (1, "")
        assert [listed.name for listed in vmm.listing().vms] == ["inside", "outside"]
        assert vmm.mem_allocated_bytes == 48 * MIB
    finally:
        inside(vmm.vmtool_path, "destroy", "inside")
    assert vmm.mem_allocated_bytes == 16 * MIB


def test_a_jail_reads_the_figures_and_sets_no_limit(
    guest: Guest, vmm: Vmm, vm: Callable[..., None], inside: Inside
) -> None:
    """in a jail the figures are the host's, and root of a jail cannot set the limit"""
    vm("counted", 16 * MIB)
    said = inside("sysctl", "-n", "hw.vmm.mem_total", "hw.vmm.mem_allocated", "hw.vmm.mem_free")
    memory = vmm.memory
    assert said.stdout.split() == [
        str(memory.total_bytes), str(memory.allocated_bytes), str(memory.free_bytes)
    ]  # fmt: skip
    assert not inside("sysctl", f"{LIMIT}={16 * MIB}").ok
    assert guest.sysctl(LIMIT) == "0"


def test_wired_memory_is_counted_once(guest: Guest, vmm: Vmm, vm: Callable[..., None]) -> None:
    """a VM whose memory is wired (bhyve -S) counts as much as another, and gives all back"""
    before = vmm.memory
    page_bytes = int(guest.must(["sysctl", "-n", "hw.pagesize"]))
    pages = int(guest.must(["sysctl", "-n", WIRED]))
    vm("wired", 32 * MIB, wired=True)
    assert vmm.mem_allocated_bytes == before.allocated_bytes + 32 * MIB
    assert int(guest.must(["sysctl", "-n", WIRED])) == pages + 32 * MIB // page_bytes
    assert vmm.listing().vms[0].memory_bytes == 32 * MIB
    vmm.destroy("wired")
    assert vmm.memory == before
    assert int(guest.must(["sysctl", "-n", WIRED])) == pages


def test_memory_that_cannot_be_wired_leaves_no_trace(guest: Guest, vmm: Vmm) -> None:
    """a VM that is refused because its memory cannot be wired leaves no memory counted"""
    before = vmm.memory
    most, wired = guest.must(["sysctl", "-n", MOST_WIRED, WIRED]).split()
    guest.must(["sysctl", f"{MOST_WIRED}={int(wired) + 1024}"])
    try:
        with pytest.raises(CommandFailed, match="Cannot allocate memory"):
            vmm.create("stiff", 32 * MIB, wired=True)
    finally:
        guest.must(["sysctl", f"{MOST_WIRED}={most}"])
    assert vmm.memory == before
    assert vmm.names() == []


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
