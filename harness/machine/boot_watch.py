"""A guest that does not come up: one that stands still at a word on its screen, or goes in circles.

A boot is waited for on the serial line.  What goes wrong before the serial line is used shows on
the screen alone (a disk that does not boot, a loader at its prompt, a system whose console is the
screen), and a kernel that resets in its first lines shows as the same lines again and again.  Both
would be waited for until the limit, which is minutes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from harness.errors import CannotError, GuestError
from harness.machine.console import Console

# How long the serial line is quiet before anybody looks at the screen, and the time between looks.
# A screen is believed when it was the same twice.
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
    """Looks at a machine while its boot is waited for.

    `screen` gives the lines of its text screen (none where it has none, or shows graphics),
    `resets` how often it was reset since it started, `words` what the emulator itself said last.
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
        """Raise GuestError for a guest that will not come up, CannotError for an image that only
        asks for a login on its screen.  Costs nothing most of the time.
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
            # It came up in between: count from here.
            self._mark = self._console.mark
            self._resets_before += resets
            return
        raise GuestError(
            f"{self._name}: the guest goes in circles: it was reset {resets} times and came to no "
            f"login in between; the console's log is {self._console.log}",
            detail="\n".join(filter(None, (self._words(), self._console.tail()))),
        )

    def _stands_still(self, lines: list[str]) -> None:
        shown = "\n".join(lines[-_LINES:])
        last = lines[-1]
        # One that speaks on the serial line too may have its screen besides.
        if _LOGIN_PROMPT.search(last) and not self._console.since(0).strip():
            raise CannotError(
                f"{self._name}: the guest asks for a login on its screen, and nothing came over "
                'the serial line: the image needs boot_serial="YES" and console="comconsole" in '
                f"loader.conf; the console's log is {self._console.log}",
                detail=shown,
            )
        for pattern, what in _STOPS:
            # A BIOS says more behind the line that counts.
            where = lines[-3:] if what == "its disk does not boot" else lines[-1:]
            if any(pattern.search(line) for line in where):
                raise GuestError(
                    f"{self._name}: the guest did not boot, {what} ({last!r} on its screen); the "
                    f"console's log is {self._console.log}",
                    detail=shown,
                )
