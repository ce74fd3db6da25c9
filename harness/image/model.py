"""The image cache's records, as data: a disk brought, a disk prepared, a record kept.

Paths are absolute unless a field says otherwise; sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from harness.checked import Count, HostKey, Line, Osversion, Release, Sha256, User

DiskFormat = Literal["raw", "qcow2"]


@dataclass(frozen=True)
class Login:
    """How one logs in on the serial line of an image that was not prepared yet."""

    user: str = "root"
    password: str = ""


@dataclass(frozen=True)
class Imported:
    """A disk that was looked at and found usable, with the trees that belong to it.

    `disk` is only ever read.  `disk_bytes` is what the guest sees, not what the file takes.
    `source` holds `sys/`, `sysroot` holds `usr/include`, `usr/lib` and `lib`; both may be absent.
    """

    release: str
    disk: Path
    disk_format: DiskFormat
    disk_bytes: int
    disk_sha256: str
    origin: str
    login: Login = Login()
    source: Path | None = None
    sysroot: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """What the first boot made of an imported disk.

    `disk_raw` and `private_key` lie in the folder that `prepare` was given; the store renames that
    folder into place.  `host_key` is a line as in known_hosts without the host (`ssh-ed25519 …`).
    `osversion` is `__FreeBSD_version` of the running kernel, `changes` what was altered in the
    image, a line each.
    """

    disk_raw: Path
    private_key: Path
    host_key: str
    osversion: int
    uname: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageRecord:
    """A prepared release in the cache, ready for throw-away overlays.

    `disk` is raw and never written to; `origin` is the path or URL the disk came from, and
    `origin_sha256` the digest of that file (decompressed).  `prepared_at` is UTC, ISO 8601.
    `disk_bytes` is the apparent size, `disk_sha256` the prepared disk's digest.
    """

    release: Release
    origin: Line
    origin_format: DiskFormat
    origin_sha256: Sha256
    disk: Path
    disk_bytes: Count
    disk_sha256: Sha256
    private_key: Path
    host_key: HostKey
    osversion: Osversion
    uname: Line
    prepared_at: Line
    prepare_version: Count
    login_user: User = "root"
    changes: Annotated[tuple[Line, ...], msgspec.Meta(max_length=1000)] = ()
    source: Path | None = None
    sysroot: Path | None = None
