"""`inv mutation --regressions DIR`: which real bugs do the general checks notice?

DIR has a patch for each bug that is put back into FreeBSD's source, and in `right/` patches that
are correct.  Each is a series of its own.  The checks that any vmm.ko must pass run on each until
one fails, beginning with those that test the changed files.  Before that they run on the stock
module; a check that does not pass there is not used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness import progress
from harness.errors import PatchError
from harness.files import write_atomic
from harness.run import catches, mutants, shards
from harness.run.mutants import STOCK
from harness.run.mutation import show_outside_baseline
from harness.run.options import Options
from harness.run.pytest_run import CHECKS
from harness.run.regression_data import Regression, Result, VariantResult, Verdict, load
from harness.run.run_folder import new_run_dir
from harness.run.session import Session
from harness.run.stages import Imaged
from harness.run.trial_guests import Crew, Settings
from harness.run.trial_work import Task
from harness.run.trials import Baseline, Trial, Variant
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
    options = dataclasses.replace(options, topic="", stock=False, guests=guests)
    with Session(options, new_run_dir("regressions")) as session:
        imaged = session.to_image()
        variant_builder = _variant_builder(imaged)
        settings = Settings(tests, general=True, every=every)
        last = catches.Last(session.backend, folder)
        order = last.longest_first(it for it in chosen if not _is_right(chosen[it]))
        # All guests share the checks of a correct patch; it comes last, as a missed bug matters
        # more.
        order += [name for name in chosen if _is_right(chosen[name])]
        baseline, processor = Baseline({}, {}), ""

        def so_far() -> Result:
            return Result(
                session.options.release,
                session.backend,
                processor,
                folder,
                session.run_dir,
                tuple(judged[name] for name in chosen if name in judged),
                baseline.without,
                at_least,
                time.monotonic() - start,
            )

        def note(guest: int, tried: VariantResult) -> None:
            with writing:
                judged[tried.name] = tried
                if guest > 1:
                    progress.say(f"guest {guest}: {tried.name}: {tried.verdict}: {_said(tried)}")
                # Written after each patch, so that an interrupted run of hours leaves its results.
                text = json.dumps(so_far().to_data(), indent=2) + "\n"
                write_atomic(session.run_dir / "regressions.json", text)

        def took(guest: int, name: str, trial: Trial) -> None:
            last.note(name, trial)
            note(guest, _result_of(chosen[name], trial))

        @contextlib.contextmanager
        def stage_of(name: str) -> Iterator[progress.Stage]:
            title = f"{len(judged) + 1}/{len(chosen)} {name}"
            with session.stage(title) as stage:
                yield stage
                if name in judged:
                    stage.note = _said(judged[name])

        count = shards.wanted(session.backend, guests)
        # The next patches are built while guests try the current ones.
        with (
            ThreadPoolExecutor(1, "build") as pool,
            Crew(session, imaged, settings, count) as crew,
        ):
            stock_job = pool.submit(variant_builder.build, STOCK)
            jobs = {
                name: pool.submit(_build, variant_builder, imaged, chosen[name]) for name in order
            }
            try:
                bench = crew.start()
                with session.stage("baseline") as stage:
                    stage.live("building")
                    stock = dataclasses.replace(stock_job.result(), caught_by=())
                    baseline = crew.prove(bench, stock, stage, stock.build)
                    stage.note = _baseline_note(baseline)
                processor = _processor(bench)

                def built(name: str) -> Variant | None:
                    variant = jobs[name].result()
                    if isinstance(variant, Variant):
                        return variant
                    note(1, _untried(chosen[name], variant.verdict, variant.why))
                    return None

                tasks = []
                for name in order:
                    about = chosen[name].processor
                    if about in ("", processor):
                        build = last.wrapped(name, functools.partial(built, name))
                        tasks.append(Task(name, build, _is_right(chosen[name])))
                        continue
                    why = f"the bug is about {about}, but this guest's processor is {processor}"
                    note(1, _untried(chosen[name], "not run", why))
                crew.judge(bench, tasks, baseline, stage_of=stage_of, took=took, stock=stock.build)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                last.save()
        for line in crew.notes:
            progress.say(f"note: {line}")
        return so_far()


def _is_right(regression: Regression) -> bool:
    return regression.mutant.expect == "held"


def _untried(regression: Regression, verdict: Verdict, why: str) -> VariantResult:
    return VariantResult(
        regression.mutant.name,
        regression.title,
        regression.year,
        regression.area,
        regression.does,
        _is_right(regression),
        verdict,
        (),
        why,
        0.0,
    )


def _result_of(regression: Regression, trial: Trial) -> VariantResult:
    verdict: Verdict
    if _is_right(regression):
        verdict = "WRONGLY CAUGHT" if trial.caught else "held"
    else:
        verdict = "caught" if trial.caught else "MISSED"
    tried = _untried(regression, verdict, trial.why)
    return dataclasses.replace(tried, caught_by=trial.caught, seconds=trial.seconds)


def _variant_builder(imaged: Imaged) -> mutants.VariantBuilder:
    sysroot = imaged.sysroot("the patches are built with their library")
    record = imaged.record
    return mutants.VariantBuilder(
        imaged.source, sysroot, None, record.release, kernel=record.kernel
    )


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
