"""Runs one command over an SSH connection, with a limit on every wait.

paramiko's calls may block for as long as the other side does not act: if a request is not answered,
a window is not opened, or a socket is not read.  So each call that may block runs in a thread of
its own, while the caller's thread watches the machine and the clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import IO, TypeVar

import paramiko

from harness import limits
from harness.deadline import Deadline
from harness.errors import GuestError, WaitTimeout
from harness.files import human_bytes

T = TypeVar("T")
Watch = Callable[[], None]

_CHUNK_BYTES = 1 << 16
_WATCH_S = 0.1
_STEP_S = 0.01
# A daemon started by the command keeps the output open; after this time without output we stop.
_LEFT_BEHIND_S = 2.0
_LEAVE_S = 2.0
_SAID_BYTES = 1 << 16


class OutOfTime(Exception):
    """The deadline passed, and the work was ended."""


def attended(
    work: Callable[[], T], deadline: Deadline, watch: Watch, give_up: Callable[[], None]
) -> T:
    """Do blocking `work` in a thread while watching; returns its result, or raises its exception.

    If the deadline passes (OutOfTime) or `watch` raises, `give_up` is called to end the work.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, name="ssh", daemon=True)
    thread.start()
    try:
        while not done.wait(min(_WATCH_S, max(deadline.remaining_s, 0.001))):
            watch()
            _check(deadline)
    except BaseException:
        give_up()
        thread.join(_LEAVE_S)
        raise
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class TooMuchOutput(GuestError):
    """A command printed more than is stored, and was ended."""


class Outputs:
    """The output of a command so far.

    Standard output goes to `sink` if there is one, otherwise into memory.  More than `most_bytes`
    of both outputs together are too much.
    """

    def __init__(
        self, command: str, *, sink: IO[bytes] | None = None, most_bytes: int | None = None
    ) -> None:
        self.command = command
        self.output = bytearray()
        self.errors = bytearray()
        self._sink = sink
        self._most_bytes = limits.COMMAND_OUTPUT_BYTES if most_bytes is None else most_bytes
        self._got_bytes = 0

    def add(self, data: bytes, *, error: bool) -> None:
        """Take more of standard output, or of standard error; TooMuchOutput."""
        self._got_bytes += len(data)
        if error:
            self.errors += data
        elif self._sink is None:
            self.output += data
        else:
            self._sink.write(data)
        if self._got_bytes > self._most_bytes or len(self.errors) > limits.COMMAND_OUTPUT_BYTES:
            raise TooMuchOutput(
                f"`{self.command.splitlines()[0][:200]}` in the guest printed more than "
                f"{human_bytes(min(self._most_bytes, self._got_bytes))} and was ended",
                detail=self.said(),
            )

    def said(self, lines: int = 15) -> str:
        """The last lines that the command printed so far."""
        ends = bytes(self.output[-_SAID_BYTES:]) + bytes(self.errors[-_SAID_BYTES:])
        text = ends.decode("utf-8", "replace")
        return "\n".join(text.splitlines()[-lines:])

    def did_not_end(self, deadline: Deadline) -> WaitTimeout:
        """The error of a command that still ran at its deadline, with its last lines."""
        return WaitTimeout(
            f"`{self.command}` in the guest did not end within {deadline.limit_s:.0f} s",
            detail=self.said(),
        )


class Exchange(Outputs):
    """A running command: sends its input and reads both outputs at the same time."""

    def __init__(
        self,
        transport: paramiko.Transport,
        command: str,
        watch: Watch,
        *,
        sink: IO[bytes] | None = None,
        most_bytes: int | None = None,
    ) -> None:
        super().__init__(command, sink=sink, most_bytes=most_bytes)
        self._transport = transport
        self._watch = watch
        self._channel: paramiko.Channel | None = None

    def run(self, stdin: bytes, deadline: Deadline) -> int:
        """Run it to its end; returns its exit code, or -1 after a signal or a broken connection.

        Raises WaitTimeout with the output so far, TooMuchOutput, and the exceptions of `watch` and
        of paramiko.
        """
        try:
            channel = attended(
                lambda: self._begin(deadline), deadline, self._watch, self._transport.close
            )
            feeder = threading.Thread(
                target=_feed, args=(channel, stdin), name="ssh stdin", daemon=True
            )
            feeder.start()
            self._drain(channel, deadline)
        except OutOfTime:
            raise self.did_not_end(deadline) from None
        finally:
            self._leave()
        return int(channel.exit_status)

    def _begin(self, deadline: Deadline) -> paramiko.Channel:
        # This limit is later than the deadline, because the watching thread ends the call.
        channel = self._transport.open_session(timeout=deadline.remaining_s + 60)
        self._channel = channel
        channel.exec_command(self.command)
        return channel

    def _drain(self, channel: paramiko.Channel, deadline: Deadline) -> None:
        watched_s = time.monotonic()
        moved_s = watched_s
        while True:
            # Check this before reading: all output before the end is then in the buffers.
            ended = channel.exit_status_ready()
            over = channel.closed or (ended and channel.eof_received)
            now = time.monotonic()
            if self._read(channel):
                moved_s = now
            elif over or (ended and now - moved_s > _LEFT_BEHIND_S):
                return
            elif not ended:
                channel.status_event.wait(_STEP_S)
            else:
                time.sleep(_STEP_S)
            if now - watched_s > _WATCH_S:
                self._watch()
                watched_s = now
            if ended and deadline.expired:
                return
            if not over:
                _check(deadline)

    def _read(self, channel: paramiko.Channel) -> bool:
        before = self._got_bytes
        if channel.recv_ready():
            self.add(channel.recv(_CHUNK_BYTES), error=False)
        if channel.recv_stderr_ready():
            self.add(channel.recv_stderr(_CHUNK_BYTES), error=True)
        return self._got_bytes > before

    def _leave(self) -> None:
        """Close the channel; if even that blocks, close the connection."""
        channel = self._channel
        if channel is None or not self._transport.is_active():
            return
        closing = threading.Thread(target=channel.close, name="ssh close", daemon=True)
        closing.start()
        closing.join(_LEAVE_S)
        if closing.is_alive():
            self._transport.close()


def _check(deadline: Deadline) -> None:
    if deadline.expired:
        raise OutOfTime


def _feed(channel: paramiko.Channel, stdin: bytes) -> None:
    """Send standard input and its end; it is no error if the command ends without reading all."""
    unsent = memoryview(stdin)
    try:
        while unsent:
            unsent = unsent[channel.send(bytes(unsent[:_CHUNK_BYTES])) :]
        channel.shutdown_write()
    except (OSError, EOFError, paramiko.SSHException):
        return
