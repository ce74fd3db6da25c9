"""Several runs of the same checks as one report: a column for each backend, processor and release.

A column that could not be run stays in the report, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import (
    EXIT_CANNOT,
    EXIT_CHECK_FAILED,
    EXIT_GUEST,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PATCH,
    EXIT_USAGE,
)
from harness.report.data import LEFT_OUT, Report, Status

VENDORS = {"intel": "Intel", "amd": "AMD"}
"""The vendors' names for people."""

WORDS = {
    EXIT_OK: "all held",
    EXIT_CHECK_FAILED: "a check failed",
    EXIT_USAGE: "used wrongly",
    EXIT_CANNOT: "not all was run",
    EXIT_GUEST: "the guest broke",
    EXIT_PATCH: "the patch does not apply or build",
    EXIT_INTERRUPTED: "interrupted",
}
"""The meaning of each exit code, in a few words."""

GRAVEST_FIRST = (
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    EXIT_GUEST,
    EXIT_PATCH,
    EXIT_CHECK_FAILED,
    EXIT_CANNOT,
    EXIT_OK,
)
"""The first of these that is among several exit codes is the exit code of all."""

_AS_AMD = " as AMD"
# The verdict has the result of each column if there are no more than this; the table always has.
_FEW = 4


@dataclass(frozen=True)
class Cell:
    """One column: where and what was to be run, and its report or the reason why there is none.

    `backend` is auto and `vendor` is empty if neither was requested or chosen.  `named` says
    whether the user requested exactly this, so that it counts as missing if it is not run.
    `number` distinguishes several runs of the same job; `folder` is the run's folder below the
    matrix's.  `name` is the column's name if nothing else is known about it.
    """

    release: str
    backend: str = "auto"
    vendor: str = ""
    stock: bool = False
    report: Report | None = None
    reason: str = ""
    named: bool = True
    number: int = 1
    folder: str = ""
    name: str = ""

    @property
    def label(self) -> str:
        """Its name for people: `15.1 bochs AMD`, `15.1 kvm stock`."""
        if self.name:
            return self.name
        words = [self.release, self.backend]
        words += [VENDORS.get(self.vendor, self.vendor)] if self.vendor else []
        words += ["stock"] if self.stock else []
        words += [f"#{self.number}"] if self.number > 1 else []
        return " ".join(words)

    @property
    def slug(self) -> str:
        """Its name for files."""
        return self.label.replace(" ", "-").replace("#", "").lower()

    @property
    def key(self) -> tuple[str, str, str, str, bool]:
        """The values in which two cells of the same job agree."""
        return self.name, self.release, self.backend, self.vendor, self.stock

    def does(self, planned: Cell) -> bool:
        """Whether this is the planned cell; values that the plan leaves open may be anything."""
        return (
            (self.release, self.stock) == (planned.release, planned.stock)
            and planned.backend in ("auto", self.backend)
            and planned.vendor in ("", self.vendor)
        )

    @property
    def not_run(self) -> str:
        """Why nothing was run here; empty if something was run."""
        if self.report is None:
            return self.reason or "no report"
        found = self.report
        nothing = found.error_exit_code == EXIT_CANNOT and not found.checks
        return found.error if found.error and nothing else ""

    @property
    def exit_code(self) -> int:
        """Its run's exit code; 3 if nothing was run."""
        return EXIT_CANNOT if self.report is None else self.report.exit_code

    @property
    def words(self) -> str:
        """Its result: the counts of its checks, or why there are none."""
        if self.not_run:
            return f"not run: {self.not_run}"
        assert self.report is not None
        if self.report.error:
            return f"no verdict: {self.report.error}"
        return self.report.counts + self.report.not_tested

    @property
    def checks_s(self) -> float:
        """The duration of its checks, in seconds."""
        return self.report.checks_s if self.report else 0.0

    @classmethod
    def of(cls, report: Report, **more: Any) -> Cell:
        """The column of a run, with the backend and processor that the run had."""
        backend = report.backend.removesuffix(_AS_AMD)
        vendor = "amd" if report.backend.endswith(_AS_AMD) else ""
        said = report.properties.get("processor", "")
        vendor = vendor or (said if said in VENDORS else "intel" if backend else "")
        return cls(
            report.release, backend or "auto", vendor, stock=report.stock, report=report, **more
        )


