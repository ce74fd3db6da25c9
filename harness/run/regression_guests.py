"""The patches of a folder in several guests at once, for `inv mutation --regressions`.

The first guest belongs to this process.  Each further one belongs to a process of its own, `python
-m harness.run.regression_guests`, which resumes it, finds the baseline there, and asks for patches
until none are left.  If a process ends early, its current patch goes to another.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from harness import log, process
from harness.errors import WorkbenchError
from harness.run import further_guest
from harness.run.further_guest import FurtherGuest
from harness.run.options import Options
from harness.run.regression_data import VariantResult, load
from harness.run.session import Session
from harness.run.stages import Imaged
from harness.run.workbench import Workbench

COMMAND = (sys.executable, "-m", "harness.run.regression_guests")
"""The command of a further guest's process, without its last argument, the socket's number."""


@dataclass(frozen=True)
class Job:
    """The job of a further guest's process."""

    options: Options
    run_dir: Path
    imaged: Imaged
    folder: Path
    tests: Path
    every: bool


@dataclass(frozen=True)
class OutsideBaseline:
    """The checks that do not pass on the stock module in a further guest, and why."""

    without: dict[str, str]


class Todo:
    """Hands out each patch's name once; may be used by several threads."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._held = 0
        self._changed = threading.Condition()

    def next(self, *, done: bool) -> str | None:
        """The next name; None when no name is left and none can come back.

        `done` says that the caller has finished with its last one.
        """
        with self._changed:
            if done:
                self._held -= 1
                self._changed.notify_all()
            while not self._names:
                if not self._held:
                    return None
                self._changed.wait()
            self._held += 1
            return self._names.pop(0)

    def give_back(self, name: str | None) -> None:
        """Return a patch whose guest ended before there was a result, so that another takes it."""
        with self._changed:
            if name is not None:
                self._held -= 1
                self._names.insert(0, name)
            self._changed.notify_all()


class Others:
    """The further guests of a run, as a context manager that ends them."""

    def __init__(self, todo: Todo, took: Callable[[int, VariantResult], None]) -> None:
        """`took` is called with the guest's number and a result, from a thread of that guest."""
        self._todo = todo
        self._took = took
        self._threads: list[threading.Thread] = []
        self._guests: list[FurtherGuest] = []
        self.without: dict[str, str] = {}
        self.notes: list[str] = []

    def start(self, bench: Workbench, count: int, folder: Path, tests: Path, every: bool) -> None:
        """Start this number of further guests, which may be 0."""
        if count < 1:
            return
        for number in range(2, count + 2):
            run_dir = bench.run_dir / f"guest-{number}"
            job = Job(bench.options, run_dir, bench.booted.imaged, folder, tests, every)
            guest = FurtherGuest(COMMAND, run_dir, job)
            self._guests.append(guest)
            thread = threading.Thread(target=self._serve, args=(number, guest.line), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, number: int, line: process.Line) -> None:
        current: str | None = None
        try:
            while True:
                said = line.recv()
                if isinstance(said, OutsideBaseline):
                    self.without |= {
                        f"{name} (guest {number})": why for name, why in said.without.items()
                    }
                elif isinstance(said, str):
                    self.notes.append(f"guest {number}: {said}")
                    break
                else:
                    self._took(number, said)
                name = self._todo.next(done=current is not None)
                current = name
                line.send(name)
                if name is None:
                    break
        except (EOFError, OSError):
            self.notes.append(f"guest {number}: its process ended; see guest-{number}/process.log")
        finally:
            self._todo.give_back(current)

    def wait(self) -> None:
        """Wait for the other guests' last results."""
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Others:
        return self

    def __exit__(self, *_: object) -> None:
        FurtherGuest.end(self._guests)


def _work(line: process.Line) -> None:
    """The main function of a further guest's process, until its socket closes."""
    # Imported here, because that module imports this one.
    from harness.run import regressions

    job: Job = line.recv()
    log.to_file(job.run_dir / "harness.log")
    answers = further_guest.answers(line)
    with Session(job.options, job.run_dir) as session:
        session.backend = job.imaged.backend.name
        try:
            judge = regressions.Judge(session, job.imaged, job.tests, every=job.every)
            judge.prove(Workbench(session, session.boot(job.imaged)))
            line.send(OutsideBaseline(dict(judge.baseline.without)))
            chosen = {it.mutant.name: it for it in load(job.folder)}
            while (name := answers.get()) is not None:
                line.send(judge.judge(chosen[name], name))
        except WorkbenchError as error:
            line.send(error.message)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        # Use the imported module rather than __main__, so that the pickled classes are the same.
        from harness.run import regression_guests

        regression_guests._work(Connection(int(sys.argv[1])))
