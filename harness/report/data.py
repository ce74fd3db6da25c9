"""The report of a run as data.

A check's meaning depends on what ran: on the stock module the checks that belong to a patch must
fail, and one that passes there proves nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import progress
from harness.checked import Seconds
from harness.errors import EXIT_CANNOT, EXIT_CHECK_FAILED, EXIT_OK
from harness.guest.panic_report import Panic
from harness.guest.transcript import NO_EVIDENCE, Evidence

N_A = "does not apply: "
"""The beginning of the reason of a skipped check that does not apply to this guest."""

LEFT_OUT = "left out"
"""The name of a check's property that says which part of it this backend cannot run, and why."""

AS_STOCK = "fails on the stock module too: "
"""Begins the meaning of a check that fails with and without the patch."""

KEPT = "kept"
"""The property that says how to enter the guest that was left up."""

LEFT_OUT = "left out"
"""The property that says which checks this run left out."""

NOT_TESTED = "not tested"
"""The property that names the files of the patch from which nothing was built."""

Outcome = Literal["passed", "failed", "error", "skipped"]
"""`error`: it failed outside its own claim (a timeout, a fixture), so it says nothing."""

Status = Literal["ok", "FAILED", "as stock", "not run", "n/a"]
"""`n/a`: it does not apply to this processor or release, so it does not count as not run.

`as stock`: it fails, and on the stock module too, in the same run: not the series' fault."""


