"""Checks manual pages with mandoc."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

from harness import process

_MANUAL = re.compile(r"(?:.*/)?[^/]+\.[1-9]\Z")
_SAID = re.compile(
    r"^mandoc: .*?:\d+:\d+: (?P<text>(?:STYLE|WARNING|ERROR|UNSUPP|FATAL|BADARG).*)$"
)
# Messages that are caused by this system and are no fault of the page: Debian lacks FreeBSD's
# manuals and its mdoc date rules.
_HERE_ONLY = ("referenced manual not found", "operating system explicitly specified")


def unavailable() -> str:
    """Why manuals cannot be checked, or an empty string."""
    return "" if shutil.which("mandoc") else "mandoc is not installed"


def is_manual(path: str) -> bool:
    """Whether a path is a manual page by its name (vmm.4, vmmls.8)."""
    return bool(_MANUAL.match(path))


def lint(page: Path) -> Counter[str]:
    """The messages of `mandoc -T lint` for a page, without line numbers; none for a missing
    page.
    """
    if not page.is_file():
        return Counter()
    done = process.run(["mandoc", "-T", "lint", "-I", "os=FreeBSD", str(page)])
    said = [_SAID.match(line) for line in (done.stdout + done.stderr).splitlines()]
    return Counter(
        found["text"]
        for found in said
        if found and not any(it in found["text"] for it in _HERE_ONLY)
    )
