"""The guests in which variants are tried, for `inv mutation`.

The first guest belongs to this process.  Each further one belongs to a process of its own, `python
-m harness.run.trial_guests`, which resumes it from the snapshot and asks for work until none is
left.  Variants are built by this process only.  If a process ends early, others get its work.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

from harness import log, process, progress
from harness.build.builder import Build
from harness.errors import DiskFull, MachineDied, WorkbenchError
from harness.run import distribution, further_guest
from harness.run.further_guest import FurtherGuest
from harness.run.options import Options
from harness.run.session import Session
from harness.run.stages import Imaged
from harness.run.trial_work import Board, Planned, Task, Work, require_none_left
from harness.run.trials import Baseline, Share, Trial, Trials, Variant
from harness.run.workbench import Workbench

COMMAND = (sys.executable, "-m", "harness.run.trial_guests")
"""The command of a further guest's process, without its last argument, the socket's number."""

StageOf = Callable[[str], AbstractContextManager[progress.Stage]]
"""Makes the stage in which this process's guest tries a variant, by its name."""


@dataclass(frozen=True)
class Settings:
    """What trials are made of besides the guest: see Trials."""

    tests: Path
    general: bool = False
    every: bool = False
    named: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()

    def trials(self, bench: Workbench, work: Work) -> Trials:
        """Trials for a piece of work in a guest."""
        return Trials(
            bench,
            self.tests,
            general=self.general,
            every=self.every,
            named=self.named if work.baseline is None else (),
            chosen=self.chosen,
            stock=work.stock,
        )


@dataclass(frozen=True)
class Job:
    """The job of a further guest's process."""

    options: Options
    run_dir: Path
    imaged: Imaged
    settings: Settings


class Crew:
    """All guests of a run, as a context manager that ends the further ones."""

    def __init__(self, session: Session, imaged: Imaged, settings: Settings, count: int) -> None:
        """Use `count` guests in all, including the session's own."""
        self._session = session
        self._imaged = imaged
        self._settings = settings
        self._count = count
        self._others: dict[int, FurtherGuest] = {}
        self._ended: set[int] = set()
        self._planned: Sequence[Planned] = ()
        self.notes: list[str] = []
        """Why guests ended early."""

    def start(self) -> Workbench:
        """Start all guests, and wait for the session's own."""
        if self._session.resumes(self._imaged):
            self._start_others()
        bench = Workbench(self._session, self._session.boot(self._imaged))
        # Without a snapshot the first guest has saved one now.
        self._start_others()
        return bench

    def _start_others(self) -> None:
        if self._others:
            return
        for number in range(2, self._count + 1):
            run_dir = self._session.run_dir / f"guest-{number}"
            job = Job(self._session.options, run_dir, self._imaged, self._settings)
            self._others[number] = FurtherGuest(COMMAND, run_dir, job)

    def prove(
        self, bench: Workbench, variant: Variant, stage: progress.Stage, stock: Build | None
    ) -> Baseline:
        """The results of all checks on correct code: see Trials.prove."""
        found: list[Baseline] = []
        board = Board(
            [Task(variant.name, lambda: variant, shared=True)],
            None,
            lambda _guest, _name, result: found.append(cast(Baseline, result)),
            lambda parts, _seconds: _all_of(cast(Sequence[Baseline], parts)),
            known_s=distribution.known_times(self._session.backend),
            stop_early=False,
            stock=stock,
        )
        self._run(bench, board, lambda _name: contextlib.nullcontext(stage))
        self._planned = board.planned or ()
        found[0].require_some(variant.name, bench.run_dir)
        return found[0]

    def judge(
        self,
        bench: Workbench,
        tasks: Sequence[Task],
        baseline: Baseline,
        *,
        stage_of: StageOf,
        took: Callable[[int, str, Trial], None],
        stock: Build | None,
    ) -> None:
        """Try variants in all guests; `took` gets the guest's number, the name and the result."""
        board = Board(
            tasks,
            baseline,
            lambda guest, name, result: took(guest, name, cast(Trial, result)),
            lambda parts, seconds: _one_of(cast(Sequence[Trial], parts), seconds),
            planned=self._planned,
            stop_early=not self._settings.every,
            stock=stock,
        )
        self._run(bench, board, stage_of)

    def _run(self, bench: Workbench, board: Board, stage_of: StageOf) -> None:
        threads = [
            threading.Thread(target=self._serve, args=(number, guest.line, board), daemon=True)
            for number, guest in self._others.items()
            if number not in self._ended
        ]
        for thread in threads:
            thread.start()

        def share(planned: Sequence[Planned]) -> tuple[str, ...]:
            board.offer(planned)
            return board.group(1)

        lost = 0
        while (work := board.next(1)) is not None:
            with stage_of(work.name) as stage:
                try:
                    result = attempt(self._settings.trials(bench, work), work, stage, share)
                except MachineDied as error:
                    lost += 1
                    if lost > 1 or not (work.shared and self._settings.general):
                        raise
                    # The results of its checks are lost, so these run again.
                    board.gone(1)
                    bench.restart_guest(load=False)
                    stage.note = f"again, because {error.message}"
                    continue
                board.done(1, result)
        for thread in threads:
            thread.join()
        require_none_left(board)

    def _serve(self, number: int, line: process.Line, board: Board) -> None:
        """Give work to a further guest until there is none, or it ends."""
        ended = ""
        try:
            while (work := board.next(number)) is not None:
                line.send(work)
                while True:
                    kind, value = line.recv()
                    if kind == "next":
                        line.send(board.group(number))
                    elif kind == "done":
                        board.done(number, value)
                        break
                    else:
                        ended = value
                        return
        except (EOFError, OSError):
            ended = f"its process ended; see guest-{number}/process.log"
        except WorkbenchError as error:
            # The first guest's thread gets it too.
            board.fail(error)
        finally:
            board.gone(number)
            if ended:
                self.notes.append(f"guest {number}: {ended}")
                self._ended.add(number)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        FurtherGuest.end(self._others.values())


