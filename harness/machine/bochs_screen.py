"""The guest's screen in Bochs's text display, and Bochs's output before that."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import selectors
import threading
import tty
from pathlib import Path

import pyte

from harness.machine import vga
from harness.machine.console import clean_lines

LINES, COLUMNS = 30, 100
# The size of the terminal: Bochs refuses to draw on fewer than 25 lines.
ENVIRONMENT = {"TERM": "vt100", "LINES": str(LINES), "COLUMNS": str(COLUMNS)}

_KEEP_BYTES = 1 << 18
_DRAWN_ON = re.compile(r'^Bochs connected to screen "(/dev/pts/\d+)"', re.MULTILINE)


class Screen:
    """Both terminals of a Bochs: the one it is given, and the one that its display opens.

    One thread reads both, so that Bochs never blocks.
    """

    def __init__(self) -> None:
        self._master, self.tty = pty.openpty()
        self._drawn_fd = -1
        self._printed = b""
        self._drawn = b""
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._drain, name="screen", daemon=True)

    def started(self) -> None:
        """Call this when the emulator has opened the terminal's other end."""
        self._close_tty()
        self._thread.start()

    def running(self, emulator_log: Path) -> None:
        """Call this when `emulator_log` names the display's terminal, to read from it."""
        with contextlib.suppress(OSError):
            names = _DRAWN_ON.findall(emulator_log.read_text(errors="replace"))
            if names:
                self._drawn_fd = os.open(names[-1], os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
                # Without this the terminal would echo the drawn text as input of the guest.
                tty.setraw(self._drawn_fd)
                os.write(self._wake_write, b"x")

    def _close_tty(self) -> None:
        if self.tty >= 0:
            os.close(self.tty)
            self.tty = -1

    def _drain(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._master, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd == self._wake_read:
                        if os.read(self._wake_read, 1) != b"x":
                            return
                        selector.register(self._drawn_fd, selectors.EVENT_READ)
                    elif not self._take(key.fd):
                        selector.unregister(key.fd)

    def _take(self, fd: int) -> bool:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if fd == self._master:
            self._printed = (self._printed + data)[-_KEEP_BYTES:]
        else:
            self._drawn = (self._drawn + data)[-_KEEP_BYTES:]
        return bool(data)

    def printed(self) -> str:
        """The last lines that Bochs printed."""
        return "\n".join(clean_lines(self._printed.decode("utf-8", "replace"))[-8:])

    def lines(self) -> list[str]:
        """The guest's screen, up to the last line that is not empty."""
        screen = pyte.Screen(COLUMNS, LINES)
        pyte.ByteStream(screen).feed(self._drawn)
        # Around the guest's screen are a frame, and a line with the state of Bochs's keys and
        # disks.
        lines = [line[: vga.COLUMNS].rstrip() for line in screen.display[: vga.LINES]]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def close(self) -> None:
        """Close the terminals after the emulator has ended."""
        self._close_tty()
        if self._wake_write < 0:
            return
        os.write(self._wake_write, b"e")
        if self._thread.is_alive():
            self._thread.join(timeout=2)
        for fd in (self._master, self._drawn_fd, self._wake_read, self._wake_write):
            if fd >= 0:
                os.close(fd)
        self._master = self._drawn_fd = self._wake_read = self._wake_write = -1
