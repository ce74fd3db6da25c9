"""`inv mutation --regressions DIR`: which real bugs do the general checks notice?

DIR has a patch for each bug that is put back into FreeBSD's source, and in `right/` patches that
are correct.  Each is a series of its own.  The checks that any vmm.ko must pass are run over each,
the cheapest first, until one fails; before that they are run over the stock module, and what does
not pass there catches nothing.

A header may say more about a patch: `Subject:`, `Year:`, `Area:`, `Processor:` (Intel or AMD, where
it says nothing on the other), and a message that says what the bug does.
"""

from __future__ import annotations

import dataclasses
import email.parser
import email.policy
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import progress
from harness.errors import (
    EXIT_CHECK_FAILED,
    EXIT_OK,
    EXIT_PATCH,
    CannotError,
    PatchError,
    UsageError,
)
from harness.files import write_atomic
from harness.image import store
from harness.run import mutants
from harness.run.mutants import STOCK, Mutant
from harness.run.mutation import show_outside_baseline
from harness.run.session import Options, Workbench, new_run_dir
from harness.run.trials import Baseline, Trials, Variant
from harness.run.verify import CHECKS
from harness.series.load import read_patch
from harness.series.staging import staged

Verdict = Literal[
    "caught", "held", "MISSED", "WRONGLY CAUGHT", "DOES NOT APPLY", "DOES NOT BUILD", "not run"
]
PROCESSORS = ("Intel", "AMD")
_RIGHT = "right"


@dataclass(frozen=True)
class Regression:
    """One patch: what it is about, as its header says; `processor` is empty where it says none."""

    mutant: Mutant
    title: str
    year: str
    area: str
    processor: str
    does: str


