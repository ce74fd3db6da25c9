"""Runs Debian's bmake and clang on a linked tree, and parses their output.

FreeBSD's own Makefiles do the work.  This module sets the variables that they need on a machine
other than FreeBSD, and shortens a failure to the compiler's messages.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import debian, process
from harness.build.sandbox import PLACE, Sandbox
from harness.deadline import Deadline
from harness.errors import CannotError, PatchError

Progress = Callable[[str], None]

_WARNING = re.compile(rf"^(?:(?:\S*/work/[0-9a-f]+|{PLACE})/src/)?(\S.*?):\d+:\d+: (warning: .*)")
_ERROR = re.compile(
    r"(^\S.*?:\d+:\d+: (fatal )?error: )|(^\S*clang\S*: error: )|(^\S*ld\.lld\S*: error: )"
    r"|(\"\S+\" line \d+: )|(: fatal error: )"
)
_MAKE_NOISE = re.compile(r"^(--- |bmake|make\[|\*\*\*|A failure|stopped|\.ERROR|\s*$)")
# The quoted source, the caret, notes, and the linker's additions.
_AFTER = re.compile(r"\s|\S+: note: |>>> ")
_SHOWN_LINES = 25
_JOB = re.compile(r"^--- (\S+) ---$")
# The module takes a minute, bhyve a few; a Makefile may loop.
_LIMIT_S = 3600.0


@dataclass(frozen=True)
class Toolchain:
    """The compiler, found once, and its version text."""

    version: int
    identity: str

    def tool(self, name: str) -> str:
        """The name of one of its programs, e.g. clang-19."""
        return f"{name}-{self.version}"

    def programs(self) -> tuple[Path, ...]:
        """The paths of the programs that a build runs."""
        tools = ("clang", "ld.lld", "llvm-objcopy", "llvm-ar", "llvm-nm", "llvm-strip")
        names = ("bmake", "ccache", *(self.tool(name) for name in tools))
        found = (shutil.which(name) for name in names)
        return tuple(Path(os.path.abspath(path)) for path in found if path)


def find_toolchain() -> Toolchain:
    """The preferred clang with its lld; CannotError with the remedy if that or bmake is missing."""
    version = debian.clang_version()
    if version is None or not shutil.which("bmake"):
        what = "clang, lld and llvm-objcopy" if version is None else "bmake"
        raise CannotError(f"{what} not found; run ./inv setup to install the packages for building")
    said = [_says(*_identity(name)) for name in (f"clang-{version}", f"ld.lld-{version}")]
    return Toolchain(version, "; ".join(said))


def _identity(name: str) -> tuple[str, int, int]:
    """A program and what changes with it: the inode and the time of its file."""
    found = shutil.which(name)
    if found is None:
        return name, 0, 0
    about = os.stat(found)
    return name, about.st_ino, about.st_mtime_ns


@functools.cache
def _says(name: str, _inode: int, _changed_ns: int) -> str:
    """The first line of its version; it is asked once while its file is the same."""
    done = process.run([name, "--version"])
    return (done.stdout.splitlines() or ["?"])[0]


@dataclass(frozen=True)
class Make:
    """One call of bmake: a folder of the linked tree, the targets, variables and environment.

    Paths in variables and environment are those inside the sandbox.
    """

    component: str
    folder: Path
    targets: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...] = ()

    def command(self, share_mk: str, jobs: int) -> list[str]:
        """The command line; `jobs` 0 runs commands one after another, so that their output is not
        mixed.
        """
        parallel = [f"-j{jobs}"] if jobs else []
        assigned = [f"{name}={value}" for name, value in self.variables]
        return ["bmake", "-m", share_mk, *parallel, *assigned, *self.targets]


@dataclass(frozen=True)
class Outcome:
    """The result of one make, apart from its files."""

    warnings: int


def jobs() -> int:
    """The number of compilers to run in parallel: the processors that we may use."""
    return max(1, len(os.sched_getaffinity(0)))


def run(
    make: Make, linked: Path, log: Path, progress: Progress, sandbox: Sandbox | None = None
) -> Outcome:
    """Run one make in the linked tree `linked`, appending its output to `log`.

    Raises PatchError with the compiler's own messages if it fails.
    """
    sandbox = sandbox or Sandbox(None, linked)
    share_mk = sandbox.inside(linked / "share/mk")
    code, lines = _logged(make.command(share_mk, jobs()), make, sandbox, log, progress)
    warnings = sum(1 for line in lines if _WARNING.match(line))
    if code == 0:
        return Outcome(warnings)
    # The output of parallel compilers is mixed, so the failed target is built once more alone.
    again, alone = _logged(make.command(share_mk, 0), make, sandbox, log, progress)
    if again == 0:
        return Outcome(warnings)
    shown = error_lines(alone, sandbox.inside(linked))
    first = next((line for line in shown if _ERROR.search(line)), shown[0] if shown else "")
    raise PatchError(f"{make.component} does not build: {first.strip()}", detail="\n".join(shown))


def warning_lines(log: str) -> Counter[str]:
    """The warnings in a log, without line numbers, because a patch moves lines that it does not
    change.
    """
    found = (_WARNING.match(line) for line in log.splitlines())
    return Counter(f"{match[1]}: {match[2]}" for match in found if match)


def error_lines(lines: Sequence[str], linked: str) -> list[str]:
    """The important lines of a failed make, with paths as in the source tree."""
    short = [line.replace(f"{linked}/", "") for line in lines]
    shown: list[str] = []
    for index, line in enumerate(short):
        if not _ERROR.search(line):
            continue
        shown.append(line)
        for after in short[index + 1 :]:
            if _ERROR.search(after) or _WARNING.match(after) or not _AFTER.match(after):
                break
            shown.append(after)
        if len(shown) >= _SHOWN_LINES:
            return [*shown[:_SHOWN_LINES], "..."]
    if shown:
        return shown
    plain = [line for line in short if not _MAKE_NOISE.match(line)]
    return [line if len(line) < 300 else f"{line[:300]} ..." for line in plain[-5:]]


def _logged(
    command: Sequence[str], make: Make, sandbox: Sandbox, log: Path, progress: Progress
) -> tuple[int, list[str]]:
    lines: list[str] = []
    environment = {
        # Without this bmake would join a make that started us (./inv from a Makefile).
        "MAKEFLAGS": "",
        **dict(make.environment),
    }
    with log.open("ab") as stream:
        folder = shlex.quote(sandbox.inside(make.folder))
        stream.write(f"$ cd {folder} && {shlex.join(command)}\n".encode(errors="replace"))
        begun = b""

        def take(chunk: bytes) -> None:
            nonlocal begun
            stream.write(chunk)
            *whole, begun = (begun + chunk).split(b"\n")
            for line in (it.decode(errors="replace") for it in whole):
                lines.append(line)
                if found := _JOB.match(line):
                    progress(f"{make.component}: {found[1]}")

        try:
            done = sandbox.run(
                command,
                make.folder,
                Deadline.after(_LIMIT_S),
                environment,
                merged=True,
                sink=take,
            )
        except process.Unfinished as error:
            raise PatchError(f"{make.component}: {error.message}", detail=error.detail) from error
        if begun:
            take(b"\n")
        stream.write(f"(exit code {done.code})\n".encode())
    return done.code, lines
