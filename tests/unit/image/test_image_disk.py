"""Disks that people bring."""

from __future__ import annotations

import lzma
import os
import struct
import uuid
from pathlib import Path

import pytest

from harness.errors import CannotError, UsageError
from harness.image import disk

MIB = 1 << 20


def raw(path: Path, size: int = MIB, *, mbr: bool = True, gpt: bool = False) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
        if mbr:
            stream.seek(510)
            stream.write(b"\x55\xaa")
        if gpt:
            stream.seek(512)
            stream.write(b"EFI PART")
    return path


def qcow2(
    path: Path,
    *,
    version: int = 3,
    backing: int = 0,
    crypt: int = 0,
    features: int = 0,
    size: int = 8 * MIB,
) -> Path:
    head = struct.pack(">4sIQIIQI", b"QFI\xfb", version, backing, 0, 16, size, crypt)
    path.write_bytes(head.ljust(72, b"\0") + struct.pack(">Q", features) + bytes(MIB))
    return path


def test_good_ones(tmp_path: Path) -> None:
    path = raw(tmp_path / "a")
    assert disk.examine(path) == disk.Disk(path, "raw", MIB)
    path = raw(tmp_path / "b", mbr=False, gpt=True)
    assert disk.examine(path).format == "raw"
    for version in (2, 3):
        path = qcow2(tmp_path / f"q{version}", version=version)
        assert disk.examine(path) == disk.Disk(path, "qcow2", 8 * MIB)


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        disk.examine(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


def test_raw_disks_that_are_none(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "absent")
    assert "it is a folder" in refused(tmp_path)
    assert "no partition table" in refused(raw(tmp_path / "fs", mbr=False))
    assert "was the file cut short?" in refused(raw(tmp_path / "odd", MIB + 100))
    assert "was the file cut short?" in refused(raw(tmp_path / "tiny", 1024))
    (tmp_path / "empty").touch()
    assert "0 B is no whole raw disk" in refused(tmp_path / "empty")


def test_zfs_alone_is_refused_by_its_partition(tmp_path: Path) -> None:
    path = raw(tmp_path / "a", gpt=True)
    boot, zfs, ufs = (
        uuid.UUID(f"{first}-6ecf-11d6-8ff8-00022d09712b").bytes_le
        for first in ("516e7cb4", "516e7cba", "516e7cb6")
    )
    for kinds, good in (((boot, ufs), True), ((boot, zfs), False), ((boot, zfs, ufs), True)):
        with path.open("r+b") as stream:
            for number, kind in enumerate(kinds):
                stream.seek(1024 + 128 * number)
                stream.write(kind)
        if good:
            assert disk.examine(path).format == "raw"
        else:
            assert "root file system is ZFS" in refused(path)


def test_qcow2_that_cannot_stand_alone(tmp_path: Path) -> None:
    path = tmp_path / "q"
    assert "a backing file" in refused(qcow2(path, backing=512))
    assert f"qemu-img convert -O qcow2 {path} whole.qcow2" in refused(qcow2(path, features=4))
    assert "encrypted" in refused(qcow2(path, crypt=2))
    assert "not closed properly" in refused(qcow2(path, features=1))
    assert "version 9" in refused(qcow2(path, version=9))
    assert "no whole disk" in refused(qcow2(path, size=0))
    path.write_bytes(b"QFI\xfb\0\0\0\3")
    assert "cut short" in refused(path)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\x1f\x8b\x08", "run gunzip -k"),
        (b"\x28\xb5\x2f\xfd", "run unzstd -k"),
        (b"KDMV\1\0\0\0", "run qemu-img convert -O raw"),
        (b"conectix", "a VHD disk"),
        (b"\0" * 0x8001 + b"CD001", "it is a CD image"),
    ],
)
def test_other_kinds_get_their_command(tmp_path: Path, head: bytes, said: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(head.ljust(MIB, b"\0"))
    assert said in refused(path)


def test_xz_is_unpacked_sparse_and_whole(tmp_path: Path) -> None:
    content = os.urandom(1000).ljust(3 * MIB, b"\0") + b"end".ljust(9 * MIB, b"\0")
    packed = tmp_path / "disk.raw.xz"
    # Two streams, as parallel compressors write them.
    packed.write_bytes(lzma.compress(content[:MIB]) + lzma.compress(content[MIB:]))
    target = tmp_path / "out" / "disk.raw"
    said: list[str] = []
    disk.decompress(packed, target, said.append)
    assert target.read_bytes() == content
    assert target.stat().st_blocks * 512 < 3 * MIB
    assert said
    assert disk.is_xz(packed)
    assert not disk.is_xz(target)


def test_a_damaged_xz_leaves_nothing(tmp_path: Path) -> None:
    packed = tmp_path / "disk.raw.xz"
    packed.write_bytes(lzma.compress(os.urandom(100_000))[:50_000])
    with pytest.raises(CannotError, match="damaged or cut short"):
        disk.decompress(packed, tmp_path / "out" / "disk.raw", lambda _line: None)
    assert list((tmp_path / "out").iterdir()) == []
