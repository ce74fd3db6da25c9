"""Commands over one SSH channel that stays open, run by a small program in the guest (runner.c).

For each command of its own channel sshd sets up a login session and starts a shell; in Bochs that
takes two thirds of the time of a small command.  The program is started once for each connection.
It runs one command at a time; commands from other threads get a channel each during this time.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import paramiko

from harness.deadline import Deadline
from harness.errors import GuestError
from harness.guest.ssh_exec import OutOfTime, Outputs, Watch, attended

SOURCE = Path(__file__).with_suffix(".c")
PUT = ":put"
"""The program's own command that writes a file; a path and a mode in octal follow."""
MOST_STDIN_BYTES = 8 << 20
"""More than this is not given to the program, which holds it all in memory."""

_HELLO = b"vmm-workbench runner 1\n"
# As long as the other.  The script asks for the program with it.
_SEND = b"vmm-workbench runner 0\n"
# $1 the program's path, $2 its bytes, 0 if it cannot be sent.  It is put and started over one
# channel, as each channel takes a login session.  The count tells a complete file from one that a
# broken connection truncated.  The program must not inherit the umask.
_START = """
if [ ! -x "$1" ] && [ "$2" -gt 0 ]; then (
    mkdir -p "${1%/*}" && echo "vmm-workbench runner 0" && umask 077 &&
    head -c "$2" >"$1.part" && [ $(($(wc -c <"$1.part"))) -eq "$2" ] &&
    chmod 700 "$1.part" && mv -f "$1.part" "$1"
) fi
exec "$1"
"""
_CHUNK_BYTES = 1 << 16
_STEP_S = 0.1
_HEADER_BYTES = 32


class RunnerMissing(GuestError):
    """The program is not in the guest, or does not answer as it should."""


class RunnerEnded(EOFError):
    """The program ended, or the connection did, before the command's end was known."""


