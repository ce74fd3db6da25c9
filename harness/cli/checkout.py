"""The tasks work in a checkout alone: most of what they read is beside the library, not in it."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.errors import EXIT_CANNOT

_READ = ("images/prepare.sh", "patches", "tests/guest")


def require(top: Path) -> None:
    """End this program with one line, and EXIT_CANNOT, when `top` is no checkout (a wheel's)."""
    missing = [name for name in _READ if not (top / name).exists()]
    if missing:
        sys.stderr.write(
            f"error: {top} is no checkout of vmm-workbench ({', '.join(missing)} not there): an "
            "installed wheel holds the library alone; clone the repository and work there\n"
        )
        raise SystemExit(EXIT_CANNOT)
