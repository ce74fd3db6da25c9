"""Trials: runs the checks on one built variant after another, in one guest.

First they run on correct code.  A check that does not pass there is not in the baseline, and is not
run on the variants, because its failure would say nothing about them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness import progress
from harness.build.builder import Build
from harness.errors import (
    CannotError,
    GuestError,
    GuestPanic,
    GuestRebooted,
    MachineDied,
    PatchError,
    WaitTimeout,
)
from harness.run import complaints, group_loop, plugin
from harness.run.pytest_run import CHECKS, PYTEST_OPTIONS, check_folders, our_pytest
from harness.run.stages import Built
from harness.run.trial_work import Planned
from harness.run.workbench import Workbench
from harness.series.load import Series

_MINUTES = "minutes"
_LONGEST_REASON = 300

Share = Callable[[Sequence[Planned]], tuple[str, ...]]
"""Gives the node ids of the checks that this guest runs next; it gets all that could run."""


@dataclass(frozen=True)
class Variant:
    """A variant to try: its name, its build, and the checks that should notice it.

    `related` are beginnings of names of checks that may notice it, which run early.  `series`
    is what the checks' own programs are compiled with, None for the stock source.
    """

    name: str
    build: Build
    vmtool: Path
    caught_by: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    series: Series | None = None


@dataclass(frozen=True)
class Baseline:
    """The results of the checks on correct code.

    Checks are called FILE::NAME.  `seconds` has those that passed and their times, `without` all
    others and the reasons.  `failed` has those that failed and were not just skipped.
    """

    seconds: Mapping[str, float]
    without: Mapping[str, str]
    failed: tuple[str, ...] = ()

    def require_some(self, name: str, run_dir: Path) -> None:
        """Raise CannotError if no check passes."""
        if not self.seconds:
            raise CannotError(
                f"no check passes on {name}, so none can catch anything; see {run_dir}"
            )

    def lacks(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of `names` (FILE::NAME, possibly parametrized) without a check that passed."""
        return tuple(name for name in names if not any(_is(it, name) for it in self.seconds))


@dataclass(frozen=True)
class Trial:
    """The result of one variant; `caught` names the checks that failed, in order."""

    caught: tuple[str, ...]
    why: str
    checks_run: int
    seconds: float


@dataclass(frozen=True)
class Trials:
    """Runs the checks in `tests`, and unless `general` those of the topic.

    `named` are checks that are run even if they take minutes, unless they have a quick form.  Of
    the others only those run whose FILE::NAME contains one of `chosen`; if that is empty, all
    run.  With `every` a trial runs all checks, otherwise it ends at the first failure.  `stock` is
    the build that variants are compared with.
    """

    bench: Workbench
    tests: Path = CHECKS
    general: bool = False
    every: bool = False
    named: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    stock: Build | None = None

    def prove(
        self, variant: Variant, stage: progress.Stage, share: Share | None = None
    ) -> Baseline:
        """Run all checks on correct code, or the guest's share of them.

        A check that times out is not in the baseline, like one that fails.  Raises CannotError if
        none passes.  A panic or a reboot is raised too, because then there is no baseline.
        """
        recorder = _Recorder(self, variant, stage, None, share)
        if refusal := self._bring_in(variant):
            raise CannotError(f"virtual machines cannot be made here: {refusal}")
        try:
            _run(recorder, every=True)
            _clean(self.bench)
        except WaitTimeout:
            if not recorder.seconds and share is None:
                raise
            self.bench.restart_guest(load=False)
        failed = tuple(dict.fromkeys(recorder.failed))
        baseline = Baseline(recorder.seconds, recorder.without, failed)
        if share is None:
            baseline.require_some(variant.name, self.bench.run_dir)
        return baseline

    def judge(
        self,
        variant: Variant,
        baseline: Baseline,
        stage: progress.Stage,
        share: Share | None = None,
    ) -> Trial:
        """Run the checks of the baseline on one variant, the related and the fastest first.

        With `share` these are the guest's share of the checks, which may be none.

        A variant also counts as caught if the kernel refuses its module, if it panics, reboots or
        hangs, or if it cannot be unloaded; then the guest is started again.  Raises MachineDied if
        the emulator ended, which says nothing about the variant, and CannotError if no check ran.
        """
        start = time.monotonic()
        recorder = _Recorder(self, variant, stage, baseline, share)
        caught: list[str] = []
        try:
            refusal = self._bring_in(variant)
            said = self.bench.complaints.take()
            if not refusal:
                _run(recorder, every=self.every)
        except PatchError as error:
            caught, recorder.why = ["loading"], error.message
        except GuestError as error:
            if not isinstance(error, _BREAKAGES):
                raise
            caught, recorder.why = [*recorder.failed, _breakage(error)], error.message
            self.bench.restart_guest(load=False)
        else:
            caught = list(recorder.failed)
            if refusal:
                caught, recorder.why = ["loading"], f"no virtual machine can be made: {refusal}"
            if said:
                caught = ["loading", *caught]
                recorder.why = recorder.why or complaints.message(said)
            caught += self._leave(recorder)
        if not caught and not recorder.ran and share is None:
            raise CannotError(f"{variant.name}: no check was run; see {self.bench.run_dir}")
        seconds = time.monotonic() - start
        return Trial(tuple(dict.fromkeys(caught)), recorder.why, recorder.ran, seconds)

    def _bring_in(self, variant: Variant) -> str:
        """Load the variant instead of the current module; returns why no VM can be made, or ""."""
        bench = self.bench
        _clean(bench)
        imaged = bench.booted.imaged
        bench.bring_in(Built(imaged, variant.series, variant.build, self.stock), variant.vmtool)
        return "" if bench.loaded.virtualizes else bench.loaded.refusal or "no reason given"

    def _leave(self, recorder: _Recorder) -> list[str]:
        """Unload the variant; if that fails, returns what caught it."""
        mark = self.bench.guest.machine.console.mark
        try:
            _clean(self.bench)
        except GuestError as error:
            if isinstance(error, MachineDied):
                raise
            recorder.why = recorder.why or error.message
            broken = isinstance(error, _BREAKAGES)
            self.bench.restart_guest(load=False)
            # After a failed check this may just be caused by objects that the check left behind.
            return [] if recorder.failed else [_breakage(error) if broken else "unloading"]
        if found := self.bench.hear(mark):
            recorder.why = recorder.why or complaints.message(found)
            return ["unloading"]
        return []


