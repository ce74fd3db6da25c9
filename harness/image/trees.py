"""The trees that belong to a release: its source, and a sysroot to build userland against.

Each is a folder of the user's, referenced where it is and never written to, or a distribution set
(src.txz, base.txz), unpacked into the cache.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.files import atomic_dir
from harness.image import unpack

SYSROOT_PARTS = ("usr/include", "usr/lib", "lib")

_ARCHIVES = (".txz", ".tar.xz", ".tgz", ".tar.gz", ".tar")
_PER_MAJOR = 100_000
_SOURCE_MARK = "sys/sys/param.h"
_SYSROOT_MARKS = ("usr/include/sys/param.h", "usr/lib/libc.so")


@dataclass(frozen=True)
class Version:
    """What a source tree says it is: `15.1`, `RELEASE-p1`, 1501000."""

    revision: str
    branch: str
    osversion: int


def source(given: Path, release: str, folder: Path, live: Callable[[str], None]) -> Path:
    """The source tree in `given`, a folder or an archive; an archive is unpacked as `folder`.

    UsageError when it is no FreeBSD source, or that of another release.
    """
    if not _is_archive(given):
        root = _source_root(given)
        if root is None:
            raise UsageError(f"{given}: no FreeBSD source tree ({_SOURCE_MARK} is not in it)")
        check_release(root, release)
        return root.absolute()
    with atomic_dir(folder) as temporary:
        unpack.unpack(given, temporary, live)
        root = _source_root(temporary)
        if root is None:
            raise UsageError(f"{given}: no FreeBSD source ({_SOURCE_MARK} is not in it)")
        check_release(root, release, given)
        below = root.relative_to(temporary)
    return folder / below


def sysroot(given: Path, release: str, folder: Path, live: Callable[[str], None]) -> Path:
    """The sysroot in `given`, a folder or an archive of which headers and libraries are taken.

    UsageError when it has no FreeBSD headers and libraries, or those of another major release.
    """
    if not _is_archive(given):
        check_sysroot(given, release, given)
        return given.absolute()
    with atomic_dir(folder) as temporary:
        unpack.unpack(given, temporary, live, only=SYSROOT_PARTS)
        check_sysroot(temporary, release, given)
    return folder


def version(root: Path) -> Version:
    """What the tree says of itself; UsageError when it does not."""
    named = root / "sys/conf/newvers.sh"
    param = root / _SOURCE_MARK
    try:
        text = named.read_text(errors="replace")
        defined = param.read_text(errors="replace")
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    revision = re.search(r'^REVISION="([^"]+)"', text, re.MULTILINE)
    branch = re.search(r'^BRANCH="?([^"\n]+)"?', text, re.MULTILINE)
    number = _osversion(defined)
    if not revision or number is None:
        raise UsageError(f"{named if not revision else param}: it does not say which FreeBSD it is")
    return Version(revision[1], branch[1] if branch else "", number)


def check_release(root: Path, release: str, given: Path | None = None) -> None:
    """UsageError unless the tree is of that release (15.1 for 15.1-RELEASE-p1)."""
    found = version(root)
    if found.revision != release.split("-")[0]:
        raise UsageError(
            f"{given or root}: it is the source of FreeBSD {found.revision}-{found.branch}, and "
            f"--release says {release}; a module built from it would not fit the guest"
        )


def _is_archive(given: Path) -> bool:
    if given.is_dir():
        return False
    if not given.exists():
        raise UsageError(f"{given}: no such file or folder")
    if not given.name.endswith(_ARCHIVES):
        raise UsageError(f"{given}: neither a folder nor an archive ({', '.join(_ARCHIVES)})")
    return True


def _source_root(folder: Path) -> Path | None:
    """The tree's top: the folder itself, usr/src in a distribution set, or an archive's one top."""
    candidates = [folder, folder / "usr/src"]
    inner = [path for path in folder.iterdir() if path.is_dir()]
    if len(inner) == 1:
        candidates.append(inner[0])
    return next((path for path in candidates if (path / _SOURCE_MARK).is_file()), None)


def check_sysroot(root: Path, release: str = "", given: Path | None = None) -> None:
    """UsageError unless FreeBSD's headers and libraries are in it; `given` is what was named.

    They have to be of the major release of `release`, if one is given.
    """
    for mark in _SYSROOT_MARKS:
        if not (root / mark).is_file():
            raise UsageError(
                f"{given or root}: no sysroot ({mark} is not in it); give base.txz, or a folder "
                f"with {', '.join(SYSROOT_PARTS)} of the release"
            )
    major = release.partition(".")[0]
    if not major:
        return
    number = _osversion((root / _SYSROOT_MARKS[0]).read_text(errors="replace"))
    if number is None:
        raise UsageError(
            f"{given or root}: {_SYSROOT_MARKS[0]} does not say which FreeBSD it is of; give "
            "base.txz of the release"
        )
    require_same_major(root, int(major) * _PER_MAJOR, given)


def require_same_major(root: Path, osversion: int, given: Path | None = None) -> None:
    """UsageError when a sysroot is of another major release than a source of `osversion`."""
    with contextlib.suppress(OSError):
        number = _osversion((root / _SYSROOT_MARKS[0]).read_text(errors="replace"))
        if number is not None and number // _PER_MAJOR != osversion // _PER_MAJOR:
            raise UsageError(
                f"{given or root}: this sysroot is of FreeBSD {number // _PER_MAJOR} ({number}), "
                f"and the source is of FreeBSD {osversion // _PER_MAJOR}; what is built against it "
                "would not fit the guest; give the base.txz of the source's release"
            )


def _osversion(text: str) -> int | None:
    number = re.search(r"^#define\s+__FreeBSD_version\s+(\d{6,8})\b", text, re.MULTILINE)
    return int(number[1]) if number else None
