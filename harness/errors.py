"""Errors, sorted by whose fault they are; each kind has its exit code.

A message is one line: the thing, the reason, the remedy.  `detail` may contain more (a compiler's
messages, the end of the console) and is printed in addition to the line, never instead of it.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_CANNOT = 3
EXIT_GUEST = 4
EXIT_PATCH = 5
EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 141
"""The exit code that a shell reports if SIGPIPE ended a program: 128 plus the signal's number."""


class WorkbenchError(Exception):
    """Base class of every error that a user may see; it is never raised itself."""

    exit_code = EXIT_CANNOT

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail.rstrip("\n")


class UsageError(WorkbenchError):
    """The command was used wrongly: an unknown release, a missing file, a bad option."""

    exit_code = EXIT_USAGE


class CannotError(WorkbenchError):
    """This machine, or the software on it, cannot do what was asked."""

    exit_code = EXIT_CANNOT


class GuestError(WorkbenchError):
    """The virtual computer or the system in it broke: it ended, hung or refused."""

    exit_code = EXIT_GUEST


class MachineDied(GuestError):
    """The emulator ended by itself while it was still needed."""


class DiskFull(MachineDied):
    """The guest is stopped, because this machine has no room for the data that it writes."""

    exit_code = EXIT_CANNOT


class GuestRebooted(GuestError):
    """The guest answers, but it has rebooted by itself, so everything loaded before is gone."""


class GuestPanic(GuestError):
    """The guest's kernel panicked; `detail` is the console from the panic on."""


class WaitTimeout(GuestError):
    """A time limit ran out while the machine was still running."""


class PatchError(WorkbenchError):
    """A patch does not apply, or the patched source does not build."""

    exit_code = EXIT_PATCH


class Interrupted(WorkbenchError):
    """The user pressed Ctrl-C."""

    exit_code = EXIT_INTERRUPTED


class ChecksFailed(WorkbenchError):
    """Everything ran, and a check failed."""

    exit_code = EXIT_CHECK_FAILED
