"""`inv verify`: starts the guest, runs the checks, and gives the verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import process, progress, report
from harness.build.builder import Build
from harness.deadline import Deadline
from harness.errors import (
    EXIT_CHECK_FAILED,
    EXIT_GUEST,
    EXIT_OK,
    EXIT_PATCH,
    CannotError,
    Interrupted,
    UsageError,
    WorkbenchError,
)
from harness.files import PROJECT
from harness.report import Check, Report
from harness.run import coverage, distribution, shards
from harness.run.options import Options
from harness.run.persistent_session import PersistentSession, ways_in
from harness.run.pytest_run import CHECKS, is_suite, run_checks
from harness.run.run_folder import new_run_dir
from harness.run.session import Session
from harness.run.shard_process import Order
from harness.run.stages import STAGES, Built
from harness.run.workbench import Workbench
from harness.series import load

# The tests of a series' own C take a minute or two.
_SERIES_C_S = 3600.0

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
        stock = [Order(built, stock=True)] if built.stock is not None else []
        pool.start_early(built.imaged, [Order(built, stock=False), *stock])
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


def _series_name(options: Options) -> str:
    if options.stock:
        return "stock"
    return f"series {', '.join(map(str, options.series)) or options.topic_name}"


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
