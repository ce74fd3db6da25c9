"""ccache before the compiler: what was compiled once is taken from there, in whatever series.

It is Debian's, and stays out where it is not installed, or where CCACHE_DISABLE is set.  Its cache
is our own, and the user's settings play no part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import files
from harness.build.sandbox import Sandbox

_SIZE = "256M"
_FOLDER = "ccache"
_STRANGERS = "ccache-strangers"
_FOREIGN_CACHES = 8


@dataclass(frozen=True)
class Ccache:
    """What stands before the compiler's name, and what ccache finds in its environment."""

    launcher: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


NONE = Ccache()


def find(
    work: Path, compiler: str, names: Iterable[str], sandbox: Sandbox, *, stranger: str = ""
) -> tuple[Ccache, Sandbox]:
    """The ccache to use for a build in `work`, and the sandbox in which it can be written to.

    `compiler` says which compiler it is.  `names` are those of all files that an #include may lead
    to: ccache looks at those that were read last time, and would not notice a new one that is found
    before them.  `stranger` is the digest of a series that is not the project's: its Makefiles can
    put anything into the cache that they write to, so it gets a copy of its own.
    """
    if "CCACHE_DISABLE" in os.environ or not shutil.which("ccache"):
        return NONE, sandbox
    place = files.cache_dir() / _FOLDER
    if stranger:
        place = _copied(place, files.cache_dir() / _STRANGERS / stranger[:32])
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
    if not os.access(place, os.W_OK | os.X_OK):
        # It would fail, and the patch be blamed.
        return NONE, sandbox
    known = work / "names"
    known.write_text(files.sha256_text(*sorted(names)))
    temporary, seen = work / "ccache-tmp", work / "ccache"
    temporary.mkdir()
    if sandbox.program is None:
        seen = place
    else:
        seen.mkdir()
    used = Ccache(
        ("ccache",),
        (
            ("CCACHE_CONFIGPATH", os.devnull),
            ("CCACHE_DIR", sandbox.inside(seen)),
            ("CCACHE_TEMPDIR", sandbox.inside(temporary)),
            ("CCACHE_MAXSIZE", _SIZE),
            ("CCACHE_COMPILERCHECK", f"string:{compiler}"),
            ("CCACHE_EXTRAFILES", sandbox.inside(known)),
            # By the compiler's own list of what it read, without preprocessing everything first.
            ("CCACHE_DEPEND", "1"),
        ),
    )
    return used, dataclasses.replace(
        sandbox, writes=(*sandbox.writes, temporary), caches=((place, seen),)
    )


def _copied(place: Path, own: Path) -> Path:
    """A stranger's cache, which begins as a copy of ours; only the newest of them stay."""
    own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(OSError, shutil.Error):
        if not own.exists() and place.is_dir():
            with files.atomic_dir(own) as begun:
                shutil.copytree(place, begun, dirs_exist_ok=True)
        os.utime(own)
    kept = sorted(own.parent.glob("[0-9a-f]*"), key=lambda it: it.stat().st_mtime, reverse=True)
    for old in kept[_FOREIGN_CACHES:]:
        shutil.rmtree(old, ignore_errors=True)
    return own
