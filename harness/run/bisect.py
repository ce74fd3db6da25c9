"""`inv bisect`: finds the first patch of a series that makes a check fail.

The same guests serve the whole search: for each step the series is built up to a patch, and that
module is loaded in place of the one before.  All guests share the checks of a step.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import progress
from harness.build import builder
from harness.errors import (
    EXIT_CHECK_FAILED,
    EXIT_OK,
    GuestError,
    PatchError,
    UsageError,
)
from harness.report import Check
from harness.run import shards
from harness.run.options import Options, load_series
from harness.run.pytest_run import CHECKS, run_checks
from harness.run.run_folder import new_run_dir
from harness.run.session import Session
from harness.run.stages import Built
from harness.run.workbench import Workbench
from harness.series.load import Patch, Series

Verdict = Literal["good", "bad", "skipped"]


@dataclass(frozen=True)
class Step:
    """The result with the first `applied` patches of the series (0: none)."""

    applied: int
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True)
class Found:
    """The result of the search: the first bad patch is one of `suspects`, numbers from 1."""

    series: Series
    steps: tuple[Step, ...]
    suspects: tuple[int, ...]
    run_dir: Path

    def patch(self, number: int) -> Patch:
        """The patch with a number."""
        return self.series.patches[number - 1]

    @property
    def exit_code(self) -> int:
        """1 when there is a bad patch, 0 when there is none."""
        return EXIT_CHECK_FAILED if self.suspects else EXIT_OK

    @property
    def verdict(self) -> str:
        """One line, naming the patch."""
        total = len(self.series.patches)
        if not self.suspects:
            return (
                f"no bad patch: every check that passes without the {total} patches "
                f"passes with them"
            )
        names = [f"{self.patch(n).name} ({n} of {total})" for n in self.suspects]
        last = self.suspects[-1]
        why = next(step.why for step in self.steps if step.applied == last)
        if len(names) == 1:
            return f"the first bad patch is {names[0]}: {why}"
        return (
            f"the first bad patch is one of {', '.join(names)}; the steps between them do not build"
        )

    def to_data(self) -> dict[str, Any]:
        """For --json."""
        return {
            "series": self.series.topic,
            "release": self.series.release,
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "suspects": [self.patch(number).name for number in self.suspects],
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "run_dir": str(self.run_dir),
        }


def search(try_at: Callable[[int], Verdict], good: int, bad: int) -> tuple[int, ...]:
    """The numbers of the patches that may be the first bad one, after `good` and up to `bad`.

    The results at `good` and `bad` are known.  `try_at` is called at most once for each number.  If
    a step is skipped, a neighbour is tried instead.
    """
    left_out: set[int] = set()
    while True:
        between = [number for number in range(good + 1, bad) if number not in left_out]
        if not between:
            return tuple(range(good + 1, bad + 1))
        middle = min(between, key=lambda number: abs(2 * number - good - bad))
        verdict = try_at(middle)
        if verdict == "good":
            good = middle
        elif verdict == "bad":
            bad = middle
        else:
            left_out.add(middle)


def bisect(options: Options, good: int = 0, bad: int | None = None, tests: Path = CHECKS) -> Found:
    """Find the first bad patch of the series in `options`, between `good` and `bad` patches.

    A step is bad if a check fails that passed at `good`, or if the guest breaks.  A step that does
    not build is skipped, as with git bisect skip.

    Raises UsageError (numbers that the series does not have), PatchError (`good` or `bad` does not
    build), GuestError (it breaks at `good`).
    """
    series = load_series(options)
    if series is None or not series.patches:
        raise UsageError("the series is empty, so there is no patch to find")
    total = len(series.patches)
    last = total if bad is None else bad
    if not 0 <= good < last <= total:
        raise UsageError(
            f"--good {good} --bad {last}: the series has {total} patches, and good comes before bad"
        )
    # Each step loads a module of its own.
    options = dataclasses.replace(options, module=False, side_by_side=False, go_on=False)
    with Session(options, new_run_dir("bisect")) as session, contextlib.ExitStack() as stack:
        imaged = session.to_image()
        pool: shards.Pool | None = None
        if (count := shards.wanted(session.backend, options.guests)) > 1:
            pool = stack.enter_context(shards.Pool(session, tests, count))
            pool.start_early(imaged)
        bench = Workbench(session, session.boot(imaged))
        hunt = _Hunt(bench, series, tests, pool)
        hunt.begin(good)
        if hunt.try_at(last) == "good":
            return Found(series, tuple(hunt.steps), (), bench.run_dir)
        if hunt.steps[-1].verdict == "skipped":
            raise PatchError(
                f"with {last} patches: {hunt.steps[-1].why}; give a number to --bad that builds"
            )
        suspects = search(hunt.try_at, good, last)
        return Found(series, tuple(hunt.steps), suspects, bench.run_dir)


def _up_to(series: Series, number: int) -> Series | None:
    """The first patches of a series; None means stock, without any patch."""
    if not number:
        return None
    return dataclasses.replace(series, patches=series.patches[:number])


class _Hunt:
    """Tries steps in the running guest."""

    def __init__(
        self, bench: Workbench, series: Series, tests: Path, pool: shards.Pool | None = None
    ) -> None:
        self.bench = bench
        self.series = series
        self.tests = tests
        self.pool = pool
        self.steps: list[Step] = []
        self.baseline: set[str] = set()

    def begin(self, good: int) -> None:
        """Find the checks that pass at `good`; only these are used."""
        self.baseline = {
            check.name
            for check in self._checks(good, self._build(good))
            if check.outcome == "passed"
        }
        self.steps.append(Step(good, "good", f"{len(self.baseline)} checks hold"))
        if not self.baseline:
            raise UsageError(
                f"no check passes with {good} patches, so there is nothing to search for"
            )

    def _build(self, number: int) -> Built:
        imaged = self.bench.booted.imaged
        series = _up_to(self.series, number)
        with progress.stage(f"build at {number}", self.bench.stages) as stage:
            made = builder.build(
                imaged.source,
                imaged.record.sysroot,
                series,
                self.series.release,
                kernel=imaged.record.kernel,
                progress=stage.live,
            )
        return Built(imaged, series, made)

    def _checks(self, number: int, built: Built) -> list[Check]:
        """Load a module and run the checks on it, in all guests."""
        checks: list[Check] = []
        self.bench.load(built, built.build, f"load at {number}")
        what = f"checks at {number}"
        if self.pool is None:
            run_checks(self.bench, self.tests, checks, what=what)
            return checks
        phase = shards.Phase(built, stock=False, backend=self.bench.backend)
        rounds = shards.Rounds(self.pool, self.bench, [phase])
        rounds.start()
        run_checks(self.bench, self.tests, checks, what=what, shared=(rounds, phase))
        return checks

    def try_at(self, number: int) -> Verdict:
        """Build, load and check the series up to a patch."""
        step = self._step(number)
        self.steps.append(step)
        progress.say(f"{number} of {len(self.series.patches)} patches: {step.verdict}: {step.why}")
        return step.verdict

    def _step(self, number: int) -> Step:
        try:
            built = self._build(number)
        except PatchError as error:
            return Step(number, "skipped", error.message)
        with _restarting(self.bench) as broke:
            try:
                checks = self._checks(number, built)
            except PatchError as error:
                return Step(number, "bad", error.message)
            fallen = [
                check
                for check in checks
                if check.name in self.baseline and check.outcome in ("failed", "error")
            ]
            if fallen:
                more = f" and {len(fallen) - 1} more" if len(fallen) > 1 else ""
                return Step(number, "bad", f"{fallen[0].name} fails{more}: {fallen[0].message}")
            return Step(number, "good", f"{len(self.baseline)} checks hold")
        return Step(number, "bad", broke[0])


@contextlib.contextmanager
def _restarting(bench: Workbench) -> Iterator[list[str]]:
    """Replace a guest that breaks in the block; the list gets the reason."""
    broke: list[str] = []
    try:
        yield broke
    except GuestError as error:
        broke.append(error.message)
        bench.restart_guest(load=False)


def show(found: Found) -> None:
    """Print the steps in the order in which they were tried, and the verdict."""
    rows = []
    for step in found.steps:
        name = found.patch(step.applied).name if step.applied else "(none: the stock source)"
        rows.append((str(step.applied), step.verdict, name, step.why))
    progress.table(("patches", "verdict", "up to", "why"), rows)
    progress.out.print(progress.clean(f"verdict: {found.verdict}"), markup=False)
    progress.out.print(f"run:     {found.run_dir}", markup=False)
