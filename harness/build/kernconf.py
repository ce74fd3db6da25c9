"""The kernel options a module is built with, taken from the tree's own kernel configuration.

A module built by itself gets only a few options; the release's own vmm.ko was built with all of
GENERIC's (COMPAT_FREEBSD13, NUMA, DDB, INVARIANTS on a development branch).  This module writes the
opt_*.h files that config(8) would write, so that our module differs from the release's only by the
patch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError

DEFAULT_CONFIG = "GENERIC"
_MACHINE = "amd64"
_INCLUDES_DEEP = 8
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True)
class KernelConfig:
    """Option names with their values, sorted, and the header of each."""

    name: str
    options: tuple[tuple[str, str], ...]
    headers: tuple[tuple[str, str], ...]

    @property
    def invariants(self) -> bool:
        """Whether the module is built with INVARIANTS, as the running kernel must then be too."""
        return any(option == "INVARIANTS" for option, _ in self.options)


def read_config(
    source: Path,
    name: str = DEFAULT_CONFIG,
    changes: Sequence[str] = (),
    running: Sequence[str] = (),
) -> KernelConfig:
    """The options that config(8) would generate for `name` in the tree `source`.

    `running` is the configuration of a kernel as the kernel states it (kern.conftxt).  If it is not
    empty, its options and its name are used, so that the module fits a kernel with INVARIANTS, or
    one that its user configured.  `changes` adds ("NAME", "NAME=VALUE") or removes ("!NAME")
    options.  Raises UsageError for a configuration or option that the tree does not know.
    """
    known = _option_files(source)
    chosen: dict[str, str] = {}
    if running:
        name = _take(source, running, chosen, _INCLUDES_DEEP) or name
    else:
        _read(source, "DEFAULTS", chosen, 0)
        _read(source, name, chosen, 0)
    for change in changes:
        removed = change.startswith("!")
        option, _, value = change.lstrip("!").partition("=")
        if not _NAME.match(option) or option not in known:
            raise UsageError(f"kernel option {option!r}: this source tree does not have it")
        if removed:
            chosen.pop(option, None)
        else:
            chosen[option] = value or "1"
    return KernelConfig(name, tuple(sorted(chosen.items())), _headers(chosen, known))


def write_headers(config: KernelConfig, folder: Path) -> None:
    """Write every opt_*.h into `folder`, which must exist."""
    for name, text in config.headers:
        (folder / name).write_text(text)


def _headers(
    chosen: dict[str, str], known: dict[str, tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    lines: dict[str, list[str]] = {header: [] for header, _ in known.values()}
    lines.setdefault("opt_global.h", [])
    for option, value in sorted(chosen.items()):
        if option in known:
            header, actual = known[option]
            lines[header].append(f"#define {actual} {value}\n")
    return tuple((header, "".join(text)) for header, text in sorted(lines.items()))


def _option_files(source: Path) -> dict[str, tuple[str, str]]:
    """Option -> (its header, its current name; old names are aliases)."""
    known: dict[str, tuple[str, str]] = {}
    for name in ("options", f"options.{_MACHINE}"):
        for line in _lines(source / "sys/conf" / name):
            fields = line.split()
            if "=" in line and len(fields) >= 3:  # OLD = NEW
                continue
            header = fields[1] if len(fields) > 1 else f"opt_{fields[0].lower()}.h"
            known[fields[0]] = (header, fields[0])
    return known


def _read(source: Path, name: str, chosen: dict[str, str], depth: int) -> None:
    folders = (source / f"sys/{_MACHINE}/conf", source / "sys/conf")
    found = [folder / name for folder in folders if (folder / name).is_file()]
    if "/" in name or not found or depth > _INCLUDES_DEEP:
        raise UsageError(f"{folders[0]}/{name}: no such kernel configuration in this source tree")
    _take(source, _lines(found[0]), chosen, depth)


def _take(source: Path, lines: Iterable[str], chosen: dict[str, str], depth: int) -> str:
    """Change the options by the lines of a configuration; returns the configuration's name."""
    ident = ""
    for line in lines:
        word, _, rest = line.partition(" ")
        names = [part.strip() for part in rest.split(",")]
        if word == "ident":
            ident = rest.strip().strip('"')
        elif word == "include":
            _read(source, rest.strip().strip('"'), chosen, depth + 1)
        elif word in ("options", "option"):
            for part in names:
                option, _, value = part.partition("=")
                chosen[option.strip()] = value.strip().strip('"') or "1"
        elif word in ("nooption", "nooptions"):
            for part in names:
                chosen.pop(part, None)
        elif word in ("device", "devices"):
            for part in names:
                chosen[f"DEV_{part.upper()}"] = "1"
        elif word in ("nodevice", "nodevices"):
            for part in names:
                chosen.pop(f"DEV_{part.upper()}", None)
        elif word == "cpu":
            chosen[rest.strip().strip('"')] = "1"
    return ident


def _lines(file: Path) -> Iterable[str]:
    """The file's lines without comments and blank ones, with single blanks between words."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    for line in text.splitlines():
        words = " ".join(line.split("#", 1)[0].split())
        if words:
            yield words
