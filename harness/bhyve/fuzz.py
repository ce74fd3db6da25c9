"""Bad calls against vmm in a guest, made by vmmfuzz; what they do is compared with what is known.

All that vmmfuzz does follows from its seed.  It writes each call on the console before it makes it,
so a kernel that dies leaves the name of what it died of, whatever becomes of the disk.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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

# FreeBSD's numbers, which from 35 on are not this machine's.
_ERRNO = {
    -1: "left out", 0: "success", 1: "EPERM", 2: "ENOENT", 4: "EINTR", 6: "ENXIO", 9: "EBADF",
    11: "EDEADLK", 12: "ENOMEM", 13: "EACCES", 14: "EFAULT", 16: "EBUSY", 17: "EEXIST",
    19: "ENODEV", 22: "EINVAL", 25: "ENOTTY", 28: "ENOSPC", 34: "ERANGE", 35: "EAGAIN",
    37: "EALREADY", 45: "EOPNOTSUPP", 63: "ENAMETOOLONG",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A call as the console shows it: round, thread and number say how to come to it again."""

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
    """What stock is known to get wrong.

    `calls`: certain calls bring it about, and vmmfuzz leaves them out by the story's `name`.
    `seen`: it happened in a guest; otherwise the source says so.  `who` can bring it about, and
    whether it was `reported` to FreeBSD, in words.
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
    """Something that a call must not cause.

    `kind` is panic, died, hang (not even SIGKILL ends the call), stall (only SIGKILL does), leak or
    log; `text` is one line without what differs from run to run.
    """

    kind: str
    text: str
    round: int
    call: str = ""
    detail: str = ""
    known: str = ""


@dataclass(frozen=True)
class Attack:
    """What one use of vmmfuzz did: how many calls, what each kind of them came to."""

    rounds: int
    calls: int
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    findings: tuple[Finding, ...] = ()

    @property
    def results(self) -> Counter[str]:
        """How many calls ended in which error; those that were left out are counted too."""
        found: Counter[str] = Counter()
        for (_name, number), count in self.counts.items():
            found[_ERRNO.get(number, f"errno {number}")] += count
        return found


class Fell(GuestError):
    """The guest broke under a call; `call` is the last one, `calls` how many had been begun."""

    def __init__(self, cause: GuestError, calls: Sequence[Call]) -> None:
        last = str(calls[-1]) if calls else "none"
        super().__init__(f"{cause.message}; last call: {last}", detail=cause.detail)
        self.cause = cause
        self.call = calls[-1] if calls else None
        self.calls = len(calls)


def beyond(backend: str, cpu_vendor: str) -> tuple[str, ...]:
    """The calls that an emulator does not bear, by the name for which vmmfuzz leaves them out.

    Where nothing was set up, VM_RUN ends in the guest's triple fault.  As AMD, Bochs does not come
    out of one, or goes on with interrupts that nobody sent.
    """
    return ("any-run",) if backend in BOCHS_RUNS and cpu_vendor == "amd" else ()


def load_known(release: str, folder: Path = KNOWN) -> tuple[Known, ...]:
    """The stories of `folder` that belong to a release; UsageError when one cannot be read."""
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
            raise UsageError(f"{path}: not a story of something known: {error!r}") from error
        if release in known.releases:
            found.append(known)
    return tuple(found)


def compile_fuzzer(build: Build, sysroot: Path | None) -> Path:
    """vmmfuzz for a build's headers; CannotError without a sysroot."""
    if sysroot is None:
        raise CannotError(
            "vmmfuzz needs FreeBSD's headers and libraries; import them: "
            + store.trees_line(build.release, sysroot=True)
        )
    return compile_program(
        build, sorted(SOURCES.glob("*.c")), sysroot=sysroot, name="vmmfuzz", libraries=("pthread",)
    )


def install(guest: Guest, program: Path, home: str) -> str:
    """Copy vmmfuzz into the guest; where it is there."""
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
    """Make `calls` bad calls with a program that `install` put there.

    Raises Fell when the guest breaks: panics, dies, or answers no more.
    """
    console = guest.machine.console
    mark = console.mark
    # In an emulator some 50 calls a second are made; a call that stalls costs three more seconds.
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
    """What the module answers to each of `calls` bad calls: an errno, and what came back.

    The keys name round, call and ioctl.  The same calls are answered the same by the same module,
    since one thread makes them.  GuestError when the guest breaks or vmmfuzz does.
    """
    command = [program, "-a", "-s", str(seed), "-n", str(calls), "-p", str(PER_ROUND)]
    for name in avoid:
        command += ["-x", name]
    result = guest.run(command, guest.deadline(20 + calls / 50))
    parse(result, seed)
    matches = filter(None, map(_ANSWER.match, result.stdout.splitlines()))
    return {f"{m[1]} {m[4]}": f"{_ERRNO.get(int(m[2]), f'errno {m[2]}')} {m[3]}" for m in matches}


def answered_otherwise(stock: dict[str, str], ours: dict[str, str]) -> list[str]:
    """The calls to which another answer came, as lines: round and call, ioctl, both answers."""
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
    """What vmmfuzz prints when it ends; GuestError when it ended before it was done."""
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
    """Unload the module and say what of its memory it lost; it is loaded again from `path`."""
    mark = guest.machine.console.mark
    unloaded = guest.run(["kldunload", "vmm"], guest.deadline(30))
    if not unloaded.ok:
        left = guest.script("find /dev/vmm /dev/vmm.io -type c | cat -v", check=False).stdout
        text = f"the module does not unload: {unloaded.stderr.strip()}"
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
    """The name of the story that a finding belongs to, or nothing."""
    line = f"{finding.kind}: {finding.text}; {finding.call}"
    return next(
        (story.name for story in known if any(it.search(line) for it in story.signatures)), ""
    )
