"""A further guest of a run of checks: `python -m harness.run.shard_process`, started by shards.py.

It resumes its guest, loads the module that its order names, and asks for checks until there are no
more.
Messages to it are Orders and groups of node ids; it sends pairs of a word and a value.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from harness import log, process, progress
from harness.errors import WorkbenchError
from harness.guest.panic_report import Panic
from harness.report import Check
from harness.run import further_guest, group_loop
from harness.run.options import Options
from harness.run.session import Session
from harness.run.stages import Built, Imaged
from harness.run.workbench import Workbench

COMMAND = (sys.executable, "-m", "harness.run.shard_process")
"""The command of such a process, without its last argument, the socket's number."""


@dataclass(frozen=True)
class Order:
    """One round of checks: on the series, or on the stock module."""

    built: Built
    stock: bool


@dataclass(frozen=True)
class Job:
    """The job of a further guest's process; `first` is what it loads before it gets an order."""

    number: int
    options: Options
    run_dir: Path
    imaged: Imaged
    began_s: float
    tests: Path
    first: Order | None = None


@dataclass(frozen=True)
class Done:
    """The result of a round in a further guest: how often it broke, and why it ended early."""

    breaks: int = 0
    panic: Panic | None = None
    error: str = ""


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
    job: Job = line.recv()
    log.to_file(job.run_dir / "harness.log")
    answers = further_guest.answers(line)
    bench: Workbench | None = None
    failed = ""
    with Session(job.options, job.run_dir) as session:
        session.backend = job.imaged.backend.name
        session.stages.append(progress.Stage("host", outcome="ok", began_s=job.began_s))
        try:
            # It may be started before there is anything to load.
            bench = Workbench(session, session.boot(job.imaged))
            if job.first is not None:
                _bring_in(bench, job.first)
        except WorkbenchError as error:
            failed = f"it did not come up: {error.message}"
        broken = False
        while True:
            order: Order = answers.get()
            try:
                if bench is not None and not failed:
                    if broken:
                        bench.restart_guest(load=False)
                    _bring_in(bench, order)
            except WorkbenchError as error:
                failed = f"it did not come up: {error.message}"
            if failed or bench is None:
                line.send(("done", Done(error=failed)))
            else:
                done, broken = _round(bench, order, job.tests, line, answers)
                line.send(("done", done))


def _bring_in(bench: Workbench, order: Order) -> None:
    """Load the module of a round, unless it is loaded."""
    wanted = order.built.stock if order.stock else order.built.build
    assert wanted is not None
    # Each order has its own copy of the builds.
    if bench.module is None or bench.running != wanted:
        bench.load(order.built, wanted)


def _round(
    bench: Workbench,
    order: Order,
    tests: Path,
    line: process.Line,
    answers: queue.SimpleQueue[Any],
) -> tuple[Done, bool]:
    """Run a share of the checks; also returns whether the guest is broken now."""
    # Imported here, because that module imports shards.
    from harness.run import pytest_run

    said = False

    def ask(items: list[pytest.Item]) -> tuple[str, ...]:
        nonlocal said
        # The parent may not have collected the checks of this round.
        line.send(("next", None if said else group_loop.planned(items)))
        said = True
        names: tuple[str, ...] = answers.get()
        return names

    distributed = group_loop.DistributedLoop(
        ask,
        lambda name: line.send(("begun", name)),
        functools.partial(group_loop.goes_on, bench),
    )
    before = bench.breaks
    checks = _Sent(line.send)
    broken, error_text = False, ""
    try:
        broken = pytest_run.run_checks(
            bench, tests, checks, stock=order.stock, distributed=distributed
        )
    except WorkbenchError as error:
        error_text = error.message
    return Done(bench.breaks - before + broken, bench.collect_panic(), error_text), broken


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        # Use the imported module rather than __main__, so that the pickled classes are the same.
        from harness.run import shard_process

        shard_process._work(Connection(int(sys.argv[1])))
