"""Runs the checks of one run in several guests at once.

The first guest belongs to this process, as in a run with one guest.  Each further guest belongs to
a process of its own, `python -m harness.run.shards`, which resumes it from the snapshot that the
first one saved or was resumed from, loads the same module, and asks for checks until none are left.
 The results come back over a socket.  If a guest breaks, only its current check is lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from harness import log, machine, process, progress
from harness.errors import GuestError, WorkbenchError
from harness.guest.panic_report import Panic
from harness.host.survey import available_memory_bytes
from harness.report import Check
from harness.run import distribution, further_guest
from harness.run.further_guest import FurtherGuest
from harness.run.options import Options
from harness.run.session import Session
from harness.run.stages import Built
from harness.run.workbench import Workbench

# The memory of a guest of 1 GiB with its emulator, and the memory left to everything else.
_GUEST_BYTES = 3 << 29
_SPARE_BYTES = 1 << 30
# Another guest needs about this long to start; less work than that is not distributed.
_WORTH_S = 20.0

COMMAND = (sys.executable, "-m", "harness.run.shards")
"""The command of a further guest's process, without its last argument, the socket's number."""


def how_many(memory_available_bytes: int, cpus: int) -> int:
    """The number of guests for the checks: one for each processor, if there is enough memory."""
    room = (memory_available_bytes - _SPARE_BYTES) // _GUEST_BYTES
    return max(1, min(cpus, room))


def wanted(backend: str, asked: int) -> int:
    """The number of guests to use: the option's, or if that is 0, what this machine has room
    for.
    """
    # TCG has no VMX, so hardly any check runs there.
    if asked or backend == "tcg":
        return max(asked, 1)
    cpus = len(os.sched_getaffinity(0)) // machine.traits(backend).processors
    return how_many(available_memory_bytes(), cpus)


@dataclass(frozen=True)
class Job:
    """The job of a further guest's process."""

    number: int
    options: Options
    run_dir: Path
    built: Built
    began_s: float
    tests: Path


@dataclass(frozen=True)
class Done:
    """The result of a phase in a further guest: how often it broke, and why it ended early."""

    breaks: int = 0
    panic: Panic | None = None
    error: str = ""


class DistributedLoop:
    """A pytest plugin that runs the groups that it gets, instead of all tests in order."""

    def __init__(
        self,
        next_group: Callable[[list[pytest.Item]], tuple[str, ...]],
        begun: Callable[[str], None],
        usable: Callable[[], bool],
    ) -> None:
        """`begun` gets the node id of each check before it runs; the loop ends when the guest is
        not `usable`.
        """
        self._next = next_group
        self._begun = begun
        self._usable = usable

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> object:
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            raise session.Interrupted("errors during collection")
        items = {item.nodeid: item for item in session.items}
        while self._usable() and (names := self._next(session.items)):
            for name, after in itertools.zip_longest(names, names[1:]):
                self._begun(name)
                item = items[name]
                # After the last check of a group its shared fixtures are torn down.
                following = items[after] if after else None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
        return True


def goes_on(bench: Workbench) -> bool:
    """Whether the guest can run more checks; the plugin resets go_on if a broken guest does not
    come up again.
    """
    return bench.options.go_on


def key(item: pytest.Item) -> str:
    """The key that keeps checks together: their mark `together`, or the fixtures that they share.

    A fixture of a file or class is set up once for a group, so the checks that use it form one
    group.
    """
    if (mark := item.get_closest_marker("together")) and mark.args:
        return f"{item.path}::{mark.args[0]}"
    info = getattr(item, "_fixtureinfo", None)
    definitions = [it for each in info.name2fixturedefs.values() for it in each] if info else []
    shared = any(it.scope in ("module", "class", "package") for it in definitions)
    return str(item.path) if shared else item.nodeid


class Pool:
    """The further guests of a run, as a context manager that ends them."""

    def __init__(self, bench: Workbench, tests: Path, count: int) -> None:
        """Use at most `count` guests in all, including the bench's own."""
        self.bench = bench
        self._tests = tests
        self._count = count
        self.workers: dict[int, FurtherGuest] = {}
        self.notes: list[str] = []

    @property
    def guests(self) -> int:
        """The number of guests, including the bench's own."""
        return 1 + len(self.workers)

    def start(self, groups: Sequence[distribution.Group]) -> None:
        """Start as many further guests as this number of checks is worth; do not wait for them.

        Nothing happens if they are already up.
        """
        bench = self.bench
        if self.workers or sum(group.seconds for group in groups) < _WORTH_S:
            return
        for number in range(2, min(self._count, len(groups)) + 1):
            job = Job(
                number,
                dataclasses.replace(bench.options, go_on=True),
                bench.run_dir / f"guest-{number}",
                bench.built,
                bench.stages[0].began_s,
                self._tests,
            )
            self.workers[number] = FurtherGuest(COMMAND, job.run_dir, job)

    def phase(self, *, stock: bool, took: Callable[[str, Check], None]) -> Phase:
        """One round of the checks; `took` gets the results of the other guests' checks."""
        return Phase(self, stock=stock, took=took)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        FurtherGuest.end(self.workers.values())


