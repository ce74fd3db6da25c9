"""The process of one column of a matrix: a run of `verify` that reports over a socket."""

from __future__ import annotations

import contextlib
import sys
import threading
from multiprocessing.connection import Connection

from harness import log, process, progress
from harness.errors import WorkbenchError
from harness.run import further_guest
from harness.run.pytest_run import CHECKS
from harness.run.verify import verify


def work(line: process.Line) -> None:
    """Do the job that comes over the socket, and report over it; the socket's end interrupts it."""
    job = line.recv()
    further_guest.answers(line)
    log.to_file(job.run_dir / "harness.log")
    lock = threading.Lock()

    def send(kind: str, first: str, second: str) -> None:
        # The reader may have ended; only the run's own report counts.
        with lock, contextlib.suppress(OSError):
            line.send((kind, first, second))

    try:
        with progress.reported_to(send):
            verify(job.options, CHECKS, job.keep_as, job.run_dir)
    except WorkbenchError as error:
        send("refused", error.message, "")
        return
    send("done", "", "")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        work(Connection(int(sys.argv[1])))
