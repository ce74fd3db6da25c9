"""`inv verify`: starts the guest, runs the checks, and gives the verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from harness import defaults, process, progress, report
from harness.build.builder import Build
from harness.deadline import Deadline
from harness.errors import (
    EXIT_CHECK_FAILED,
    EXIT_GUEST,
    EXIT_OK,
    EXIT_PATCH,
    CannotError,
    GuestError,
    Interrupted,
    UsageError,
    WorkbenchError,
)
from harness.files import PROJECT
from harness.report import Check, Report
from harness.run import coverage, distribution, shards
from harness.run.group_loop import DistributedLoop
from harness.run.options import Options
from harness.run.outcomes import Recorder
from harness.run.persistent_session import PersistentSession, ways_in
from harness.run.run_folder import new_run_dir
from harness.run.session import Session
from harness.run.stages import STAGES, Built
from harness.run.workbench import Workbench
from harness.series import load
from harness.series.load import TESTS

CHECKS = PROJECT / "tests" / "guest"
# The tests of a series' own C take a minute or two.
_SERIES_C_S = 3600.0

PYTEST_OPTIONS = (
    "-p",
    "no:cacheprovider",
    # Other installed plugins are left out (see our_pytest), so these two must be named.
    "-p",
    "harness.run.plugin",
    "-p",
    "pytest_timeout",
    "--tb=short",
    "-o",
    "addopts=-ra",
    "-o",
    "timeout=900",
    "--rootdir",
    str(PROJECT),
)
"""pytest's options for every run of checks."""

_NO_OTHERS = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"
_PYTEST_VARIABLES = ("PYTEST_ADDOPTS", _NO_OTHERS, "PYTEST_PLUGINS")
# Errors after which the guest is worth examining; not if a part was just not run.
_WORTH_KEEPING = (EXIT_CHECK_FAILED, EXIT_GUEST, EXIT_PATCH)


def verify(
    options: Options, tests: Path = CHECKS, keep_as: str = "", run_dir: Path | None = None
) -> Report:
    """Run every stage; a Report is returned and written to the run's folder in any case.

    With `keep_as` the guest of a failed run stays up under that name; `run_dir` is a folder for the
    run that exists already.  Raises UsageError for an unknown topic, before a folder is made.
    """
    options = settle(options)
    run_dir = run_dir or new_run_dir("verify-stock" if options.stock else "verify")
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    checks: list[Check] = []
    stock: list[Check] = []
    error: WorkbenchError | None = None
    named = _series_name(options)
    session = PersistentSession(options, run_dir, keep_as) if keep_as else Session(options, run_dir)

    def so_far() -> Report:
        return Report(
            release=session.options.release,
            backend=f"{session.backend} as AMD" if options.cpu_vendor == "amd" else session.backend,
            stock=options.stock,
            series=_series_name(options) if error else named,
            started_at=started,
            run_dir=run_dir,
            stages=report.stage_results(session.stages, STAGES),
            checks=_beside([*checks, *session.complaints.checks()], stock),
            properties=session.properties,
            error=error.message if error else "",
            error_exit_code=error.exit_code if error else EXIT_OK,
            error_detail=error.detail if error else "",
            panic=session.panic,
            topic=options.topic_name if is_suite(options.topic_name) else "",
        )

    pool: shards.Pool | None = None

    def before_boot(built: Built) -> Build:
        """Start the other guests; say which module this process's guest gets first."""
        nonlocal pool
        pool = stack.enter_context(_pool(session, tests))
        if pool is None:
            return built.first
        pool.start_early(built.imaged)
        return built.build

    with session, contextlib.ExitStack() as stack:
        try:
            try:
                bench = session.up(before_boot)
            except CannotError:
                if session.stages and session.stages[-1].name == "image":
                    _without_guest(session)
                raise
            if bench.series is not None:
                named = f"series {bench.series.topic}"
            if pool is None:
                _in_one_guest(bench, tests, checks, stock)
            else:
                _in_all_guests(bench, tests, checks, stock, pool)
                for note in pool.notes:
                    progress.say(f"note: {note}")
            if isinstance(session, PersistentSession) and bench.running is not bench.build:
                bench.use(bench.build)
        except WorkbenchError as caught:
            error = caught
            if error.detail:
                progress.say_detail(error.detail)
        except KeyboardInterrupt:
            error = Interrupted("interrupted")
        if isinstance(session, PersistentSession) and so_far().exit_code in _WORTH_KEEPING:
            record = session.keep()
            if record is not None:
                session.properties[report.KEPT] = ways_in(record)
    result = so_far()
    if checks:
        distribution.note_times(session.backend, {check.name: check.seconds for check in checks})
    try:
        report.save(result)
    except OSError as failed:
        # The results so far are still reported.
        error = error or CannotError(f"{run_dir}: no report was written: {failed.strerror}")
        return so_far()
    return result


