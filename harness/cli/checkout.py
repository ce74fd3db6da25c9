"""The tasks work only in a checkout, because most files that they read are outside the library."""

from __future__ import annotations

import sys
from pathlib import Path

from harness import files
from harness.errors import EXIT_CANNOT


def require(top: Path) -> None:
    """End this program with one line and EXIT_CANNOT if `top` is not a checkout (but a wheel)."""
    if reason := files.not_a_checkout(top):
        sys.stderr.write(f"error: {reason}\n")
        raise SystemExit(EXIT_CANNOT)
