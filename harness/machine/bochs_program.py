"""Finds the Bochs that runs the machines, and its features.

It is the installed one, or one whose Debian packages were unpacked into a folder: HARNESS_BOCHS
names the folder, or a version that `./inv setup --bochs VERSION` has unpacked.  An unpacked Bochs
runs with the folder's own loader and libraries, so it may come from another Debian than this
machine's.  The features of a Bochs are read from its own help.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path

from harness import debian, process
from harness.deadline import Deadline
from harness.errors import CannotError
from harness.files import sha256_text
from harness.machine import bochs_packages

VARIABLE = debian.OTHER_BOCHS
SYSTEM = Path("/")

_NAME = "bochs"
# Debian's `bochs` is a script that starts this one.
_PROGRAM = "usr/bin/bochs-bin"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
# The folder of the C library in Debian 12's packages; later ones have it with all others.
_MORE_LIBRARIES = "lib/x86_64-linux-gnu"
# The file itself: the link in lib64 of Debian 12's package is absolute, so it would lead to this
# machine's loader, which fits only this machine's own C library.
_LOADER = "ld-linux-x86-64.so.2"
_SHARE = "usr/share/bochs"
_LIMIT_S = 10.0
_PLUGINS_IN = ("bochs/plugins/*.so", "*/bochs/plugins/*.so")


class Debugger(Enum):
    """Whether Bochs starts in its own debugger.

    In its debugger Bochs checks the breakpoints after every instruction; without it whole traces
    run at once, which is at least a third faster.
    """

    ALWAYS = "always"
    ON_REQUEST = "on request"
    NEVER = "never"


@dataclass(frozen=True)
class Bochs:
    """A Bochs below `root`; if none is installed, `version` is empty and `debugger` as in Debian
    12.

    `path` is its program.
    """

    path: str
    root: Path = SYSTEM
    version: str = ""
    debugger: Debugger = Debugger.ALWAYS

    @property
    def bios(self) -> Path:
        """The computer's BIOS."""
        return self.root / _SHARE / "BIOS-bochs-latest"

    @property
    def vga_bios(self) -> Path:
        """The graphics card's BIOS."""
        return self.root / _SHARE / "VGABIOS-lgpl-latest"

    @property
    def private(self) -> bool:
        """Whether it is in a folder of its own, and not installed."""
        return self.root != SYSTEM

    def command(self, *options: str) -> list[str]:
        """The command line that runs it with these options."""
        if not self.private:
            return [_NAME, *options]
        folders = (self.root / _LIBRARIES, self.root / _MORE_LIBRARIES)
        loaders = [path for each in folders if (path := each / _LOADER).exists()]
        loader = loaders[0] if loaders else folders[0] / _LOADER
        libraries = ":".join(map(str, folders))
        return [str(loader), "--library-path", libraries, self.path, *options]

    @property
    def environment(self) -> dict[str, str]:
        """The additional environment of a Bochs that is not installed."""
        if not self.private:
            return {}
        return {
            "LTDL_LIBRARY_PATH": str(self.root / _LIBRARIES / "bochs/plugins"),
            "BXSHARE": str(self.root / _SHARE),
        }

    def identity(self) -> str:
        """Its version, and a digest of the files that a saved state may depend on.

        The digest uses their sizes and dates, which change with the package, and not the folder
        that it was unpacked to, because a bundle brings a state to other machines.
        """
        libraries = self.root / "usr/lib"
        plugins = [lib for where in _PLUGINS_IN for lib in sorted(libraries.glob(where))]
        beside = self.root / _PROGRAM
        files = []
        for path in (Path(self.path), beside, *plugins, self.bios, self.vga_bios):
            if path.exists():
                about = path.stat()
                name = os.path.relpath(path, self.root)
                files.append(f"{name} {about.st_size} {about.st_mtime_ns}")
        return f"{self.version or '?'}, {sha256_text(*files)[:16]}"


