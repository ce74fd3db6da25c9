"""Runs the checks of one run in several guests at once.

The first guest belongs to this process, as in a run with one guest.  Each further guest belongs to
a process of its own (shard_process.py), which resumes it from the snapshot that the first one saved
or is resumed from, loads the same module, and asks for checks until none are left.  The results
come back over a socket.  If a guest breaks, only its current check is lost.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from harness import machine, process
from harness.errors import GuestError
from harness.host.survey import available_memory_bytes
from harness.report import Check
from harness.run import distribution, shard_process
from harness.run.further_guest import FurtherGuest
from harness.run.group_loop import DistributedLoop, goes_on, planned
from harness.run.session import Session
from harness.run.shard_process import Done, Job, Order
from harness.run.stages import Built, Imaged
from harness.run.workbench import Workbench

# The memory of a guest of 1 GiB with its emulator, and the memory left to everything else.
_GUEST_BYTES = 3 << 29
_SPARE_BYTES = 1 << 30
# Another guest needs about this long to start; less work than that is not distributed.
_WORTH_S = 20.0


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


class Pool:
    """The further guests of a run, as a context manager that ends them."""

    def __init__(self, session: Session | Workbench, tests: Path, count: int) -> None:
        """Use at most `count` guests in all, including the session's own."""
        self._session = session
        self._tests = tests
        self._count = count
        self.workers: dict[int, FurtherGuest] = {}
        self.notes: list[str] = []

    @property
    def guests(self) -> int:
        """The number of guests, including the session's own."""
        return 1 + len(self.workers)

    def start_early(self, imaged: Imaged, orders: Sequence[Order] = ()) -> None:
        """Start the further guests before the session's own is up, if a snapshot can be resumed.

        `orders` are the rounds that will come: each guest loads the module of the one that it
        begins with.  Nothing happens if only some checks were asked for, which may be too few.
        """
        session = self._session
        assert isinstance(session, Session)
        if not session.options.only and session.resumes(imaged):
            self._start(imaged, self._count, orders)

    def start(self, imaged: Imaged, groups: Sequence[distribution.Group]) -> None:
        """Start as many further guests as this number of checks is worth; do not wait for them.

        Nothing happens if they are already up.
        """
        if sum(group.seconds for group in groups) >= _WORTH_S:
            self._start(imaged, min(self._count, len(groups)))

    def _start(self, imaged: Imaged, count: int, orders: Sequence[Order] = ()) -> None:
        if self.workers:
            return
        session = self._session
        for number in range(2, count + 1):
            job = Job(
                number,
                dataclasses.replace(session.options, go_on=True),
                session.run_dir / f"guest-{number}",
                imaged,
                session.stages[0].began_s,
                self._tests,
                orders[_first(number, len(orders))] if orders else None,
            )
            self.workers[number] = FurtherGuest(shard_process.COMMAND, job.run_dir, job)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        FurtherGuest.end(self.workers.values())


