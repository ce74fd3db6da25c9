"""Runs the compiler through ccache, so that unchanged files are compiled only once.

It is Debian's ccache, with a cache of our own and without the user's settings.  It is not used if
it is not installed or CCACHE_DISABLE is set.
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
    """The words before the compiler's name, and the environment for ccache."""

    launcher: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


NONE = Ccache()


def find(
    work: Path, compiler: str, names: Iterable[str], sandbox: Sandbox, *, stranger: str = ""
) -> tuple[Ccache, Sandbox]:
    """The ccache to use for a build in `work`, and the sandbox in which it can be written to.

    `compiler` identifies the compiler.  `names` are those of all files that an #include may find:
    ccache checks the files that were read last time, and would not notice a new one that is found
    before them.  `stranger` is the digest of a series from outside the project: its Makefiles can
    write anything to the cache, so it gets its own copy.
    """
    if "CCACHE_DISABLE" in os.environ or not shutil.which("ccache"):
        return NONE, sandbox
    place = files.cache_dir() / _FOLDER
    if stranger:
        place = _copied(place, files.cache_dir() / _STRANGERS / stranger[:32])
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
    if not os.access(place, os.W_OK | os.X_OK):
        # ccache would fail, and that would look like a fault of the patch.
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
            # Use the compiler's own list of included files instead of preprocessing everything
            # first.
            ("CCACHE_DEPEND", "1"),
        ),
    )
    return used, dataclasses.replace(
        sandbox, writes=(*sandbox.writes, temporary), caches=((place, seen),)
    )


def _copied(place: Path, own: Path) -> Path:
    """The cache of an outside series, which starts as a copy of ours; only the newest are
    stored.
    """
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
