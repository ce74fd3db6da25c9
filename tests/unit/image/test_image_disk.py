"""Disk images that users import."""

from __future__ import annotations

import lzma
import os
import struct
import uuid
import zlib
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


CLUSTER = 1 << 16


def qcow2(
    path: Path,
    *,
    version: int = 3,
    backing: int = 0,
    crypt: int = 0,
    features: int = 0,
    size: int = 8 * MIB,
    first: bytes = bytes(510) + b"\x55\xaa",
    packed: bool = False,
    long: bool = False,
) -> Path:
    """A disk of which the first cluster has content: header, two tables, one more cluster at 9."""
    where = {"L1": 1, "L2": 2, "first": 3, "last": 9}
    at = {name: number * CLUSTER for name, number in where.items()}
    head = struct.pack(">4sIQIIQIIQ", b"QFI\xfb", version, backing, 0, 16, size, crypt, 1, at["L1"])
    features |= 16 if long else 0
    data = bytearray(at["last"] + CLUSTER)
    data[: len(head)] = head
    data[72:80] = struct.pack(">Q", features)
    data[at["L1"] : at["L1"] + 8] = struct.pack(">Q", at["L2"] | 1 << 63)
    content, entry = first, at["first"] | 1 << 63
    if packed:
        work = zlib.compressobj(wbits=-12)
        content = work.compress(first.ljust(CLUSTER, b"\0")) + work.flush()
        entry = at["first"] | (len(content) - 1) // 512 << 54 | 1 << 62
    data[at["first"] : at["first"] + len(content)] = content
    step = 2 if long else 1
    entries = {0: entry, 5 * step: at["last"] | 1 << 63, 7 * step: 1}
    for number, each in entries.items():
        struct.pack_into(">Q", data, at["L2"] + 8 * number, each)
    path.write_bytes(data)
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


def test_files_that_are_not_raw_disks(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "absent")
    assert "it is a folder" in refused(tmp_path)
    assert "no partition table" in refused(raw(tmp_path / "fs", mbr=False))
    assert "was the file truncated?" in refused(raw(tmp_path / "odd", MIB + 100))
    assert "was the file truncated?" in refused(raw(tmp_path / "tiny", 1024))
    (tmp_path / "empty").touch()
    assert "0 B is not the size of a raw disk" in refused(tmp_path / "empty")


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
    assert "its data are in another file" in refused(qcow2(path, features=4))
    assert "encrypted" in refused(qcow2(path, crypt=2))
    assert "not closed properly" in refused(qcow2(path, features=1))
    assert "version 9" in refused(qcow2(path, version=9))
    assert "not the size of a whole disk" in refused(qcow2(path, size=0))
    path.write_bytes(b"QFI\xfb\0\0\0\3")
    assert "truncated" in refused(path)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\x1f\x8b\x08", "run gzip -dc"),
        (b"\x28\xb5\x2f\xfd", "run zstd -dc"),
        (b"BZh9", "run bzip2 -dc"),
        (b"\x04\x22\x4d\x18", "run lz4 -dc"),
        (b"]\0\0\x80\0", "run xz --format=lzma -dc"),
        (b"\x1f\x9d\x90", "run gzip -dc"),
        (b"7z\xbc\xaf\x27\x1c", "run 7z x"),
        (b"Rar!\x1a\x07\1\0", "run unrar x"),
        (b"raw.img".ljust(257, b"\0") + b"ustar\0", "run tar -xf"),
        (b"KDMV\1\0\0\0", "run qemu-img convert -O raw"),
        (b"# Disk DescriptorFile\nversion=1", "the description of a VMware disk; run qemu-img"),
        (b"conectix", "a VHD disk"),
        (b"<<< Oracle VM VirtualBox".ljust(64, b"\0") + b"\x7f\x10\xda\xbe", "a VirtualBox disk"),
        (b"<<< QEMU VM".ljust(64, b"\0") + b"\x7f\x10\xda\xbe", "a VirtualBox disk"),
        (b"QED\0", "a QED disk"),
        (b"WithouFreSpacExt", "a Parallels disk"),
        (b"QFI\xfb\0\0\0\1", "qcow disk of version 1; run qemu-img convert -O qcow2"),
        (b"LUKS\xba\xbe\0\1", "driver=luks,key-secret=key"),
        (b"\n<!DOCTYPE html><title>404", "it is a web page; fetch the disk itself"),
        (b"\0" * 0x8001 + b"CD001", "it is a CD image"),
    ],
)
def test_other_kinds_get_their_command(tmp_path: Path, head: bytes, said: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(head.ljust(MIB, b"\0"))
    assert said in refused(path)


def test_a_command_takes_a_name_with_blanks(tmp_path: Path) -> None:
    path = tmp_path / "my disk.img"
    path.write_bytes(b"BZh9".ljust(MIB, b"\0"))
    assert f"run bzip2 -dc '{path}' >disk.raw and import that" in refused(path)


def test_a_vhd_with_all_its_room_ends_with_its_mark(tmp_path: Path) -> None:
    path = gpt(tmp_path / "d.vhd", 4 * MIB)
    with path.open("ab") as stream:
        stream.write(b"conectix".ljust(512, b"\0"))
    assert "it is a VHD disk; run qemu-img convert -f vpc -O raw" in refused(path)


def test_a_qcow2_disk_cut_short(tmp_path: Path) -> None:
    for kind in ({}, {"packed": True}, {"long": True}):
        path = qcow2(tmp_path / "q", **kind)  # type: ignore[arg-type]
        assert disk.examine(path)
        data = path.read_bytes()
        # Within a table, and before a cluster that a table names.
        for length in (CLUSTER + 4, 2 * CLUSTER + 100, 3 * CLUSTER, 9 * CLUSTER):
            path.write_bytes(data[:length])
            assert "truncated: its tables refer to data behind" in refused(path)
    path.write_bytes(data[:36] + b"\xff" * 4 + data[40:])
    assert "its header is damaged" in refused(path)


def test_what_a_qcow2_disk_has_inside(tmp_path: Path) -> None:
    path = tmp_path / "q"
    good = gpt(tmp_path / "raw", 4 * MIB).read_bytes()[:CLUSTER]
    for packed in (False, True):
        assert disk.examine(qcow2(path, first=good, packed=packed, size=4 * MIB))
        assert "no partition table" in refused(qcow2(path, first=b"x" * 600, packed=packed))
        # What was made of a raw disk that had been cut short.
        assert "it was truncated: its partition table" in refused(
            qcow2(path, first=good, packed=packed, size=3 * MIB)
        )
    qcow2(path, first=b"x", packed=True)
    data = bytearray(path.read_bytes())
    data[3 * CLUSTER] ^= 0xFF
    path.write_bytes(data)
    assert "damaged" in refused(path)
    # Nothing here unpacks zstd: what is inside is seen when it boots.
    assert disk.examine(qcow2(path, first=b"x", packed=True, features=8))


def test_sectors_of_another_size(tmp_path: Path) -> None:
    path = raw(tmp_path / "d", 4 * MIB)
    with path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"EFI PART")
    assert "divided in sectors of 4096 bytes" in refused(path)


