"""Separates the kernel's complaints about the tested patch from those of stock FreeBSD.

A complaint is stock's if the same one was seen while the stock module was loaded, in this run or an
earlier run of the same image, or if the kernel printed it before the first module was loaded.  The
serial line is always read; the kernel's message buffer is read only if a complaint is still
unknown.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from harness import checked
from harness.errors import CannotError, GuestError
from harness.files import locked, write_atomic
from harness.guest import kernel_messages, panic_report
from harness.guest.freebsd import Guest
from harness.guest.kernel_messages import Complaint
from harness.machine.console import Console, clean_lines
from harness.report import Check

FILE = "kernel-messages.json"
"""Beside a prepared disk: the complaints that stock FreeBSD makes there."""
PROPERTY = "kernel messages of stock"
CHECK = "kernel messages"
"""The name of the result for complaints outside of all checks."""

_MOST = 1000


class Complaints:
    """The kernel's complaints in one run, and who caused them.

    `properties` are the run's, in which stock's complaints are noted.
    """

    def __init__(self, properties: dict[str, str]) -> None:
        self._properties = properties
        self._known: dict[str, str] = {}
        self._noted: dict[str, str] = {}
        self._loaded_at: int | None = None
        self._asked = False
        self.file: Path | None = None
        """Where stock's complaints are recorded; None before there is an image."""
        self.symbols: Callable[[], panic_report.Symbols] = panic_report.Symbols
        """The files with line numbers of the running module and kernel."""
        self.outside: list[Complaint] = []
        """The patch's complaints while no check ran, such as when its module was loaded."""

    def booted(self) -> None:
        """The guest has started; nothing was loaded in it yet."""
        self._loaded_at, self._asked = None, False

    def loading(self, console: Console) -> None:
        """A module is about to be loaded; what was printed before the first one is stock's."""
        if self._loaded_at is None:
            self._loaded_at = console.mark

    def hear(
        self, guest: Guest, mark: int, stock: bool | Callable[[Complaint], bool]
    ) -> tuple[Complaint, ...]:
        """The patch's complaints on the guest's console since `mark`; stock's are only noted.

        `stock` says whether the stock module caused them.
        """
        console = guest.machine.console
        console.drain()
        found = kernel_messages.read(clean_lines(console.since(mark)))
        if not found:
            return ()
        theirs = [it for it in found if (stock if isinstance(stock, bool) else stock(it))]
        if theirs:
            self._learn(theirs)
        rest = [it for it in found if it not in theirs]
        if any(it.signature not in self._known for it in rest):
            self._read_file()
        if any(it.signature not in self._known for it in rest):
            self._learn_from_boot(guest)
        mine = tuple(it for it in rest if it.signature not in self._known)
        self._note(it for it in found if it not in mine)
        return tuple(self._with_sources(it) for it in mine)

    def _learn(self, found: Sequence[Complaint]) -> None:
        """Record complaints of the stock module, also for later runs and other guests."""
        news = {it.signature: it.lines[0] for it in found if it.signature not in self._known}
        self._known |= news
        if not news or self.file is None:
            return
        # If the cache cannot be written, only later runs lack this knowledge.
        with (
            contextlib.suppress(OSError, CannotError),
            locked(self.file.with_suffix(".lock"), "recording the stock kernel's messages"),
        ):
            self._read_file()
            recent = dict(list(self._known.items())[-_MOST:])
            write_atomic(self.file, json.dumps(recent, indent=2) + "\n")

    def _read_file(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError, ValueError):
                read = checked.decode(dict[str, checked.Line], self.file.read_bytes())
                self._known = {**read, **self._known}

    def _learn_from_boot(self, guest: Guest) -> None:
        """Learn what the kernel printed before the first module was loaded."""
        console = guest.machine.console
        if self._asked or self._loaded_at is None or guest.given_up or console.panicked:
            return
        self._asked = True
        # This command is not part of a check.
        transcript, guest.transcript = guest.transcript, None
        try:
            everything = kernel_messages.read(clean_lines("\n".join(guest.dmesg())))
        except GuestError:
            return
        finally:
            guest.transcript = transcript
        later = kernel_messages.read(clean_lines(console.since(self._loaded_at)))
        counts = collections.Counter(it.signature for it in everything)
        counts.subtract(it.signature for it in later)
        self._known |= {it.signature: it.lines[0] for it in everything if counts[it.signature] > 0}

    def _note(self, found: Iterable[Complaint]) -> None:
        for it in found:
            self._noted.setdefault(it.signature, it.lines[0])
        if self._noted:
            texts = "; ".join(self._noted.values())
            self._properties[PROPERTY] = f"{len(self._noted)}: {texts}"

    def _with_sources(self, complaint: Complaint) -> Complaint:
        frames = panic_report.symbolize(complaint.frames, self.symbols())
        return dataclasses.replace(complaint, frames=frames)

    def take(self) -> tuple[Complaint, ...]:
        """Return the complaints outside of checks so far, and clear them."""
        found, self.outside = tuple(self.outside), []
        return found

    def checks(self) -> tuple[Check, ...]:
        """A failed result for the complaints outside of all checks; none if there are none."""
        if not self.outside:
            return ()
        return (
            Check(
                name=CHECK,
                title="The kernel complains about nothing while the module is loaded or unloaded",
                outcome="failed",
                of_patch=False,
                seconds=0.0,
                message=message(self.outside),
                detail="\n\n".join(text(it) for it in self.outside),
            ),
        )


def message(found: Sequence[Complaint]) -> str:
    """One line about complaints: their number, and the first."""
    times = f" {len(found)} times" if len(found) > 1 else ""
    return f"the kernel complained{times}: {found[0].summary}"


def text(complaint: Complaint) -> str:
    """A complaint as it was printed, with the files and lines of its last backtrace."""
    lines = list(complaint.lines)
    if any(frame.sources for frame in complaint.frames):
        lines += ["with sources:", *(f"  {frame}" for frame in complaint.frames)]
    return "\n".join(lines)