class Phase:
    """One round of all checks in all guests: this process's plugin and the other guests'
    answers.
    """

    def __init__(self, pool: Pool, *, stock: bool, took: Callable[[str, Check], None]) -> None:
        self._pool = pool
        self._stock = stock
        self._took = took
        self._distributor: distribution.Distributor | None = None
        self._threads: list[threading.Thread] = []
        self.done: dict[int, Done] = {}

    def plugin(self) -> DistributedLoop:
        """The plugin for this process's own pytest."""
        return DistributedLoop(
            self._next,
            lambda name: self._the_distributor().begun(1, name),
            functools.partial(goes_on, self._pool.bench),
        )

    def _the_distributor(self) -> distribution.Distributor:
        assert self._distributor is not None
        return self._distributor

    def _next(self, items: list[pytest.Item]) -> tuple[str, ...]:
        if self._distributor is None:
            known = distribution.known_times(self._pool.bench.backend)
            todo = distribution.groups([(key(item), item.nodeid) for item in items], known)
            self._distributor = distribution.Distributor(todo)
            self._pool.start(todo)
            for number, worker in self._pool.workers.items():
                serving = (number, worker.line)
                thread = threading.Thread(target=self._serve, args=serving, daemon=True)
                thread.start()
                self._threads.append(thread)
        return self._distributor.next(1)

    def _serve(self, number: int, line: process.Line) -> None:
        """Serve one guest's process until it has finished this round."""
        distributor, current = self._the_distributor(), ""
        try:
            line.send(("run", self._stock))
            while True:
                kind, value = line.recv()
                if kind == "next":
                    line.send(distributor.next(number))
                elif kind == "begun":
                    current = value
                    distributor.begun(number, value)
                elif kind == "check":
                    self._took(current, dataclasses.replace(value, guest=number))
                    current = ""
                elif kind == "done":
                    self.done[number] = value
                    break
        except (EOFError, OSError):
            why = f"the process of guest {number} ended; see guest-{number}/"
            self.done[number] = Done(error=why)
            if current:
                self._took(current, _lost(current, why, number))
        finally:
            distributor.gone(number)
            if (done := self.done.get(number)) and done.error:
                self._pool.notes.append(f"guest {number}: {done.error}")

    def end(self) -> None:
        """Wait for the other guests' last checks."""
        if self._distributor is None:
            return
        self._distributor.gone(1)
        for thread in self._threads:
            thread.join()


def _lost(nodeid: str, why: str, guest: int) -> Check:
    name = distribution.short(nodeid)
    return Check(name, name, "error", of_patch=False, seconds=0.0, message=why, guest=guest)


class _Sent(list[Check]):
    """A recorder's list of checks, which also sends them to the parent process."""

    def __init__(self, send: Callable[[tuple[str, object]], None]) -> None:
        super().__init__()
        self._send = send

    def append(self, check: Check) -> None:
        super().append(check)
        self._send(("check", check))


def _work(line: process.Line) -> None:
    """The main function of a further guest's process, until its socket closes."""
    # Imported here, because that module imports this one.
    from harness.run import verify

    job: Job = line.recv()
    log.to_file(job.run_dir / "harness.log")
    answers = further_guest.answers(line)

    def ask(_items: list[pytest.Item]) -> tuple[str, ...]:
        line.send(("next", None))
        names: tuple[str, ...] = answers.get()
        return names

    bench: Workbench | None = None
    failed = ""
    with Session(job.options, job.run_dir) as session:
        session.backend = job.built.imaged.backend.name
        session.stages.append(progress.Stage("host", outcome="ok", began_s=job.began_s))
        while True:
            _, stock = answers.get()
            try:
                if bench is None and not failed:
                    bench = Workbench(session, session.boot(job.built.imaged))
                wanted = job.built.stock if stock else job.built.build
                assert wanted is not None
                if bench and (bench.module is None or bench.running is not wanted):
                    bench.load(job.built, wanted)
            except WorkbenchError as error:
                failed = f"it did not come up: {error.message}"
            if failed or bench is None:
                line.send(("done", Done(error=failed)))
                continue
            distributed = DistributedLoop(
                ask,
                lambda name: line.send(("begun", name)),
                functools.partial(goes_on, bench),
            )
            checks = _Sent(line.send)
            error_text = ""
            try:
                broken = verify.run_checks(
                    bench, job.tests, checks, stock=stock, distributed=distributed
                )
            except WorkbenchError as error:
                broken, error_text = False, error.message
            line.send(("done", Done(bench.breaks + broken, bench.collect_panic(), error_text)))


def require_unbroken(bench: Workbench, done: Mapping[int, Done], broken: str = "") -> None:
    """Raise GuestError if a guest of the run broke and the options do not say to go on.

    `broken` says why the bench's own guest is broken now, if it is.  If several guests panicked,
    the first panic becomes the run's.
    """
    times = []
    if own := bench.breaks + bool(broken):
        times.append(f"guest 1 broke {own} times" + (f" ({broken})" if broken else ""))
    for number, each in sorted(done.items()):
        bench.panic = bench.panic or each.panic
        if each.breaks:
            times.append(f"guest {number} broke {each.breaks} times")
    if times:
        bench.properties["guest broke"] = "; ".join(times)
        if not bench.options.go_on:
            cause = f": {bench.panic.summary}" if bench.panic else ""
            raise GuestError(f"a guest broke, and its check with it: {'; '.join(times)}{cause}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        # Use the imported module rather than __main__, so that the pickled classes are the same.
        from harness.run import shards

        shards._work(Connection(int(sys.argv[1])))
