"""Runs vmmfuzz, which makes bad calls to vmm in a guest, and compares findings with known faults.

The seed determines everything that vmmfuzz does.  It writes each call to the console before it
makes the call, so after a panic the console names the call that caused it, even if the disk is
lost.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import release as releases
from harness.build.builder import Build, compile_program
from harness.errors import CannotError, GuestError, UsageError
from harness.guest.freebsd import Guest
from harness.guest.ssh import Result
from harness.image import store
from harness.machine.console import clean_lines
from harness.machine.models import BOCHS_RUNS

SOURCES = Path(__file__).parent / "guest_src" / "vmmfuzz"
KNOWN = Path(__file__).parent / "known"
PER_ROUND = 200

_CALL = re.compile(r"^FUZZ (\d+)\.(\d+)\.(\d+) (.+) (0x[0-9a-f]+|0)$")
_COUNT = re.compile(r"^count (-?\d+) (\d+) (.+)$")
_STUCK = re.compile(r"^(hang|stall|exit|signal) (\d+)(?: (.*))?$")
_ANSWER = re.compile(r"^answer (\d+\.\d+) (-?\d+) ([0-9a-f]+) (.+)$")
_LEAK = re.compile(r"memory type (\S.*?) leaked memory on destroy \((-?\d+) allocations")
_WARNINGS = re.compile(r"lock order reversal|Freed UMA keg|Fatal trap|leaked memory")

# FreeBSD's numbers; from 35 on Linux has different ones.
_ERRNO = {
    -1: "left out", 0: "success", 1: "EPERM", 2: "ENOENT", 4: "EINTR", 6: "ENXIO", 9: "EBADF",
    11: "EDEADLK", 12: "ENOMEM", 13: "EACCES", 14: "EFAULT", 16: "EBUSY", 17: "EEXIST",
    19: "ENODEV", 22: "EINVAL", 25: "ENOTTY", 28: "ENOSPC", 34: "ERANGE", 35: "EAGAIN",
    37: "EALREADY", 45: "EOPNOTSUPP", 63: "ENAMETOOLONG",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A call as the console shows it; round, thread and number identify it, to repeat it."""

    round: int
    thread: int
    number: int
    name: str
    command: str

    def __str__(self) -> str:
        at = f"call {self.number} of thread {self.thread} in round {self.round}"
        return f"{self.name} ({self.command}), {at}"


@dataclass(frozen=True)
class Known:
    """A known fault of stock FreeBSD.

    `calls` says that certain calls cause it, which vmmfuzz leaves out by the fault's `name`.
    `seen` says that it happened in a guest; otherwise it was found by reading the source.  `who`
    says who can cause it, and `reported` whether it was reported to FreeBSD.
    """

    name: str
    title: str
    releases: tuple[str, ...]
    signatures: tuple[re.Pattern[str], ...]
    story: str
    calls: bool
    seen: bool
    who: str
    reported: str


@dataclass(frozen=True)
class Finding:
    """An effect that a call must not have.

    `kind` is panic, died, hang (not even SIGKILL ends the call), stall (only SIGKILL does), leak or
    log; `text` is one line without details that differ from run to run.
    """

    kind: str
    text: str
    round: int
    call: str = ""
    detail: str = ""
    known: str = ""


@dataclass(frozen=True)
class Attack:
    """The result of one run of vmmfuzz: the number of calls, and the results of each kind."""

    rounds: int
    calls: int
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    findings: tuple[Finding, ...] = ()

    @property
    def results(self) -> Counter[str]:
        """The number of calls for each error; calls that were left out are counted too."""
        found: Counter[str] = Counter()
        for (_name, number), count in self.counts.items():
            found[_ERRNO.get(number, f"errno {number}")] += count
        return found


class Fell(GuestError):
    """The guest broke during a call; `call` is the last one, `calls` the number of calls made."""

    def __init__(self, cause: GuestError, calls: Sequence[Call]) -> None:
        last = str(calls[-1]) if calls else "none"
        super().__init__(f"{cause.message}; last call: {last}", detail=cause.detail)
        self.cause = cause
        self.call = calls[-1] if calls else None
        self.calls = len(calls)