def attempt(trials: Trials, work: Work, stage: progress.Stage, share: Share) -> Baseline | Trial:
    """Do a piece of work in a guest.

    If the trials are `general`, the variants have nothing to do with each other.  Then what a bug
    changed in the kernel must not fail the next one, and an emulator that ends twice is a catch.
    """
    asked = share if work.shared else None
    if work.baseline is None:
        return trials.prove(work.variant, stage, asked)
    if not trials.general:
        return trials.judge(work.variant, work.baseline, stage, asked)
    if work.shared:
        trial = trials.judge(work.variant, work.baseline, stage, asked)
    else:
        trial = _twice(trials, work, stage)
    if trial.caught and all(_CHECK in name for name in trial.caught):
        # A guest that broke was restarted already.
        trials.bench.restart_guest(load=False)
    return trial


_CHECK = "::"
"""In the name of a check; what else a catch is called, such as a panic, is plain words."""


def _twice(trials: Trials, work: Work, stage: progress.Stage) -> Trial:
    """Run the checks; the end of the emulator counts only if it happens twice."""
    assert work.baseline is not None
    start = time.monotonic()
    for last in (False, True):
        try:
            return trials.judge(work.variant, work.baseline, stage)
        except DiskFull:
            raise
        except MachineDied as error:
            trials.bench.restart_guest(load=False)
            if last:
                seconds = time.monotonic() - start
                return Trial(("the emulator's end, twice",), error.message, 0, seconds)
    raise AssertionError("it was tried")


def _all_of(parts: Sequence[Baseline]) -> Baseline:
    without: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for part in parts:
        without |= part.without
        seconds |= part.seconds
    failed = tuple(dict.fromkeys(name for part in parts for name in part.failed))
    return Baseline({k: v for k, v in seconds.items() if k not in without}, without, failed)


def _one_of(parts: Sequence[Trial], seconds: float) -> Trial:
    caught = tuple(dict.fromkeys(name for part in parts for name in part.caught))
    why = next((part.why for part in parts if part.caught), "")
    return Trial(caught, why, sum(part.checks_run for part in parts), seconds)


def _work(line: process.Line) -> None:
    """The main function of a further guest's process, until it gets None or its socket closes."""
    job: Job = line.recv()
    log.to_file(job.run_dir / "harness.log")
    answers = further_guest.answers(line)

    def share(_planned: Sequence[Planned]) -> tuple[str, ...]:
        line.send(("next", None))
        names: tuple[str, ...] = answers.get()
        return names

    with Session(job.options, job.run_dir) as session:
        session.backend = job.imaged.backend.name
        try:
            bench = Workbench(session, session.boot(job.imaged))
            while (work := answers.get()) is not None:
                trials = job.settings.trials(bench, work)
                with session.stage(work.name) as stage:
                    result = attempt(trials, work, stage, share)
                line.send(("done", result))
        except WorkbenchError as error:
            line.send(("ended", error.message))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        # Use the imported module rather than __main__, so that the pickled classes are the same.
        from harness.run import trial_guests

        trial_guests._work(Connection(int(sys.argv[1])))
