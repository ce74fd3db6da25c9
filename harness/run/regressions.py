"""`inv mutation --regressions DIR`: which real bugs do the general checks notice?

DIR has a patch for each bug that is put back into FreeBSD's source, and in `right/` patches that
are correct.  Each is a series of its own.  The checks that any vmm.ko must pass run on each until
one fails, beginning with those that test the changed files.  Before that they run on the stock
module; a check that does not pass there is not used.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness import progress
from harness.errors import (
    DiskFull,
    GuestError,
    MachineDied,
    PatchError,
)
from harness.files import write_atomic
from harness.run import mutants, regression_guests, shards
from harness.run.mutants import STOCK
from harness.run.mutation import show_outside_baseline
from harness.run.options import Options
from harness.run.regression_data import Regression, Result, VariantResult, Verdict, load
from harness.run.run_folder import new_run_dir
from harness.run.session import Session
from harness.run.stages import Imaged
from harness.run.trials import Baseline, Trial, Trials, Variant
from harness.run.verify import CHECKS
from harness.run.workbench import Workbench
from harness.series.staging import staged


def regressions(
    options: Options,
    folder: Path,
    only: Sequence[str] = (),
    *,
    at_least: int = 80,
    every: bool = False,
    tests: Path = CHECKS,
    guests: int = 0,
) -> Result:
    """Build each patch on FreeBSD's source, and run the general checks on each.

    `guests` is the number of guests at once; 0 means as many as this machine has room for.

    A patch that does not apply or build is reported as such, not as caught.  Raises CannotError if
    no check passes on the stock module, or if nothing can be built.
    """
    chosen = {it.mutant.name: it for it in load(folder, only)}
    start = time.monotonic()
    judged: dict[str, VariantResult] = {}
    writing = threading.Lock()
    # Correct patches take longest, because every check runs on them, and missed bugs matter more.
    order = sorted(chosen.values(), key=lambda it: it.mutant.expect == "held")
    todo = regression_guests.Todo([it.mutant.name for it in order])
    options = dataclasses.replace(options, topic="", stock=False)
    with Session(options, new_run_dir("regressions")) as session:
        imaged = session.to_image()

        def took(guest: int, tried: VariantResult) -> None:
            with writing:
                judged[tried.name] = tried
                if guest > 1:
                    progress.say(f"guest {guest}: {tried.name}: {tried.verdict}: {_said(tried)}")
                # Written after each patch, so that an interrupted run of hours leaves its results.
                text = json.dumps(so_far().to_data(), indent=2) + "\n"
                write_atomic(session.run_dir / "regressions.json", text)

        def so_far() -> Result:
            return Result(
                options.release,
                session.backend,
                judge.processor,
                folder,
                session.run_dir,
                tuple(judged[name] for name in chosen if name in judged),
                {**judge.baseline.without, **others.without},
                at_least,
                time.monotonic() - start,
            )

        with (
            Judge(session, imaged, tests, every=every) as judge,
            regression_guests.Others(todo, took) as others,
        ):
            judge.build_ahead(order)
            bench = Workbench(session, session.boot(imaged))
            count = min(shards.wanted(bench, guests), len(chosen))
            others.start(bench, count - 1, folder, tests, every)
            judge.prove(bench)
            name = todo.next(done=False)
            while name is not None:
                title = f"{len(judged) + 1}/{len(chosen)} {name}"
                took(1, judge.judge(chosen[name], title))
                name = todo.next(done=True)
            others.wait()
            for note in others.notes:
                progress.say(f"note: {note}")
        if lost := [name for name in chosen if name not in judged]:
            raise GuestError(f"without a result, because their guests ended: {', '.join(lost)}")
        return so_far()


class Judge:
    """Tries patches in one guest: builds them, runs the checks, and knows the results on stock."""

    def __init__(self, session: Session, imaged: Imaged, tests: Path, *, every: bool) -> None:
        self._session = session
        self._imaged = imaged
        self._variant_builder = _variant_builder(imaged)
        self._tests = tests
        self._every = every
        self._trials: Trials
        self._pool = ThreadPoolExecutor(1, "build")
        self._stock: Future[Variant] | None = None
        self._jobs: dict[str, Future[Variant | _Unbuilt]] = {}
        self.baseline = Baseline({}, {})
        self.processor = ""

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def build_ahead(self, chosen: Sequence[Regression]) -> None:
        """Start to build the next patch while the guest tries the current one."""
        self._stock = self._pool.submit(self._variant_builder.build, STOCK)
        for it in chosen:
            self._jobs[it.mutant.name] = self._pool.submit(
                _build, self._variant_builder, self._imaged, it
            )

    def prove(self, bench: Workbench) -> None:
        """Run the checks on the stock module; those that do not pass there are not used."""
        with self._session.stage("baseline") as stage:
            stage.live("building")
            stock = self._stock.result() if self._stock else self._variant_builder.build(STOCK)
            built = dataclasses.replace(stock, caught_by=())
            self._trials = Trials(
                bench, self._tests, general=True, every=self._every, stock=built.build
            )
            self.baseline = self._trials.prove(built, stage)
            stage.note = _baseline_note(self.baseline)
        self.processor = _processor(bench)

    def judge(self, regression: Regression, title: str) -> VariantResult:
        """Try one patch, in a stage of its own."""
        with self._session.stage(title) as stage:
            stage.live("building")
            tried = self._try(regression, stage)
            stage.note = _said(tried)
        return tried

    def _try(self, regression: Regression, stage: progress.Stage) -> VariantResult:
        mutant = regression.mutant
        right = mutant.expect == "held"
        judged = VariantResult(
            mutant.name,
            regression.title,
            regression.year,
            regression.area,
            regression.does,
            right,
            "not run",
            (),
            "",
            0.0,
        )
        if regression.processor not in ("", self.processor):
            why = (
                f"the bug is about {regression.processor}, but this guest's processor "
                f"is {self.processor}"
            )
            return dataclasses.replace(judged, why=why)
        job = self._jobs.get(mutant.name)
        built = job.result() if job else _build(self._variant_builder, self._imaged, regression)
        if isinstance(built, _Unbuilt):
            return dataclasses.replace(judged, verdict=built.verdict, why=built.why)
        trial = self._trial(built, stage)
        if trial.caught and all(_CHECK in name for name in trial.caught):
            # What the bug changed in the kernel or the processor must not fail the next patch.  A
            # guest that broke was restarted already.
            self._trials.bench.restart_guest(load=False)
        verdict: Verdict
        if right:
            verdict = "WRONGLY CAUGHT" if trial.caught else "held"
        else:
            verdict = "caught" if trial.caught else "MISSED"
        return dataclasses.replace(
            judged, verdict=verdict, why=trial.why, caught_by=trial.caught, seconds=trial.seconds
        )

    def _trial(self, built: Variant, stage: progress.Stage) -> Trial:
        """Run the checks; the end of the emulator counts only if it happens twice."""
        start = time.monotonic()
        for last in (False, True):
            try:
                return self._trials.judge(built, self.baseline, stage)
            except DiskFull:
                raise
            except MachineDied as error:
                self._trials.bench.restart_guest(load=False)
                if last:
                    seconds = time.monotonic() - start
                    return Trial(("the emulator's end, twice",), error.message, 0, seconds)
        raise AssertionError("it was tried")


def _variant_builder(imaged: Imaged) -> mutants.VariantBuilder:
    sysroot = imaged.sysroot("the patches are built with their library")
    return mutants.VariantBuilder(imaged.source, sysroot, None, imaged.record.release)


_CHECK = "::"
"""In the name of a check; what else a catch is called, such as a panic, is plain words."""


@dataclass(frozen=True)
class _Unbuilt:
    verdict: Verdict
    why: str


def _build(
    variant_builder: mutants.VariantBuilder, imaged: Imaged, regression: Regression
) -> Variant | _Unbuilt:
    """Build one patch; returns the failure if it does not build."""
    mutant = regression.mutant
    series = mutant.series(None, imaged.record.release)
    assert series is not None
    try:
        with staged(series, imaged.source):
            pass
    except PatchError as error:
        return _Unbuilt("DOES NOT APPLY", error.message)
    try:
        return variant_builder.build(mutant)
    except PatchError as error:
        return _Unbuilt("DOES NOT BUILD", error.message)


def _processor(bench: Workbench) -> str:
    """The vendor of the guest's processor; the module need not be loaded."""
    model = bench.guest.sysctl("hw.model") or ""
    return "AMD" if any(maker in model for maker in ("AMD", "Hygon")) else "Intel"


def _baseline_note(baseline: Baseline) -> str:
    note = f"{len(baseline.seconds)} checks pass on the stock module"
    return note + (f", {len(baseline.without)} do not" if baseline.without else "")


def _said(judged: VariantResult) -> str:
    if judged.caught_by:
        return ", ".join(judged.caught_by)
    return judged.why or ("" if judged.verdict == "MISSED" else judged.verdict)


def show(result: Result) -> None:
    """Print a line for each patch, the unused checks, and the rate."""
    rows = [
        (it.verdict, f"{it.seconds:.0f} s", it.title, first_line(_said(it)))
        for it in result.results
    ]
    progress.table(("verdict", "took", "patch", "caught by"), rows)
    show_outside_baseline(result.outside_baseline)
    progress.out.print(progress.clean(f"verdict: {result.verdict}"), markup=False)
    progress.out.print(f"run:     {result.run_dir}", markup=False)


def first_line(text: str) -> str:
    """The first line of a text; empty if the text is."""
    return text.splitlines()[0] if text else ""