class Runner:
    """The program, running at the other end of a channel."""

    def __init__(self, transport: paramiko.Transport, watch: Watch) -> None:
        self._transport = transport
        self._watch = watch
        self._channel: paramiko.Channel | None = None
        self._unread = bytearray()
        self._busy = threading.Lock()

    def start(self, program: str, deadline: Deadline, source: Path | None = None) -> None:
        """Start the program at that path in the guest; if it is missing, `source` is sent first.

        Raises RunnerMissing when it does not answer, what `watch` raises.
        """
        try:
            data = source.read_bytes() if source else b""
            words = ["/bin/sh", "-c", _START, "runner", program, str(len(data))]
            attended(
                lambda: self._open(shlex.join(words), deadline),
                deadline,
                self._watch,
                self._transport.close,
            )
            answer = self._take(len(_HELLO), deadline)
            if answer == _SEND:
                self.send(data, deadline)
                answer = self._take(len(_HELLO), deadline)
        except (OutOfTime, EOFError, OSError, paramiko.SSHException) as error:
            self.close()
            raise RunnerMissing(f"{program} did not start: {error}") from error
        if answer != _HELLO:
            self.close()
            raise RunnerMissing(f"{program} answers {answer!r}")

    def _open(self, command: str, deadline: Deadline) -> None:
        self._channel = self._transport.open_session(timeout=deadline.remaining_s + 60)
        self._channel.settimeout(_STEP_S)
        self._channel.exec_command(f"exec {command}")

    @property
    def busy(self) -> bool:
        """Whether it runs a command now."""
        return self._busy.locked()

    @property
    def ready(self) -> bool:
        """Whether it can be given a command: it runs, and runs none now."""
        return self._channel is not None and not self._channel.closed and not self.busy

    def close(self) -> None:
        """End it; a command that it still runs is left alone."""
        channel, self._channel = self._channel, None
        if channel is not None:
            # Closing sends a message, which may block as long as the guest pleases.
            threading.Thread(target=_close, args=(channel,), name="ssh close", daemon=True).start()

    def take(self) -> bool:
        """Reserve it for one command, `RunnerExchange.run` gives it back; whether that worked."""
        return self.ready and self._busy.acquire(blocking=False)

    def give_back(self) -> None:
        """It is free for the next command."""
        self._busy.release()

    def _given(self) -> paramiko.Channel:
        if self._channel is None:
            raise RunnerEnded("the channel is closed")
        return self._channel

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send all of it; OutOfTime, RunnerEnded when the other end is gone."""
        channel, unsent = self._given(), memoryview(data)
        while unsent:
            try:
                sent = channel.send(bytes(unsent[:_CHUNK_BYTES]))
            except TimeoutError:
                self.pause(deadline)
                continue
            if not sent:
                raise RunnerEnded("the channel is closed")
            unsent = unsent[sent:]

    def pause(self, deadline: Deadline) -> None:
        """Look at the machine and the clock; OutOfTime, and what `watch` raises."""
        self._watch()
        if deadline.expired:
            raise OutOfTime

    def _more(self, deadline: Deadline) -> None:
        channel = self._given()
        while True:
            try:
                data = channel.recv(_CHUNK_BYTES)
            except TimeoutError:
                self.pause(deadline)
                continue
            if not data:
                raise RunnerEnded("it ended")
            self._unread += data
            return

    def _take(self, size: int, deadline: Deadline) -> bytes:
        while len(self._unread) < size:
            self._more(deadline)
        taken = bytes(self._unread[:size])
        del self._unread[:size]
        return taken

    def answer(self, deadline: Deadline) -> tuple[str, int, bytes]:
        """The next part of an answer: its kind, its number, and for o and e so many bytes.

        Raises OutOfTime, RunnerEnded, and RunnerMissing for what the program does not say.
        """
        while (end := self._unread.find(b"\n", 0, _HEADER_BYTES)) < 0:
            if len(self._unread) >= _HEADER_BYTES:
                raise RunnerMissing(f"the runner answers {bytes(self._unread[:40])!r}")
            self._more(deadline)
        header = self._take(end + 1, deadline)
        kind, _, number = header.decode("ascii", "replace").strip().partition(" ")
        try:
            value = int(number)
        except ValueError:
            value = -1
            kind = ""
        if kind == "x":
            return kind, value, b""
        if kind not in ("o", "e") or not 0 <= value <= _CHUNK_BYTES:
            raise RunnerMissing(f"the runner answers {header!r}")
        return kind, value, self._take(value, deadline)


def _close(channel: paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        channel.close()


class RunnerExchange(Outputs):
    """A command that the program runs; as ssh_exec.Exchange is one of a channel of its own."""

    def __init__(self, runner: Runner, words: Sequence[str], command: str) -> None:
        """`runner` was taken with `take`; `run` gives it back."""
        super().__init__(command)
        self._runner = runner
        self._words = words

    def run(self, stdin: bytes, deadline: Deadline) -> int:
        """Run it to its end; its exit code, or the negative number of the signal that ended it.

        Raises as Exchange.run does, and RunnerEnded.
        """
        ended = False
        try:
            arguments = b"".join(
                word.encode("utf-8", "surrogateescape") + b"\0" for word in self._words
            )
            self._runner.send(
                b"%d %d\n%s%s" % (len(arguments), len(stdin), arguments, stdin), deadline
            )
            watched_s = time.monotonic()
            while True:
                kind, number, data = self._runner.answer(deadline)
                if kind == "x":
                    ended = True
                    return number
                self.add(data, error=kind == "e")
                if time.monotonic() - watched_s > _STEP_S:
                    watched_s = time.monotonic()
                    self._runner.pause(deadline)
        except OutOfTime:
            raise self.did_not_end(deadline) from None
        finally:
            if not ended:
                # What it still says would be taken for the next command's answer.
                self._runner.close()
            self._runner.give_back()
