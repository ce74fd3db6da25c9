"""The format of a bundle: its members, and its index (checked before anything is unpacked)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from harness import checked, limits
from harness.checked import (
    Count,
    Digest,
    HostKey,
    Line,
    Name,
    Osversion,
    Release,
    Sha256,
    Url,
    User,
)
from harness.errors import CannotError, UsageError
from harness.image import prepare
from harness.image.model import DiskFormat, KernelLines
from harness.image.packed import Member

FORMAT = 1
INDEX = "bundle.json"
DISK, PASSWORD, SOURCE, SYSROOT = "disk.raw.xz", "console-password", "src.txz", "base.txz"
KEY, STATE = "id_ed25519", "snapshot.txz"
MEMBERS = (DISK, PASSWORD, SOURCE, SYSROOT, KEY, STATE)
_MOST_INDEX_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """The part of ImageRecord that a bundle contains."""

    release: Release
    origin: Line
    origin_format: DiskFormat
    origin_sha256: Sha256
    disk_bytes: Annotated[int, msgspec.Meta(ge=1, le=limits.DISK_BYTES)]
    disk_sha256: Sha256
    host_key: HostKey
    osversion: Osversion
    uname: Line
    prepared_at: Line
    prepare_version: int
    login_user: User
    changes: Annotated[tuple[Line, ...], msgspec.Meta(max_length=1000)]
    # Bundles of an earlier version of the workbench do not have it.
    kernel: KernelLines = ()


@dataclass(frozen=True)
class Pin:
    """A fetched file's address, and the digest that it must have from then on."""

    name: Name
    url: Url
    digest: Digest
    at: Line


@dataclass(frozen=True)
class Part:
    """The size and digest of a member."""

    size_bytes: Count
    sha256: Sha256


@dataclass(frozen=True)
class Index:
    """bundle.json, which is checked completely before anything is unpacked."""

    format: int
    record: Record
    public_key: HostKey
    pins: Annotated[tuple[Pin, ...], msgspec.Meta(max_length=100)]
    members: dict[str, Part]


def read_index(path: Path, parts: Iterator[Member]) -> Index:
    """Read and check the bundle's index, before anything is written."""
    first = next(parts, None)
    if (
        first is None
        or first.name != INDEX
        or not first.info.isreg()
        or first.info.size > _MOST_INDEX_BYTES
    ):
        raise UsageError(f"{path}: it is not a bundle of ./inv image.bundle ({INDEX} is not in it)")
    try:
        text = first.content().read()
        index = checked.decode(Index, text)
    except ValueError as error:
        raise CannotError(f"{path}: {INDEX} cannot be used ({error})") from error
    if index.format != FORMAT:
        raise CannotError(
            f"{path}: {INDEX} cannot be used (its format is {index.format}, "
            f"but only {FORMAT} is supported)"
        )
    # A snapshot works only with the key of the machine that saved it.
    keys = {name in index.members for name in (KEY, STATE)}
    if not {DISK} <= set(index.members) <= set(MEMBERS) or len(keys) > 1:
        raise CannotError(
            f"{path}: {INDEX} cannot be used (it lacks a member, or has an extra one)"
        )
    if index.record.prepare_version != prepare.VERSION:
        raise CannotError(
            f"{path}: it was prepared by another version of the workbench "
            f"({index.record.prepare_version}, here {prepare.VERSION}); make the bundle again"
        )
    return index
