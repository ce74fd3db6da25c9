"""The result of each check, recorded while pytest runs."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from harness import defaults, progress
from harness.errors import GuestPanic, GuestRebooted, MachineDied, WaitTimeout
from harness.guest.ssh_connect import SshRefused
from harness.guest.transcript import NO_EVIDENCE, Evidence
from harness.report import Check
from harness.run import plugin
from harness.run.workbench import Workbench

# A check that ends with one of these errors says nothing about its claim.
_BROKE = (GuestPanic, GuestRebooted, MachineDied, WaitTimeout, SshRefused)


class Recorder:
    """A pytest plugin that gives pytest the guest, and records the outcome of each check."""

    def __init__(self, bench: Workbench, checks: list[Check], tests: Path, *, beside: bool) -> None:
        self._bench = bench
        self._tests = tests
        self._beside = beside
        # With the stock module, alone or before the patched one, the patch's claims must fail.
        self._stock = bench.options.stock or (bench.stock_build is not None and not beside)
        self._checks = checks
        self._items: dict[str, tuple[bool, str]] = {}
        self._parts: dict[str, list[pytest.TestReport]] = {}
        self._errors: set[str] = set()
        self._ended: set[str] = set()
        self._began_s: dict[str, float] = {}
        self._evidence: dict[str, Evidence] = {}
        self._config: pytest.Config | None = None
        self.left_out = 0
        self._planned = 0
        self._current = ""
        self.interrupted = False
        self.ended_early = False

    @property
    def broken(self) -> str | None:
        """Why the machine broke, if it did."""
        return plugin.broken_reason(self._config) if self._config else None

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config
        config.stash[plugin.WORKBENCH] = self._bench

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # pytest catches Ctrl-C and ends normally; pytest.exit and collection errors also get here,
        # the latter as a subclass.
        self.interrupted = type(excinfo.value) is KeyboardInterrupt
        self.ended_early = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        error = call.excinfo.value if call.excinfo else None
        other = report.when != "call" and not item.stash.get(plugin.COMPLAINED, False)
        if report.failed and (other or isinstance(error, _BROKE)):
            self._errors.add(item.nodeid)
        if report.when == "teardown":
            self._evidence[item.nodeid] = item.stash.get(plugin.EVIDENCE, NO_EVIDENCE)
        return report

    def _is_asked(self, item: pytest.Item) -> bool:
        """Whether this run uses a check: another topic's claims say nothing about a series."""
        options = self._bench.options
        if item.get_closest_marker("beside") and not self._beside:
            return False
        if item.get_closest_marker("patch") and options.topic_name != defaults.TOPIC:
            return not item.path.is_relative_to(self._tests)
        return True

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        asked = [item for item in items if self._is_asked(item)]
        full = self._bench.options.full
        run = [item for item in asked if full or not item.get_closest_marker("minutes")]
        self.left_out = len(asked) - len(run)
        if gone := [item for item in items if item not in run]:
            config.hook.pytest_deselected(items=gone)
        items[:] = run
        self._planned = len(run)
        for item in items:
            function = getattr(item, "function", None)
            title = (getattr(function, "__doc__", "") or item.name).strip().splitlines()[0]
            self._items[item.nodeid] = (item.get_closest_marker("patch") is not None, title)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began_s[nodeid] = time.monotonic()
        self._current = nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        parts = self._parts.setdefault(report.nodeid, [])
        parts.append(report)
        if report.when == "teardown":
            self._checks.append(self._check(report.nodeid, parts))
            self._ended.add(report.nodeid)
            self._report(self._checks[-1])

    def took(self, nodeid: str, check: Check) -> None:
        """Record a check that ran in another guest of this run."""
        self._ended.add(nodeid)
        of_patch, title = self._items.get(nodeid, (check.of_patch, check.title))
        self._checks.append(dataclasses.replace(check, of_patch=of_patch, title=title))
        self._report(self._checks[-1])

    def complete(self, *, begun_only: bool = False) -> None:
        """Add the checks that pytest did not finish: the current one, and those not begun.

        A check that hung is a result, and no check may be missing without a reason.  With
        `begun_only` the caller adds those that were not begun.
        """
        why = self.broken or ("interrupted" if self.interrupted else "pytest ended early")
        for nodeid, (of_patch, title) in self._items.items():
            if nodeid in self._ended or (begun_only and nodeid != self._current):
                continue
            self._ended.add(nodeid)
            if nodeid == self._current:
                self._checks.append(self._broken_off(nodeid, of_patch, title, why))
                self._report(self._checks[-1])
            else:
                message = f"not run: {why}"
                self._checks.append(Check(_short(nodeid), title, "skipped", of_patch, 0.0, message))

    def _broken_off(self, nodeid: str, of_patch: bool, title: str, why: str) -> Check:
        """The check that was running when the run ended, with the last command to the guest."""
        took_s = time.monotonic() - self._began_s[nodeid]
        guest = self._bench.guest
        heard = guest.transcript.kept if guest.transcript else ()
        last = f"; the last command in the guest was: {heard[-1].command[:100]}" if heard else ""
        parts = self._parts.get(nodeid, [])
        failed = next((part for part in parts if part.failed), None)
        return Check(
            name=_short(nodeid),
            title=title,
            outcome="error",
            of_patch=of_patch,
            seconds=took_s,
            message=f"ended after {took_s:.0f} s ({_reason(failed) if failed else why}){last}",
            at_s=self._began_s[nodeid] - self._bench.stages[0].began_s,
        )

    def now(self) -> str:
        """The current check, for the live line."""
        if not self._current:
            return "collecting"
        took_s = time.monotonic() - self._began_s[self._current]
        number = min(len(self._checks) + 1, self._planned)
        return f"{number} of {self._planned}: {_short(self._current)}, {took_s:.0f} s"

    def _report(self, check: Check) -> None:
        """Print a line for a check that has ended; if there is a live line, only for a failure."""
        must_fail = check.of_patch and self._stock
        bad = check.outcome in ("error", "passed" if must_fail else "failed")
        if bad or not progress.err.is_terminal:
            how = f"{check.outcome}, as it must" if must_fail and not bad else check.outcome
            count = f"{len(self._checks)} of {self._planned}"
            progress.say(f"  {count}: {how}, {check.seconds:.1f} s: {check.name}")

    def _check(self, nodeid: str, parts: list[pytest.TestReport]) -> Check:
        of_patch, title = self._items.get(nodeid, (False, nodeid))
        worst = next(
            (part for part in parts if part.failed),
            next((part for part in parts if part.skipped), parts[-1]),
        )
        message, detail = "", ""
        if worst.failed:
            message = _reason(worst)
            sections = [f"--- {name}\n{text.rstrip()}" for name, text in worst.sections]
            detail = "\n".join([worst.longreprtext.rstrip(), *sections])
        elif worst.skipped and isinstance(worst.longrepr, tuple):
            message = str(worst.longrepr[2]).removeprefix("Skipped: ")
        return Check(
            name=_short(nodeid),
            title=title,
            outcome="error" if nodeid in self._errors else worst.outcome,
            of_patch=of_patch,
            seconds=sum(part.duration for part in parts),
            message=message,
            detail=detail,
            at_s=self._began_s[nodeid] - self._bench.stages[0].began_s,
            evidence=self._evidence.get(nodeid, NO_EVIDENCE),
            # pytest adds the later sections to the same list.
            figures=tuple((str(name), str(value)) for name, value in parts[-1].user_properties),
        )


def _short(nodeid: str) -> str:
    return nodeid.rpartition("/")[2]


def _reason(part: pytest.TestReport) -> str:
    """The failure's own line, without pytest's formatting and the class names of our errors."""
    crash = getattr(part.longrepr, "reprcrash", None)
    text = (crash.message if crash else part.longreprtext).strip()
    lines = re.sub(r"^harness\.[\w.]+: ", "", text).splitlines()
    return lines[0][:160] if lines else "failed"
