"""Waits for the end of processes that are not this one's children."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil

from harness.deadline import Deadline

# It ends as soon as they have ended; a machine with much else to do may need long.
LIMIT_S = 60.0
_POLL_S = 0.02


def still_running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run after LIMIT_S.

    A zombie has ended: only its parent has not asked about it yet, and some systems' first process
    is slow to ask.
    """
    limit = Deadline.after(LIMIT_S)
    left = list(processes)
    while left := [it for it in left if _runs(it)]:
        if limit.expired:
            break
        time.sleep(_POLL_S)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
