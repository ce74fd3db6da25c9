"""Detects a guest that will not come up: it has stopped at a prompt, or resets again and again.

The workbench waits for a boot on the serial line.  A failure before the serial line is used appears
only on the screen (a disk that does not boot, a loader at its prompt, a system whose console is the
screen), and a kernel that resets early prints the same lines again and again. Without this module
the wait would last until its limit, which is minutes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from harness.errors import CannotError, GuestError
from harness.machine.console import Console

# How long the serial line is silent before the screen is read, and the time between readings.
# A screen counts if it was the same twice.
_QUIET_S = 3.0
_EVERY_S = 2.0
_RESETS = 2
_LOGIN = "login: "
_LINES = 8

_LOGIN_PROMPT = re.compile(r"\blogin: ?$")
_STOPS = (
    (re.compile(r"^OK\b ?\S{0,2}$"), "its boot loader stopped at its prompt"),
    (re.compile(r"^boot: ?$"), "its first boot program found no loader"),
    (re.compile(r"^mountroot> ?$"), "its kernel found no root file system"),
    (re.compile(r"^db> ?$"), "its kernel stopped in its debugger"),
    (re.compile(r"^BTX halted"), "its boot program crashed"),
    (
        re.compile(
            r"no bootable (?:device|disk)|not a bootable disk|boot failed|"
            r"missing operating system|operating system not found|"
            r"error loading operating system|invalid partition table|"
            r"non-system disk|no boot device",
            re.IGNORECASE,
        ),
        "its disk does not boot",
    ),
)


class BootWatch:
    """Examines a machine during the wait for its boot.

    `screen` returns the lines of its text screen (none if it has no screen, or shows graphics),
    `resets` the number of resets since it started, `words` the emulator's own last output.
    """

    def __init__(
        self,
        name: str,
        console: Console,
        screen: Callable[[], list[str]],
        resets: Callable[[], int],
        words: Callable[[], str],
    ) -> None:
        self._name = name
        self._console = console
        self._screen = screen
        self._resets = resets
        self._words = words
        self._mark = console.mark
        self._resets_before = resets()
        self._seen: list[str] = []
        self._next_s = 0.0

    def look(self) -> None:
        """Raise GuestError for a guest that will not come up, CannotError for an image that asks
        for a login only on its screen.  Usually this takes no time.
        """
        self._go_in_circles()
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + _EVERY_S
        if self._console.quiet_s < _QUIET_S:
            self._seen = []
            return
        lines = self._screen()
        again, self._seen = lines == self._seen, lines
        if lines and again:
            self._stands_still(lines)

    def _go_in_circles(self) -> None:
        resets = self._resets() - self._resets_before
        if resets < _RESETS:
            return
        if _LOGIN in self._console.since(self._mark):
            # It came up meanwhile, so count from here.
            self._mark = self._console.mark
            self._resets_before += resets
            return
        raise GuestError(
            f"{self._name}: the guest resets again and again: it was reset {resets} "
            f"times without "
            f"a login prompt; the console's log is {self._console.log}",
            detail="\n".join(filter(None, (self._words(), self._console.tail()))),
        )

    def _stands_still(self, lines: list[str]) -> None:
        shown = "\n".join(lines[-_LINES:])
        last = lines[-1]
        # A guest that also uses the serial line may show a login on its screen.
        if _LOGIN_PROMPT.search(last) and not self._console.since(0).strip():
            raise CannotError(
                f"{self._name}: the guest asks for a login on its screen, but nothing "
                f"came over "
                'the serial line: the image needs boot_serial="YES" and console="comconsole" in '
                f"loader.conf; the console's log is {self._console.log}",
                detail=shown,
            )
        for pattern, what in _STOPS:
            # A BIOS prints more after the important line.
            where = lines[-3:] if what == "its disk does not boot" else lines[-1:]
            if any(pattern.search(line) for line in where):
                raise GuestError(
                    f"{self._name}: the guest did not boot, {what} ({last!r} on its screen); the "
                    f"console's log is {self._console.log}",
                    detail=shown,
                )
