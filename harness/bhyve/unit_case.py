"""The result of one case of a unit test program in the guest, read from its TAP."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.probe import tap

_SKIP = " # SKIP "
_TOOK = re.compile(r"took ([\d.]+) s")


@dataclass(frozen=True)
class Case:
    """The result of a case; `skipped` says why it was not run, `notes` are its evidence."""

    name: str
    claim: str
    held: bool
    skipped: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        outcome = f"skipped: {self.skipped}" if self.skipped else "held" if self.held else "failed"
        notes = "" if self.held else f": {'; '.join(self.notes)}"
        return f"{self.name} ({self.claim}) {outcome}{notes}"


def of(test: tap.Test) -> Case:
    """The case of a TAP line; a note `took N s` below it becomes `seconds`."""
    claim, _, skipped = test.what.partition(_SKIP)
    took = next((m for note in test.notes if (m := _TOOK.fullmatch(note))), None)
    notes = tuple(note for note in test.notes if not _TOOK.fullmatch(note))
    return Case(test.name, claim, test.held, skipped, notes, float(took[1]) if took else 0.0)