def test_a_gpt_without_both_its_headers(tmp_path: Path) -> None:
    """FreeBSD's loader finds the copy at the end; without that there is nothing to boot."""
    path = raw(tmp_path / "d", 4 * MIB)
    with path.open("r+b") as stream:
        stream.seek(446 + 4)
        stream.write(b"\xee")
    assert "its partition table (GPT) is gone" in refused(path)
    with path.open("r+b") as stream:
        stream.seek(4 * MIB - 512)
        stream.write(b"EFI PART")
    assert disk.examine(path)


def test_a_disk_of_another_system(tmp_path: Path) -> None:
    path = raw(tmp_path / "mbr", 4 * MIB)
    for kind, good in ((0x83, False), (0x07, False), (0xA5, True)):
        with path.open("r+b") as stream:
            stream.seek(446 + 4)
            stream.write(bytes([kind]))
        if good:
            assert disk.examine(path)
        else:
            assert "no partition of FreeBSD" in refused(path)
    linux = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
    path = gpt(tmp_path / "gpt", 4 * MIB)
    with path.open("r+b") as stream:
        stream.seek(1024)
        stream.write(linux)
    assert "no partition of FreeBSD" in refused(path)


def test_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "curl -fLO ADDRESS" in refused(Path("https://example.org/disk.raw.xz"))


@pytest.mark.parametrize("name", ["/etc/shadow", "json:{}", "\x1b[31mx\ny", "x" * 1000, ""])
def test_a_backing_file_is_named_and_never_copied(tmp_path: Path, name: str) -> None:
    """A remedy that flattens the disk would put any file of this machine into the image."""
    path = qcow2(tmp_path / "q")
    data = bytearray(path.read_bytes())
    data[8:20] = struct.pack(">QI", 512, len(name))
    data[512 : 512 + len(name)] = name.encode()
    path.write_bytes(data)
    said = refused(path)
    assert repr(name[:200])[1:-1] in said
    assert "convert" not in said
    assert said.isprintable()
    assert len(said) < 700
    path.write_bytes(bytes(data[:8]) + struct.pack(">QI", 1 << 60, 11) + bytes(data[20:]))
    assert "whose name is not in it" in refused(path)


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "zero"):
        assert "not a plain file" in refused(tmp_path / name)
        with pytest.raises(UsageError, match="not a plain file"):
            disk.is_xz(tmp_path / name)


