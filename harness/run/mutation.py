"""`inv mutation`: what do the checks catch?  Each mutant of the series must fail a check.

All guests that the machine has room for take part.  First the checks run on the series itself; a
check that does not pass there is not used.  Then, for each mutant, its module, library and command
are loaded and the checks run until one fails, beginning with those that should notice the mutant,
and the one that caught it in the last run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import defaults, progress
from harness.errors import EXIT_CANNOT, EXIT_CHECK_FAILED, EXIT_OK
from harness.files import write_atomic
from harness.run import catches, mutants, shards
from harness.run.mutants import SERIES, Mutant
from harness.run.options import Options, features_of
from harness.run.pytest_run import CHECKS, is_suite
from harness.run.run_folder import new_run_dir
from harness.run.session import Session
from harness.run.stages import Imaged
from harness.run.trial_guests import Crew, Settings
from harness.run.trial_work import Task
from harness.run.trials import Baseline, Trial

Verdict = Literal["caught", "held", "SURVIVED", "WRONGLY CAUGHT", "NOT TESTED"]


@dataclass(frozen=True)
class VariantResult:
    """The result of one variant; `caught_by` has only the first check unless all were run."""

    name: str
    wrong: str
    verdict: Verdict
    caught_by: tuple[str, ...]
    why: str
    checks_run: int
    seconds: float

    @property
    def good(self) -> bool:
        """Whether the result is the expected one."""
        return self.verdict in ("caught", "held")


@dataclass(frozen=True)
class Result:
    """A whole run.

    `outside_baseline` has the checks that do not pass on the series, and why.
    """

    release: str
    backend: str
    run_dir: Path
    variants: tuple[VariantResult, ...]
    outside_baseline: Mapping[str, str]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0: all results as expected; 1: one is not; 3: one variant could not be tested."""
        verdicts = {variant.verdict for variant in self.variants}
        if verdicts & {"SURVIVED", "WRONGLY CAUGHT"}:
            return EXIT_CHECK_FAILED
        return EXIT_CANNOT if "NOT TESTED" in verdicts else EXIT_OK

    @property
    def verdict(self) -> str:
        """One line."""
        right = [it for it in self.variants if it.verdict in ("held", "WRONGLY CAUGHT")]
        wrong = [it for it in self.variants if it not in right]
        caught = sum(variant.good for variant in wrong)
        line = f"{caught} of {len(wrong)} wrong variants caught"
        if right:
            held = sum(variant.good for variant in right)
            line += f", {held} of {len(right)} right ones held"
        bad = [variant.name for variant in self.variants if not variant.good]
        return line + (f"; NOT AS THEY SHOULD BE: {', '.join(bad)}" if bad else "")

    def to_data(self) -> dict[str, Any]:
        """All of it for programs."""
        data = dataclasses.asdict(self)
        # The key has had this name since the first release.
        del data["outside_baseline"]
        return {
            **data,
            "no_footing": dict(self.outside_baseline),
            "run_dir": str(self.run_dir),
            "verdict": self.verdict,
            "exit_code": self.exit_code,
        }


