"""What can go wrong, by whose fault it is; each kind has its exit code.

A message is one line: the thing, the reason, the remedy.  `detail` holds what may follow it (a
compiler's lines, a console's tail) and is printed below the line, never instead of it.
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
"""What a shell says of a program that SIGPIPE ended: 128 and the signal's number."""


class WorkbenchError(Exception):
    """Base of every error a user may meet; never raised itself."""

    exit_code = EXIT_CANNOT

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail.rstrip("\n")


class UsageError(WorkbenchError):
    """The command was called wrongly: unknown release, file that is not there, bad option."""

    exit_code = EXIT_USAGE


class CannotError(WorkbenchError):
    """This machine, or what is installed on it, cannot do what was asked."""

    exit_code = EXIT_CANNOT


class GuestError(WorkbenchError):
    """The virtual computer or the system in it broke: died, hung, refused."""

    exit_code = EXIT_GUEST


class MachineDied(GuestError):
    """The emulator ended by itself while somebody still needed it."""


class DiskFull(MachineDied):
    """The guest stands still: what it writes finds no room on this machine."""

    exit_code = EXIT_CANNOT


class GuestRebooted(GuestError):
    """The guest answers, but it is not the system that was there before: it rebooted by itself."""


class GuestPanic(GuestError):
    """The guest's kernel panicked; `detail` is the console from the panic on."""


class WaitTimeout(GuestError):
    """A time limit ran out while the machine was still running."""


class PatchError(WorkbenchError):
    """A patch does not apply, or what it makes does not build."""

    exit_code = EXIT_PATCH


class Interrupted(WorkbenchError):
    """Somebody pressed Ctrl-C."""

    exit_code = EXIT_INTERRUPTED


class ChecksFailed(WorkbenchError):
    """Everything ran, and a check did not hold."""

    exit_code = EXIT_CHECK_FAILED
