"""A further guest of a run: a process of its own, connected by a socket that carries its work.

The modules that start such a process define the messages (shards, trial_guests).
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness import interrupts, process
from harness.files import PROJECT

_END_S = 30.0


class FurtherGuest:
    """Such a process, as seen by the process that started it."""

    def __init__(self, command: Sequence[str], run_dir: Path, job: object) -> None:
        """Start the process and send it its job; its output goes to process.log in `run_dir`."""
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = run_dir / "process.log"
        self._process, self.line = process.start_with_line(command, PROJECT, log)
        self.line.send(job)

    def hang_up(self) -> None:
        """Tell the process to end, even while a thread of ours waits for its messages.

        Closing the socket is not enough: the other side does not notice it while a thread reads.
        """
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.line.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)

    def _wait(self) -> None:
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @staticmethod
    def end(guests: Iterable[FurtherGuest]) -> None:
        """Close the sockets of processes, so that they end their guests, all at the same time."""
        guests = list(guests)
        for guest in guests:
            guest.hang_up()
            guest.line.close()
        for guest in guests:
            guest._wait()


def answers(line: process.Line) -> queue.SimpleQueue[Any]:
    """The messages that arrive from now on, in the process of a further guest.

    None is the last message.  If the socket closes before it, the parent process has ended or wants
    this process to end, so the work is interrupted.
    """
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # A parent in the background of a shell ignores SIGINT, and its children would, too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.never_lost()

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            while (said := line.recv()) is not None:
                found.put(said)
            found.put(None)
            return
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=listen, daemon=True).start()
    return found
