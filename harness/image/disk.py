"""A disk that somebody brings: what kind of file it is, and whether a guest can boot from it."""

from __future__ import annotations

import os
import stat
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import limits
from harness.errors import CannotError, UsageError
from harness.files import atomic_path, human_bytes, require_room, write_sparse
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

# Of GPT's entries the first 16 bytes say what a partition is for.
_UFS = uuid.UUID("516e7cb6-6ecf-11d6-8ff8-00022d09712b").bytes_le
_ZFS = uuid.UUID("516e7cba-6ecf-11d6-8ff8-00022d09712b").bytes_le
_WHOLE_DISK = 0xEE
_DATA_FILE = 4
_LONGEST_NAME_BYTES = 200
_TABLE_AT, _ENTRY_BYTES, _ENTRIES = 1024, 128, 128

# What else people bring, by its first bytes -> what to run on it first.
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed with gzip", "gunzip -k {}"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unzstd -k {}"),
    (b"BZh", "compressed with bzip2", "bunzip2 -k {}"),
    (b"PK\x03\x04", "a zip archive", "unzip {}"),
    (b"KDMV", "a VMware disk", "qemu-img convert -O raw {} disk.raw"),
    (b"vhdxfile", "a VHDX disk", "qemu-img convert -O raw {} disk.raw"),
    (b"conectix", "a VHD disk", "qemu-img convert -O raw {} disk.raw"),
    (b"<<< Oracle VM", "a VirtualBox disk", "qemu-img convert -O raw {} disk.raw"),
)


@dataclass(frozen=True)
class Disk:
    """A disk found usable.  `size_bytes` is what a guest sees of it."""

    path: Path
    format: DiskFormat
    size_bytes: int


def is_xz(path: Path) -> bool:
    """Whether the file is compressed with xz; UsageError when it cannot be read."""
    return _head(path).startswith(_XZ)


def examine(path: Path) -> Disk:
    """Look at a raw or qcow2 disk; UsageError says what is wrong with it, and the remedy."""
    head = _head(path)
    if head.startswith(b"QFI\xfb"):
        return _examine_qcow2(path, head)
    for magic, what, command in _OTHERS:
        if head.startswith(magic):
            raise UsageError(f"{path}: it is {what}; run {command.format(path)} and import that")
    if head[0x8001:0x8006] == b"CD001":
        # Those that boot from a USB stick too have partition tables besides.
        raise UsageError(f"{path}: it is a CD image; bring the disk of an installed system")
    size = path.stat().st_size
    if size < _LEAST_BYTES or size % _SECTOR_BYTES:
        raise UsageError(
            f"{path}: {human_bytes(size)} is no whole raw disk (sectors of 512 bytes, 1 MiB at "
            "least); was the file cut short?"
        )
    if head[510:512] != b"\x55\xaa" and head[512:520] != b"EFI PART":
        raise UsageError(
            f"{path}: no partition table (neither MBR nor GPT) is on it; bring a whole bootable "
            "disk, raw or qcow2, not a partition or a file system"
        )
    if size > limits.DISK_BYTES:
        raise UsageError(f"{path}: {human_bytes(size)} is more than any disk that is taken here")
    _require_complete(path, head, size)
    table = head[_TABLE_AT : _TABLE_AT + _ENTRIES * _ENTRY_BYTES]
    kinds = {table[at : at + 16] for at in range(0, len(table), _ENTRY_BYTES)}
    if head[512:520] == b"EFI PART" and _ZFS in kinds and _UFS not in kinds:
        raise UsageError(f"{path}: {ZFS_REFUSED}")
    return Disk(path, "raw", size)


def _require_complete(path: Path, head: bytes, size: int) -> None:
    """UsageError when a partition table says that the disk was longer."""
    sectors = 0
    if head[512:520] == b"EFI PART":
        sectors = struct.unpack_from("<Q", head, 512 + 32)[0] + 1  # where its copy is: the end
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
        raise UsageError(
            f"{path}: it was cut short: its partition table describes "
            f"{human_bytes(sectors * _SECTOR_BYTES)}, the file has {human_bytes(size)}; copy it "
            "again"
        )


def _head(path: Path) -> bytes:
    try:
        # A FIFO would be waited for, and a device never ends.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode):
                what = "a folder" if stat.S_ISDIR(mode) else "no plain file"
                raise UsageError(
                    f"{path}: it is {what}; --disk takes a raw or qcow2 disk in a plain file"
                )
            return os.pread(handle, _HEAD_BYTES, 0)
        finally:
            os.close(handle)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _examine_qcow2(path: Path, head: bytes) -> Disk:
    if len(head) < 104:
        raise UsageError(f"{path}: it begins like qcow2 and ends at once; was it cut short?")
    version, backing, length, _bits, size, crypt = struct.unpack_from(">IQIIQI", head, 4)
    if version not in (2, 3):
        raise UsageError(f"{path}: qcow2 of version {version} is not known here, only 2 and 3")
    features = struct.unpack_from(">Q", head, 72)[0] if version == 3 else 0
    # No command that would copy the other file into the image: it may be any file of this machine.
    whole = "bring a disk that is whole by itself, from whoever made this one"
    if backing:
        name = _name_at(path, backing, length)
        raise UsageError(
            f"{path}: it holds only what differs from another file, {name} (its backing file); "
            f"{whole}"
        )
    if features & _DATA_FILE:
        raise UsageError(f"{path}: its data lie in another file; {whole}")
    if crypt:
        raise UsageError(f"{path}: it is encrypted; run qemu-img convert with its key first")
    if features & 3:
        raise UsageError(
            f"{path}: it was not closed properly; if nothing uses it, run qemu-img check -r all "
            f"{path}"
        )
    if size < _LEAST_BYTES:
        raise UsageError(f"{path}: {human_bytes(size)} is no whole disk")
    return Disk(path, "qcow2", size)


def _name_at(path: Path, at: int, length: int) -> str:
    """The name that a qcow2 file has at `at`, for people to read."""
    with path.open("rb") as stream:
        if at > path.stat().st_size:
            return "whose name is not in it"
        stream.seek(at)
        return repr(stream.read(min(length, _LONGEST_NAME_BYTES)).decode("utf-8", "replace"))


def decompress(
    source: Path,
    target: Path,
    live: Callable[[str], None],
    most_bytes: int = limits.DISK_BYTES,
) -> None:
    """Unpack an xz file to `target`, sparse, whole or not at all.

    CannotError when it is damaged, longer than `most_bytes` or there is no room.
    """
    packed_bytes = source.stat().st_size
    try:
        with (
            atomic_path(target) as temporary,
            source.open("rb") as packed,
            decompressed(packed) as stream,
            temporary.open("wb") as out,
        ):
            done = 0
            while chunk := stream.read(_CHUNK_BYTES):
                if done >> 26 != (done - _CHUNK_BYTES) >> 26:
                    require_room(target.parent, 512 << 20, f"unpacking {source.name}")
                    live(f"unpacking {source.name}: {100 * packed.tell() // packed_bytes} %")
                write_sparse(out, chunk)
                done += len(chunk)
                if done > most_bytes:
                    raise CannotError(
                        f"{source}: it unpacks to more than {human_bytes(most_bytes)}; no disk is "
                        "taken from it"
                    )
            out.truncate(done)
    except DAMAGED as error:
        raise CannotError(f"{source}: damaged or cut short ({error})") from error
    except OSError as error:
        raise CannotError(
            f"unpacking {source.name} into {target.parent}: {error.strerror}"
        ) from error
