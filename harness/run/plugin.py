"""The pytest plugin: fixtures, options, marks, and the guest's output in a failure's report.

It is installed as an entry point, so any test file elsewhere can use it too.  It does nothing for
tests that use none of its fixtures.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from harness import backends, defaults, files, interrupts, progress
from harness.deadline import Deadline
from harness.errors import (
    CannotError,
    GuestError,
    GuestPanic,
    GuestRebooted,
    MachineDied,
    WaitTimeout,
    WorkbenchError,
)
from harness.guest.freebsd import Guest
from harness.guest.transcript import Evidence, Transcript, evidence
from harness.machine.console import clean_lines
from harness.run import complaints, markers

# pytest looks for fixtures among the names of the plugin.
from harness.run.fixtures import batch as batch
from harness.run.fixtures import guest as guest
from harness.run.fixtures import host as host
from harness.run.fixtures import l2 as l2
from harness.run.fixtures import machine as machine
from harness.run.fixtures import reloaded as reloaded
from harness.run.fixtures import unloaded as unloaded
from harness.run.fixtures import vm as vm
from harness.run.fixtures import vmm as vmm
from harness.run.options import Options
from harness.run.persistent_session import PersistentSession, ways_in
from harness.run.run_folder import new_run_dir
from harness.run.session import Session
from harness.run.session_result import (
    EVER_BROKE,
    UNREACHABLE,
    SessionResult,
    give_up,
)
from harness.run.session_result import WORKBENCH as WORKBENCH
from harness.run.workbench import Workbench

EVIDENCE = pytest.StashKey[Evidence]()
"""In an item's stash after its teardown: the commands to the guest, and their output."""

COMPLAINED = pytest.StashKey[bool]()
"""In an item's stash if it failed only because the kernel complained."""