def find(environment: Mapping[str, str] | None = None) -> Bochs:
    """The Bochs that runs the machines.

    Raises CannotError if HARNESS_BOCHS names a folder without a Bochs, or a version that is not
    unpacked.
    """
    found = locate(environment)
    return (
        _asked(found.path, found.root, _date(found.path)) if os.path.exists(found.path) else found
    )


def locate(environment: Mapping[str, str] | None = None) -> Bochs:
    """The same without running it, so immediately; then the version of an installed one is not
    known.
    """
    named = (os.environ if environment is None else environment).get(VARIABLE, "").strip()
    if not named:
        return Bochs(shutil.which(_NAME) or _NAME)
    if named in bochs_packages.SUITES:
        own = installed()
        if own and own.version == named:
            return own
        place = bochs_packages.folder(named)
        if not place.is_dir():
            raise CannotError(
                f"{VARIABLE}={named}: Bochs {named} is neither installed nor unpacked here; run "
                f"./inv setup --bochs {named}"
            )
        return _below(place)
    return _below(Path(named))


@contextlib.contextmanager
def using(bochs: Bochs) -> Iterator[None]:
    """Use this Bochs for machines within the block."""
    before = os.environ.get(VARIABLE)
    try:
        os.environ[VARIABLE] = str(bochs.root) if bochs.private else ""
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def installed() -> Bochs | None:
    """The Bochs that is installed on this machine, if any."""
    path = shutil.which(_NAME)
    return _asked(path, SYSTEM, _date(path)) if path else None


def found() -> list[Bochs]:
    """Each version once: the installed one first, then the unpacked ones."""
    own = installed()
    found = [own] if own else []
    for version, place in bochs_packages.there().items():
        if version not in {each.version for each in found}:
            with contextlib.suppress(CannotError):
                found.append(below(place))
    return found


def below(root: Path) -> Bochs:
    """The Bochs in a folder into which its Debian packages were unpacked.

    Raises CannotError naming what the folder lacks.
    """
    found = _below(root)
    return _asked(found.path, found.root, _date(found.path))


def _below(root: Path) -> Bochs:
    root = root.absolute()
    path = root / _PROGRAM
    if not path.is_file():
        raise CannotError(
            f"{VARIABLE}={root}: there is no {_PROGRAM} in it; unpack Debian's packages bochs, "
            f"bochs-term, bochsbios and vgabios there with their libraries, or unset {VARIABLE}"
        )
    return Bochs(str(path), root)


def _date(path: str) -> int:
    return os.stat(path).st_mtime_ns


@lru_cache(maxsize=16)
def _asked(path: str, root: Path, _date_ns: int) -> Bochs:
    """The help of the Bochs at `path`; it is run once for each state of the program."""
    asked = Bochs(path, root)
    try:
        done = process.run(
            asked.command("--help"),
            Deadline.after(_LIMIT_S),
            environment={**os.environ, **asked.environment},
            merged=True,
        )
    except (CannotError, process.Unfinished):
        return asked
    return parse_help(asked, done.stdout)


def parse_help(asked: Bochs, text: str) -> Bochs:
    """`asked` with the facts from its `--help`: its version, and whether it has a debugger.

    Debian's 2.7 has `-rc` (a script for the debugger), and always runs in its debugger; 3.0 also
    has `-debugger`, and runs in it only with this option.
    """
    version = re.search(r"Bochs x86 Emulator (\S+)", text)
    options = set(re.findall(r"^\s+(-\w+)\b", text, re.MULTILINE))
    if not options:
        # Its help does not say, so nothing is known.
        return asked
    if "-debugger" in options:
        debugger = Debugger.ON_REQUEST
    else:
        debugger = Debugger.ALWAYS if "-rc" in options else Debugger.NEVER
    return Bochs(asked.path, asked.root, version.group(1) if version else "", debugger)
