"""Running Debian's bmake and clang on a farm, and reading what they say.

FreeBSD's own Makefiles do the work; here is only what they must be told when the machine they run
on is not FreeBSD, and how a failure becomes the compiler's few lines.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import debian
from harness.errors import CannotError, PatchError

Progress = Callable[[str], None]

_WARNING = re.compile(r"^(?:\S*/work/[0-9a-f]+/src/)?(\S.*?):\d+:\d+: (warning: .*)")
_ERROR = re.compile(
    r"(^\S.*?:\d+:\d+: (fatal )?error: )|(^\S*clang\S*: error: )|(^\S*ld\.lld\S*: error: )"
    r"|(\"\S+\" line \d+: )|(: fatal error: )"
)
_MAKE_NOISE = re.compile(r"^(--- |bmake|make\[|\*\*\*|A failure|stopped|\.ERROR|\s*$)")
# The quoted source, the caret, notes; what the linker adds.
_AFTER = re.compile(r"\s|\S+: note: |>>> ")
_SHOWN_LINES = 25
_JOB = re.compile(r"^--- (\S+) ---$")


@dataclass(frozen=True)
class Toolchain:
    """The compiler, found once, and who it says it is."""

    version: int
    identity: str

    def tool(self, name: str) -> str:
        """The name of one of its programs, e.g. clang-19."""
        return f"{name}-{self.version}"


def find_toolchain() -> Toolchain:
    """The preferred clang with its lld; CannotError with the mend if that or bmake is missing."""
    version = debian.clang_version()
    if version is None or not shutil.which("bmake"):
        what = "clang, lld and llvm-objcopy" if version is None else "bmake"
        raise CannotError(f"{what} not found; run ./inv setup to install what building needs")
    said = []
    for command in ([f"clang-{version}", "--version"], [f"ld.lld-{version}", "--version"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said.append((done.stdout.splitlines() or ["?"])[0])
    return Toolchain(version, "; ".join(said))


@dataclass(frozen=True)
class Make:
    """One use of bmake: a folder of the farm, what to make there, and with what."""

    component: str
    folder: Path
    targets: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...] = ()

    def command(self, share_mk: Path, jobs: int) -> list[str]:
        """The command line; `jobs` 0 runs one after the other with unmixed output."""
        parallel = [f"-j{jobs}"] if jobs else []
        assigned = [f"{name}={value}" for name, value in self.variables]
        return ["bmake", "-m", str(share_mk), *parallel, *assigned, *self.targets]


@dataclass(frozen=True)
class Outcome:
    """What one make left behind, besides its files."""

    warnings: int


def jobs() -> int:
    """How many compilers to run side by side: the processors we may use."""
    return max(1, len(os.sched_getaffinity(0)))


def run(make: Make, farm: Path, log: Path, progress: Progress, hold: Sequence[int] = ()) -> Outcome:
    """Run one make, appending all it says to `log`; it inherits the open files of `hold`.

    Raises PatchError with the compiler's own lines when it fails.
    """
    share_mk = farm / "share/mk"
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        # bmake would otherwise go on with a make that called us (./inv from a Makefile).
        "MAKEFLAGS": "",
        **dict(make.environment),
    }
    code, lines = _logged(make.command(share_mk, jobs()), make, environment, log, progress, hold)
    warnings = sum(1 for line in lines if _WARNING.match(line))
    if code == 0:
        return Outcome(warnings)
    # Side by side the compilers' lines run into each other: what failed is made once more alone.
    again, alone = _logged(make.command(share_mk, 0), make, environment, log, progress, hold)
    if again == 0:
        return Outcome(warnings)
    shown = error_lines(alone, farm)
    first = next((line for line in shown if _ERROR.search(line)), shown[0] if shown else "")
    raise PatchError(f"{make.component} does not build: {first.strip()}", detail="\n".join(shown))


def warning_lines(log: str) -> Counter[str]:
    """The warnings in a log, without the lines' numbers: a patch moves lines it does not touch."""
    found = (_WARNING.match(line) for line in log.splitlines())
    return Counter(f"{match[1]}: {match[2]}" for match in found if match)


def error_lines(lines: Sequence[str], farm: Path) -> list[str]:
    """The lines that matter of a failed make, with paths as in the source tree."""
    short = [line.replace(f"{farm}/", "") for line in lines]
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
    command: Sequence[str],
    make: Make,
    environment: Mapping[str, str],
    log: Path,
    progress: Progress,
    hold: Sequence[int],
) -> tuple[int, list[str]]:
    lines: list[str] = []
    with log.open("a", encoding="utf-8", errors="replace") as stream:
        stream.write(f"$ cd {make.folder} && {shlex.join(command)}\n")
        stream.flush()
        try:
            # Its own process group, so that an interrupt ends the compilers too.
            process = subprocess.Popen(
                command,
                cwd=make.folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                pass_fds=tuple(hold),
            )
        except OSError as error:
            raise CannotError(f"{command[0]}: cannot be run: {error.strerror}") from error
        assert process.stdout
        try:
            for line in process.stdout:
                stream.write(line)
                lines.append(line.rstrip("\n"))
                if found := _JOB.match(line):
                    progress(f"{make.component}: {found[1]}")
            code = process.wait()
        except BaseException:
            _end(process)
            raise
        stream.write(f"(exit code {code})\n")
    return code, lines


def _end(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=5)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        process.kill()
    process.wait()
