"""`inv teeth`: do the checks bite?  Every mutant of the series must be caught by one of them.

One guest boots once.  For each variant the module, library and command that were built of it are
brought in and the checks are run over them, those first that should notice, until one does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from harness import progress
from harness.bhyve import vmm
from harness.errors import (
    EXIT_CHECK_FAILED,
    EXIT_OK,
    CannotError,
    GuestError,
    GuestPanic,
    MachineDied,
    PatchError,
    WaitTimeout,
)
from harness.files import PROJECT, write_atomic
from harness.run import mutants, plugin
from harness.run.mutants import Mutant
from harness.run.session import Options, Workbench, load_series, new_run_dir
from harness.run.verify import CHECKS, check_folders, our_pytest

Verdict = Literal["caught", "held", "SURVIVED", "WRONGLY CAUGHT"]
_MINUTES = "minutes"


@dataclass(frozen=True)
class Bite:
    """What came of one variant: the checks that objected (the first alone unless all were run)."""

    name: str
    wrong: str
    verdict: Verdict
    caught_by: tuple[str, ...]
    why: str
    checks_run: int
    seconds: float

    @property
    def good(self) -> bool:
        """Whether it is as it should be."""
        return self.verdict in ("caught", "held")


@dataclass(frozen=True)
class Result:
    """A whole run."""

    release: str
    backend: str
    run_dir: Path
    bites: tuple[Bite, ...]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 when every variant is as it should be, else 1."""
        return EXIT_OK if all(bite.good for bite in self.bites) else EXIT_CHECK_FAILED

    @property
    def verdict(self) -> str:
        """One line."""
        wrong = [bite for bite in self.bites if bite.verdict in ("caught", "SURVIVED")]
        right = [bite for bite in self.bites if bite not in wrong]
        caught = sum(bite.good for bite in wrong)
        line = f"{caught} of {len(wrong)} wrong variants caught"
        if right:
            held = sum(bite.good for bite in right)
            line += f", {held} of {len(right)} right ones held"
        bad = [bite.name for bite in self.bites if not bite.good]
        return line + (f"; NOT AS THEY SHOULD BE: {', '.join(bad)}" if bad else "")

    def to_data(self) -> dict[str, Any]:
        """All of it for programs."""
        data = dataclasses.asdict(self)
        return {
            **data,
            "run_dir": str(self.run_dir),
            "verdict": self.verdict,
            "exit_code": self.exit_code,
        }


def mutation(
    options: Options, only: Sequence[str] = (), *, every: bool = False, tests: Path = CHECKS
) -> Result:
    """Build every variant, boot, try them one after another; the Result lies in the run's folder.

    `every` runs all checks over each variant instead of stopping at the first that objects.
    Raises PatchError when a mutant does not apply or build, and whatever keeps the guest from
    coming up.
    """
    chosen = mutants.load(only=only)
    start = time.monotonic()
    bites: list[Bite] = []
    with Workbench(options, new_run_dir("teeth")) as bench:
        for step in (bench.choose, bench.prove, bench.find_image):
            step()
        workshop = _workshop(bench)
        with progress.stage("apply", bench.stages) as stage:
            workshop.try_on(chosen)
            stage.note = f"{len(chosen)} variants"
        # One thread builds what comes next while the guest tries what is built.
        with ThreadPoolExecutor(1, "build") as pool:
            jobs = [pool.submit(workshop.build, mutant) for mutant in chosen]
            try:
                bench.boot()
                for number, (mutant, job) in enumerate(zip(chosen, jobs, strict=True), 1):
                    title = f"{number}/{len(chosen)} {mutant.name}"
                    with progress.stage(title, bench.stages) as stage:
                        stage.live("building")
                        bites.append(_bite(bench, job.result(), every, tests, stage))
                        stage.note = _told(bites[-1])
            finally:
                for job in jobs:
                    job.cancel()
    result = Result(
        options.release, bench.backend, bench.run_dir, tuple(bites), time.monotonic() - start
    )
    write_atomic(bench.run_dir / "teeth.json", json.dumps(result.to_data(), indent=2) + "\n")
    return result


def show(result: Result) -> None:
    """Print a line for each variant, and the verdict."""
    rows = [
        (bite.verdict, f"{bite.seconds:.0f} s", bite.name, bite.wrong, _told(bite))
        for bite in result.bites
    ]
    progress.table(("verdict", "took", "variant", "what is wrong", "caught by"), rows)
    progress.out.print(progress.clean(f"verdict: {result.verdict}"), markup=False)
    progress.out.print(f"run:     {result.run_dir}", markup=False)


def _told(bite: Bite) -> str:
    return ", ".join(bite.caught_by) if bite.caught_by else f"{bite.checks_run} checks held"


def _workshop(bench: Workbench) -> mutants.Workshop:
    record = bench.record
    assert record is not None
    assert record.source is not None
    if record.sysroot is None:
        raise CannotError(
            "the mutants are built with their library: import the image with a sysroot"
        )
    base = load_series(dataclasses.replace(bench.options, stock=False))
    assert base is not None
    return mutants.Workshop(record.source, record.sysroot, base)