def gpt(path: Path, size: int, *, last: int | None = None, copy_at: int | None = None) -> Path:
    raw(path, size, gpt=True)
    with path.open("r+b") as stream:
        stream.seek(512 + 32)
        stream.write(struct.pack("<Q", size // 512 - 1 if copy_at is None else copy_at))
        stream.seek(1024)
        kind = uuid.UUID("516e7cb6-6ecf-11d6-8ff8-00022d09712b").bytes_le
        stream.write(kind + bytes(16) + struct.pack("<QQ", 64, last or size // 512 - 40))
    return path


def test_a_disk_cut_short_is_known_by_its_tables(tmp_path: Path) -> None:
    assert disk.examine(gpt(tmp_path / "whole", 4 * MIB)).size_bytes == 4 * MIB
    # One that was copied to something larger is good: a guest grows into it.
    assert disk.examine(gpt(tmp_path / "grown", 4 * MIB, copy_at=2 * MIB // 512 - 1, last=900))
    assert "truncated: its partition table describes 8.0 MiB, the file has 4.0 MiB" in refused(
        gpt(tmp_path / "a", 4 * MIB, copy_at=8 * MIB // 512 - 1)
    )
    assert "truncated" in refused(gpt(tmp_path / "b", 4 * MIB, last=8 * MIB // 512 - 1))
    assert "describes 8193 sectors, the file has 8192; copy" in refused(
        gpt(tmp_path / "c", 4 * MIB, copy_at=8192)
    )
    path = raw(tmp_path / "mbr", 4 * MIB)
    for kind, count, good in ((0xA5, 4096, True), (0xA5, 9000, False), (0xEE, 9000, True)):
        with path.open("r+b") as stream:
            stream.seek(4 * MIB - 512)
            stream.write(b"EFI PART")
            stream.seek(446)
            stream.write(struct.pack("<BxxxBxxxII", 0x80, kind, 63, count))
        if good:
            assert disk.examine(path)
        else:
            assert "truncated" in refused(path)


def test_a_cd_that_boots_from_a_stick_too(tmp_path: Path) -> None:
    """It has both partition tables, and is a CD all the same."""
    path = raw(tmp_path / "disc1.iso", 16 * MIB, gpt=True)
    with path.open("r+b") as stream:
        stream.seek(0x8000)
        stream.write(b"\x01CD001\x01")
    assert "it is a CD image" in refused(path)


def test_a_disk_larger_than_any(tmp_path: Path) -> None:
    assert "larger than any disk" in refused(raw(tmp_path / "d", 8 << 40))


def test_xz_with_padding_is_whole_and_garbage_is_refused(tmp_path: Path) -> None:
    """As xz -d has it, of which half was unpacked without a word."""
    content = os.urandom(2 * MIB)
    packed, target = tmp_path / "disk.raw.xz", tmp_path / "disk.raw"
    halves = [lzma.compress(content[:MIB]), lzma.compress(content[MIB:])]
    packed.write_bytes(halves[0] + bytes(8) + halves[1] + bytes(4))
    disk.decompress(packed, target, lambda _line: None)
    assert target.read_bytes() == content
    for tail in (b"garbage!", bytes(3), halves[1][:-20], b"\xfd7zXZ"):
        target.unlink(missing_ok=True)
        packed.write_bytes(halves[0] + bytes(8) + tail)
        with pytest.raises(CannotError, match="damaged or truncated"):
            disk.decompress(packed, target, lambda _line: None)
        assert not target.exists()


def test_xz_longer_than_it_may_be(tmp_path: Path) -> None:
    packed, target = tmp_path / "disk.raw.xz", tmp_path / "disk.raw"
    packed.write_bytes(lzma.compress(bytes(8 * MIB)))
    with pytest.raises(CannotError, match="it unpacks to more than"):
        disk.decompress(packed, target, lambda _line: None, MIB)
    assert not target.exists()


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
    with pytest.raises(CannotError, match="damaged or truncated"):
        disk.decompress(packed, tmp_path / "out" / "disk.raw", lambda _line: None)
    assert list((tmp_path / "out").iterdir()) == []
