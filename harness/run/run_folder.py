"""A run's own folder."""

from __future__ import annotations

import contextlib
import datetime
import os
from pathlib import Path

from harness import files, log
from harness.errors import CannotError, UsageError


def new_run_dir(what: str) -> Path:
    """Make a new folder runs/TIME-WHAT, 0700; `runs/latest` points to it."""
    root = files.runs_dir()
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    for number in range(1000):
        name = f"{now}-{what}" + (f"-{number}" if number else "")
        try:
            (root / name).mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise CannotError(
                f"{root / name}: {error.strerror}; set HARNESS_RUNS to a folder that can be written"
            ) from error
        pointer = root / f".latest.{os.getpid()}"
        with contextlib.suppress(OSError):
            pointer.symlink_to(name)
            pointer.replace(root / "latest")
        log.to_file(root / name / "harness.log")
        return root / name
    raise UsageError(f"{root}: a thousand runs began in one second")
