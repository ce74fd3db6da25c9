"""What `inv` reads: the tasks of harness.cli.  `./inv --list` shows them."""

from __future__ import annotations

from pathlib import Path

from harness.cli import checkout

checkout.require(Path(__file__).resolve().parent)

from harness.cli.tasks import namespace  # noqa: E402

__all__ = ["namespace"]