class Phase:
    """One round of all checks on one module, in any number of guests.

    Results of other guests are stored until `attach` says who gets them.
    """

    def __init__(self, built: Built, *, stock: bool, backend: str) -> None:
        self.order = Order(built, stock)
        self._backend = backend
        self._distributor: distribution.Distributor | None = None
        self._took: Callable[[str, Check], None] | None = None
        self._early: list[tuple[str, Check]] = []
        self._changed = threading.Condition()
        self._serving = 0
        self.done: dict[int, Done] = {}
        self.groups: list[distribution.Group] = []

    @property
    def left(self) -> bool:
        """Whether there may be checks that no guest has taken."""
        return self._distributor is None or self._distributor.left

    def offer(self, checks: Sequence[tuple[str, str]]) -> distribution.Distributor:
        """Say which checks there are, with the keys of their groups; the first one counts."""
        with self._changed:
            if self._distributor is None:
                known = distribution.known_times(self._backend)
                self.groups = distribution.groups(checks, known)
                self._distributor = distribution.Distributor(self.groups)
            return self._distributor

    def attach(self, took: Callable[[str, Check], None]) -> None:
        """Let `took` have the results of the other guests' checks, also those so far."""
        with self._changed:
            early, self._early, self._took = self._early, [], took
            for nodeid, check in early:
                took(nodeid, check)

    def take(self, nodeid: str, check: Check) -> None:
        """Record the result of another guest's check."""
        with self._changed:
            if self._took is None:
                self._early.append((nodeid, check))
            else:
                self._took(nodeid, check)

    def serve(self, number: int, line: process.Line) -> str:
        """Serve one guest's process until it has finished this round; returns why it cannot go on.

        It may be called in several threads, for different guests.
        """
        current = ""
        with self._changed:
            self._serving += 1
        try:
            line.send(self.order)
            while True:
                kind, value = line.recv()
                if kind == "next":
                    if value is not None:
                        self.offer(value)
                    line.send(self.offer([]).next(number))
                elif kind == "begun":
                    current = value
                    self.offer([]).begun(number, value)
                elif kind == "check":
                    self.take(current, dataclasses.replace(value, guest=number))
                    current = ""
                elif kind == "done":
                    self.done[number] = value
                    return str(value.error)
        except (EOFError, OSError):
            why = f"the process of guest {number} ended; see guest-{number}/"
            self.done[number] = Done(error=why)
            if current:
                self.take(current, _lost(current, why, number))
            return why
        finally:
            if self._distributor is not None:
                self._distributor.gone(number)
            with self._changed:
                self._serving -= 1
                self._changed.notify_all()

    def wait(self) -> None:
        """Wait until no other guest runs checks of this round."""
        with self._changed:
            while self._serving:
                self._changed.wait()


class Rounds:
    """The rounds of a run in all guests: one, or two if stock and series are tried side by side.

    A guest begins with one of the rounds and helps with the other when that one has no checks left,
    so stock and series are tried at the same time.
    """

    def __init__(self, pool: Pool, bench: Workbench, phases: Sequence[Phase]) -> None:
        self._pool = pool
        self._bench = bench
        self.phases = phases
        self._threads: dict[int, threading.Thread] = {}
        self._open = list(phases)

    @property
    def guests(self) -> int:
        """The number of guests of the run."""
        return self._pool.guests

    def start(self) -> None:
        """Serve the further guests that are up and not served yet."""
        for number, worker in self._pool.workers.items():
            if number not in self._threads:
                serving = (number, worker.line)
                thread = threading.Thread(target=self._serve, args=serving, daemon=True)
                self._threads[number] = thread
                thread.start()

    def _serve(self, number: int, line: process.Line) -> None:
        first = _first(number, len(self.phases))
        for phase in (*self.phases[first:], *self.phases[:first]):
            if phase.left and (why := phase.serve(number, line)):
                self._pool.notes.append(f"guest {number}: {why}")
                return

    def plugin(self, phase: Phase, took: Callable[[str, Check], None]) -> DistributedLoop:
        """The plugin for this process's own pytest in a round; `took` gets the others' results."""

        def next_group(items: list[pytest.Item]) -> tuple[str, ...]:
            distributor = phase.offer(planned(items))
            phase.attach(took)
            self._pool.start(phase.order.built.imaged, phase.groups)
            self.start()
            return distributor.next(1)

        return DistributedLoop(
            next_group,
            lambda name: phase.offer([]).begun(1, name),
            functools.partial(goes_on, self._bench),
        )

    def end(self, phase: Phase, took: Callable[[str, Check], None]) -> None:
        """Wait for the other guests' last checks of a round."""
        phase.offer([]).gone(1)
        phase.wait()
        self._open.remove(phase)
        if not self._open:
            for thread in self._threads.values():
                thread.join()
        phase.attach(took)


def _first(number: int, rounds: int) -> int:
    """The round that a guest begins with, numbered from 0."""
    return (number - 1) % rounds


def _lost(nodeid: str, why: str, guest: int) -> Check:
    name = distribution.short(nodeid)
    return Check(name, name, "error", of_patch=False, seconds=0.0, message=why, guest=guest)


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
