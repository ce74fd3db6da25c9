"""Examines a qcow2 disk without QEMU: is it complete in itself, and what is at its beginning?

The format is described in QEMU's docs/interop/qcow2.txt: a two-level table has the position in the
file of each cluster of the disk.
"""

from __future__ import annotations

import shlex
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.errors import UsageError
from harness.files import human_bytes

MAGIC = b"QFI\xfb"
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _LONG_ENTRIES = 1, 2, 4, 8, 16
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _LONG_ENTRIES
_COMPRESSED = 1 << 62
_ZEROS = 1
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_LONGEST_NAME_BYTES = 200
_LEAST_BYTES = 1 << 20
# A table of tables of 32 MiB, QEMU's limit, belongs to 2 PiB with clusters of 64 KiB.
_MOST_TABLE_BYTES = 32 << 20
_CLUSTER_BITS = range(9, 22)


@dataclass(frozen=True)
class Header:
    """The used fields of a header.  `size_bytes` is the size for the guest."""

    cluster_bits: int
    size_bytes: int
    tables: int
    tables_at: int
    features: int

    @property
    def cluster_bytes(self) -> int:
        """The unit into which the file is divided."""
        return 1 << self.cluster_bits


def examine(path: Path, head: bytes) -> Header:
    """The header of the disk whose first bytes are `head`; UsageError unless the disk is
    complete.
    """
    if len(head) < 104:
        raise UsageError(f"{path}: it begins like qcow2 but is too short; was it truncated?")
    version, backing, length, bits, size, crypt, tables, at = struct.unpack_from(
        ">IQIIQIIQ", head, 4
    )
    if version == 1:
        raise UsageError(
            f"{path}: it is a qcow disk of version 1; run qemu-img convert -O qcow2 "
            f"{shlex.quote(str(path))} disk.qcow2 and import that"
        )
    if version not in (2, 3):
        raise UsageError(
            f"{path}: qcow2 version {version} is not supported, only 2 and 3; import it as a "
            "raw disk"
        )
    features = struct.unpack_from(">Q", head, 72)[0] if version == 3 else 0
    # Do not suggest a command that merges the other file, since it may be any file of this machine.
    whole = "ask its author for a disk that is complete in one file"
    if backing:
        name = _name_at(path, backing, length)
        raise UsageError(
            f"{path}: it contains only the differences to another file, {name} (its backing file); "
            f"{whole}"
        )
    if features & _DATA_FILE:
        raise UsageError(f"{path}: its data are in another file; {whole}")
    if crypt:
        raise UsageError(f"{path}: {encrypted('qcow2', 'encrypt.key-secret', path)}")
    if features & (_DIRTY | _CORRUPT):
        raise UsageError(
            f"{path}: it was not closed properly; if nothing uses it, run qemu-img check -r all "
            f"{shlex.quote(str(path))}"
        )
    if features & ~_KNOWN:
        raise UsageError(
            f"{path}: it has features that QEMU does not know either (bits "
            f"{features:#x}); import "
            "it as a raw disk"
        )
    if size < _LEAST_BYTES:
        raise UsageError(f"{path}: {human_bytes(size)} is not the size of a whole disk")
    if bits not in _CLUSTER_BITS or tables * 8 > _MOST_TABLE_BYTES:
        raise UsageError(f"{path}: its header is damaged; copy it again")
    return Header(bits, size, tables, at, features)


def encrypted(driver: str, secret: str, path: Path) -> str:
    """The message for an encrypted disk, with the command that decrypts it."""
    options = shlex.quote(f"driver={driver},{secret}=key,file.filename={path}")
    return (
        "it is encrypted; put its pass phrase into a file KEY, run qemu-img convert --object "
        f"secret,id=key,file=KEY --image-opts {options} -O raw disk.raw and import that"
    )


def require_complete(path: Path, header: Header) -> None:
    """Raise UsageError if a table refers to data behind the end of the file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        for table in _tables(stream, header, path):
            for entry in _entries(stream, header, table, path):
                if entry & _COMPRESSED:
                    at = entry & ((1 << (62 - (header.cluster_bits - 8))) - 1)
                else:
                    at = entry & _OFFSET
                if at >= size:
                    raise _cut_short(path, size)


def beginning(path: Path, header: Header, length: int) -> bytes | None:
    """The first `length` bytes of the disk; None if they are compressed by anything but zlib.

    Raises UsageError if they are damaged.
    """
    found = b""
    with path.open("rb") as stream:
        tables = _tables(stream, header, path)
        entries = _entries(stream, header, tables[0], path) if tables and tables[0] else ()
        for entry in (*entries, *([0] * length)):
            if len(found) >= length:
                break
            cluster = _cluster(stream, header, entry, path)
            if cluster is None:
                return None
            found += cluster
    return found[:length]


def _cluster(stream: IO[bytes], header: Header, entry: int, path: Path) -> bytes | None:
    if not entry & _COMPRESSED:
        at = entry & _OFFSET
        # In a disk with long entries a part of the cluster may count as zeros; it is read
        # unchanged.
        if not at or (entry & _ZEROS and not header.features & _LONG_ENTRIES):
            return bytes(header.cluster_bytes)
        stream.seek(at)
        return stream.read(header.cluster_bytes).ljust(header.cluster_bytes, b"\0")
    if header.features & _COMPRESSION:
        return None
    bits = 62 - (header.cluster_bits - 8)
    stream.seek(entry & ((1 << bits) - 1))
    packed = stream.read((((entry & ~_COMPRESSED) >> bits) + 1) * 512)
    try:
        return zlib.decompressobj(-12).decompress(packed, header.cluster_bytes)
    except zlib.error as error:
        raise UsageError(f"{path}: damaged ({error}); copy it again") from error


def _tables(stream: IO[bytes], header: Header, path: Path) -> list[int]:
    """The position of the table for each part of the disk; 0 for a part with zeros."""
    data = _read(stream, header.tables_at, header.tables * 8, path)
    return [it & _OFFSET for (it,) in struct.iter_unpack(">Q", data)]


def _entries(stream: IO[bytes], header: Header, table: int, path: Path) -> list[int]:
    if not table:
        return []
    data = _read(stream, table, header.cluster_bytes, path)
    entries = [it for (it,) in struct.iter_unpack(">Q", data)]
    # The second half of a long entry says which parts of its cluster exist.
    return entries[::2] if header.features & _LONG_ENTRIES else entries


def _read(stream: IO[bytes], at: int, count: int, path: Path) -> bytes:
    size = path.stat().st_size
    if at + count > size:
        raise _cut_short(path, size)
    stream.seek(at)
    return stream.read(count)


def _cut_short(path: Path, size: int) -> UsageError:
    return UsageError(
        f"{path}: it was truncated: its tables refer to data behind its {human_bytes(size)}; "
        "copy it again"
    )


def _name_at(path: Path, at: int, length: int) -> str:
    """The name at offset `at` of a qcow2 file, for messages."""
    with path.open("rb") as stream:
        if at > path.stat().st_size:
            return "whose name is not in it"
        stream.seek(at)
        return repr(stream.read(min(length, _LONGEST_NAME_BYTES)).decode("utf-8", "replace"))
