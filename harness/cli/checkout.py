"""The tasks work only in a checkout, because most files that they read are outside the library."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.errors import EXIT_CANNOT

_READ = ("images/prepare.sh", "patches", "tests/guest")


def require(top: Path) -> None:
    """End this program with one line and EXIT_CANNOT if `top` is not a checkout (but a wheel)."""
    missing = [name for name in _READ if not (top / name).exists()]
    if missing:
        sys.stderr.write(
            f"error: {top} is not a checkout of vmm-workbench ({', '.join(missing)} not there): an "
            "installed wheel contains only the library; clone the repository and work there\n"
        )
        raise SystemExit(EXIT_CANNOT)
