"""One log for each run, with messages of this program, its libraries and the programs it runs.

`runs/TIME-WHAT/harness.log` has everything at debug level; `inv -v TASK` shows the same on the
terminal while it happens.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

NAMES = ("harness", "paramiko", "qemu.qmp")
"""The loggers whose messages a run's log contains: ours, SSH's and QMP's."""

_FORMAT = "%(asctime)s.%(msecs)03d %(name)s %(levelname)s %(message)s"
_VERBOSE = "HARNESS_VERBOSE"


class _OneLine(logging.Formatter):
    """Formats each message as one line without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "".join(it if it.isprintable() else f"\\x{ord(it):02x}" for it in text)


def _attach(handler: logging.Handler) -> None:
    handler.setFormatter(_OneLine(_FORMAT, "%H:%M:%S"))
    handler.setLevel(logging.DEBUG)
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)


def to_file(path: Path) -> None:
    """From now on also log to `path`, a file that only its owner can read; it is made if missing.

    If the file cannot be written there is no log: a log must not end the work that it describes,
    nor show a traceback for each line once its disk is full.
    """
    logging.raiseExceptions = False
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        _attach(logging.FileHandler(path, encoding="utf-8", errors="backslashreplace"))
    except OSError as error:
        logging.getLogger("harness").warning("no log in %s: %s", path, error.strerror)


def live() -> None:
    """From now on also log to standard error; so do our programs that are started from here."""
    os.environ[_VERBOSE] = "1"
    _attach(logging.StreamHandler(sys.stderr))


def verbose_asked() -> bool:
    """Whether the program that started this one logs to standard error."""
    return bool(os.environ.get(_VERBOSE))
