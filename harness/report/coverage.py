"""The lines that the checks ran: the data in a run's folder, and its text form."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from harness import checked, files

DATA = "coverage.json"
UNSEEN = (
    "The counters are read after each check that asked the guest for something. Lines that ran "
    "just before the guest broke, or between the last reading and an unloading of the module "
    "inside a check, are not counted. "
    "Programs and the library count in a file of the guest, however they end; they are not "
    "counted before their constructors run, and where the file is not visible, as in a jail. "
    "Only what this build made is counted, not the guest's own programs."
)


@dataclass(frozen=True)
class Line:
    """A line of a changed file; `times` is how often it ran, None if it contains no code."""

    number: int
    text: str
    times: int | None
    changed: bool

    @property
    def tone(self) -> str:
        """The name of its colour on the page."""
        return "" if self.times is None else "ran" if self.times else "missed"


@dataclass(frozen=True)
class Changed:
    """A file that the patch changes: how many of its changed lines ran, and the lines around."""

    path: str
    ran: int
    count: int
    missed: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class File:
    """A file of a part; `scoped` says whether it is bhyve's kernel code that a guest can reach."""

    path: str
    ran: int
    count: int
    scoped: bool
    part: str = "vmm.ko"

    @property
    def percent(self) -> float:
        """The per cent of its lines that ran."""
        return 100 * self.ran / self.count


@dataclass(frozen=True)
class Family:
    """A family of checks: the number of lines that it ran, and of those that only it ran."""

    name: str
    ran: int
    alone: int


@dataclass(frozen=True)
class Coverage:
    """The coverage of a run; `summary` and `scope` are lines for people."""

    summary: str
    scope: str
    changed: tuple[Changed, ...]
    files: tuple[File, ...]
    families: tuple[Family, ...]


def save(found: Coverage, run_dir: Path) -> None:
    """Write it into the run's folder, for programs and for the page."""
    files.write_atomic(run_dir / DATA, json.dumps(dataclasses.asdict(found)) + "\n")


def load(run_dir: Path) -> Coverage | None:
    """Read the coverage from a run's folder; None if there is none that can be read."""
    try:
        return checked.convert(Coverage, checked.table((run_dir / DATA).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def text(found: Coverage) -> str:
    """The coverage as text for a terminal."""
    rows = [found.summary, found.scope, UNSEEN, "", "changed lines that did not run:"]
    rows += [f"  {it.path}: {it.missed or 'none'}" for it in found.changed] or ["  none"]
    rows += ["", "families of checks: lines that each ran, and lines that only it ran:"]
    rows += [f"  {it.ran:6} {it.alone:6}  {it.name}" for it in found.families]
    rows += [
        "",
        "all lines, by file (in brackets: no kernel code of bhyve's that this guest can reach):",
    ]
    for it in found.files:
        path = it.path if it.part == "vmm.ko" else f"{it.part}: {it.path}"
        path = path if it.scoped else f"[{path}]"
        rows.append(f"  {it.percent:5.1f}% {it.ran:5} of {it.count:5}  {path}")
    return "\n".join(rows) + "\n"