@dataclass(frozen=True)
class VariantResult:
    """What the checks said about one patch."""

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
    """A whole run; `at_least` is the rate in per cent that is asked for."""

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
        """Bugs that were caught, in per cent of those that were tried; None without any."""
        tried = self._count("caught") + self._count("MISSED")
        return 100 * self._count("caught") / tried if tried else None

    @property
    def exit_code(self) -> int:
        """1: a right patch was caught, or too few bugs; 5: a patch does not apply or build."""
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
        """All of it for programs."""
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
    """The patches of a folder, the right ones first; `only` chooses some by their files' names.

    UsageError: no such folder, no patch in it, or a name that there is not.  PatchError: not a
    patch, or a header that names a processor that there is not.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; --regressions takes a folder of patches")
    found = [_read(path, right=True) for path in sorted((folder / _RIGHT).glob("*.patch"))]
    found += [_read(path, right=False) for path in sorted(folder.glob("*.patch"))]
    if not found:
        raise UsageError(f"{folder}: there is no *.patch in it")
    known = [it.mutant.name for it in found]
    if strange := [name for name in only if name not in known]:
        raise UsageError(f"--only {strange[0]}: {folder} has {', '.join(known)}")
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
        raise PatchError(f"{path}: Processor: {processor}; Intel, AMD or any is meant")
    name = f"{_RIGHT}-{path.stem}" if right else path.stem
    mutant = Mutant(name, patch.subject, "held" if right else "caught", (), patch)
    does = " ".join(patch.message.split())
    return Regression(mutant, patch.subject, said("Year"), said("Area"), processor, does)


def regressions(
    options: Options,
    folder: Path,
    only: Sequence[str] = (),
    *,
    at_least: int = 80,
    every: bool = False,
    tests: Path = CHECKS,
) -> Result:
    """Build each patch on FreeBSD's source, start a guest, and run the general checks over each.

    A patch that does not apply or build is a result of its own and no catch.  CannotError: no
    check passes on the stock module, or there is nothing to build with.
    """
    chosen = load(folder, only)
    start = time.monotonic()
    results: list[VariantResult] = []
    options = dataclasses.replace(options, topic="", stock=False)
    with Workbench(options, new_run_dir("regressions")) as bench:
        for step in (bench.choose, bench.prove, bench.find_image):
            step()
        variant_builder = _variant_builder(bench)
        with ThreadPoolExecutor(1, "build") as pool:
            stock = pool.submit(variant_builder.build, STOCK)
            jobs = [pool.submit(_build, variant_builder, bench, it) for it in chosen]
            try:
                bench.boot()
                trials = Trials(bench, tests, general=True, every=every)
                with progress.stage("baseline", bench.stages) as stage:
                    stage.live("building")
                    built = dataclasses.replace(stock.result(), caught_by=())
                    bench.stock_build = built.build
                    bench.options = dataclasses.replace(options, stock=True)
                    baseline = trials.prove(built, stage)
                    stage.note = _baseline_note(baseline)
                processor = _processor(bench)
                for number, (regression, job) in enumerate(zip(chosen, jobs, strict=True), 1):
                    title = f"{number}/{len(chosen)} {regression.mutant.name}"
                    with progress.stage(title, bench.stages) as stage:
                        stage.live("building")
                        tried = _try(trials, baseline, regression, job, processor, stage)
                        results.append(tried)
                        stage.note = _said(tried)
                    result = Result(
                        options.release,
                        bench.backend,
                        processor,
                        folder,
                        bench.run_dir,
                        tuple(results),
                        baseline.without,
                        at_least,
                        time.monotonic() - start,
                    )
                    # After each: a run of hours that is interrupted has said something.
                    text = json.dumps(result.to_data(), indent=2) + "\n"
                    write_atomic(bench.run_dir / "regressions.json", text)
            finally:
                for job in jobs:
                    job.cancel()
    return result


def _variant_builder(bench: Workbench) -> mutants.VariantBuilder:
    record = bench.record
    assert record is not None
    if record.source is None or record.sysroot is None:
        raise CannotError(
            "the patches are built with the library, which needs the source and a sysroot; import "
            "both: " + store.trees_line(bench.options.release, src=True, sysroot=True)
        )
    return mutants.VariantBuilder(record.source, record.sysroot, None, bench.options.release)


@dataclass(frozen=True)
class _Unbuilt:
    verdict: Verdict
    why: str


def _build(
    variant_builder: mutants.VariantBuilder, bench: Workbench, regression: Regression
) -> Variant | _Unbuilt:
    """Build one patch; what is wrong with it where that does not work."""
    record = bench.record
    assert record is not None
    assert record.source is not None
    mutant = regression.mutant
    series = mutant.series(None, bench.options.release)
    assert series is not None
    try:
        with staged(series, record.source):
            pass
    except PatchError as error:
        return _Unbuilt("DOES NOT APPLY", error.message)
    try:
        return variant_builder.build(mutant)
    except PatchError as error:
        return _Unbuilt("DOES NOT BUILD", error.message)


def _try(
    trials: Trials,
    baseline: Baseline,
    regression: Regression,
    job: Future[Variant | _Unbuilt],
    processor: str,
    stage: progress.Stage,
) -> VariantResult:
    mutant = regression.mutant
    right = mutant.expect == "held"

    def result_of(
        verdict: Verdict, why: str = "", caught: tuple[str, ...] = (), seconds: float = 0.0
    ) -> VariantResult:
        return VariantResult(
            mutant.name,
            regression.title,
            regression.year,
            regression.area,
            regression.does,
            right,
            verdict,
            caught,
            why,
            seconds,
        )

    if regression.processor not in ("", processor):
        return result_of(
            "not run", f"it is about {regression.processor}, this guest is {processor}"
        )
    built = job.result()
    if isinstance(built, _Unbuilt):
        return result_of(built.verdict, built.why)
    assert mutant.patch is not None
    trials.bench.options = dataclasses.replace(
        trials.bench.options, stock=False, series=(mutant.patch.path,)
    )
    trial = trials.judge(built, baseline, stage)
    verdict: Verdict
    if right:
        verdict = "WRONGLY CAUGHT" if trial.caught else "held"
    else:
        verdict = "caught" if trial.caught else "MISSED"
    return result_of(verdict, trial.why, trial.caught, trial.seconds)


def _processor(bench: Workbench) -> str:
    """Whose processor the guest has; the module need not be loaded."""
    guest = bench.guest
    assert guest is not None
    model = guest.sysctl("hw.model") or ""
    return "AMD" if any(maker in model for maker in ("AMD", "Hygon")) else "Intel"


def _baseline_note(baseline: Baseline) -> str:
    note = f"{len(baseline.seconds)} checks pass on the stock module"
    return note + (f", {len(baseline.without)} do not" if baseline.without else "")


def _said(result: VariantResult) -> str:
    if result.caught_by:
        return ", ".join(result.caught_by)
    return result.why or ("" if result.verdict == "MISSED" else result.verdict)


def show(result: Result) -> None:
    """Print a line for each patch, the checks that catch nothing, and the rate."""
    rows = [
        (it.verdict, f"{it.seconds:.0f} s", it.title, first_line(_said(it)))
        for it in result.results
    ]
    progress.table(("verdict", "took", "patch", "caught by"), rows)
    show_outside_baseline(result.outside_baseline)
    progress.out.print(progress.clean(f"verdict: {result.verdict}"), markup=False)
    progress.out.print(f"run:     {result.run_dir}", markup=False)


def first_line(text: str) -> str:
    """The first line of a text, which may be empty."""
    return text.splitlines()[0] if text else ""
