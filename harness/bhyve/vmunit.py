"""Runs vmunit in a guest: unit tests of vmm.ko, one command per family, results as TAP.

The program's sources are in guest_src/vmunit.  vmunit.txt lists its cases, a name and a claim in
each line, so that pytest knows them before there is a guest.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.bhyve import unit_case
from harness.bhyve.unit_case import Case
from harness.build.builder import Build, compile_program
from harness.errors import CannotError, GuestError, PatchError
from harness.guest.freebsd import Guest
from harness.image import store
from harness.machine.console import clean_lines
from harness.probe import tap
from harness.series import staging
from harness.series.load import Series

SOURCES = Path(__file__).parent / "guest_src" / "vmunit"
LIST = Path(__file__).parent / "vmunit.txt"

_EMULATION = Path("sys/amd64/vmm/vmm_instruction_emul.c")
_QUIET = b"""\
#pragma clang diagnostic ignored "-Weverything"
#line 1 "vmm_instruction_emul.c"
"""
_BEGUN = re.compile(r"^VMUNIT ([\w.]+)$")
FAMILY_S = 60.0
"""How long a family may take at native speed: in the slowest emulator less than a check may."""


def family(name: str) -> str:
    """The family of a case: the word before the dot."""
    return name.partition(".")[0]


def read_list(path: Path = LIST) -> Mapping[str, str]:
    """The expected cases: name and claim, in the program's order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines if line)


@contextlib.contextmanager
def _tree_file(tree: Path, series: Series | None, path: Path) -> Iterator[Path]:
    """A file of the source tree with the series applied."""
    if series is None or str(path) not in series.touched:
        yield tree / path
        return
    with staging.staged(series, tree) as (changed, _):
        yield changed / path


class Placed:
    """Where the program lies: each guest gets it once for each build.

    Not for each module: a library of its own may come with a module that is another build's.
    """

    def __init__(self) -> None:
        self._paths: dict[tuple[Hashable, str], str] = {}

    def path(self, guest: Hashable, build: Build, place: Callable[[], str]) -> str:
        """The path in a guest, which `place` puts it at and returns."""
        key = (guest, build.key)
        if key not in self._paths:
            self._paths[key] = place()
        return self._paths[key]


def compile_vmunit(build: Build, tree: Path, series: Series | None, sysroot: Path | None) -> Path:
    """Compile vmunit for a build's headers and library, with the tree's own instruction emulation.

    Raises CannotError without a sysroot, PatchError when it does not compile.
    """
    if sysroot is None:
        raise CannotError(
            "vmunit needs FreeBSD's headers and libraries; import them: "
            + store.trees_line(build.release, sysroot=True)
        )
    with (
        _tree_file(tree, series, _EMULATION) as emulation,
        tempfile.TemporaryDirectory(prefix="vmm-unit-") as folder,
    ):
        if not emulation.is_file():
            raise PatchError(f"the source tree has no {_EMULATION}")
        # The tree's file is compiled unchanged; its warnings do not matter here.
        copy = Path(folder) / "tree.c"
        copy.write_bytes(_QUIET + emulation.read_bytes())
        return compile_program(
            build,
            [*sorted(SOURCES.glob("*.c")), SOURCES / "guest.S", copy],
            sysroot=sysroot,
            name="vmunit",
            libraries=("vmmapi", "util", "pthread"),
        )


@dataclass
class Family:
    """What is known of a family: how its cases did, and those with which the guest broke.

    `left_out` are cases that must not run in this guest.
    """

    name: str
    left_out: tuple[str, ...] = ()
    cases: dict[str, Case] = field(default_factory=dict)
    broke: dict[str, str] = field(default_factory=dict)

    def run(self, guest: Guest, program: str, *, emulated: bool) -> None:
        """Run the cases, but for those with which the guest broke before.

        GuestError when the guest breaks, the time is over, or the program does not end well: it
        names the case that was running, which is left out the next time.
        """
        console = guest.machine.console
        mark = console.mark
        without = (*self.left_out, *self.broke)
        try:
            self.cases = run(guest, program, f"{self.name}.", emulated=emulated, without=without)
        except GuestError as error:
            begun = [m[1] for line in clean_lines(console.since(mark)) if (m := _BEGUN.match(line))]
            if begun:
                self.broke[begun[-1]] = error.message
            error.args = (f"{error}; last case of vmunit: {begun[-1] if begun else 'none'}",)
            raise


def run(
    guest: Guest, program: str, wanted: str, *, emulated: bool, without: Sequence[str] = ()
) -> dict[str, Case]:
    """Run the cases whose names begin with `wanted`, with a program in the guest.

    Those in `without` are left out.  GuestError when the guest breaks, the time is over, or the
    program does not end well.
    """
    command = [program, "-c", "/dev/console", *(["-e"] if emulated else [])]
    for name in without:
        command += ["-x", name]
    result = guest.run([*command, wanted], guest.deadline(FAMILY_S))
    report = tap.parse(result.stdout)
    if report.problem:
        raise GuestError(f"vmunit {wanted}: {report.problem}", detail=result.describe())
    return {case.name: case for case in map(unit_case.of, report.tests)}


def listed(guest: Guest, program: str) -> dict[str, str]:
    """The cases that the program itself lists."""
    said = guest.must([program, "-l"])
    return dict(line.split(": ", 1) for line in said.splitlines())


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Sequence[str]:
    """The differences between the list and the program's own list."""
    gone = [f"-{name}: {claim}" for name, claim in ours.items() if theirs.get(name) != claim]
    new = [f"+{name}: {claim}" for name, claim in theirs.items() if ours.get(name) != claim]
    return gone + new
