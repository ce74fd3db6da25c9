"""Finds the beginning of a kernel panic in a stream of output.

FreeBSD's panic message begins at the cursor, which is often behind `login: `; the next line
distinguishes it from a message that only mentions a panic.  A boot without a root file system and
the kernel's debugger stop at their own prompts, without a newline after them; so do a loader
without a kernel, and a system in single-user mode.
"""

from __future__ import annotations

import re

PANIC = re.compile(
    rb"^\r*panic: .*"
    rb"|panic: [^\n]*\n\r*(?:cpuid|time) = \d"
    rb"|^\r*Fatal (?:trap \d+: |double fault).*"
    rb"|^\r*(?:mountroot|db)>(?: .*|\r|$)"
    rb"|^\r*Type '\?' for a list of commands.*"
    rb"|^\r*Enter full pathname of shell or RETURN for .*"
    rb"|^\r*KDB: enter: .*"
    rb"|^\r*\[ thread pid \d+ tid \d+ \].*"
    rb"|(?:^\r*|\[ *\d+\.\d+\] )Kernel panic - not syncing.*",
    re.MULTILINE,
)

STORY_ENDS = re.compile(
    rb"^\r*(?:(?:mountroot|db)>|OK|Enter full pathname of shell or RETURN for .*) *\Z"
    rb"|^\r*Automatic reboot in \d+ seconds.*\n"
    rb"|---\[ end Kernel panic.*\]---",
    re.MULTILINE,
)
"""After this a panicked kernel prints nothing more: it waits for a key, a command, or its
reboot.
"""

BOOT = b"---<<BOOT>>---"
"""The first line of FreeBSD's kernel."""

PROMPTS = {
    "Type '?' for a list of commands": "the loader's prompt",
    "Enter full pathname of shell": "the prompt of single-user mode",
}
"""The first line after a boot has stopped early; the reason is before it."""

_LONGEST_LINE_BYTES = 4096


class PanicWatch:
    """Examines each byte once or twice, however the stream is divided into reads.

    `start` is the position in the stream at which it begins.
    """

    def __init__(self, start: int = 0) -> None:
        self._kept = b""
        self._kept_at = start
        self._end = start
        self.at: int | None = None
        """The position in the stream where the panic begins, if there was one."""

    def feed(self, data: bytes) -> bool:
        """Examine the stream's next bytes; returns whether they are the first that show a panic."""
        if self.at is not None:
            return False
        text = self._kept + data
        self._end += len(data)
        match = PANIC.search(text)
        if match:
            self.at = self._kept_at + match.start()
            self._kept = b""
            return True
        # The incomplete last line and the one before it, because a pattern may span both.
        whole = text.rfind(b"\n")
        start = text.rfind(b"\n", 0, whole) + 1 if whole > 0 else 0
        if len(text) - start > _LONGEST_LINE_BYTES:
            # A cut is not the beginning of a line, so a character must precede it.
            text = b"?" + text[-_LONGEST_LINE_BYTES:]
            start = 0
        self._kept = text[start:]
        self._kept_at = self._end - len(self._kept)
        return False
