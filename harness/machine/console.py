"""A machine's serial line: always logged, watched for panics, and spoken to when need be.

One thread reads the line from the moment the machine starts, so that nothing is lost and a chatty
guest never blocks.  `expect` is pexpect's, over what the thread has read; every wait in it ends at
once when the guest panics or the line closes.
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

# A panic's story is over when nothing more came for a while, or when it went on for too long.
_PANIC_QUIET_S = 1.0
_PANIC_SETTLES_S = 10.0
# How far back the reason may lie why a boot stopped at a prompt.
_REASON_BYTES = 400
_WAIT_STEP_S = 0.25
_GATHER_S = 0.01
_GATHER_BYTES = 4096
_SEND_S = 30.0
# Once it is asked to close, the thread still takes what has arrived; a flood does not delay it.
_CLOSE_S = 1.0
# An emulator's end of the line closes a moment before its exit code can be had.
_EXIT_FOLLOWS_S = 1.0
_KEEP_BYTES = 16 << 20
_LOG_ENDS = b"\n[the log ends here: the guest has sent more than is stored]\n"


class Console:
    """The near end of a serial line.

    `fd` is a connected socket or the master of a pseudo-terminal and belongs to the console from
    here on; `log` gets every byte as it came, up to limits.LOG_MOST_BYTES, unless another process
    writes it, while memory holds the last `keep_bytes`.  `watch` is called during every wait and
    raises when there is nothing left to wait for.
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
        self._arrived_s = time.monotonic()
        self._closed = False
        self._panic = PanicWatch()
        self.boots = 0
        """How many kernels of FreeBSD's have begun here."""
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
                try:
                    data = os.read(self._fd, 65536)
                except BlockingIOError:
                    continue
                except OSError:
                    # A pseudo-terminal answers EIO once nobody holds its other end.
                    data = b""
                if not data:
                    break
                # A full disk must not stop the guest; what was read stays in memory.
                with contextlib.suppress(OSError):
                    self._write(log, data)
                self._take(data)
                if len(data) < _GATHER_BYTES and not closing:
                    # An emulator writes byte by byte; woken for each, we would take a tenth of
                    # the guest's own time on a machine with two processors.
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

    @property
    def mark(self) -> int:
        """How many bytes have come so far: a place to read on from with `since`."""
        with self._arrived:
            return self._dropped + len(self._data)

    @property
    def panicked(self) -> bool:
        """Whether the guest's kernel said that it is lost."""
        return self._panic.at is not None

    def forget_panic(self) -> None:
        """Look out for panics again: the guest has come up again since."""
        with self._arrived:
            self._panic = PanicWatch(self._dropped + len(self._data))

    def since(self, mark: int) -> str:
        """What came after `mark`, as text; a note stands for what memory no longer holds."""
        with self._arrived:
            lost = max(0, self._dropped - mark)
            data = bytes(self._data[max(0, mark - self._dropped) :])
        note = f"[{lost} bytes before this are in {self.log} alone]\n" if lost else ""
        return note + data.decode("utf-8", "replace").replace("\r", "")

    def tail(self, lines: int = 15) -> str:
        """The last lines, as text that cannot steer a terminal."""
        with self._arrived:
            data = bytes(self._data[-lines * 200 :])
        return "\n".join(clean_lines(data.decode("utf-8", "replace"))[-lines:])

    def last_line(self) -> str:
        """The last line that is not empty, for progress displays."""
        found = self.tail(1).splitlines()
        return found[-1] if found else ""

    def check_panic(self) -> None:
        """Raise GuestPanic, with the console from the panic on, if there was one.

        The story is given a moment to arrive: a backtrace follows the panic's first line.
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
                story_at = max(0, at - self._dropped)
                if now >= quiet_at or STORY_ENDS.search(self._data, story_at):
                    break
                self._arrived.wait(quiet_at - now)
        story = clean_lines(self.since(at))
        what = f"panicked: {story[0] if story else 'no message'}"
        prompt = next((it for begin, it in PROMPTS.items() if story[0:1] and begin in story[0]), "")
        if prompt:
            before = clean_lines(self.since(max(0, at - _REASON_BYTES)))[: -len(story)][-3:]
            # The loader's turning bar stands before its words.
            reason = before[-1].lstrip("|/-\\") if before else "no reason was given"
            what = f"did not boot, it stopped at {prompt}: {reason}"
            story = [*before, *story]
        raise GuestPanic(
            f"the guest {what}; the console's log is {self.log}", detail="\n".join(story[:60])
        )

    def send(self, text: str | bytes, deadline: Deadline | None = None) -> None:
        """Type `text`; GuestError when the line is closed, WaitTimeout when nobody reads it."""
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
                        f"the guest took nothing from its serial line for {limit.limit_s:.0f} s; "
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
        """A conversation that hears what comes after `from_mark` (default: from now on)."""
        return Conversation(self, self.mark if from_mark is None else from_mark)

    def wait_more(self, mark: int, deadline: Deadline) -> bool:
        """Wait until there is more than `mark` bytes; False when the time or the line ended.

        Raises GuestPanic, and what `watch` raises, as soon as there is reason to.
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
        """Raise what explains a closed line better than its being closed, if anything does."""
        self.check_panic()
        limit = Deadline.after(_EXIT_FOLLOWS_S)
        while self._closed and self._watch is not None and not limit.expired:
            self._watch()
            time.sleep(0.02)

    def wait_closed(self, deadline: Deadline) -> bool:
        """Wait until the other end is gone; whether it is."""
        with self._arrived:
            while not self._closed and not deadline.expired:
                self._arrived.wait(deadline.remaining_s)
            return self._closed

    def wait_bytes(self, mark: int, deadline: Deadline) -> None:
        """Wait until there is more than `mark` bytes, the line closes or the time is over.

        For those who only pass the line on: unlike `wait_more` it judges nothing.
        """
        with self._arrived:
            while self._dropped + len(self._data) <= mark and not self._closed:
                if deadline.expired:
                    return
                self._arrived.wait(deadline.remaining_s)

    def read_from(self, mark: int, size: int) -> tuple[bytes, int]:
        """At most `size` bytes after `mark`, without waiting, and the mark behind them.

        What memory no longer holds is passed over.
        """
        with self._arrived:
            start = max(0, mark - self._dropped)
            data = bytes(self._data[start : start + size])
            return data, self._dropped + start + len(data)

    @property
    def quiet_s(self) -> float:
        """How many seconds ago the last byte came, or the line was opened."""
        with self._arrived:
            return time.monotonic() - self._arrived_s

    @property
    def closed(self) -> bool:
        """Whether the other end is gone."""
        return self._closed

    def close(self) -> None:
        """Stop listening; the log is complete afterwards."""
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
    # Generic in its stubs only.
    _TextSpawn = SpawnBase


class Conversation(_TextSpawn):
    """pexpect over a console: `expect`, `before`, `match` as everywhere else.

    `expect_any` is the one to use: it names what was waited for when time runs out.
    """

    def __init__(self, console: Console, mark: int) -> None:
        # Without a window every read searches all that came before it.  The window is several
        # reads wide: pexpect looks at no more than the window's width of a read.
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
        """Wait for one of `patterns`; its index.

        Raises GuestPanic on a panic, GuestError when the line closes, WaitTimeout naming `what`
        when the deadline passes; both with the console's tail.
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
    """Text from a terminal as plain lines: no escape sequences, no carriage returns, none empty."""
    plain = _ESCAPES.sub("", text).replace("\r", "\n")
    lines = ("".join(c for c in line if c.isprintable() or c == "\t") for line in plain.split("\n"))
    return [line.rstrip() for line in lines if line.strip()]
