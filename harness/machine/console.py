"""A machine's serial line: always logged, watched for panics, and used for input if needed.

One thread reads the line from the moment the machine starts, so that nothing is lost and a chatty
guest never blocks.  `expect` is pexpect's, on the data that the thread has read; every wait in it
ends immediately if the guest panics or the line closes.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pexpect.exceptions import EOF, TIMEOUT
from pexpect.spawnbase import SpawnBase

from harness import limits
from harness.deadline import Deadline
from harness.errors import GuestError, GuestPanic, WaitTimeout
from harness.machine.panic_watch import BOOT, PROMPTS, STORY_ENDS, PanicWatch

# The output of a panic is complete if nothing came for a while, or if it continued for too long.
_PANIC_QUIET_S = 1.0
_PANIC_SETTLES_S = 10.0
# How far before a prompt the reason may be why a boot stopped there.
_REASON_BYTES = 400
_WAIT_STEP_S = 0.25
_GATHER_S = 0.01
_GATHER_BYTES = 4096
_DRAIN_S = 1.0
_SEND_S = 30.0
# When it is asked to close, the thread still reads what has arrived; a flood does not delay it.
_CLOSE_S = 1.0
# An emulator closes its end of the line a moment before its exit code is available.
_EXIT_FOLLOWS_S = 1.0
_KEEP_BYTES = 16 << 20
_LOG_ENDS = b"\n[the log ends here: the guest has sent more than is stored]\n"


class Console:
    """The near end of a serial line.

    `fd` is a connected socket or the master of a pseudo-terminal, which the console closes.  `log`
    gets every byte, up to limits.LOG_MOST_BYTES, unless another process writes it; the last
    `keep_bytes` stay in memory.  `watch` is called during every wait and raises if waiting is
    useless.
    """

    def __init__(
        self,
        fd: int,
        log: Path,
        watch: Callable[[], None] | None = None,
        keep_bytes: int = _KEEP_BYTES,
        *,
        writes_log: bool = True,
    ) -> None:
        self.log = log
        self._watch = watch
        self._fd = fd
        self._keep_bytes = keep_bytes
        self._data = bytearray()
        self._dropped = 0
        self._arrived = threading.Condition()
        # Held from the read to the moment when the data can be seen.
        self._reading = threading.Lock()
        self._arrived_s = time.monotonic()
        self._closed = False
        self._panic = PanicWatch()
        self.boots = 0
        """The number of FreeBSD kernels that have started on this line."""
        self._panic_seen_s = 0.0
        try:
            stream = (log if writes_log else Path(os.devnull)).open("ab", buffering=0)
        except OSError:
            os.close(fd)
            raise
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(fd, False)
        self._thread = threading.Thread(
            target=self._pump, args=(stream,), name=f"console {log}", daemon=True
        )
        self._thread.start()

    def _pump(self, log: BinaryIO) -> None:
        until = float("inf")
        with log, selectors.DefaultSelector() as selector:
            selector.register(self._fd, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while time.monotonic() < until:
                closing = until != float("inf")
                ready = {key.fd for key, _ in selector.select(0 if closing else None)}
                if closing and not ready:
                    break
                if self._wake_read in ready:
                    os.read(self._wake_read, 1)
                    selector.unregister(self._wake_read)
                    until = time.monotonic() + _CLOSE_S
                with self._reading:
                    try:
                        data = os.read(self._fd, 65536)
                    except BlockingIOError:
                        continue
                    except OSError:
                        # A pseudo-terminal returns EIO when its other end is closed.
                        data = b""
                    if not data:
                        break
                    # A full disk must not stop the guest; the data stays in memory.
                    with contextlib.suppress(OSError):
                        self._write(log, data)
                    self._take(data)
                if len(data) < _GATHER_BYTES and not closing:
                    # An emulator writes byte by byte.  If this thread woke for each, it would take
                    # a tenth of the guest's own time on a machine with two processors.
                    time.sleep(_GATHER_S)
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()

    def _write(self, log: BinaryIO, data: bytes) -> None:
        """Add to the log, up to its bound: a guest that never stops must not fill the disk."""
        room = limits.LOG_MOST_BYTES - log.tell()
        if room > 0:
            log.write(data[:room])
            if len(data) >= room:
                log.write(_LOG_ENDS)

    def _take(self, data: bytes) -> None:
        with self._arrived:
            self.boots += (bytes(self._data[1 - len(BOOT) :]) + data).count(BOOT)
            self._data += data
            excess = len(self._data) - self._keep_bytes
            if excess > self._keep_bytes // 8:
                del self._data[:excess]
                self._dropped += excess
            self._arrived_s = time.monotonic()
            if self._panic.feed(data):
                self._panic_seen_s = self._arrived_s
            self._arrived.notify_all()

    def drain(self) -> None:
        """Wait until all that has arrived can be seen, at most a moment if more keeps coming.

        What a guest printed before it answered a command has arrived when the answer is here.
        """
        limit = Deadline.after(_DRAIN_S)
        while not self._closed and not limit.expired:
            with self._reading:
                if self._fd < 0 or not select.select([self._fd], [], [], 0)[0]:
                    return
            time.sleep(_GATHER_S)

    @property
    def mark(self) -> int:
        """The number of bytes so far, a position for `since`."""
        with self._arrived:
            return self._dropped + len(self._data)

    @property
    def panicked(self) -> bool:
        """Whether the guest's kernel reported a panic."""
        return self._panic.at is not None

    def forget_panic(self) -> None:
        """Watch for panics again, because the guest has come up again."""
        with self._arrived:
            self._panic = PanicWatch(self._dropped + len(self._data))

    def since(self, mark: int) -> str:
        """The text after `mark`; a note replaces data that is no longer in memory."""
        with self._arrived:
            lost = max(0, self._dropped - mark)
            data = bytes(self._data[max(0, mark - self._dropped) :])
        note = f"[{lost} bytes before this are only in {self.log}]\n" if lost else ""
        return note + data.decode("utf-8", "replace").replace("\r", "")

    def tail(self, lines: int = 15) -> str:
        """The last lines, without control sequences."""
        with self._arrived:
            data = bytes(self._data[-lines * 200 :])
        return "\n".join(clean_lines(data.decode("utf-8", "replace"))[-lines:])

    def last_line(self) -> str:
        """The last line that is not empty, for progress displays."""
        found = self.tail(1).splitlines()
        return found[-1] if found else ""

    def check_panic(self) -> None:
        """Raise GuestPanic, with the console's text from the panic on, if there was one.

        Wait a moment for the rest of its output: a backtrace follows the panic's first line.
        """
        at = self._panic.at
        if at is None:
            return
        with self._arrived:
            while not self._closed:
                now = time.monotonic()
                quiet_at = min(
                    self._arrived_s + _PANIC_QUIET_S, self._panic_seen_s + _PANIC_SETTLES_S
                )
                lines_at = max(0, at - self._dropped)
                if now >= quiet_at or STORY_ENDS.search(self._data, lines_at):
                    break
                self._arrived.wait(quiet_at - now)
        lines = clean_lines(self.since(at))
        what = f"panicked: {lines[0] if lines else 'no message'}"
        prompt = next((it for begin, it in PROMPTS.items() if lines[0:1] and begin in lines[0]), "")
        if prompt:
            before = clean_lines(self.since(max(0, at - _REASON_BYTES)))[: -len(lines)][-3:]
            # The loader's spinner precedes its text.
            reason = before[-1].lstrip("|/-\\") if before else "no reason was given"
            what = f"did not boot, it stopped at {prompt}: {reason}"
            lines = [*before, *lines]
        raise GuestPanic(
            f"the guest {what}; the console's log is {self.log}", detail="\n".join(lines[:60])
        )

    def send(self, text: str | bytes, deadline: Deadline | None = None) -> None:
        """Type `text`; GuestError if the line is closed, WaitTimeout if the guest does not read
        it.
        """
        limit = deadline or Deadline.after(_SEND_S)
        data = text.encode() if isinstance(text, str) else text
        while data:
            if self._closed or self._fd < 0:
                self._explain_close()
                raise GuestError(f"the serial line is closed; the console's log is {self.log}")
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                if self._watch is not None:
                    self._watch()
                if limit.expired:
                    raise WaitTimeout(
                        f"the guest read nothing from its serial line for {limit.limit_s:.0f} s; "
                        f"the console's log is {self.log}",
                        detail=self.tail(),
                    ) from None
                select.select([], [self._fd], [], min(_WAIT_STEP_S, limit.remaining_s))
            except OSError as error:
                self._explain_close()
                raise GuestError(
                    f"the serial line is closed ({error.strerror}); the console's log is {self.log}"
                ) from error

    def talk(self, from_mark: int | None = None) -> Conversation:
        """A conversation that gets the output after `from_mark` (default: from now on)."""
        return Conversation(self, self.mark if from_mark is None else from_mark)

    def wait_more(self, mark: int, deadline: Deadline) -> bool:
        """Wait until there are more than `mark` bytes; False if the time ran out or the line
        closed.

        Raises GuestPanic and the exceptions of `watch` immediately.
        """
        while True:
            self.check_panic()
            with self._arrived:
                if self._dropped + len(self._data) > mark:
                    return True
                if self._closed or deadline.expired:
                    break
                self._arrived.wait(min(_WAIT_STEP_S, deadline.remaining_s))
            if self._watch is not None and self.mark <= mark:
                self._watch()
        self._explain_close()
        return False

    def _explain_close(self) -> None:
        """Raise an error that explains why the line closed, if there is one."""
        self.check_panic()
        limit = Deadline.after(_EXIT_FOLLOWS_S)
        while self._closed and self._watch is not None and not limit.expired:
            self._watch()
            time.sleep(0.02)

    def wait_closed(self, deadline: Deadline) -> bool:
        """Wait until the other end is closed; returns whether it is."""
        with self._arrived:
            while not self._closed and not deadline.expired:
                self._arrived.wait(deadline.remaining_s)
            return self._closed

    def wait_bytes(self, mark: int, deadline: Deadline) -> None:
        """Wait until there are more than `mark` bytes, the line closes or the time runs out.

        It is for callers that only pass on the data; unlike `wait_more` it raises nothing.
        """
        with self._arrived:
            while self._dropped + len(self._data) <= mark and not self._closed:
                if deadline.expired:
                    return
                self._arrived.wait(deadline.remaining_s)

    def read_from(self, mark: int, size: int) -> tuple[bytes, int]:
        """At most `size` bytes after `mark`, without waiting, and the position after them.

        Data that is no longer in memory is skipped.
        """
        with self._arrived:
            start = max(0, mark - self._dropped)
            data = bytes(self._data[start : start + size])
            return data, self._dropped + start + len(data)

    @property
    def quiet_s(self) -> float:
        """The seconds since the last byte came, or since the line was opened."""
        with self._arrived:
            return time.monotonic() - self._arrived_s

    @property
    def closed(self) -> bool:
        """Whether the other end is closed."""
        return self._closed

    def close(self) -> None:
        """Stop reading; afterwards the log is complete."""
        if self._fd < 0:
            return
        os.write(self._wake_write, b"x")
        self._thread.join()
        fd, self._fd = self._fd, -1
        for handle in (fd, self._wake_read, self._wake_write):
            os.close(handle)


