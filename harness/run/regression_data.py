"""Data: a folder of patches that put real bugs back, and the results of the checks on them.

A patch's header may contain `Subject:`, `Year:`, `Area:`, `Processor:` (Intel or AMD, if the bug
has no effect on the other), and a message that describes the bug.
"""

from __future__ import annotations

import dataclasses
import email.parser
import email.policy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import EXIT_CHECK_FAILED, EXIT_OK, EXIT_PATCH, PatchError, UsageError
from harness.run.mutants import Mutant
from harness.series.load import read_patch

Verdict = Literal[
    "caught", "held", "MISSED", "WRONGLY CAUGHT", "DOES NOT APPLY", "DOES NOT BUILD", "not run"
]
PROCESSORS = ("Intel", "AMD")
_RIGHT = "right"


@dataclass(frozen=True)
class Regression:
    """One patch with the facts of its header; `processor` is empty if the header names none."""

    mutant: Mutant
    title: str
    year: str
    area: str
    processor: str
    does: str


@dataclass(frozen=True)
class VariantResult:
    """The result of one patch."""

    name: str
    title: str
    year: str
    area: str
    does: str
    right: bool
    verdict: Verdict
    caught_by: tuple[str, ...]
    why: str
    seconds: float


@dataclass(frozen=True)
class Result:
    """The result of a run; `at_least` is the required rate in per cent."""

    release: str
    backend: str
    processor: str
    folder: Path
    run_dir: Path
    results: tuple[VariantResult, ...]
    outside_baseline: Mapping[str, str]
    at_least: int
    seconds: float

    def _count(self, verdict: Verdict) -> int:
        return sum(it.verdict == verdict for it in self.results)

    @property
    def rate(self) -> float | None:
        """Caught bugs in per cent of those that were tried; None if none was tried."""
        tried = self._count("caught") + self._count("MISSED")
        return 100 * self._count("caught") / tried if tried else None

    @property
    def exit_code(self) -> int:
        """1: a correct patch was caught, or too few bugs; 5: a patch does not apply or build."""
        if self._count("WRONGLY CAUGHT") or (self.rate is not None and self.rate < self.at_least):
            return EXIT_CHECK_FAILED
        broken = self._count("DOES NOT APPLY") + self._count("DOES NOT BUILD")
        return EXIT_PATCH if broken else EXIT_OK

    @property
    def verdict(self) -> str:
        """One line."""
        caught, missed = self._count("caught"), self._count("MISSED")
        parts = [f"{caught} of {caught + missed} bugs caught"]
        if self.rate is not None:
            parts[0] += f" ({self.rate:.0f} %)"
        held, wrongly = self._count("held"), self._count("WRONGLY CAUGHT")
        if held + wrongly:
            parts.append(f"{held} of {held + wrongly} right patches held")
        others: tuple[Verdict, ...] = ("DOES NOT APPLY", "DOES NOT BUILD", "not run")
        parts += [f"{number} {name}" for name in others if (number := self._count(name))]
        if missed:
            names = (it.name for it in self.results if it.verdict == "MISSED")
            parts.append(f"missed: {', '.join(names)}")
        return "; ".join(parts)

    def to_data(self) -> dict[str, Any]:
        """All data for programs."""
        return {
            **dataclasses.asdict(self),
            "no_footing": dict(self.outside_baseline),
            "folder": str(self.folder),
            "run_dir": str(self.run_dir),
            "rate": self.rate,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
        }


def load(folder: Path, only: Sequence[str] = ()) -> tuple[Regression, ...]:
    """The patches of a folder, correct ones first; `only` chooses some by their files' names.

    Raises UsageError if the folder is missing or empty, or for an unknown name; PatchError for a
    file that is not a patch, or an unknown processor in a header.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; --regressions takes a folder of patches")
    found = [_read(path, right=True) for path in sorted((folder / _RIGHT).glob("*.patch"))]
    found += [_read(path, right=False) for path in sorted(folder.glob("*.patch"))]
    if not found:
        raise UsageError(f"{folder}: there is no *.patch in it")
    known = [it.mutant.name for it in found]
    if strange := [name for name in only if name not in known]:
        raise UsageError(
            f"--only {strange[0]}: there is no such patch; {folder} has {', '.join(known)}"
        )
    return tuple(it for it in found if not only or it.mutant.name in only)


def _read(path: Path, *, right: bool) -> Regression:
    patch = read_patch(path)
    mail = email.parser.BytesHeaderParser(policy=email.policy.default).parsebytes(patch.data)

    def said(name: str) -> str:
        return " ".join(str(mail.get(name, "")).split())

    processor = said("Processor")
    if processor.lower() in ("", "any"):
        processor = ""
    elif processor not in PROCESSORS:
        raise PatchError(f"{path}: Processor: {processor}: it must be Intel, AMD or any")
    name = f"{_RIGHT}-{path.stem}" if right else path.stem
    mutant = Mutant(name, patch.subject, "held" if right else "caught", (), patch)
    does = " ".join(patch.message.split())
    return Regression(mutant, patch.subject, said("Year"), said("Area"), processor, does)
