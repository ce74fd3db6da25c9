"""A lost kernel's first words, found in a stream as it comes.

FreeBSD's panic begins where the cursor stands, which is behind `login: ` as often as not; what
follows on the next line distinguishes it from a message that only mentions a panic.  A boot without
a root and the kernel's debugger stop at prompts of their own, with no newline behind them; so do a
loader without a kernel, and a system that came up for one user only.
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
"""Behind it a lost kernel has no more to say: it waits for a key, a command, or its reboot."""

BOOT = b"---<<BOOT>>---"
"""What FreeBSD's kernel says first."""

PROMPTS = {
    "Type '?' for a list of commands": "the loader's prompt",
    "Enter full pathname of shell": "the prompt of single-user mode",
}
"""How the story of a boot that ended early begins; its reason stands before that."""

_LONGEST_LINE_BYTES = 4096


class PanicWatch:
    """Looks at each byte once or twice, however the stream is cut into reads.

    `start` is how much of the stream came before it looked.
    """

    def __init__(self, start: int = 0) -> None:
        self._kept = b""
        self._kept_at = start
        self._end = start
        self.at: int | None = None
        """Where in the stream the panic begins, once there was one."""

    def feed(self, data: bytes) -> bool:
        """Take the stream's next bytes; whether they are the first that show a panic."""
        if self.at is not None:
            return False
        text = self._kept + data
        self._end += len(data)
        match = PANIC.search(text)
        if match:
            self.at = self._kept_at + match.start()
            self._kept = b""
            return True
        # The line that is not whole yet, and the one before it: a pattern may span both.
        whole = text.rfind(b"\n")
        start = text.rfind(b"\n", 0, whole) + 1 if whole > 0 else 0
        if len(text) - start > _LONGEST_LINE_BYTES:
            # A cut is no line's beginning: something has to stand before it.
            text = b"?" + text[-_LONGEST_LINE_BYTES:]
            start = 0
        self._kept = text[start:]
        self._kept_at = self._end - len(self._kept)
        return False
