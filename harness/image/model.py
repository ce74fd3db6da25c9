"""The image cache's records as data: an imported disk, a prepared disk, a record of the cache.

Paths are absolute unless a field says otherwise; sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from harness import release as releases
from harness.checked import Count, Line, Osversion, Release, Sha256
from harness.guest.freebsd import Access

ANNOUNCEMENT = "vmm-workbench: sshd is up"
"""The line that a prepared image prints on its console once sshd listens."""

DiskFormat = Literal["raw", "qcow2"]

KernelLines = Annotated[tuple[Line, ...], msgspec.Meta(max_length=5000)]
"""A kernel's configuration, line by line, as the kernel itself states it; empty if unknown."""


@dataclass(frozen=True)
class Login:
    """The login on the serial line of an image that is not yet prepared."""

    user: str = "root"
    password: str = ""


@dataclass(frozen=True)
class Imported:
    """A usable disk and the trees that belong to it.

    `disk` is only read.  `disk_bytes` is its size for the guest, not the room of the file. `source`
    contains `sys/`, `sysroot` contains `usr/include`, `usr/lib` and `lib`; both may be None.
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
    """The result of the first boot of an imported disk.

    `disk_raw` and `private_key` are in the folder that `prepare` was given; the store renames that
    folder into place.  `host_key` is a line as in known_hosts without the host (`ssh-ed25519 …`).
    `osversion` is `__FreeBSD_version` of the running kernel, `changes` the changes in the image,
    one per line, and `kernel` the running kernel's configuration.
    """

    disk_raw: Path
    private_key: Path
    host_key: str
    osversion: int
    uname: str
    changes: tuple[str, ...] = ()
    kernel: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageRecord:
    """A prepared release in the cache, ready for throw-away overlays.

    `disk` is raw and never written to; `origin` is the path or URL the disk came from, and
    `origin_sha256` the digest of that file (decompressed).  `prepared_at` is UTC, ISO 8601.
    `disk_bytes` is the apparent size, `disk_sha256` the prepared disk's digest.  `kernel` is the
    configuration of its kernel, which a module must be built with too.
    """

    release: Release
    origin: Line
    origin_format: DiskFormat
    origin_sha256: Sha256
    disk: Path
    disk_bytes: Count
    disk_sha256: Sha256
    access: Access
    osversion: Osversion
    uname: Line
    prepared_at: Line
    prepare_version: Count
    changes: Annotated[tuple[Line, ...], msgspec.Meta(max_length=1000)] = ()
    source: Path | None = None
    sysroot: Path | None = None
    kernel: KernelLines = ()

    @property
    def system(self) -> str:
        """The system's name and version from uname: FreeBSD 15.1-RELEASE-p1; with a snapshot's
        build.
        """
        build = releases.parse(self.release).build
        name = " ".join(self.uname.split()[:3:2])
        return f"{name}, build {build}" if build else name