_LOST = (GuestPanic, GuestRebooted, MachineDied)
# How long to wait for the guest's messages, at native speed, after a check has timed out.
_ASK_S = 5.0
_BROUGHT_UP = pytest.StashKey[bool]()
_BROKEN = pytest.StashKey[str]()
_CONSOLE_MARK = pytest.StashKey[int]()
_HEARD = pytest.StashKey[int]()
_DMESG_BEFORE = pytest.StashKey[list[str]]()
_DMESG_SEEN = pytest.StashKey[tuple[int, list[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vmm", "vmm-workbench: a FreeBSD guest with the patched vmm.ko")
    group.addoption("--vmm-release", default=defaults.RELEASE, help="the FreeBSD release to boot")
    group.addoption("--vmm-backend", default="auto", help=backends.listed())
    group.addoption(
        "--vmm-cold", action="store_true", help="boot even if a snapshot could be resumed"
    )
    group.addoption("--vmm-stock", action="store_true", help="test the unpatched module")
    group.addoption(
        "--vmm-reboot", action="store_true", help="when the guest breaks, continue with a new one"
    )
    group.addoption(
        "--vmm-series", action="append", type=Path, default=[], help="a series folder or patches"
    )
    group.addoption("--vmm-full", action="store_true", help="also run the tests that take minutes")
    group.addoption(
        "--vmm-keep", metavar="NAME", default="", help="leave the guest up if a test failed"
    )
    group.addoption(
        "--vmm-insist",
        action="store_true",
        help="if there can be no guest, fail instead of skipping",
    )


def pytest_configure(config: pytest.Config) -> None:
    for mark, meaning in markers.MARKERS.items():
        config.addinivalue_line("markers", f"{mark}: {meaning}")
    config.pluginmanager.register(SessionResult(config), "vmm-session")


def pytest_sessionstart() -> None:
    # pytest replaces the hook that the program installed.
    interrupts.never_lost()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the patch's claims as expected failures (xfail) if the stock module is loaded."""
    if WORKBENCH in config.stash or not config.getoption("--vmm-stock"):
        return
    reason = "needs the patch, and the stock module is loaded"
    for item in items:
        if item.get_closest_marker("patch") and _is_ours(item):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def _no_guest(config: pytest.Config, error: WorkbenchError) -> NoReturn:
    """Skip the test if this machine cannot have a guest; otherwise end the session."""
    if isinstance(error, CannotError) and not config.getoption("--vmm-insist"):
        pytest.skip(f"there can be no FreeBSD guest here: {error.message}")
    config.stash[UNREACHABLE] = (error.exit_code, error.message)
    reason = f"{error.detail}\n{error.message}".strip()
    if hasattr(config, "workerinput"):
        # In a worker of xdist pytest.exit would become an internal error, without the reason.
        pytest.fail(reason, pytrace=False)
    pytest.exit(reason, returncode=error.exit_code)


@pytest.fixture(scope="session")
def workbench(request: pytest.FixtureRequest) -> Iterator[Workbench]:
    """A run with the module loaded: the one that `inv verify` passes in, or a new one."""
    config = request.config
    given = config.stash.get(WORKBENCH, None)
    if given is not None:
        yield given
        return
    try:
        options = Options(
            release=config.getoption("--vmm-release"),
            backend=config.getoption("--vmm-backend"),
            stock=config.getoption("--vmm-stock"),
            cold=config.getoption("--vmm-cold"),
            series=tuple(config.getoption("--vmm-series")),
            go_on=config.getoption("--vmm-reboot"),
        )
    except WorkbenchError as error:
        _no_guest(config, error)
    if reason := files.not_a_checkout():
        _no_guest(config, CannotError(reason))
    run_dir, name = new_run_dir("pytest"), config.getoption("--vmm-keep")
    with (
        PersistentSession(options, run_dir, name) if name else Session(options, run_dir) as session
    ):
        try:
            bench = session.up()
        except WorkbenchError as error:
            _no_guest(config, error)
        config.stash[WORKBENCH] = bench
        config.stash[_BROUGHT_UP] = True
        yield bench
        del config.stash[WORKBENCH]
        if isinstance(session, PersistentSession) and request.session.testsfailed:
            record = session.keep()
            if record is not None:
                progress.say(f"guest {name} stays; {ways_in(record)}")


@pytest.fixture(autouse=True)
def _needs_met(request: pytest.FixtureRequest) -> None:
    """Skip a check that this guest cannot run, with the reason."""
    marks = {mark.name: mark.args for mark in request.node.iter_markers()}
    # Other projects' tests may use marks of these names too.
    if not markers.NAMES & marks.keys() or not _is_ours(request.node):
        return
    config = request.config
    # `inv verify` chooses the checks itself, and reports those that it left out.
    ours = WORKBENCH not in config.stash or config.stash.get(_BROUGHT_UP, False)
    if "minutes" in marks and ours and not config.getoption("--vmm-full"):
        pytest.skip("takes minutes in an emulator: --vmm-full runs it")
    bench: Workbench = request.getfixturevalue("workbench")
    if "beside" in marks and bench.stock_build is None:
        pytest.skip("compares with the stock module: inv verify --side-by-side runs it")
    if reason := markers.unmet(marks, bench):
        pytest.skip(reason)


def _is_ours(item: pytest.Item) -> bool:
    """Whether a test uses the guest; the plugin ignores all others."""
    return "workbench" in getattr(item, "fixturenames", ())


def _guest(item: pytest.Item) -> Guest | None:
    bench = item.config.stash.get(WORKBENCH, None)
    return bench.guest if bench is not None and _is_ours(item) else None


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Skip the tests after the machine broke, and name the first cause."""
    broken = item.config.stash.get(_BROKEN, None)
    if before := item.stash.get(EVER_BROKE, ""):
        # Some plugins repeat failed tests.  This one broke the guest, so it fails in any case.
        pytest.fail(f"the guest broke under this check before: {before}", pytrace=False)
    if broken is not None and _is_ours(item):
        _restart_guest(item.config, broken)
    _take_down(item)
    yield
    # The set-up of the first test may have started the guest.
    if _CONSOLE_MARK not in item.stash:
        _take_down(item)


def _restart_guest(config: pytest.Config, broken: str) -> None:
    """Start a broken guest again if that was asked for; otherwise skip the test."""
    bench = config.stash.get(WORKBENCH, None)
    if bench is None or not bench.options.go_on:
        pytest.skip(f"not run, because the machine broke before: {broken}")
    try:
        bench.restart_guest()
    except WorkbenchError as error:
        bench.options = dataclasses.replace(bench.options, go_on=False)
        pytest.skip(f"not run, because the machine broke ({broken}) and did not come back: {error}")
    del config.stash[_BROKEN]
    if _DMESG_SEEN in config.stash:
        del config.stash[_DMESG_SEEN]


def _take_down(item: pytest.Item) -> None:
    """Record the guest's output up to now."""
    guest = _guest(item)
    if guest is None:
        return
    mark = guest.machine.console.mark
    item.stash[_CONSOLE_MARK] = mark
    # The kernel's messages go to the console too.  If the console is silent, dmesg is unchanged;
    # reading it again would take a third of a second per check in an emulator.
    seen, dmesg = item.config.stash.get(_DMESG_SEEN, (-1, []))
    if seen != mark:
        with contextlib.suppress(GuestError):
            dmesg = _dmesg(item, guest)
    item.stash[_DMESG_BEFORE] = dmesg
    guest.transcript = Transcript()


def _dmesg(item: pytest.Item, guest: Guest, limit: Deadline | None = None) -> list[str]:
    """The kernel's messages; this command does not appear in the test's transcript."""
    mark = guest.machine.console.mark
    transcript, guest.transcript = guest.transcript, None
    try:
        dmesg = guest.dmesg(limit) if limit else guest.dmesg()
    finally:
        guest.transcript = transcript
    item.config.stash[_DMESG_SEEN] = (mark, dmesg)
    return dmesg


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Report a panic with the test that was running, even if the test did not notice it."""
    yield
    guest = _guest(item)
    if guest is None:
        return
    try:
        if item.config.stash.get(_BROKEN, None) is None:
            guest.machine.check()
    finally:
        _gather(item, guest)


def _gather(item: pytest.Item, guest: Guest) -> None:
    """Store the commands and the output of the guest during the test."""
    transcript, guest.transcript = guest.transcript, None
    if transcript is None or _CONSOLE_MARK not in item.stash:
        return
    console = guest.machine.console
    seen, dmesg = item.config.stash.get(_DMESG_SEEN, (-1, []))
    if seen != console.mark and item.config.stash.get(_BROKEN, None) is None:
        with contextlib.suppress(GuestError):
            dmesg = _dmesg(item, guest)
    item.stash[EVIDENCE] = evidence(
        transcript,
        clean_lines(console.since(item.stash[_CONSOLE_MARK])),
        new_lines(item.stash.get(_DMESG_BEFORE, dmesg), dmesg),
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the guest's output to a failure, and notice if the machine broke."""
    report = yield
    guest = _guest(item)
    if guest is None or _CONSOLE_MARK not in item.stash:
        return report
    if report.when != "setup":
        # Those of the set-up are heard after the call, which follows unless the set-up failed.
        _hear(item, report, guest)
    machine = guest.machine
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, (*_LOST, WaitTimeout)) and not report.failed:
        # A test may be expected to fail, but not to break the guest.
        report.outcome = "failed"
        report.longrepr = item.repr_failure(call.excinfo) if call.excinfo else str(error)
        if hasattr(report, "wasxfail"):
            del report.wasxfail
    if isinstance(error, CannotError) and report.failed:
        # The check could not run here, which says nothing about the patch.
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {error.message}")
    if not report.failed:
        return report
    if isinstance(error, WorkbenchError) and error.detail:
        report.sections.append(("what it printed", error.detail))
    broken = str(error) if isinstance(error, _LOST) else None
    if broken is None:
        try:
            machine.check()
        except GuestError as found:
            broken = found.message
            report.sections.append(("the guest broke", f"{found.message}\n{found.detail}"))
    said = "\n".join(clean_lines(machine.console.since(item.stash[_CONSOLE_MARK])))
    report.sections.append(("guest console meanwhile", said or "(nothing)"))
    if broken is None:
        before = item.stash.get(_DMESG_BEFORE, [])
        # After a timeout dmesg is read too, but with a short limit.
        limit = guest.deadline(_ASK_S) if isinstance(error, WaitTimeout) else None
        try:
            news = new_lines(before, _dmesg(item, guest, limit))
        except GuestError as found:
            report.sections.append(("guest dmesg meanwhile", f"could not be read: {found.message}"))
            if isinstance(found, (*_LOST, WaitTimeout)):
                # What was waited for first is the cause, and this proves it.
                waited = error.message if isinstance(error, WaitTimeout) else found.message
                broken = f"it has not answered since {item.name}: {waited}"
        else:
            report.sections.append(("guest dmesg meanwhile", "\n".join(news) or "(nothing)"))
    if broken is not None:
        item.config.stash.setdefault(_BROKEN, broken)
        item.config.stash.setdefault(EVER_BROKE, f"{item.name}: {broken}")
        item.stash.setdefault(EVER_BROKE, broken)
        give_up(item.config, f"it broke: {broken}")
    return report


def _hear(item: pytest.Item, report: pytest.TestReport, guest: Guest) -> None:
    """Let a check fail during which the kernel complained because of the tested patch."""
    console = guest.machine.console
    mark = item.stash.get(_HEARD, item.stash[_CONSOLE_MARK])
    found = item.config.stash[WORKBENCH].hear(mark)
    item.stash[_HEARD] = console.mark
    if not found:
        return
    report.sections += [("the kernel complained", complaints.text(it)) for it in found]
    if not report.failed:
        report.outcome = "failed"
        report.longrepr = complaints.message(found)
        item.stash[COMPLAINED] = True
        if hasattr(report, "wasxfail"):
            del report.wasxfail


def new_lines(before: list[str], after: list[str]) -> list[str]:
    """The lines of `after` that follow the end of `before`; all of them when it has rolled over."""
    if not before:
        return after
    for length in range(min(len(before), len(after)), 0, -1):
        if after[:length] == before[-length:]:
            return after[length:]
    return after


def broken_reason(config: pytest.Config) -> str | None:
    """Why the machine broke during this session, if it did."""
    return config.stash.get(_BROKEN, None)
