"""One log for each run: what this program did, and what its libraries and programs said of it.

`runs/TIME-WHAT/harness.log` has everything at debug level; `inv -v TASK` shows the same on the
terminal while it happens.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

NAMES = ("harness", "paramiko", "qemu.qmp")
"""The loggers that a run's log takes in: ours, SSH's and QMP's."""

_FORMAT = "%(asctime)s.%(msecs)03d %(name)s %(levelname)s %(message)s"
_VERBOSE = "HARNESS_VERBOSE"


class _OneLine(logging.Formatter):
    """Whatever was logged takes one line of its own, and steers no terminal."""

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
    """From now on also log to `path`, which is made if it is not there and readable by its owner.

    A file that cannot be written is left out: a log must not end the work that it describes.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        _attach(logging.FileHandler(path, encoding="utf-8", errors="backslashreplace"))
    except OSError as error:
        logging.getLogger("harness").warning("no log in %s: %s", path, error.strerror)


def live() -> None:
    """From now on also log to standard error; programs that are started do so as well."""
    os.environ[_VERBOSE] = "1"
    _attach(logging.StreamHandler(sys.stderr))


def verbose_asked() -> bool:
    """Whether a program that started this one was asked to log to standard error."""
    return bool(os.environ.get(_VERBOSE))
