"""A FreeBSD source tree, and the facts that it states about itself.

This is the only place that reads newvers.sh and sys/param.h of a source tree.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from harness import release as releases
from harness.errors import UsageError
from harness.release import Release

NEWVERS = "sys/conf/newvers.sh"
PARAM = "sys/sys/param.h"

_REVISION = re.compile(r"^REVISION=[\"']?(\d+\.\d+)[\"']?\s*$", re.M)
_BRANCH = re.compile(r"^BRANCH=\"?([^\"\n]+)\"?", re.M)


@dataclass(frozen=True)
class SourceTree:
    """The facts that a source tree states; `branch` is from newvers.sh, like RELEASE-p1."""

    path: Path
    release: Release
    branch: str

    @property
    def revision(self) -> str:
        """Its release without its kind, as in newvers.sh: 15.1."""
        return self.release.version

    @property
    def osversion(self) -> int:
        """Its __FreeBSD_version."""
        return self.release.osversion

    @property
    def target(self) -> str:
        """The compiler's target for this tree."""
        return f"x86_64-unknown-freebsd{self.revision}"

    @property
    def in_git(self) -> bool:
        """Whether it is the top of a git checkout."""
        return (self.path / ".git").exists()

    def __str__(self) -> str:
        return f"{self.revision}-{self.branch}" if self.branch else self.revision


def is_tree(folder: str | Path) -> bool:
    """Whether a folder is the top of a source tree."""
    return os.path.isfile(os.path.join(folder, NEWVERS))


def require(folder: Path) -> None:
    """Raise UsageError unless a folder is the top of a source tree."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; name a FreeBSD source tree")
    if not is_tree(folder):
        raise UsageError(f"{folder}: it is not a FreeBSD source tree ({NEWVERS} is not there)")


def read(folder: Path) -> SourceTree:
    """Read a source tree's facts; UsageError if it is not a source tree.

    __FreeBSD_version determines the release; newvers.sh may have another product's name and number,
    and is used only if both agree.
    """
    folder = folder.absolute()
    require(folder)
    try:
        newvers = (folder / NEWVERS).read_text(errors="replace")
        param = (folder / PARAM).read_text(errors="replace")
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be read: {error.strerror}") from error
    osversion = releases.defined_osversion(param)
    if osversion is None:
        raise UsageError(f"{folder}: cannot find its release (__FreeBSD_version in {PARAM})")
    found = _BRANCH.search(newvers)
    branch = found[1] if found else ""
    kind = branch.partition("-")[0]
    release = releases.of_osversion(osversion, kind)
    named = _REVISION.search(newvers)
    said = releases.read(named[1]) if named else None
    if said and said.major == release.major:
        release = Release(said.major, said.minor, kind, osversion)
    return SourceTree(folder, release, branch)


def identify(folder: Path, release: str) -> SourceTree:
    """Like `read`, but also UsageError if the tree is of another major version than `release`."""
    tree = read(folder)
    named = tree.release.kind == "CURRENT" and release == releases.MAIN
    if not named and tree.release.branch != releases.branch_of(release):
        raise UsageError(
            f"{folder} is FreeBSD {tree.revision}, not {release}; name the right --src"
        )
    return tree


def revision(folder: Path) -> str:
    """The release of a tree ("15.1"); UsageError if it is not a source tree."""
    return read(folder).revision