_BREAKAGES = (GuestPanic, GuestRebooted, WaitTimeout)


def _breakage(error: GuestError) -> str:
    names = {GuestPanic: "a panic", GuestRebooted: "a reboot"}
    return next((name for kind, name in names.items() if isinstance(error, kind)), "a hang")


# Removes objects that checks may have left behind, since a failed check cannot always clean up.
# The kernel's messages about one variant must not fail a check on the next.
_CLEAN = r"""
test -d /dev/vmm && find /dev/vmm -type c | while read -r path; do
    bhyvectl --destroy --vm="${path#/dev/vmm/}"
done
jail -r vmmwb
kenv -u hw.vmm.mem_limit
kldstat -q -m vmm && kldunload vmm
if kldstat -q -m vmm; then echo "vmm cannot be unloaded" >&2; exit 1; fi
sysctl -q kern.msgbuf_clear=1
exit 0
"""


def _clean(bench: Workbench) -> None:
    """Destroy all VMs and unload the module; GuestError if that fails."""
    guest = bench.guest
    guest.must(["/bin/sh", "-c", _CLEAN], guest.deadline(60))


def _run(recorder: _Recorder, *, every: bool) -> None:
    """Run pytest in this process; its output goes to the variant's log."""
    trials = recorder.trials
    log = trials.bench.run_dir / f"pytest-{recorder.variant.name}.log"
    topic = "" if trials.general else trials.bench.options.topic_name
    arguments = [*check_folders(topic, trials.tests), *PYTEST_OPTIONS, "-q"]
    arguments += [] if every else ["-x"]
    plugins: list[object] = [recorder]
    if recorder.share is not None:
        plugins.append(
            group_loop.DistributedLoop(recorder.shared, lambda _name: None, recorder.is_usable)
        )
    # pytest captures standard error while a check runs, and other guests' results come meanwhile.
    with (
        progress.past_capture(),
        log.open("w") as stream,
        contextlib.redirect_stdout(stream),
        our_pytest(),
    ):
        code = pytest.main(arguments, plugins=plugins)
    if recorder.interrupted:
        raise KeyboardInterrupt
    if recorder.broke is not None:
        raise recorder.broke
    fine = [pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED]
    if recorder.share is not None:
        # The others may have run all of them.
        fine.append(pytest.ExitCode.NO_TESTS_COLLECTED)
    if code not in fine:
        raise CannotError(f"{recorder.variant.name}: pytest ended with {int(code)}; see {log}")


