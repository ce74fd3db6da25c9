"""boot: boot sectors, started from a disk as by a BIOS, and guests that bhyveload(8) loads."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import hostmake
from harness.bhyve.l2 import L2, Exit
from harness.bhyve.vmm import Vmm
from harness.build.builder import compile_program
from harness.guest.freebsd import Guest
from harness.run.workbench import Workbench

pytestmark = pytest.mark.vtx

SOURCES = Path(__file__).parents[1] / "guest"
SECTOR = 512
SECTORS = 4096
TEXT = "BOOTSECT read this from behind it"
# The place where the boot sector finds the number of the sector with the text.
LBA_AT = 504
# $1 is a disk, and $2 a boot sector with its text: a partition table as FreeBSD's tools make it.
PARTITION = """
set -eu
unit=$(mdconfig -a -t vnode -f "$1")
trap 'mdconfig -d -u "$unit"' EXIT
gpart create -s gpt "$unit"
gpart add -t freebsd-boot -b 1024 -s 64 "$unit"
gpart bootcode -b /boot/pmbr "$unit"
dd if="$2" of="/dev/${unit}p1" bs=512 conv=sync
"""
GPT_BEGINS = 1024
KERNEL_S = 120.0

Disk = Callable[..., L2]


def boot_sector(folder: Path, lba: int) -> bytes:
    """Our boot sector, which reads its text from sector `lba`, and a sector with the text."""
    made = folder / "bootsect.bin"
    hostmake.make(SOURCES, result=made.name, target=made)
    sector = bytearray(made.read_bytes())
    assert len(sector) == SECTOR
    struct.pack_into("<I", sector, LBA_AT, lba)
    return bytes(sector) + f"{TEXT}\r\n".encode().ljust(SECTOR, b"\0")


KINDS = ("virtio-blk", "ahci-hd", "nvme")
"""The emulations of a disk, as bhyve(8) names them."""


@pytest.fixture
def disk(guest: Guest, vmm: Vmm, tmp_path: Path) -> Iterator[Disk]:
    """Make a guest with a disk that begins with some bytes, and start its ROM."""
    made: list[L2] = []

    def make(data: bytes, *, kind: str = KINDS[0], bootcode: bytes = b"") -> L2:
        inner = L2(vmm, f"disk{len(made)}", 32)
        made.append(inner)
        local, remote = tmp_path / "disk", f"{vmm.home}/{inner.name}.img"
        local.write_bytes(data.ljust(SECTORS * SECTOR, b"\0"))
        guest.put(local, remote)
        if bootcode:
            local.write_bytes(bootcode)
            guest.put(local, f"{remote}.code")
            guest.script(PARTITION, remote, f"{remote}.code")
        inner.arguments = ("-c", "1", "-s", f"4,{kind},{remote}")
        inner.start()
        return inner

    yield make
    for inner in made:
        if not guest.given_up:
            inner.end()


def words(text: str) -> re.Pattern[str]:
    """For L2.ask: exactly these words."""
    return re.compile(text)


def booted(inner: L2) -> list[str]:
    """The output of L2 from the boot to its power-off."""
    assert inner.wait_exit("b") == Exit.POWER_OFF
    _, begun, rest = inner.output().partition("L2ROM boots\n")
    assert begun, inner.output()
    return [line for line in rest.splitlines() if line][:2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_boot_sector_runs(disk: Disk, tmp_path: Path, kind: str) -> None:
    """a boot sector is read from a disk, prints its marker, and reads more by INT 13h"""
    assert booted(disk(boot_sector(tmp_path, 1), kind=kind)) == ["BOOTSECT runs", TEXT]


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_sector_is_read(disk: Disk, tmp_path: Path, kind: str) -> None:
    """a boot sector reads the disk's last sector, whose text is in no other sector"""
    sectors = boot_sector(tmp_path, SECTORS - 1)
    data = sectors[:SECTOR].ljust((SECTORS - 1) * SECTOR, b"\0") + sectors[SECTOR:]
    assert booted(disk(data, kind=kind)) == ["BOOTSECT runs", TEXT]


@pytest.mark.parametrize("kind", KINDS)
def test_behind_the_disk_is_nothing(disk: Disk, tmp_path: Path, kind: str) -> None:
    """a boot sector that reads beyond the disk's end gets an error"""
    inner = disk(boot_sector(tmp_path, SECTORS), kind=kind)
    inner.send("b")
    inner.ask("", words("BOOTSECT failed"))


def test_what_is_no_boot_sector_is_not_run(disk: Disk, tmp_path: Path) -> None:
    """a boot sector without its signature is not started"""
    sectors = boot_sector(tmp_path, 1)
    inner = disk(sectors[: SECTOR - 2] + b"\0\0" + sectors[SECTOR:])
    inner.ask("b", words("L2ROM error: the first sector is no boot sector"))
    assert "BOOTSECT" not in inner.output()


@pytest.mark.parametrize("kind", KINDS[:2])
def test_freebsd_s_boot_sector_runs_ours(disk: Disk, tmp_path: Path, kind: str) -> None:
    """FreeBSD's pmbr finds the boot partition of a GPT disk, and starts its program"""
    inner = disk(b"", kind=kind, bootcode=boot_sector(tmp_path, GPT_BEGINS + 1))
    assert booted(inner) == ["BOOTSECT runs", TEXT]


LOAD = 'PATH="$1:$PATH"; shift; bhyveload "$@" </dev/null'


@pytest.mark.tools
def test_bhyveload_runs_a_loader(
    workbench: Workbench, guest: Guest, vmm: Vmm, l2: Callable[..., L2]
) -> None:
    """our own loader gets memory and environment from bhyveload, and starts a guest"""
    record = workbench.record
    assert record.source is not None
    assert record.sysroot is not None
    loader = compile_program(
        workbench.running,
        [SOURCES / "userboot.c"],
        sysroot=record.sysroot,
        name="userboot.so",
        libraries=(),
        flags=("-shared", "-no-pie", "-fPIC"),
        headers=(record.source / "stand/userboot/userboot.h",),
    )
    remote = f"{vmm.home}/userboot.so"
    guest.put(loader, remote, mode=0o755)
    inner = l2("loaded", 48)
    guest.script(LOAD, vmm.home, "-m", "48M", "-l", remote, "-e", "marker=seven", "loaded")
    inner.launch()
    assert inner.wait_exit() == Exit.POWER_OFF
    lines = inner.output().splitlines()
    assert "USERBOOT runs, marker seven, 48 MiB, 0 disks" in lines


@pytest.mark.minutes
def test_bhyveload_boots_freebsd(guest: Guest, vmm: Vmm, l2: Callable[..., L2]) -> None:
    """FreeBSD's loader for bhyveload loads L1's kernel, which prints its first lines in L2"""
    inner = l2("freebsd", 128)
    limit = guest.deadline(KERNEL_S)
    guest.script(
        LOAD, vmm.home, "-m", "128M", "-h", "/", "-e", "autoboot_delay=-1",
        "-e", "console=userboot", "freebsd", deadline=limit,
    )  # fmt: skip
    inner.launch()
    inner.ask("", re.compile(r"Copyright \(c\) 1992"), guest.deadline(KERNEL_S))
