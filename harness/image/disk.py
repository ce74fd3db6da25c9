"""Examines a disk that a user imports: its format, and whether a guest can boot from it."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import limits, surroundings
from harness.errors import CannotError, UsageError
from harness.files import atomic_path, human_bytes, require_room, write_sparse
from harness.image import qcow2
from harness.image.model import DiskFormat
from harness.image.packed import DAMAGED, decompressed

_XZ = b"\xfd7zXZ\x00"
_SECTOR_BYTES = 512
_LEAST_BYTES = 1 << 20
_HEAD_BYTES = 0x8800
_CHUNK_BYTES = 1 << 20

ZFS_REFUSED = (
    "its root file system is ZFS, and only images with UFS are prepared so far; bring FreeBSD's "
    "image with -ufs in its name"
)

# The first 16 bytes of a GPT entry are the partition's type.
_UFS = uuid.UUID("516e7cb6-6ecf-11d6-8ff8-00022d09712b").bytes_le
_ZFS = uuid.UUID("516e7cba-6ecf-11d6-8ff8-00022d09712b").bytes_le
# A slice divided by BSD's own label, in GPT and in MBR.
_FREEBSD = uuid.UUID("516e7cb4-6ecf-11d6-8ff8-00022d09712b").bytes_le
_SLICE = 0xA5
_WHOLE_DISK = 0xEE
_TABLE_AT, _ENTRY_BYTES, _ENTRIES = 1024, 128, 128

_CONVERT = "qemu-img convert -O raw {} disk.raw"
# What else people bring: where in the file, its mark -> what it is, what to run on it first.
_OTHERS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "compressed with gzip", "gzip -dc {} >disk.raw"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "zstd -dc {} >disk.raw"),
    (0, b"BZh", "compressed with bzip2", "bzip2 -dc {} >disk.raw"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "lz4 -dc {} >disk.raw"),
    (0, b"]\0\0", "compressed with lzma", "xz --format=lzma -dc {} >disk.raw"),
    (0, b"\x1f\x9d", "compressed with compress", "gzip -dc {} >disk.raw"),
    (0, b"PK\x03\x04", "a zip archive", "unzip {}"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "7z x {}"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unrar x {}"),
    (257, b"ustar", "a tar archive", "tar -xf {}"),
    (0, b"KDMV", "a VMware disk", _CONVERT),
    (0, b"# Disk DescriptorFile", "the description of a VMware disk", _CONVERT),
    (0, b"vhdxfile", "a VHDX disk", _CONVERT),
    (0, b"conectix", "a VHD disk", _CONVERT),
    (64, b"\x7f\x10\xda\xbe", "a VirtualBox disk", _CONVERT),
    (0, b"QED\0", "a QED disk", _CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels disk", _CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels disk", _CONVERT),
)
_PAGE = re.compile(rb"\s*(?:<!doctype html|<html|<\?xml)", re.I)
_ADDRESS = re.compile(r"[a-z]+:/", re.I)


@dataclass(frozen=True)
class Disk:
    """A usable disk.  `size_bytes` is its size for the guest."""

    path: Path
    format: DiskFormat
    size_bytes: int


def is_xz(path: Path) -> bool:
    """Whether the file is compressed with xz; UsageError if it cannot be read."""
    return _head(path).startswith(_XZ)


def examine(path: Path) -> Disk:
    """Examine a raw or qcow2 disk; UsageError says what is wrong with it, and the remedy."""
    head = _head(path)
    if head.startswith(qcow2.MAGIC):
        header = qcow2.examine(path, head)
        qcow2.require_complete(path, header)
        inside = qcow2.beginning(path, header, _HEAD_BYTES)
        if inside is not None:
            _examine_content(path, inside, header.size_bytes)
        return Disk(path, "qcow2", header.size_bytes)
    size = path.stat().st_size
    _refuse_others(path, head, size)
    if size < _LEAST_BYTES or size % _SECTOR_BYTES:
        raise UsageError(
            f"{path}: {human_bytes(size)} is not the size of a raw disk (sectors of 512 "
            "bytes, at least 1 MiB); was the file truncated? Copy it again"
        )
    _examine_content(path, head, size, _tail(path, size))
    return Disk(path, "raw", size)


def _refuse_others(path: Path, head: bytes, size: int) -> None:
    """UsageError for what is neither raw nor qcow2."""
    named = shlex.quote(str(path))
    for at, mark, what, command in _OTHERS:
        if head.startswith(mark, at):
            raise UsageError(f"{path}: it is {what}; run {command.format(named)} and import that")
    if head.startswith(b"LUKS\xba\xbe"):
        raise UsageError(f"{path}: {qcow2.encrypted('luks', 'key-secret', path)}")
    if _PAGE.match(head):
        raise UsageError(f"{path}: it is a web page; fetch the disk itself (curl -fLO ADDRESS)")
    # Of a VHD disk with all its room the mark stands at the end, and the rest is raw.
    if size >= _SECTOR_BYTES and _tail(path, size).startswith(b"conectix"):
        raise UsageError(
            f"{path}: it is a VHD disk; run "
            f"{_CONVERT.replace('convert', 'convert -f vpc').format(named)} and import that"
        )


def _examine_content(path: Path, head: bytes, size: int, at_end: bytes = b"EFI PART") -> None:
    """Of what a guest sees as its disk: UsageError if it cannot boot from it.

    `at_end` is the last sector, where it can be seen: GPT has its copy there.
    """
    if head[0x8001:0x8006] == b"CD001":
        # CD images that also boot from a USB stick have partition tables too.
        raise UsageError(f"{path}: it is a CD image; import the disk of an installed system")
    if head[4096:4104] == b"EFI PART" and head[512:520] != b"EFI PART":
        raise UsageError(
            f"{path}: it is divided in sectors of 4096 bytes, and guests here have sectors of 512; "
            "bring a disk that was made for these"
        )
    if head[510:512] != b"\x55\xaa" and head[512:520] != b"EFI PART":
        raise UsageError(
            f"{path}: no partition table (neither MBR nor GPT) is on it; import a whole bootable "
            "disk, raw or qcow2, not a partition or a file system"
        )
    if size > limits.DISK_BYTES:
        raise UsageError(
            f"{path}: {human_bytes(size)} is larger than any disk that is accepted here"
        )
    _require_complete(path, head, size)
    kinds = _kinds(head)
    if head[512:520] == b"EFI PART" and _ZFS in kinds and _UFS not in kinds:
        raise UsageError(f"{path}: {ZFS_REFUSED}")
    if kinds == {_WHOLE_DISK} and not at_end.startswith(b"EFI PART"):
        raise UsageError(
            f"{path}: its partition table (GPT) is gone, at the beginning and at the end; copy the "
            "disk again"
        )
    if kinds and not kinds & {_UFS, _ZFS, _FREEBSD, _SLICE, _WHOLE_DISK}:
        raise UsageError(
            f"{path}: no partition of FreeBSD is on it; bring the disk of an installed FreeBSD"
        )


def _kinds(head: bytes) -> set[bytes | int]:
    """What the partitions are for: GPT's 16 bytes, or MBR's number."""
    if head[512:520] == b"EFI PART":
        table = head[_TABLE_AT : _TABLE_AT + _ENTRIES * _ENTRY_BYTES]
        found = {table[at : at + 16] for at in range(0, len(table), _ENTRY_BYTES)}
        return {it for it in found if any(it)}
    return {head[at + 4] for at in range(446, 510, 16) if head[at + 4]}


def _tail(path: Path, size: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(size - _SECTOR_BYTES)
        return stream.read()


def _require_complete(path: Path, head: bytes, size: int) -> None:
    """Raise UsageError if the partition table says that the disk is longer than the file."""
    sectors = 0
    if head[512:520] == b"EFI PART":
        sectors = (
            struct.unpack_from("<Q", head, 512 + 32)[0] + 1
        )  # its copy is at the end of the disk
        for at in range(_TABLE_AT, _TABLE_AT + _ENTRIES * _ENTRY_BYTES, _ENTRY_BYTES):
            kind, _, _, last = struct.unpack_from("<16s16sQQ", head, at)
            if any(kind):
                sectors = max(sectors, last + 1)
    elif head[510:512] == b"\x55\xaa":
        for at in range(446, 510, 16):
            kind, start, count = struct.unpack_from("<4xB3xII", head, at)
            if kind not in (0, _WHOLE_DISK):
                sectors = max(sectors, start + count)
    if sectors * _SECTOR_BYTES > size:
        described, there = human_bytes(sectors * _SECTOR_BYTES), human_bytes(size)
        if described == there:
            described, there = f"{sectors} sectors", f"{size // _SECTOR_BYTES}"
        raise UsageError(
            f"{path}: it was truncated: its partition table describes {described}, the file has "
            f"{there}; copy it again"
        )


def _head(path: Path) -> bytes:
    try:
        # Reading a FIFO would block, and a device may never end.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode):
                what = "a folder" if stat.S_ISDIR(mode) else "not a plain file"
                command = f"dd if={shlex.quote(str(path))} of=disk.raw bs=1M"
                copy = surroundings.look().as_root(command)
                raise UsageError(
                    f"{path}: it is {what}; --disk takes a raw or qcow2 disk in a plain file"
                    + (f" (copy it: {copy})" if stat.S_ISBLK(mode) else "")
                )
            return os.pread(handle, _HEAD_BYTES, 0)
        finally:
            os.close(handle)
    except OSError as error:
        if _ADDRESS.match(str(path)):
            raise UsageError(
                f"{path}: an address is not fetched; fetch the disk with curl -fLO ADDRESS and "
                "import the file"
            ) from error
        raise UsageError(f"{path}: {error.strerror}") from error


def decompress(
    source: Path,
    target: Path,
    live: Callable[[str], None],
    most_bytes: int = limits.DISK_BYTES,
) -> str:
    """Unpack an xz file to `target`, sparsely, completely or not at all; the contents' SHA-256.

    `target` is for the preparation alone, so it is not synced. Raises CannotError if it is damaged
    or longer than `most_bytes`, or if there is no room.
    """
    packed_bytes = source.stat().st_size
    try:
        with (
            atomic_path(target, durable=False) as temporary,
            source.open("rb") as packed,
            decompressed(packed) as stream,
            temporary.open("wb") as out,
        ):
            done = 0
            digest = hashlib.sha256()
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                if done >> 26 != (done - _CHUNK_BYTES) >> 26:
                    require_room(target.parent, 512 << 20, f"unpacking {source.name}")
                    live(f"unpacking {source.name}: {100 * packed.tell() // packed_bytes} %")
                write_sparse(out, chunk)
                done += len(chunk)
                if done > most_bytes:
                    raise CannotError(
                        f"{source}: it unpacks to more than {human_bytes(most_bytes)}, "
                        f"which is "
                        "too large for a disk"
                    )
            out.truncate(done)
        return digest.hexdigest()
    except DAMAGED as error:
        raise CannotError(f"{source}: damaged or truncated ({error})") from error
    except OSError as error:
        raise CannotError(
            f"unpacking {source.name} into {target.parent}: {error.strerror}"
        ) from error