@dataclass(eq=False)
class _Recorder:
    """A pytest plugin that chooses and orders the checks of one trial, and records the results."""

    trials: Trials
    variant: Variant
    stage: progress.Stage
    baseline: Baseline | None
    share: Share | None = None
    names: dict[str, str] = field(default_factory=dict)
    quick: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)
    why: str = ""
    ran: int = 0
    broke: GuestError | None = None
    interrupted: bool = False

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[plugin.WORKBENCH] = self.trials.bench

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Put the checks that should notice first, then the related, then the fastest.

        Checks that share a set-up, such as the run of a family, stay together.
        """
        self.names = {item.nodeid: _short(item) for item in items}
        wanted = (*self.variant.caught_by, *self.trials.named)
        for name in wanted:
            if not any(_is(_short(item), name) for item in items):
                raise pytest.UsageError(f"{self.variant.name}: Caught-by: {name} is not a check")
        self.quick = {
            _base(_short(item)) for item in items if item.get_closest_marker(_MINUTES) is None
        }
        run = [item for item in items if self._is_asked(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in run])
        first = [item for item in run if self._is_named(item, self.variant.caught_by)]
        first.sort(key=lambda item: item.get_closest_marker(_MINUTES) is not None)
        rest = [item for item in run if item not in first]
        if self.baseline is not None:
            cost: dict[str, float] = {}
            rank: dict[str, int] = {}
            for item in rest:
                key = group_loop.key(item)
                cost[key] = cost.get(key, 0.0) + self.baseline.seconds[_short(item)]
                rank[key] = min(rank.get(key, self._rank(item)), self._rank(item))
            rest.sort(key=lambda it: (rank[key := group_loop.key(it)], cost[key], key))
        items[:] = first + rest

    def shared(self, items: list[pytest.Item]) -> tuple[str, ...]:
        """The node ids of the next checks of a shared variant."""
        assert self.share is not None
        return self.share([(group_loop.key(it), it.nodeid, _short(it)) for it in items])

    def is_usable(self) -> bool:
        """Whether more checks can run in this guest."""
        return self.broke is None

    def _is_asked(self, item: pytest.Item) -> bool:
        named = self._is_named(item, (*self.variant.caught_by, *self.trials.named))
        if self.baseline is not None and _short(item) not in self.baseline.seconds:
            return False
        if self.trials.general and item.get_closest_marker("patch"):
            return False
        chosen = self.trials.chosen
        if not named and chosen and not any(part in _short(item) for part in chosen):
            return False
        if self.trials.bench.options.full or not item.get_closest_marker(_MINUTES):
            return True
        # Of a named check the quick forms are enough.
        return named and _base(_short(item)) not in self.quick

    def _rank(self, item: pytest.Item) -> int:
        """The position of a check among the related ones; after them if it is not related."""
        name = _short(item)
        related = self.variant.related
        return next((n for n, it in enumerate(related) if name.startswith(it)), len(related))

    @staticmethod
    def _is_named(item: pytest.Item, names: Sequence[str]) -> bool:
        return any(_is(_short(item), name) for name in names)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        error = call.excinfo.value if call.excinfo else None
        if isinstance(error, (*_BREAKAGES, MachineDied)) and self.broke is None:
            self.broke = error
        return report

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.interrupted = type(excinfo.value) is KeyboardInterrupt

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.stage.live(self.names[nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = self.names[report.nodeid]
        if report.when == "call":
            self.ran += 1
        if report.passed:
            if name not in self.without:
                self.seconds[name] = self.seconds.get(name, 0.0) + report.duration
            return
        self.seconds.pop(name, None)
        reason = _reason(report)
        self.without.setdefault(name, reason)
        if report.failed:
            self.failed.append(name)
            self.why = self.why or reason


def _reason(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longreprtext).strip()[:_LONGEST_REASON]


def _short(item: pytest.Item) -> str:
    """FILE::NAME of a check; the name itself may contain slashes."""
    return f"{item.path.name}::{item.nodeid.partition('::')[2]}"


def _base(short: str) -> str:
    """A check's name without its parameters."""
    return short.partition("[")[0]


def _is(short: str, name: str) -> bool:
    """Whether a check has the name `name`, perhaps with parameters."""
    return short == name or short.startswith(f"{name}[")
