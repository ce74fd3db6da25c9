"""The complaints of a kernel about itself, which do not stop it: WITNESS, INVARIANTS and leaks.

A kernel with WITNESS reports locks that are taken in the wrong order, and a thread that may sleep
while it holds one that forbids it; with INVARIANTS, memory that was used after it was freed.  Any
kernel reports memory that a module leaves behind when it is unloaded.  They are printed on the
console among other lines.  (Panics are panic_report's.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.guest.panic_report import Frame, parse_frames

# How each complaint begins (sys/kern/subr_witness.c, kern_shutdown.c, kern_malloc.c,
# subr_turnstile.c and sys/vm/uma_core.c, uma_dbg.c).  The cursor may be behind other text.
_HEADS = {
    "lock order": re.compile(r"lock order reversal:(?: \(\w+ after non-sleepable\))?$"),
    "duplicate lock": re.compile(r'acquiring duplicate lock of same type: ".*"$'),
    "locks held": re.compile(r"\S.* with the following (?:non-sleepable )?locks held:$"),
    "shared and exclusive": re.compile(
        r"(?:(?:shared|exclusive) (?:lock|unlock)|forbidden unlock) of \(.+\) .+ @ .+:\d+$"
    ),
    "assertion": re.compile(r"KASSERT failed: .+$"),
    "sleeping owner": re.compile(
        r"Sleeping thread \(tid \d+, pid \d+\) owns a non-sleepable lock$"
    ),
    "used after free": re.compile(r"Memory modified after free 0x[0-9a-f]+ ?\(.+$"),
    "leaked zone": re.compile(
        r"Freed UMA keg \(.*\) was not empty \(\d+ items\)\. +Lost \d+ pages of memory\.$"
    ),
    "leaked type": re.compile(
        r"Warning: memory type .+ leaked memory on destroy \(-?\d+ allocations, -?\d+ bytes "
        r"leaked\)\.$"
    ),
}
_UNLOADING = ("leaked zone", "leaked type")
# The lines that belong to a complaint: the locks, and one or two backtraces.
_LOCK = re.compile(
    r" (?P<nth>1st|2nd|3rd) (?:0x[0-9a-f]+ )?(?P<name>.+?)"
    r"(?: \((?P<type>[^()]+), (?P<class>[^(),]+)\))? @ (?P<file>\S+):(?P<line>\d+)$"
)
_HELD = re.compile(
    r"(?:exclusive|shared) (?P<name>.+?)(?: \((?P<type>[^()]+)\))? r = \d+ \(0x[0-9a-f]+\) "
    r"locked @ (?P<file>\S+):(?P<line>\d+)$"
)
_WHILE = re.compile(r"while (?:exclusively|share) locked from \S+:\d+$")
_TRACE = re.compile(
    r"(?:KDB: )?stack backtrace:$|lock order .+ -> .+ (?:established|attempted) at:$"
)
_FRAME = re.compile(r"#\d+ 0x[0-9a-f]+ at |[\w.$]+\(.*\) at [\w.$]+\+|--- ")
_PROMPT = re.compile(r"^.*\blogin: ")
_NUMBER = re.compile(r"0x[0-9a-f]+|\b\d+\b")
_PLACE = re.compile(r"\S*/([^/\s]+):(\d+)")
# Functions that take a lock or look at one, so they are not the place that is wrong.
_WITNESS = re.compile(
    r"witness_\w+|(?:__?)?(?:mtx|sx|rm|rw|lockmgr)_\w+|_sleep|msleep\w*|kdb_backtrace|db_trace_\w+"
    r"|kassert_panic|_?malloc\w*|uma_\w+|zone_\w+|keg_\w+|free\w*"
)
_LONGEST_BLOCK = 120


@dataclass(frozen=True)
class Complaint:
    """A complaint as the kernel printed it; `lines` are its first line and all that belong to it.

    `kind` is a key of the forms that are known.  `signature` is the same for the same complaint in
    another boot or build: it has no addresses, counts and line numbers.  `frames` is the last
    backtrace, that of the thread that the kernel complains about.
    """

    kind: str
    lines: tuple[str, ...]
    signature: str
    frames: tuple[Frame, ...] = ()

    @property
    def of_unloading(self) -> bool:
        """Whether it is about a module that was unloaded, and not about the one that came next."""
        return self.kind in _UNLOADING

    @property
    def summary(self) -> str:
        """One line: the message, the locks with their places, and the function."""
        locks = [_short(found) for line in self.lines[1:] if (found := _lock(line))]
        text = " ".join([_PLACE.sub(r"\1:\2", self.lines[0].strip()), "; ".join(locks)]).strip()
        if (culprit := self.culprit) is None:
            return text
        # The last of several sources is the function itself; the others were inlined.
        source = culprit.sources[-1].rpartition("/")[2] if culprit.sources else ""
        return f"{text}; in {culprit.function}" + (f" ({source})" if source else "")

    @property
    def culprit(self) -> Frame | None:
        """The innermost place in the backtrace that is not part of the kernel's own checks."""
        return next((it for it in self.frames if not _WITNESS.fullmatch(it.function)), None)


def _lock(line: str) -> re.Match[str] | None:
    """The lock that a line of a complaint names."""
    return _LOCK.match(line) or _HELD.match(line)


def _short(found: re.Match[str]) -> str:
    """A lock without its address: its name, and where it was taken."""
    nth = f"{found.groupdict()['nth']} " if "nth" in found.groupdict() else ""
    return f"{nth}{found['name']} @ {found['file'].rpartition('/')[2]}:{found['line']}"


def read(lines: Iterable[str]) -> tuple[Complaint, ...]:
    """Every complaint in a console's or dmesg's lines, in order."""
    return tuple(_complaint(kind, block) for kind, block in _blocks(lines))


def _blocks(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    kind = ""
    block: list[str] = []
    for line in lines:
        begins = _head(line)
        if begins is not None:
            if block:
                yield kind, block
            kind, block = begins[0], [begins[1]]
        elif block and len(block) < _LONGEST_BLOCK and _belongs(line):
            block.append(line)
        elif block:
            yield kind, block
            kind, block = "", []
    if block:
        yield kind, block


def _head(line: str) -> tuple[str, str] | None:
    """The kind of a complaint that begins in a line, and the line from there on."""
    line = _PROMPT.sub("", line)
    for kind, pattern in _HEADS.items():
        if (found := pattern.search(line)) and _begins(line, found.start()):
            return kind, line[found.start() :]
    return None


def _begins(line: str, at: int) -> bool:
    """Whether the kernel may have begun to print there: at the cursor, or behind a time stamp."""
    return at == 0 or line[at - 1] in " \t]:"


def _belongs(line: str) -> bool:
    return any(it.match(line) for it in (_LOCK, _HELD, _WHILE, _TRACE, _FRAME))


def _complaint(kind: str, block: Sequence[str]) -> Complaint:
    parts = [_NUMBER.sub("N", _PLACE.sub(r"\1", block[0]))]
    for line in block[1:]:
        if found := _lock(line):
            what = found["type"] or found["name"]
            how = found.groupdict().get("class") or ""
            parts.append(f"{_NUMBER.sub('N', what)} {how} {found['file'].rpartition('/')[2]}")
    starts = [number for number, line in enumerate(block) if _TRACE.match(line)]
    frames = parse_frames(block[starts[-1] + 1 :]) if starts else ()
    return Complaint(kind, tuple(block), "; ".join(parts), frames)
