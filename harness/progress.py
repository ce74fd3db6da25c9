"""Output for people: stages while they run, and tables.

On a terminal a stage shows one live line (what, how long, the console's last line); without one it
prints a plain line when it begins and one when it ends.  While work is in progress all output for
people goes to standard error, so that standard output contains only the result.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# rich takes a fifth of the time of `inv --list`, so it is imported when something is printed.
err: Console
out: Console


def __getattr__(name: str) -> Console:
    """`err` and `out`, made at their first use."""
    if name not in ("err", "out"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = console(stderr=name == "err", highlight=False, soft_wrap=True)
    globals()[name] = made
    return made


def console(**options: Any) -> Console:
    """rich's console, except that a closed pipe does not end the program with exit code 1."""
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            raise BrokenPipeError

    return Quiet(**options)


def _err() -> Console:
    return globals().get("err") or __getattr__("err")


def _print(text: str) -> None:
    from rich.text import Text

    _err().print(Text(text))


_log = logging.getLogger(__name__)

Listener = Callable[[str, str, str], None]
"""It is called with `say`, `detail`, `begin`, `live` or `end`, and two texts: a line or a stage's
name; for `end` the outcome and the note.
"""

_listener: Listener | None = None


@contextmanager
def reported_to(listener: Listener) -> Iterator[None]:
    """While the block runs, nothing is printed here; `listener` gets it instead."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


@contextmanager
def past_capture() -> Iterator[None]:
    """While the block runs, output for people bypasses a capture of standard error (pytest's)."""
    global err
    with os.fdopen(os.dup(2), "w", buffering=1) as stream:
        before, err = _err(), console(file=stream, highlight=False, soft_wrap=True)
        try:
            yield
        finally:
            err = before


def say(line: str) -> None:
    """Print a line about the work in progress on standard error."""
    _log.info("%s", line)
    if _listener is not None:
        _listener("say", line, "")
    else:
        _print(printable(line))


def say_detail(text: str) -> None:
    """Print details of a line, for instance the end of a log, on standard error."""
    _log.debug("%s", text)
    if _listener is not None:
        _listener("detail", text, "")
    else:
        _print(clean(text.rstrip("\n")))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print a table on standard output; the last column takes the remaining width."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, header in enumerate(headers):
        grid.add_column(header, overflow="fold", no_wrap=number < len(headers) - 1)
    for row in rows:
        grid.add_row(*(Text(clean(cell)) for cell in row))
    # Without a terminal rich assumes 80 columns and would fold lines that fit into a log.
    console(highlight=False, width=None if sys.stdout.isatty() else 160).print(grid)


def print_json(data: Any) -> None:
    """Print data for programs on standard output."""
    sys.stdout.write(json.dumps(data, indent=2, sort_keys=False) + "\n")


@dataclass
class Stage:
    """One step of a run: its name, duration, outcome and note.

    `began_s` is a moment of the monotonic clock.
    """

    name: str
    seconds: float = 0.0
    outcome: str = "running"
    note: str = ""
    began_s: float = 0.0
    _live: Callable[[str], None] = field(default=lambda _line: None, repr=False)

    def live(self, line: str) -> None:
        """Show `line` beside the stage while it runs (terminals only)."""
        self._live(line)


@contextmanager
def stage(name: str, record: list[Stage] | None = None) -> Iterator[Stage]:
    """Run a block as a named stage; its time and outcome are added to `record` in any case."""
    step = Stage(name, began_s=time.monotonic())
    _log.info("%s: begins", name)
    if record is not None:
        record.append(step)
    listener = _listener
    try:
        if listener is not None:
            listener("begin", name, "")
            step._live = lambda line: listener("live", line, "")
            yield step
        elif _err().is_terminal:
            with _live_line(name) as show:
                step._live = show
                yield step
        else:
            say(f"{name} ...")
            yield step
        if step.outcome == "running":
            step.outcome = "ok"
    except BaseException as error:
        step.outcome = "failed"
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        step.note = step.note or str(error) or what
        raise
    finally:
        step.seconds = time.monotonic() - step.began_s
        _log.info("%s: %s after %.3f s; %s", name, step.outcome, step.seconds, step.note)
        step._live = lambda _line: None
        if listener is not None:
            listener("end", step.outcome, step.note)
        else:
            # The code that catches the error prints the reason once; the report has it too.
            note = f": {step.note}" if step.note and step.outcome == "ok" else ""
            say(f"{name}: {step.outcome} after {step.seconds:.1f} s{note}")


@contextmanager
def _live_line(name: str) -> Iterator[Callable[[str], None]]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}", style="dim", markup=False),
    )
    with Progress(
        *columns,
        console=_err(),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        task = progress.add_task(name, total=None, last="")
        yield lambda line: progress.update(task, last=printable(line)[:100])


# Text in a job's log that a CI system obeys: GitHub's commands at a line's beginning (after any
# blanks, and a table may begin a line anywhere in a cell), its older form and those of Azure and
# TeamCity anywhere.  GitLab's begin with an escape, which is replaced anyway.
_ORDERS = re.compile(
    r"^(\s*:):|(:):(?=(?:add-|remove-|stop-|set-|save-|internal-|debug|warning|error|notice|group"
    r"|endgroup|echo))|(#)#(?=\w*\[)",
    re.MULTILINE | re.IGNORECASE,
)


def clean(text: str) -> str:
    """`text` of several lines, without control sequences and commands of CI systems.

    A guest's output is printed into a job's log this way.  Control characters become `?`, and a
    blank is put into the mark of a CI command (`::`, `##[`).
    """
    return _ORDERS.sub(
        lambda mark: f"{mark[0][:-1]} {mark[0][-1]}",
        "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text),
    )


def printable(text: str) -> str:
    """Like `clean`, but for one line: line breaks are replaced as well."""
    return clean(text).replace("\n", "?").replace("\t", "?")


@contextmanager
def following(step: Stage, line: Callable[[], str]) -> Iterator[None]:
    """Show `line()` beside the stage, again and again while the block runs."""
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(0.5):
            step.live(line())

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
