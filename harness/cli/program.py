"""The entry point of `./inv`: Invoke's program with this project's handling of errors.

Tasks raise WorkbenchError; `run_task` turns it into one line and an exit code.  A wrong option or
an unknown task exits 2 here, where Invoke's own program would exit 1.
"""

from __future__ import annotations

import difflib
import errno
import functools
import itertools
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from invoke.exceptions import Exit, ParseError
from invoke.parser.argument import Argument
from invoke.program import Program

from harness import interrupts, log, progress
from harness.errors import (
    EXIT_INTERRUPTED,
    EXIT_READER_GONE,
    EXIT_USAGE,
    CannotError,
    UsageError,
    WorkbenchError,
)
from harness.files import PROJECT

# Errors that any file can cause and that are no bug of ours: one line, no traceback.
_OF_THE_MACHINE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EIO,
}

_ROOM = "; free some room or choose another folder (HARNESS_CACHE, HARNESS_RUNS, TMPDIR)"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EMFILE: "; allow more open files: ulimit -n 4096",
    errno.ENOMEM: "; end other programs",
}

# Invoke's message where there is no tasks.py; Invoke would exit like a failed check.
_NO_TASKS = "Can't find any collection"

F = TypeVar("F", bound=Callable[..., Any])


def fail(error: WorkbenchError) -> NoReturn:
    """Print the error's line and its details, and exit with its code."""
    if error.detail:
        progress.say_detail(error.detail)
    progress.say(f"error: {error.message}")
    raise SystemExit(error.exit_code)


def _our_fault(error: Exception) -> NoReturn:
    """Print a traceback and a line; a bug must not look like a failed check (exit code 1)."""
    traceback.print_exception(error)
    what = str(error).partition("\n")[0][:200]
    fail(
        CannotError(
            f"a fault of the workbench itself ({type(error).__name__}: {what}); this "
            f"says nothing about the patch; please report it with the lines above"
        )
    )


def _reader_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _close_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run_task(body: F) -> F:
    """Wrap a task's body: an error becomes one line and an exit code, a returned int an exit
    code.
    """

    @functools.wraps(body)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            code = body(*args, **kwargs)
            sys.stdout.flush()
        except WorkbenchError as error:
            fail(error)
        except KeyboardInterrupt:
            progress.say("error: interrupted")
            raise SystemExit(EXIT_INTERRUPTED) from None
        except OSError as error:
            if isinstance(error, BrokenPipeError) and _reader_gone():
                # `inv ... | head` is no error, so nothing is printed, not even by the last flush.
                _close_output()
                raise SystemExit(EXIT_READER_GONE) from None
            if error.errno not in _OF_THE_MACHINE:
                _our_fault(error)
            where = f"{error.filename}: " if error.filename else ""
            remedy = _REMEDIES.get(error.errno or 0, "")
            fail(CannotError(f"{where}{error.strerror}{remedy}"))
        except Exception as error:
            _our_fault(error)
        if code:
            raise SystemExit(code)

    return wrapped  # type: ignore[return-value]


def after_dashes() -> list[str]:
    """The words after `--` on the command line; Invoke's own remainder joins them into one
    string.
    """
    return sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []


