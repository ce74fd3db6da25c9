"""A sysroot: FreeBSD's headers and libraries, to build programs for the guest against."""

from __future__ import annotations

from pathlib import Path

from harness import release as releases
from harness.errors import UsageError

PARTS = ("usr/include", "usr/lib", "lib")
"""The folders of a base.txz that make a sysroot."""

_HEADER = "usr/include/sys/param.h"
_MARKS = (_HEADER, "usr/lib/crt1.o", "usr/lib/libc.so")


def require(root: Path, major: int = 0, given: Path | None = None) -> Path:
    """The sysroot's absolute path; UsageError unless it has FreeBSD's headers and C library.

    With `major` it must be of that major release.  `given` is the path that the user named, if that
    is not the folder itself.
    """
    named = given or root
    for mark in _MARKS:
        if not (root / mark).is_file():
            raise UsageError(
                f"{named}: it is not a FreeBSD sysroot ({mark} is not there); give "
                f"base.txz, or a folder "
                f"with {', '.join(PARTS)} of the release"
            )
    if not major:
        return root.absolute()
    found = osversion(root)
    if found is None:
        raise UsageError(
            f"{named}: {_HEADER} does not say which FreeBSD it is of; give base.txz of the release"
        )
    if releases.major_of(found) != major:
        raise UsageError(
            f"{named}: this sysroot is of FreeBSD {releases.major_of(found)} ({found}), "
            f"but FreeBSD {major} is needed; programs built with it would not fit the guest; "
            "give base.txz of that release (--sysroot)"
        )
    return root.absolute()


def osversion(root: Path) -> int | None:
    """The __FreeBSD_version of a sysroot; None if its headers do not say it."""
    return releases.defined_osversion((root / _HEADER).read_text(errors="replace"))