@dataclass(frozen=True)
class Row:
    """One check in all columns: its status and reason in each; None if it is unknown there."""

    name: str
    title: str
    of_patch: bool
    results: tuple[tuple[Status, str] | None, ...]

    @property
    def held(self) -> bool:
        """Whether it is ok in every column that knows it."""
        return all(result is None or result[0] == "ok" for result in self.results)

    def reasons(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Why it is not ok, or what was left out; each reason with its columns."""
        found: dict[str, list[str]] = {}
        for label, result in zip(labels, self.results, strict=True):
            status, why = result or ("ok", "")
            if why and (status != "ok" or why.startswith(LEFT_OUT)):
                found.setdefault(why, []).append(label)
        return tuple(f"{', '.join(where)}: {why}" for why, where in found.items())


@dataclass(frozen=True)
class Matrix:
    """All columns; `run_dir` is the folder that holds the report and each run's own folder."""

    cells: tuple[Cell, ...]
    started_at: str
    run_dir: Path
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(cell.label for cell in self.cells)

    @property
    def ran(self) -> tuple[Cell, ...]:
        """The columns in which something was run."""
        return tuple(cell for cell in self.cells if not cell.not_run)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every check that a column knows, in the order of the first such column."""
        known: list[dict[str, tuple[Status, str]]] = []
        first: dict[str, tuple[str, bool]] = {}
        for cell in self.cells:
            checks = cell.report.checks if cell.report else ()
            known.append(
                {check.name: cell.report.status(check) for check in checks} if cell.report else {}
            )
            for check in checks:
                first.setdefault(check.name, (check.title, check.of_patch))
        return tuple(
            Row(name, title, of_patch, tuple(column.get(name) for column in known))
            for name, (title, of_patch) in first.items()
        )

    @property
    def exit_code(self) -> int:
        """The gravest exit code of the columns; a column that was not run counts if it was named.

        If nothing was run at all, it is 3.
        """
        counted = [cell.exit_code for cell in self.cells if cell.named or not cell.not_run]
        return gravest(counted) if self.ran else gravest([*counted, EXIT_CANNOT])

    @property
    def subject(self) -> str:
        """The series, if it is the same in all patched columns."""
        reports = [cell.report for cell in self.ran if cell.report]
        names = {report.series for report in reports if not report.stock}
        topics = {f"topic {report.topic}" for report in reports if report.topic}
        if not names and reports:
            names = {"the stock module"}
        return ", ".join([*sorted(names), *sorted(topics)]) if len(names) == 1 else ""

    @property
    def verdict(self) -> str:
        """One line: the number of columns in which all held, and the results of the others."""
        ran = self.ran
        held = sum(cell.exit_code == EXIT_OK for cell in ran)
        what = f"{self.subject}: " if self.subject else ""
        parts = [f"{what}all held in {held} of {len(ran)} runs"]
        if len(ran) <= _FEW:
            # The files from which nothing was built are named once if they are the same everywhere.
            untested = {cell.report.not_tested for cell in ran if cell.report}
            parts += [
                f"{cell.label}: {cell.report.counts}"
                if cell.report and len(untested) == 1 and not cell.report.error
                else f"{cell.label}: {cell.words}"
                for cell in ran
            ]
            parts += [text.removeprefix("; ") for text in untested if text and len(untested) == 1]
        else:
            parts += [
                f"{cell.label}: {WORDS.get(cell.exit_code, 'failed')}"
                for cell in ran
                if cell.exit_code != EXIT_OK
            ]
        if missing := [cell for cell in self.cells if cell.not_run]:
            parts.append(f"{len(missing)} not run ({', '.join(cell.label for cell in missing)})")
        return "; ".join(parts)

    def to_data(self, *, whole: bool = True) -> dict[str, Any]:
        """All of it for programs; without `whole` the columns' own reports are left out."""
        cells = []
        for cell in self.cells:
            entry = {
                field.name: getattr(cell, field.name)
                for field in dataclasses.fields(cell)
                if field.name != "report"
            }
            entry |= {
                "label": cell.label,
                "not_run": cell.not_run,
                "words": cell.words,
                "checks_s": cell.checks_s,
                "exit_code": cell.exit_code,
            }
            if whole:
                entry["report"] = cell.report.to_data() if cell.report else None
            cells.append(entry)
        return {
            "cells": cells,
            "started_at": self.started_at,
            "run_dir": str(self.run_dir),
            "notes": list(self.notes),
            "verdict": self.verdict,
            "exit_code": self.exit_code,
        }


def gravest(codes: Iterable[int]) -> int:
    """The exit code of all: the first of GRAVEST_FIRST that is among them."""
    found = set(codes) or {EXIT_OK}
    return next((code for code in GRAVEST_FIRST if code in found), EXIT_CANNOT)


def numbered(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells in order, the second of the same job with the number 2, and so on."""
    seen: dict[tuple[str, str, str, str, bool], int] = {}
    found = []
    for cell in cells:
        seen[cell.key] = seen.get(cell.key, 0) + 1
        found.append(dataclasses.replace(cell, number=seen[cell.key]))
    return tuple(found)
