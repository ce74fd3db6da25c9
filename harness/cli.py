"""The launcher's way into Invoke, with this project's manners for errors.

Tasks raise WorkbenchError; `run_task` turns it into one line and an exit code.  A wrong option or
an unknown task exits 2 here, where Invoke's own program would exit 1.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from invoke.exceptions import CollectionNotFound, ParseError
from invoke.program import Program

from . import ui
from .errors import EXIT_INTERRUPTED, EXIT_USAGE, WorkbenchError

F = TypeVar("F", bound=Callable[..., Any])


def fail(error: WorkbenchError) -> NoReturn:
    """Print the error's line and what belongs below it, and exit with its code."""
    if error.detail:
        sys.stderr.write(error.detail + "\n")
    ui.say(f"error: {error.message}")
    raise SystemExit(error.exit_code)


def run_task(body: F) -> F:
    """Wrap a task's body: errors become a line and an exit code, a returned int the exit code."""

    @functools.wraps(body)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            code = body(*args, **kwargs)
        except WorkbenchError as error:
            fail(error)
        except KeyboardInterrupt:
            ui.say("error: interrupted")
            raise SystemExit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output has gone (`inv ... | head`); nothing is left to tell it.
            sys.stderr.close()
            raise SystemExit(EXIT_USAGE) from None
        if code:
            raise SystemExit(code)

    return wrapped  # type: ignore[return-value]


class WorkbenchProgram(Program):
    """Invoke's program, except that calling it wrongly exits 2 and Ctrl-C 130."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:  # noqa: A002
        try:
            super().run(argv, exit=exit)
        except SystemExit as error:
            # Invoke turns both into exit code 1; what it was is kept as the context.
            if isinstance(error.__context__, ParseError):
                ui.say("`inv --list` shows the tasks, `inv --help TASK` the options of one")
                raise SystemExit(EXIT_USAGE) from None
            if isinstance(error.__context__, KeyboardInterrupt):
                raise SystemExit(EXIT_INTERRUPTED) from None
            raise
        except CollectionNotFound:
            ui.say("error: no tasks.py here; run inv from the project's top folder")
            raise SystemExit(EXIT_USAGE) from None


def main() -> None:
    """Entry point of `./inv`."""
    WorkbenchProgram(name="inv", binary="inv").run()


if __name__ == "__main__":
    main()
