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
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pexpect.exceptions import EOF, TIMEOUT
from pexpect.spawnbase import SpawnBase

from .deadline import Deadline
from .errors import GuestError, GuestPanic, WaitTimeout

# FreeBSD's, Linux's and ddb's first words when the kernel is lost, at the beginning of a line.
# A boot that found no root stops at a prompt of its own and is no better than a panic.
PANIC = re.compile(
    rb"^(?:panic: .*|Fatal trap \d+: .*|Fatal double fault.*|mountroot> ?|"
    rb"(?:\[ *[\d.]+\] )?Kernel panic - not syncing.*|\[ thread pid \d+ tid \d+ \].*)$",
    re.MULTILINE,
)
_PANIC_SETTLES_S = 2.0
_WAIT_STEP_S = 0.25


class Console:
    """The near end of a serial line.

    `fd` is a connected socket or the master of a pseudo-terminal and belongs to the console from
    here on; `log` gets every byte as it came.  `watch` is called during every wait and raises when
    there is nothing left to wait for.
    """

    def __init__(self, fd: int, log: Path, watch: Callable[[], None] = lambda: None) -> None:
        self.log = log
        self._watch = watch
        self._fd = fd
        self._data = bytearray()
        self._arrived = threading.Condition()
        self._closed = False
        self._panic_at: int | None = None
        self._panic_seen_s = 0.0
        self._scanned = 0
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(fd, False)
        self._thread = threading.Thread(target=self._pump, name=f"console {log}", daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        with self.log.open("ab", buffering=0) as log, selectors.DefaultSelector() as selector:
            selector.register(self._fd, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if self._fd in ready:
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
                        log.write(data)
                    with self._arrived:
                        self._data += data
                        self._scan()
                        self._arrived.notify_all()
                elif self._wake_read in ready:
                    break
        with self._arrived:
            self._closed = True
            self._scan(at_end=True)
            self._arrived.notify_all()

    def _scan(self, at_end: bool = False) -> None:
        """Look for a panic in whole lines that were not looked at yet."""
        end = len(self._data) if at_end else self._data.rfind(b"\n") + 1
        if self._panic_at is None and end > self._scanned:
            match = PANIC.search(self._data.replace(b"\r", b" "), self._scanned, end)
            if match:
                self._panic_at = match.start()
                self._panic_seen_s = time.monotonic()
        self._scanned = max(self._scanned, end)

    @property
    def mark(self) -> int:
        """How many bytes have come so far: a place to read on from with `since`."""
        with self._arrived:
            return len(self._data)

    @property
    def panicked(self) -> bool:
        """Whether the guest's kernel said that it is lost."""
        return self._panic_at is not None

    def since(self, mark: int) -> str:
        """What came after `mark`, as text."""
        with self._arrived:
            return bytes(self._data[mark:]).decode("utf-8", "replace").replace("\r", "")

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
        if self._panic_at is None:
            return
        while time.monotonic() - self._panic_seen_s < _PANIC_SETTLES_S and not self._closed:
            time.sleep(0.05)
        story = clean_lines(self.since(self._panic_at))
        raise GuestPanic(
            f"the guest panicked: {story[0] if story else 'no message'}; the console's log is "
            f"{self.log}",
            detail="\n".join(story[:60]),
        )

    def send(self, text: str) -> None:
        """Type `text`; GuestError when the line is closed."""
        data = text.encode()
        try:
            while data:
                try:
                    data = data[os.write(self._fd, data) :]
                except BlockingIOError:
                    time.sleep(0.01)
        except OSError as error:
            raise GuestError(f"the serial line is closed ({error.strerror})") from error

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
                if len(self._data) > mark:
                    return True
                if self._closed or deadline.expired:
                    break
                self._arrived.wait(min(_WAIT_STEP_S, deadline.remaining_s))
            if self.mark <= mark:
                self._watch()
        self.check_panic()
        return False

    def wait_closed(self, deadline: Deadline) -> bool:
        """Wait until the other end is gone; whether it is."""
        with self._arrived:
            while not self._closed and not deadline.expired:
                self._arrived.wait(deadline.remaining_s)
            return self._closed

    def read_from(self, mark: int, size: int) -> bytes:
        """At most `size` bytes after `mark`, without waiting."""
        with self._arrived:
            return bytes(self._data[mark : mark + size])

    @property
    def closed(self) -> bool:
        """Whether the other end is gone."""
        return self._closed

    def close(self) -> None:
        """Stop listening; the log is complete afterwards."""
        if self._fd < 0:
            return
        if not self._closed:
            os.write(self._wake_write, b"x")
        self._thread.join(timeout=5)
        for fd in (self._fd, self._wake_read, self._wake_write):
            os.close(fd)
        self._fd = -1


if TYPE_CHECKING:
    _TextSpawn = SpawnBase[str]
else:
    # Generic in its stubs only.
    _TextSpawn = SpawnBase


class Conversation(_TextSpawn):
    """pexpect over a console: `expect`, `before`, `match` as everywhere else.

    `expect_line` is the one to use: it names what was waited for when time runs out.
    """

    def __init__(self, console: Console, mark: int) -> None:
        super().__init__(timeout=None, encoding="utf-8", codec_errors="replace")
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
        data = self._console.read_from(self._mark, size)
        self._mark += len(data)
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
