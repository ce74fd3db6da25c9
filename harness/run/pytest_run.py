"""One run of pytest over the checks, in the guest that is up."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import defaults, progress, report
from harness.errors import CannotError, GuestError, UsageError
from harness.files import PROJECT
from harness.report import Check
from harness.run import coverage, shards
from harness.run.group_loop import DistributedLoop
from harness.run.outcomes import Recorder
from harness.run.workbench import Workbench
from harness.series import load
from harness.series.load import TESTS

CHECKS = PROJECT / "tests" / "guest"

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