def _in_one_guest(bench: Workbench, tests: Path, checks: list[Check], stock: list[Check]) -> None:
    """The checks on stock, if they are asked for, and those on the series."""
    if bench.stock_build is not None:
        if run_checks(bench, tests, stock, stock=True):
            bench.restart_guest()
        bench.use(bench.build)
    collector = _collector(bench)
    try:
        run_checks(bench, tests, checks, collector=collector)
    finally:
        if collector is not None:
            coverage.conclude(bench, collector)


def _in_all_guests(
    bench: Workbench, tests: Path, checks: list[Check], stock: list[Check], pool: shards.Pool
) -> None:
    """The same in several guests: stock and series at the same time."""
    of_series = shards.Phase(bench.built, stock=False, backend=bench.backend)
    phases = [of_series]
    if bench.stock_build is not None:
        phases.append(shards.Phase(bench.built, stock=True, backend=bench.backend))
    rounds = shards.Rounds(pool, bench, phases)
    rounds.start()
    try:
        broken = run_checks(bench, tests, checks, shared=(rounds, of_series))
    except BaseException:
        for phase in phases[1:]:
            phase.attach(lambda _nodeid, check: stock.append(check))
        raise
    for phase in phases[1:]:
        if phase.left:
            if broken:
                bench.restart_guest()
            assert bench.stock_build is not None
            bench.use(bench.stock_build)
        run_checks(bench, tests, stock, stock=True, shared=(rounds, phase))


def _collector(bench: Workbench) -> coverage.Collector | None:
    """The reader of the counters, if the module has some."""
    if not bench.options.coverage:
        return None
    sysroot = bench.booted.imaged.sysroot("--coverage compiles a program that reads the counters")
    return coverage.Collector(bench, sysroot)


@contextlib.contextmanager
def _pool(session: Session, tests: Path) -> Iterator[shards.Pool | None]:
    """The further guests of a run, if more than one is asked for or worth it."""
    count = session.options.guests
    if session.options.coverage:
        # Each guest has its own counters, and only one guest's are read.
        count = 1
    count = shards.wanted(session.backend, count)
    if count <= 1:
        yield None
        return
    with shards.Pool(session, tests, count) as pool:
        yield pool


def _beside(checks: Sequence[Check], stock: Sequence[Check]) -> tuple[Check, ...]:
    """The checks, each with its result on the stock module if it ran there."""
    there = {check.name: check for check in stock}
    return tuple(
        dataclasses.replace(
            check,
            on_stock=other.outcome,
            stock_message=other.message,
            stock_figures=other.figures,
        )
        if (other := there.get(check.name))
        else check
        for check in checks
    )


def settle(options: Options) -> Options:
    """The options, adapted to a topic without patches: its checks run on the stock module.

    Raises UsageError for an unknown topic, or if there is no series to compare with stock.
    """
    name = options.topic_name
    if name and not (PROJECT / "patches" / name).is_dir() and (options.series or options.stock):
        known = ", ".join((*load.topics(), *load.suites()))
        raise UsageError(f"--topic {name}: no such topic; the topics are {known}")
    if options.series or options.stock or not is_suite(name):
        return options
    if options.side_by_side:
        raise UsageError(
            f"--side-by-side: topic {name} has no patches to compare with the stock module; "
            "name some with --series"
        )
    progress.say(
        f"note: topic {name} has no patches; its checks run on the stock module, with "
        "--series PATCHES on yours"
    )
    return dataclasses.replace(options, stock=True)


def is_suite(topic: str) -> bool:
    """Whether a topic has only checks, without patches."""
    return bool(topic) and load.is_suite(PROJECT / "patches" / topic)


def check_folders(topic: str, tests: Path) -> list[str]:
    """The folders of the checks: the general ones and the topic's own.

    A topic without patches is a suite of its own: the general checks are left out.  The claims of
    the shipped topic run only together with the general checks, not with other folders of checks.
    """
    own = PROJECT / "patches" / topic / TESTS
    if is_suite(topic) and tests == CHECKS:
        return [str(own)]
    wanted = bool(topic) and (tests == CHECKS or topic != defaults.TOPIC)
    with_topic = wanted and own.is_dir()
    return [str(tests), *([str(own)] if with_topic else [])]


def _series_name(options: Options) -> str:
    if options.stock:
        return "stock"
    return f"series {', '.join(map(str, options.series)) or options.topic_name}"


