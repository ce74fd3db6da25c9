"""ccache before the compiler: what was compiled once is taken from there, in whatever series.

It is Debian's, and stays out where it is not installed, or where CCACHE_DISABLE is set.  Its cache
is our own, and the user's settings play no part.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import files

_SIZE = "256M"
_FOLDER = "ccache"


@dataclass(frozen=True)
class Ccache:
    """What stands before the compiler's name, and what ccache finds in its environment."""

    launcher: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


NONE = Ccache()


def find(work: Path, compiler: str, names: Iterable[str]) -> Ccache:
    """The ccache to use for a build in `work`.

    `compiler` says which compiler it is.  `names` are those of all files that an #include may lead
    to: ccache looks at those that were read last time, and would not notice a new one that is found
    before them.
    """
    if "CCACHE_DISABLE" in os.environ or not shutil.which("ccache"):
        return NONE
    folder = files.cache_dir() / _FOLDER
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        # It would fail, and the patch be blamed.
        return NONE
    known = work / "names"
    known.write_text(files.sha256_text(*sorted(names)))
    temporary = work / "ccache"
    temporary.mkdir()
    return Ccache(
        ("ccache",),
        (
            ("CCACHE_CONFIGPATH", os.devnull),
            ("CCACHE_DIR", str(folder)),
            ("CCACHE_TEMPDIR", str(temporary)),
            ("CCACHE_MAXSIZE", _SIZE),
            ("CCACHE_COMPILERCHECK", f"string:{compiler}"),
            ("CCACHE_EXTRAFILES", str(known)),
            # By the compiler's own list of what it read, without preprocessing everything first.
            ("CCACHE_DEPEND", "1"),
        ),
    )