@dataclass(frozen=True)
class Check:
    """One check as pytest saw it; `of_patch` says that it can pass only with the series.

    If a run tried the stock module first (`Report.side_by_side`), `on_stock` is the outcome of the
    same check there, or empty if the check did not exist there.  `at_s` is its beginning, in
    seconds of the run; `guest` is the number of its guest.  `figures` are its measurements, names
    and values with units, from pytest's `record_property`; `stock_figures` those on the stock
    module.
    """

    name: str
    title: str
    outcome: Outcome
    of_patch: bool
    seconds: Seconds
    message: str = ""
    detail: str = ""
    on_stock: Outcome | Literal[""] = ""
    stock_message: str = ""
    at_s: Seconds = 0.0
    evidence: Evidence = NO_EVIDENCE
    guest: int = 1
    figures: tuple[tuple[str, str], ...] = ()
    stock_figures: tuple[tuple[str, str], ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """The parts that it left out, each with the reason."""
        return tuple(why for name, why in self.figures if name == LEFT_OUT)


@dataclass(frozen=True)
class StageResult:
    """One stage of the run; `outcome` is ok, failed or not run; `at_s` is as in Check."""

    name: str
    outcome: str
    seconds: Seconds
    note: str
    at_s: Seconds = 0.0


@dataclass(frozen=True)
class Report:
    """The report of a run; `error` is the line that ended it early, with `error_exit_code`.

    `error_detail` has the details of that line, for instance a compiler's messages; `panic` has the
    facts of the guest's panic, if there was one.  `topic` is set if only the checks of a topic
    without patches ran.
    """

    release: str
    backend: str
    stock: bool
    series: str
    started_at: str
    run_dir: Path
    stages: tuple[StageResult, ...]
    checks: tuple[Check, ...]
    properties: Mapping[str, str]
    error: str = ""
    error_exit_code: int = EXIT_OK
    error_detail: str = ""
    panic: Panic | None = None
    topic: str = ""

    def status(self, check: Check) -> tuple[Status, str]:
        """The meaning of a check's outcome in this run, and a short reason."""
        if check.outcome == "skipped":
            applies = not check.message.startswith(N_A)
            return "not run" if applies else "n/a", check.message
        if check.outcome == "error":
            if check.on_stock == "error" and not check.of_patch:
                return "as stock", f"cannot run on stock either: {check.stock_message}"
            return "FAILED", check.message or "it could not run"
        if self.stock and check.of_patch:
            if check.outcome == "failed":
                return "ok", "fails without the patch, as it must"
            return "FAILED", "passes without the patch, so it proves nothing"
        if check.of_patch and check.on_stock == "passed" == check.outcome:
            return "FAILED", "passes on the stock module too, so it proves nothing"
        if not check.of_patch and check.outcome == "failed" and check.on_stock == "failed":
            return "as stock", f"{AS_STOCK}{check.stock_message}"
        if check.outcome != "passed":
            return "FAILED", check.message
        return "ok", "; ".join(f"{LEFT_OUT}: {why}" for why in check.left_out)

    @property
    def side_by_side(self) -> bool:
        """Whether the stock module was tried in the same run, so that checks have its outcomes."""
        return any(check.on_stock for check in self.checks)

    @property
    def figures(self) -> tuple[tuple[str, str, str], ...]:
        """The measurements of the checks: name, value on stock (or empty), value."""
        found = []
        for check in self.checks:
            there = dict(check.stock_figures)
            found += [
                (name, there.get(name, ""), value)
                for name, value in check.figures
                if name != LEFT_OUT
            ]
        return tuple(found)

    def count(self, status: Status) -> int:
        """The number of checks with this status."""
        return sum(self.status(check)[0] == status for check in self.checks)

    @property
    def checks_s(self) -> float:
        """The seconds of its stages of checks."""
        return sum(stage.seconds for stage in self.stages if stage.name.startswith("checks"))

    @property
    def exit_code(self) -> int:
        """The run's exit code: the error's own, 1 for a failed check, 3 for one not run, else 0."""
        if self.error:
            return self.error_exit_code
        if self.count("FAILED"):
            return EXIT_CHECK_FAILED
        return EXIT_CANNOT if self.count("not run") or not self.checks else EXIT_OK

    @property
    def counts(self) -> str:
        """How many checks passed, failed and were not run, in words."""
        counts = f"{self.count('ok')} of {len(self.checks) - self.count('n/a')} checks ok"
        if self.stock and (must := [check for check in self.checks if check.of_patch]):
            fails = sum(self.status(check)[0] == "ok" for check in must)
            counts += f" ({fails} of the patch's {len(must)} fail without it, as they must)"
        if self.count("FAILED"):
            counts += f", {self.count('FAILED')} FAILED"
        if self.count("as stock"):
            counts += f", {self.count('as stock')} failing on the stock module too"
        if self.side_by_side and (of_patch := [c for c in self.checks if c.of_patch]):
            differ = sum(c.outcome == "passed" and c.on_stock == "failed" for c in of_patch)
            counts += f" ({differ} of the patch's {len(of_patch)} fail on the stock module)"
        if self.count("not run"):
            counts += f", {self.count('not run')} not run"
        if self.count("n/a"):
            counts += f", {self.count('n/a')} that do not apply here"
        if LEFT_OUT in self.properties:
            counts += f"; {self.properties[LEFT_OUT]}"
        return counts

    @property
    def not_tested(self) -> str:
        """Which files of the patch nothing was built from, as the verdict says it; or nothing."""
        missed = self.properties.get(NOT_TESTED, "")
        return f"; not tested: {missed}" if missed else ""

    @property
    def verdict(self) -> str:
        """One line: what was proved."""
        what = "the stock module" if self.stock else self.series
        what += f", topic {self.topic}" if self.topic else ""
        where = f"{what}, FreeBSD {self.release}" + (f" in {self.backend}" if self.backend else "")
        if self.error:
            return f"{where}: no verdict: {self.error}"
        return f"{where}: {self.counts}{self.not_tested}"

    def to_data(self) -> dict[str, Any]:
        """All of it for programs."""
        data = dataclasses.asdict(self)
        data["run_dir"] = str(self.run_dir)
        data["properties"] = dict(self.properties)
        data["panic"] = self.panic.to_data() if self.panic else None
        for entry, check in zip(data["checks"], self.checks, strict=True):
            entry["status"], entry["meaning"] = self.status(check)
        data["side_by_side"] = self.side_by_side
        data["verdict"] = self.verdict
        data["exit_code"] = self.exit_code
        return data


def stage_results(
    stages: Sequence[progress.Stage], planned: Sequence[str]
) -> tuple[StageResult, ...]:
    """The stages that ran, followed by those that were planned but did not run."""
    start_s = stages[0].began_s if stages else 0.0
    ran = [StageResult(s.name, s.outcome, s.seconds, s.note, s.began_s - start_s) for s in stages]
    names = {stage.name for stage in ran}
    return (*ran, *(StageResult(name, "not run", 0.0, "") for name in planned if name not in names))
