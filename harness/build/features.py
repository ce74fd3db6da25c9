"""A topic's build options that differ from a release's: options of the kernel and of make.

`patches/TOPIC/build.toml` may contain them, for instance

    kernel_options = ["BHYVE_SNAPSHOT"]
    make = { MK_BHYVE_SNAPSHOT = "yes" }
    programs = ["bhyve", "bhyvectl"]
    libraries = ["privateucl", "xo"]

`programs` are built even if the patches do not change them; `libraries` are those of the sysroot
that they need in addition to their usual ones.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from harness.build import parts
from harness.errors import UsageError

FILE = "build.toml"
_KEYS = ("kernel_options", "make", "programs", "libraries")
_KNOB = re.compile(r"(?:MK|WITH|WITHOUT)_[A-Z0-9_]+\Z")
_LIBRARY = re.compile(r"[a-z0-9_]+\Z")


@dataclass(frozen=True)
class Features:
    """The options of a build.toml; `make` has pairs of a variable and its value."""

    kernel_options: tuple[str, ...] = ()
    make: tuple[tuple[str, str], ...] = ()
    programs: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Part of a build's key; empty for the options of a release."""
        return "" if self == Features() else repr(self)


def read(topic: Path) -> Features:
    """The options of a topic's folder; UsageError for invalid ones."""
    path = topic / FILE
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Features()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    if strange := sorted(data.keys() - set(_KEYS)):
        raise UsageError(f"{path}: {strange[0]}: unknown key; the keys are {', '.join(_KEYS)}")
    make = data.get("make", {})
    lists = {name: data.get(name, []) for name in _KEYS if name != "make"}
    good = isinstance(make, dict) and all(
        _KNOB.match(name) and value in ("yes", "no") for name, value in make.items()
    )
    if not good:
        raise UsageError(f'{path}: make must be a table of MK_NAME = "yes" or "no"')
    for name, value in lists.items():
        if not isinstance(value, list) or not all(isinstance(it, str) for it in value):
            raise UsageError(f"{path}: {name} must be a list of names")
    for name in lists["programs"]:
        if name not in parts.PROGRAMS:
            raise UsageError(
                f"{path}: programs: {name}: unknown program; choose from "
                f"{', '.join(parts.PROGRAMS)}"
            )
    for name in lists["libraries"]:
        if not _LIBRARY.match(name):
            raise UsageError(f"{path}: libraries: {name!r} is not a library's name")
    return Features(
        tuple(lists["kernel_options"]),
        tuple(sorted(make.items())),
        tuple(lists["programs"]),
        tuple(lists["libraries"]),
    )