def _bite(
    bench: Workbench, variant: mutants.Ready, every: bool, tests: Path, stage: progress.Stage
) -> Bite:
    """Try one variant; the guest is brought up anew when the variant broke it."""
    mutant = variant.mutant
    start = time.monotonic()
    caught: tuple[str, ...] = ()
    jury = _Jury(bench, mutant, stage)
    try:
        _bring_in(bench, variant)
        caught = _run_checks(bench, jury, every, tests)
        why = jury.why
    except PatchError as error:
        caught, why = ("the kernel's loader",), error.message
    except GuestError as error:
        # A guest that broke for another reason would pass for a mutant that was caught.
        if mutant.expect == "held" or not isinstance(error, GuestPanic | WaitTimeout):
            raise
        caught, why = (_breakage(error),), error.message
        bench.revive()
    verdict: Verdict = "caught" if caught else "SURVIVED"
    if mutant.expect == "held":
        verdict = "WRONGLY CAUGHT" if caught else "held"
    if not caught and not jury.ran:
        raise CannotError(f"{mutant.name}: no check was run; see {bench.run_dir}")
    return Bite(mutant.name, mutant.wrong, verdict, caught, why, jury.ran, time.monotonic() - start)


def _breakage(error: GuestError) -> str:
    return "a panic" if isinstance(error, GuestPanic) else "a hang"


# Whatever the variant before left behind: a check that fails cannot always clean up.
_CLEAN = r"""
test -d /dev/vmm && find /dev/vmm -type c | while read -r path; do
    bhyvectl --destroy --vm="${path#/dev/vmm/}"
done
jail -r vmmwb
kenv -u hw.vmm.mem_limit
kldstat -q -m vmm && kldunload vmm
exit 0
"""


def _bring_in(bench: Workbench, variant: mutants.Ready) -> None:
    guest = bench.guest
    assert guest is not None
    guest.must(["/bin/sh", "-c", _CLEAN], guest.deadline(60))
    bench.build = bench.running = variant.build
    bench.vmtool = variant.vmtool
    bench.loaded = vmm.load(guest, variant.build)
    if not bench.loaded.virtualizes:
        raise CannotError(f"no virtual machine can be made here: {bench.loaded.refusal}")
    bench.vmm = vmm.Vmm(guest, bench.loaded, variant.build, variant.vmtool)


def _run_checks(bench: Workbench, jury: _Jury, every: bool, tests: Path) -> tuple[str, ...]:
    log = bench.run_dir / f"pytest-{jury.mutant.name}.log"
    folders = check_folders(bench.options.topic, tests)
    arguments = [*folders, "-p", "no:cacheprovider", "-q", "--tb=short", "-o", "addopts=-ra"]
    arguments += ["--rootdir", str(PROJECT), "-o", "timeout=900", *([] if every else ["-x"])]
    with log.open("w") as stream, contextlib.redirect_stdout(stream), our_pytest():
        code = pytest.main(arguments, plugins=[jury])
    if jury.interrupted:
        raise KeyboardInterrupt
    if jury.broke is not None:
        raise jury.broke
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        raise CannotError(f"{jury.mutant.name}: pytest ended with {int(code)}; see {log}")
    return tuple(dict.fromkeys(jury.failed))


class _Jury:
    """A pytest plugin: puts the checks in order, and takes down which ones object."""

    def __init__(self, bench: Workbench, mutant: Mutant, stage: progress.Stage) -> None:
        self._bench = bench
        self.mutant = mutant
        self._stage = stage
        self._names: dict[str, str] = {}
        self.failed: list[str] = []
        self.why = ""
        self.ran = 0
        self.broke: GuestError | None = None
        self.interrupted = False

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[plugin.WORKBENCH] = self._bench

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """First those that should notice; of the rest none that takes minutes."""
        self._names = {item.nodeid: f"{item.path.name}::{item.name}" for item in items}
        full = self._bench.options.full
        first = [item for item in items if self._should_notice(item)]
        for name in self.mutant.caught_by:
            if not any(_matches(item, name) for item in items):
                raise pytest.UsageError(f"{self.mutant.name}: Caught-by: {name} is no check")
        rest = [
            item
            for item in items
            if item not in first and (full or item.get_closest_marker(_MINUTES) is None)
        ]
        config.hook.pytest_deselected(items=[i for i in items if i not in first + rest])
        # What is quick first, as long as files stay together.
        first.sort(key=lambda item: item.get_closest_marker(_MINUTES) is not None)
        items[:] = first + rest

    def _should_notice(self, item: pytest.Item) -> bool:
        return any(_matches(item, name) for name in self.mutant.caught_by)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        error = call.excinfo.value if call.excinfo else None
        if isinstance(error, GuestPanic | MachineDied | WaitTimeout) and self.broke is None:
            self.broke = error
        return report

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.interrupted = type(excinfo.value) is KeyboardInterrupt

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._stage.live(self._names[nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.ran += 1
        if report.failed:
            self.failed.append(self._names[report.nodeid])
            if not self.why:
                crash = getattr(report.longrepr, "reprcrash", None)
                self.why = (crash.message if crash else report.longreprtext).strip()[:300]


def _matches(item: pytest.Item, name: str) -> bool:
    short = f"{item.path.name}::{item.name}"
    return short == name or short.startswith(f"{name}[")
