"""What `inv` reads: the tasks of harness.cli.  `./inv --list` shows them."""

from __future__ import annotations

from harness.cli.tasks import namespace

__all__ = ["namespace"]