def mutation(
    options: Options,
    only: Sequence[str] = (),
    *,
    every: bool = False,
    only_checks: Sequence[str] = (),
    tests: Path = CHECKS,
) -> Result:
    """Build every variant, and try them in several guests; results go to the run's folder.

    `every` runs all checks over each variant instead of stopping at the first that fails.
    `only_checks` are parts of names: besides the named ones only these checks are run.
    Raises PatchError when a mutant does not apply or build, and the errors of starting the guest.
    """
    folder = mutants.folder_of(options.topic_name)
    # For another topic it is not known which checks notice that its patches are missing.
    known = mutants.load(folder, only, stock=options.topic_name == defaults.TOPIC)
    chosen = {mutant.name: mutant for mutant in known if mutant is not SERIES}
    start = time.monotonic()
    results: dict[str, VariantResult] = {}
    with Session(options, new_run_dir("mutation")) as session:
        imaged = session.to_image()
        variant_builder = _variant_builder(session, imaged)
        with session.stage("apply") as stage:
            variant_builder.apply_each(list(chosen.values()))
            stage.note = f"{len(chosen)} variants"
        settings = Settings(
            tests,
            every=every,
            named=tuple(dict.fromkeys(it for mutant in chosen.values() for it in mutant.caught_by)),
            chosen=tuple(only_checks),
        )
        last = catches.Last(session.backend, folder)
        count = shards.wanted(session.backend, options.guests)
        order = last.longest_first(it for it in chosen if chosen[it].expect == "caught")
        order += [name for name in chosen if chosen[name].expect == "held"]
        # The next variants are built while guests try the current ones.
        with (
            ThreadPoolExecutor(1, "build") as pool,
            Crew(session, imaged, settings, count) as crew,
        ):
            right_job = pool.submit(variant_builder.build, SERIES)
            jobs = {name: pool.submit(variant_builder.build, chosen[name]) for name in order}
            try:
                bench = crew.start()
                with session.stage("baseline") as stage:
                    began = time.monotonic()
                    stage.live("building")
                    right = right_job.result()
                    # The mutants of a topic without patches change FreeBSD's own source, so they
                    # are compared with stock.
                    stock = right.build if is_suite(options.topic_name) else None
                    baseline = crew.prove(bench, right, stage, stock)
                    results[SERIES.name] = _series(baseline, time.monotonic() - began)
                    stage.note = _said(results[SERIES.name])

                def took(guest: int, name: str, trial: Trial) -> None:
                    results[name] = _result_of(chosen[name], trial, baseline)
                    last.note(name, trial)
                    if guest > 1:
                        said = _said(results[name])
                        progress.say(f"guest {guest}: {name}: {results[name].verdict}: {said}")

                @contextlib.contextmanager
                def stage_of(name: str) -> Iterator[progress.Stage]:
                    title = f"{min(len(results), len(chosen))}/{len(chosen)} {name}"
                    with session.stage(title) as stage:
                        yield stage
                        if name in results:
                            stage.note = _said(results[name])

                tasks = [
                    Task(name, last.wrapped(name, jobs[name].result), chosen[name].expect == "held")
                    for name in order
                ]
                crew.judge(bench, tasks, baseline, stage_of=stage_of, took=took, stock=stock)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                last.save()
        for note in crew.notes:
            progress.say(f"note: {note}")
    result = Result(
        session.options.release,
        session.backend,
        session.run_dir,
        tuple(results[name] for name in (SERIES.name, *chosen)),
        baseline.without,
        time.monotonic() - start,
    )
    write_atomic(session.run_dir / "mutation.json", json.dumps(result.to_data(), indent=2) + "\n")
    return result


def show(result: Result) -> None:
    """Print a line for each variant, the unused checks, and the verdict."""
    rows = [
        (variant.verdict, f"{variant.seconds:.0f} s", variant.name, variant.wrong, _said(variant))
        for variant in result.variants
    ]
    progress.table(("verdict", "took", "variant", "what is wrong", "caught by"), rows)
    show_outside_baseline(result.outside_baseline)
    progress.out.print(progress.clean(f"verdict: {result.verdict}"), markup=False)
    progress.out.print(f"run:     {result.run_dir}", markup=False)


def show_outside_baseline(outside_baseline: Mapping[str, str]) -> None:
    """Name the checks that were not used, because they fail on correct code."""
    for name, why in sorted(outside_baseline.items()):
        first = why.splitlines()[0] if why else "no reason given"
        line = (
            f"not in the baseline: {name} does not pass on correct code, so it catches nothing: "
            f"{first}"
        )
        progress.out.print(progress.clean(line), markup=False)


def _said(variant: VariantResult) -> str:
    if variant.caught_by:
        return ", ".join(variant.caught_by)
    if variant.verdict == "NOT TESTED":
        return variant.why
    return f"{variant.checks_run} checks held"


def _variant_builder(session: Session, imaged: Imaged) -> mutants.VariantBuilder:
    release, topic = session.options.release, session.options.topic_name
    sysroot = imaged.sysroot("the mutants are built with their library")
    source = imaged.source
    base = None if is_suite(topic) else session.series(source)
    wanted, kernel = features_of(topic), imaged.record.kernel
    return mutants.VariantBuilder(source, sysroot, base, release, wanted, kernel)


def _series(baseline: Baseline, seconds: float) -> VariantResult:
    """The result of the series itself: it passes unless a check fails; skipped checks do not
    count.
    """
    failed = baseline.failed
    why = baseline.without[failed[0]] if failed else ""
    verdict: Verdict = "WRONGLY CAUGHT" if failed else "held"
    ran = len(baseline.seconds) + len(failed)
    return VariantResult(SERIES.name, SERIES.wrong, verdict, failed, why, ran, seconds)


def _result_of(mutant: Mutant, trial: Trial, baseline: Baseline) -> VariantResult:
    why = trial.why
    verdict: Verdict = "caught" if trial.caught else "SURVIVED"
    if mutant.expect == "held":
        verdict = "WRONGLY CAUGHT" if trial.caught else "held"
    elif not trial.caught and (missing := baseline.lacks(mutant.caught_by)) == mutant.caught_by:
        verdict, why = "NOT TESTED", f"not in the baseline: {', '.join(missing)}"
    return VariantResult(
        mutant.name, mutant.wrong, verdict, trial.caught, why, trial.checks_run, trial.seconds
    )
