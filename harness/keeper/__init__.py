"""Guests that stay up after the command that started them: each has a process and a name."""

from __future__ import annotations

from harness.keeper.client import (
    Starter,
    attach,
    attached,
    debugger,
    down,
    open_console,
    set_module,
)
from harness.keeper.record import (
    BROKEN,
    ENDED,
    READY,
    STARTING,
    Record,
    check_name,
    find,
    forget,
    load,
    names,
    reserve,
    save,
)
from harness.keeper.server import Bench

__all__ = [
    "BROKEN",
    "ENDED",
    "READY",
    "STARTING",
    "Bench",
    "Record",
    "Starter",
    "attach",
    "attached",
    "check_name",
    "debugger",
    "down",
    "find",
    "forget",
    "load",
    "names",
    "open_console",
    "reserve",
    "save",
    "set_module",
]
