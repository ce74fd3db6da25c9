"""The commands to a guest and their output, as evidence, within bounds."""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass

from harness.checked import Seconds

_FIRST = 20
_LAST = 60
_ASKED_CHARS = 2000
_HEAD_BYTES = 600
_TAIL_BYTES = 1400
_LINES = 60
_LINE_CHARS = 300


@dataclass(frozen=True)
class Asked:
    """One command in the guest; `exit_code` is None if it was interrupted.

    Of a long output only the beginning and the end are stored.
    """

    command: str
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: Seconds


Listener = Callable[[Asked], None]


def asked(
    command: str, exit_code: int | None, stdout: bytes, stderr: bytes, seconds: float
) -> Asked:
    """The command with its output, shortened if it is long."""
    line = command
    if len(line) > _ASKED_CHARS:
        line = f"{line[:_ASKED_CHARS]} [... {len(line) - _ASKED_CHARS} more characters]"
    return Asked(line, exit_code, _ends(stdout), _ends(stderr), seconds)


def _ends(data: bytes) -> str:
    cut = len(data) - _HEAD_BYTES - _TAIL_BYTES
    if cut <= 0:
        return data.decode("utf-8", "replace")
    head, tail = data[:_HEAD_BYTES], data[-_TAIL_BYTES:]
    note = f"\n[... {cut} bytes ...]\n"
    return head.decode("utf-8", "replace") + note + tail.decode("utf-8", "replace")


class Transcript:
    """The first and the last commands, and the number of the others."""

    def __init__(self) -> None:
        self._first: list[Asked] = []
        self._last: collections.deque[Asked] = collections.deque(maxlen=_LAST)
        self._count = 0
        self.seconds = 0.0

    def hear(self, one: Asked) -> None:
        """Record a command."""
        self._count += 1
        self.seconds += one.seconds
        if len(self._first) < _FIRST:
            self._first.append(one)
        else:
            self._last.append(one)

    @property
    def count(self) -> int:
        """The number of all commands, stored or not."""
        return self._count

    @property
    def kept(self) -> tuple[Asked, ...]:
        """The stored commands, in order."""
        return (*self._first, *self._last)


@dataclass(frozen=True)
class Evidence:
    """The commands and the guest's output during one check.

    `count` is the number of all commands, stored or not; `console` and `dmesg` are the guest's own
    lines.
    """

    commands: tuple[Asked, ...] = ()
    count: int = 0
    seconds: Seconds = 0.0
    console: tuple[str, ...] = ()
    dmesg: tuple[str, ...] = ()


NO_EVIDENCE = Evidence()


def evidence(transcript: Transcript, console: list[str], dmesg: list[str]) -> Evidence:
    """The contents of a transcript, with the guest's lines during the check."""
    return Evidence(
        transcript.kept, transcript.count, transcript.seconds, _last(console), _last(dmesg)
    )


def _last(lines: list[str]) -> tuple[str, ...]:
    cut = len(lines) - _LINES
    kept = tuple(line[:_LINE_CHARS] for line in lines[-_LINES:])
    return (f"[{cut} lines before this]", *kept) if cut > 0 else kept