if TYPE_CHECKING:
    _TextSpawn = SpawnBase[str]
else:
    # The class is generic only in its stubs.
    _TextSpawn = SpawnBase


class Conversation(_TextSpawn):
    """pexpect on a console: `expect`, `before`, `match` work as usual.

    Use `expect_any`: if the time runs out, its error names the expected text.
    """

    def __init__(self, console: Console, mark: int) -> None:
        # Without a window every read would search everything before it.  The window is several
        # reads wide, because pexpect searches only the window's width of a read.
        super().__init__(
            timeout=None,
            maxread=8192,
            searchwindowsize=32768,
            encoding="utf-8",
            codec_errors="replace",
        )
        self.delayafterread = None
        self._console = console
        self._mark = mark
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> str:
        """pexpect's hook: some text, or its TIMEOUT or EOF; GuestPanic as soon as there is one."""
        limit = Deadline.after(3600.0 if timeout is None or timeout < 0 else timeout)
        if not self._console.wait_more(self._mark, limit):
            if self._console.closed:
                self.flag_eof = True
                raise EOF("the serial line closed")
            raise TIMEOUT("nothing more on the serial line")
        data, self._mark = self._console.read_from(self._mark, size)
        return self._text.decode(data)

    def isalive(self) -> bool:
        """pexpect asks before it reports EOF."""
        return not self._console.closed

    def sendline(self, line: str = "") -> None:
        """Type a line."""
        self._console.send(line + "\r")

    def expect_any(self, patterns: Sequence[str], what: str, deadline: Deadline) -> int:
        """Wait for one of `patterns`; returns its index.

        Raises GuestPanic on a panic, GuestError if the line closes, and WaitTimeout with `what` if
        the deadline passes, both with the end of the console.
        """
        try:
            return int(self.expect(list(patterns), timeout=deadline.remaining_s))
        except TIMEOUT:
            raise WaitTimeout(
                f"{what}: not seen on the serial line within {deadline.limit_s:.0f} s; the "
                f"console's log is {self._console.log}",
                detail=self._console.tail(),
            ) from None
        except EOF:
            raise GuestError(
                f"{what}: the serial line closed before it came; the console's log is "
                f"{self._console.log}",
                detail=self._console.tail(),
            ) from None


_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")


def clean_lines(text: str) -> list[str]:
    """Text from a terminal as plain lines, without escape sequences, carriage returns and empty
    lines.
    """
    plain = _ESCAPES.sub("", text).replace("\r", "\n")
    lines = ("".join(c for c in line if c.isprintable() or c == "\t") for line in plain.split("\n"))
    return [line.rstrip() for line in lines if line.strip()]