def beyond(backend: str, cpu_vendor: str) -> Mapping[str, str]:
    """The calls that an emulator cannot handle, and why, for people.

    The keys are the names with which vmmfuzz leaves them out.
    """
    if backend not in BOCHS_RUNS or cpu_vendor != "amd":
        return {}
    return {
        "any-run": "VM_RUN of a VM without a set-up: it ends in a triple fault, in which Bochs as "
        "AMD hangs or continues with interrupts that no device sent"
    }


def load_known(release: str, folder: Path = KNOWN) -> tuple[Known, ...]:
    """The known faults in `folder` that concern a release; UsageError if a file cannot be read.

    A file names releases like 15.1, or whole branches like 14.
    """
    parsed = releases.read(release)
    names = {release} if parsed is None else {release, parsed.version, parsed.branch}
    found = []
    for path in sorted(folder.glob("*.toml")):
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
            known = Known(
                path.stem,
                data["title"],
                tuple(data["releases"]),
                tuple(re.compile(text) for text in data["signatures"]),
                data["story"].strip(),
                bool(data["calls"]),
                bool(data["seen"]),
                data["who"].strip(),
                data["reported"].strip(),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
            raise UsageError(f"{path}: this does not describe a known fault: {error!r}") from error
        if not names.isdisjoint(known.releases):
            found.append(known)
    return tuple(found)


def compile_fuzzer(build: Build, sysroot: Path | None) -> Path:
    """Compile vmmfuzz with a build's headers; CannotError without a sysroot."""
    if sysroot is None:
        raise CannotError(
            "vmmfuzz needs FreeBSD's headers and libraries; import them: "
            + store.trees_line(build.release, sysroot=True)
        )
    return compile_program(
        build, sorted(SOURCES.glob("*.c")), sysroot=sysroot, name="vmmfuzz", libraries=("pthread",)
    )


def install(guest: Guest, program: Path, home: str) -> str:
    """Copy vmmfuzz into the guest; returns its path there."""
    remote = f"{home}/{program.name}"
    guest.put(program, remote, mode=0o755)
    return remote


def attack(
    guest: Guest,
    program: str,
    seed: int,
    calls: int,
    *,
    first_round: int = 0,
    avoid: Sequence[str] = (),
) -> Attack:
    """Make `calls` bad calls with the program that `install` copied into the guest.

    Raises Fell if the guest breaks: if it panics, ends, or does not answer any more.
    """
    console = guest.machine.console
    mark = console.mark
    # An emulator makes about 50 calls a second; a call that stalls takes three more seconds.
    limit = guest.deadline(20 + calls / 50)
    command = [program, "-s", str(seed), "-n", str(calls), "-r", str(first_round)]
    command += ["-p", str(PER_ROUND), "-c", "/dev/console"]
    for name in avoid:
        command += ["-x", name]
    try:
        result = guest.run(command, limit)
    except GuestError as error:
        raise Fell(error, parse_calls(console.since(mark))) from error
    said = console.since(mark)
    found = parse(result, seed)
    logged = [line for line in clean_lines(said) if _WARNINGS.search(line)]
    return Attack(
        found.rounds,
        found.calls,
        found.counts,
        (*found.findings, *(Finding("log", line, first_round) for line in logged)),
    )


def answers(
    guest: Guest, program: str, seed: int, calls: int, *, avoid: Sequence[str] = ()
) -> dict[str, str]:
    """The module's answers to `calls` bad calls: an errno, and the returned values.

    The keys name round, call and ioctl.  The same module always gives the same answers, because one
    thread makes all calls.  Raises GuestError if the guest or vmmfuzz breaks.
    """
    command = [program, "-a", "-s", str(seed), "-n", str(calls), "-p", str(PER_ROUND)]
    for name in avoid:
        command += ["-x", name]
    result = guest.run(command, guest.deadline(20 + calls / 50))
    parse(result, seed)
    matches = filter(None, map(_ANSWER.match, result.stdout.splitlines()))
    return {f"{m[1]} {m[4]}": f"{_ERRNO.get(int(m[2]), f'errno {m[2]}')} {m[3]}" for m in matches}


def answered_otherwise(stock: dict[str, str], ours: dict[str, str]) -> list[str]:
    """The calls with a different answer, as lines: round and call, ioctl, both answers."""
    return [
        f"{call}: {ours.get(call, 'no answer')}, stock answers {answer}"
        for call, answer in stock.items()
        if ours.get(call) != answer
    ] + [f"{call}: {ours[call]}, stock was not asked" for call in ours if call not in stock]


def parse_calls(console: str) -> list[Call]:
    """The calls that a console shows, in order."""
    matches = (_CALL.match(line) for line in clean_lines(console))
    return [Call(int(m[1]), int(m[2]), int(m[3]), m[4], m[5]) for m in matches if m]


def parse(result: Result, seed: int) -> Attack:
    """Parse the output of vmmfuzz; GuestError if it ended early."""
    lines = result.stdout.splitlines()
    if not lines or lines[-1] != "end":
        raise GuestError(f"vmmfuzz with seed {seed} ended early", detail=result.describe())
    plain = dict(line.split(" ", 1) for line in lines if " " in line)
    counts: Counter[tuple[str, int]] = Counter()
    findings = []
    for line in lines:
        if match := _COUNT.match(line):
            counts[match[3], int(match[1])] += int(match[2])
        elif match := _STUCK.match(line):
            findings.append(_stuck(match))
    return Attack(int(plain["rounds"]), int(plain["calls"]), counts, tuple(findings))


def _stuck(match: re.Match[str]) -> Finding:
    kind, words = match[1], match[3] or ""
    if kind == "hang" and words.startswith("stall"):
        kind = "stall"
    names = sorted({name.partition(":")[2] for name in words.split()[1:] if ":" in name})
    text = {
        "hang": f"not even SIGKILL ends {' or '.join(names) or 'the destruction of a VM'}",
        "stall": f"only SIGKILL ends {' or '.join(names)}",
        "exit": f"vmmfuzz's own round failed with {words}",
        "signal": f"vmmfuzz's own round died of signal {words}",
    }[kind]
    return Finding(kind, text, int(match[2]), words)


def leaks(guest: Guest, path: str) -> list[Finding]:
    """Unload the module and report the memory that it leaked; then load it again from `path`."""
    mark = guest.machine.console.mark
    unloaded = guest.run(["kldunload", "vmm"], guest.deadline(30))
    if not unloaded.ok:
        left = guest.script("find /dev/vmm /dev/vmm.io -type c | cat -v", check=False).stdout
        text = f"the module cannot be unloaded: {unloaded.stderr.strip()}"
        return [Finding("leak", text, -1, detail=f"left in devfs: {left.split() or 'nothing'}")]
    said = guest.machine.console.since(mark)
    guest.must(["kldload", path], guest.deadline(30))
    found = []
    for line in clean_lines(said):
        if match := _LEAK.search(line):
            how = "freed more often than allocated" if match[2].startswith("-") else "leaked"
            found.append(Finding("leak", f"memory type {match[1]}: {how}", -1, detail=line))
    return found


def recognize(finding: Finding, known: Sequence[Known]) -> str:
    """The name of the known fault that a finding belongs to, or an empty string."""
    line = f"{finding.kind}: {finding.text}; {finding.call}"
    return next(
        (story.name for story in known if any(it.search(line) for it in story.signatures)), ""
    )


def unknown_leaks(names: Iterable[str], known: Sequence[Known]) -> set[str]:
    """Those zones of kernel memory whose growth with each VM is not a known fault."""
    return {
        name
        for name in names
        if not recognize(Finding("leak", f"{name} grows with each VM", -1), known)
    }