def open_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed (`inv ... >&-`).

    Otherwise the next opened file would get its number, and our output would go into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def end_on_signals() -> None:
    """Treat SIGTERM and SIGHUP (a cancelled job, a closed terminal) like Ctrl-C, and clean up."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup ignores SIGHUP, and that stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    interrupts.never_lost()


def _near(word: str, names: Sequence[str]) -> str:
    """A question about the names that resemble a mistyped word; empty if there are none."""
    found = difflib.get_close_matches(word, names, 3, 0.7)
    return f" (did you mean {' or '.join(found)}?)" if found else ""


class WorkbenchProgram(Program):
    """Invoke's program, except that calling it wrongly exits 2 and Ctrl-C 130."""

    def core_args(self) -> list[Argument]:
        """Invoke's own options, and `-v`."""
        verbose = Argument(
            names=("verbose", "v"),
            kind=bool,
            default=False,
            help="Show the run's log (harness.log) on the terminal while it is written.",
        )
        return [*super().core_args(), verbose]

    def execute(self) -> None:
        """Run the tasks."""
        if self.args.verbose.value or log.verbose_asked():
            log.live()
        super().execute()

    def parse_core_args(self) -> None:
        """Parse Invoke's own options; a wrong one is one line and exit code 2."""
        self._parsed(super().parse_core_args)

    def parse_tasks(self) -> None:
        """Parse the tasks and their options, in the same way."""
        self._parsed(super().parse_tasks)

    def parse_cleanup(self) -> None:
        """Handle --help, --list and completion, in the same way."""
        self._parsed(super().parse_cleanup)

    def _parsed(self, parse: Callable[[], None]) -> None:
        try:
            parse()
        except ParseError as error:
            fail(UsageError(self._misuse(error)))

    def _misuse(self, error: ParseError) -> str:
        """The message for a wrong command line, in our words instead of Invoke's."""
        where = (error.context.name if error.context else None) or ""
        see = f"`inv --help {where}` shows its options" if where else "`inv --list` shows the tasks"
        task = f"inv {where}".strip()
        text = str(error).rstrip("!.")
        unknown = re.fullmatch(r"No idea what '(.*)' is", text)
        if not unknown:
            text = re.sub(
                r"Flag <Argument: ([\w-]+).*> needed value.*", r"--\1 needs a value", text
            )
            text = re.sub(r".* required positional arguments: (.*)", r"a word is missing: \1", text)
            return f"{task}: {text}; {see}"
        word = unknown[1]
        if word.startswith("-"):
            flags = list(error.context.flags) if error.context else []
            return f"{task}: there is no option {word}{_near(word, flags)}; {see}"
        names = [str(name) for name in self.collection.task_names]
        if where and word not in names:
            see += ", `inv --list` the tasks"
        return f"inv {word}: there is no such task{_near(word, names)}; {see}"

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:  # noqa: A002
        try:
            try:
                self._run(argv, exit)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            # `inv --list | head`: Invoke prints that itself, outside any task.
            if not _reader_gone():
                raise
            _close_output()
            raise SystemExit(EXIT_READER_GONE) from None

    def _run(self, argv: list[str] | None, exit: bool) -> None:  # noqa: A002
        try:
            super().run(argv, exit=exit)
        except ValueError as error:
            # Invoke converts options to numbers, and lets the ValueError of a bad one through.
            if found := re.fullmatch(r"invalid literal for int\(\) .*: ('.*')", str(error)):
                progress.say(
                    f"error: {found[1]} is not a number, but the option takes one; see "
                    f"`inv --help TASK`"
                )
                raise SystemExit(EXIT_USAGE) from None
            raise
        except SystemExit as error:
            # Invoke turns both into exit code 1; the original exception is the context.
            if isinstance(error.__context__, Exit) and _NO_TASKS in str(error.__context__):
                progress.say("error: no tasks.py here; run inv from the project's top folder")
                raise SystemExit(EXIT_USAGE) from None
            if isinstance(error.__context__, KeyboardInterrupt):
                raise SystemExit(EXIT_INTERRUPTED) from None
            raise


def spread(argv: list[str]) -> list[str]:
    """`bench a b` as `bench --only a --only b`: Invoke takes no word that may be left out.

    `matrix --merge a b` likewise is `matrix --merge a --merge b`, as a shell writes `--merge */`.
    """
    if argv[1:2] == ["matrix"] and "--merge" in argv:
        return _spread_merge(argv)
    if argv[1:2] != ["bench"]:
        return argv
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv[2:]))
    named = [part for word in words for part in ("--only", word)]
    return [*argv[:2], *named, *argv[2 + len(words) :]]


def _spread_merge(argv: list[str]) -> list[str]:
    at = argv.index("--merge") + 2
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv[at:]))
    named = [part for word in words for part in ("--merge", word)]
    return [*argv[:at], *named, *argv[at + len(words) :]]


def from_here(argv: list[str]) -> list[str]:
    """The command line with the path of this project's tasks, whatever the current folder is."""
    core = itertools.takewhile(lambda word: word.startswith("-"), argv[1:])
    if any(word.partition("=")[0] in ("-r", "--search-root") for word in core):
        return argv
    return [*argv[:1], "--search-root", str(PROJECT), *argv[1:]]


def make_places_absolute() -> None:
    """Resolve HARNESS_CACHE and HARNESS_RUNS in the caller's folder; our children run in
    another.
    """
    for name in ("HARNESS_CACHE", "HARNESS_RUNS"):
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.environ[name])


def main() -> None:
    """Entry point of `./inv`."""
    # All files made from here on are readable only by their owner.
    os.umask(0o077)
    open_standard_streams()
    end_on_signals()
    make_places_absolute()
    # Otherwise the completion would complete the module's file name, which nobody types.
    program = WorkbenchProgram(name="inv", binary="inv", binary_names=["inv", "./inv"])
    program.run(from_here(spread(sys.argv)))


if __name__ == "__main__":
    main()