def run_checks(
    bench: Workbench,
    tests: Path,
    checks: list[Check],
    *,
    stock: bool = False,
    what: str = "checks",
    collector: coverage.Collector | None = None,
    shared: tuple[shards.Rounds, shards.Phase] | None = None,
    distributed: DistributedLoop | None = None,
) -> bool:
    """Run pytest in this process, in the running guest; pytest's output goes to pytest.log.

    `stock` says that the stock module is loaded, for comparison; `what` names the stage.  `shared`
    is the round in which further guests take part; in a further guest `distributed` chooses the
    checks.  Returns whether the machine is broken now.  Raises GuestError if it is and `go_on` is
    not set, and CannotError if pytest itself could not run.
    """
    recorder = Recorder(bench, checks, tests, beside=bench.stock_build is not None and not stock)
    plugins: list[object] = [recorder]
    if collector is not None:
        plugins.append(collector)
    what = "checks on stock" if stock else what
    log = bench.run_dir / f"{what.replace('checks', 'pytest').replace(' ', '-')}.log"
    # pytest captures standard error while a check runs.
    with progress.past_capture(), progress.stage(what, bench.stages) as step:
        arguments = [*check_folders(bench.options.topic_name, tests), *PYTEST_OPTIONS, "-v"]
        if bench.options.only:
            arguments += ["-k", bench.options.only]
        with (
            log.open("w", buffering=1) as stream,
            contextlib.redirect_stdout(stream),
            progress.following(step, recorder.now),
            our_pytest(),
        ):
            if shared:
                plugins.append(shared[0].plugin(shared[1], recorder.took))
            elif distributed:
                plugins.append(distributed)
            with _going_on(bench) if shared else contextlib.nullcontext():
                code = pytest.main(arguments, plugins=plugins)
            if shared and not recorder.ended_early:
                shared[0].end(shared[1], recorder.took)
        recorder.complete(begun_only=distributed is not None)
        if recorder.interrupted:
            raise KeyboardInterrupt
        if recorder.broken and shared is None and not bench.options.go_on:
            under = "with the stock module: " if stock else ""
            raise GuestError(f"the guest broke: {under}{recorder.broken}")
        if bench.options.only and code == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise UsageError(f"--only {bench.options.only}: no check matches")
        if distributed and code == pytest.ExitCode.NO_TESTS_COLLECTED:
            code = pytest.ExitCode.OK
        early = recorder.ended_early or code not in (
            pytest.ExitCode.OK,
            pytest.ExitCode.TESTS_FAILED,
        )
        if early or not (checks or distributed):
            # The checks that ran may have passed, but the others would be missing without notice.
            tail = "\n".join(log.read_text().splitlines()[-15:])
            what = "ended early" if checks else "ran no check"
            raise CannotError(f"pytest {what} (exit {int(code)}); see {log}", detail=tail)
        failed = sum(check.outcome in ("failed", "error") for check in checks)
        step.note = f"{len(checks)} run, {failed} failed"
        if recorder.left_out:
            left = f"{recorder.left_out} that take minutes left out, --full runs them"
            step.note += f"; {left}"
            bench.properties[report.LEFT_OUT] = left
        if bench.breaks:
            bench.properties["guest broke"] = f"{bench.breaks} times, and was brought up again"
        if shared is not None:
            rounds, phase = shared
            step.note += f"; in {rounds.guests} guests" if rounds.guests > 1 else ""
            shards.require_unbroken(bench, phase.done, recorder.broken or "")
        return recorder.broken is not None


@contextlib.contextmanager
def _going_on(bench: Workbench) -> Iterator[None]:
    """With several guests a broken one is started again, whatever the options say."""
    before = bench.options
    bench.options = dataclasses.replace(before, go_on=True)
    try:
        yield
    finally:
        bench.options = before


@contextlib.contextmanager
def our_pytest() -> Iterator[None]:
    """Run pytest without the user's own settings and plugins.

    These could silently leave out checks, repeat failed ones, or distribute them to processes.
    """
    mine = {name: os.environ.pop(name) for name in _PYTEST_VARIABLES if name in os.environ}
    os.environ[_NO_OTHERS] = "1"
    try:
        yield
    finally:
        del os.environ[_NO_OTHERS]
        os.environ.update(mine)


def _without_guest(session: Session) -> None:
    """Run the tests that need no FreeBSD: those of the series' own C code."""
    topic = session.options.topic_name
    tests = PROJECT / "patches" / topic / "unit"
    if not topic or not tests.is_dir():
        return
    with session.stage("series C") as step:
        log = session.run_dir / "series.log"
        with log.open("wb") as stream:

            def write(data: bytes) -> None:
                stream.write(data)

            try:
                done = process.run(
                    [sys.executable, "-m", "pytest", "-q", tests],
                    Deadline.after(_SERIES_C_S),
                    cwd=PROJECT,
                    environment=os.environ,
                    merged=True,
                    sink=write,
                )
                failed = not done.ok
            except process.Unfinished as error:
                stream.write(f"{error.message}\n".encode())
                failed = True
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        step.note = (lines[-1].strip("= ") if lines else "no output") + f"; {log}"
        if failed:
            step.outcome = "failed"
