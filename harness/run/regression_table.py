"""Writes the table of real bugs in the documentation from a run of `inv mutation --regressions`.

It names each bug and the check that caught it, and contains no line of FreeBSD's source.
"""

from __future__ import annotations

from pathlib import Path

from harness.errors import UsageError
from harness.files import write_atomic
from harness.run.regression_data import Result, VariantResult
from harness.run.regressions import first_line

_COLUMNS = ("bug", "year", "area", "what it does", "caught by", "s")
_RIGHT_COLUMNS = ("correct change", "year", "area", "verdict", "s")


def update(page: Path, result: Result) -> None:
    """Replace the part of `page` about the run's processor; the rest is not changed.

    Raises UsageError if the page is missing, or has no place for this processor's table.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{page}: cannot be read: {error.strerror}") from error
    begin, end = marks(result.processor)
    head, found, rest = text.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise UsageError(
            f"{page}: the lines {begin} and {end} are missing; the table goes between them"
        )
    write_atomic(page, f"{head}{begin}\n\n{render(result)}\n{end}{tail}")


def marks(processor: str) -> tuple[str, str]:
    """The lines that enclose the table of a processor."""
    return f"<!-- table of {processor}: begin -->", f"<!-- table of {processor}: end -->"


def render(result: Result) -> str:
    """The tables of a run as Markdown."""
    bugs = [it for it in result.results if not it.right and it.verdict != "not run"]
    right = [it for it in result.results if it.right and it.verdict != "not run"]
    lines = [
        f"FreeBSD {result.release}, {result.processor}, {result.backend}: "
        f"{result.verdict.partition('; missed')[0]}; {result.seconds / 60:.0f} minutes.",
        "",
        *_table(_COLUMNS, [_bug(it) for it in bugs]),
    ]
    if right:
        lines += ["", *_table(_RIGHT_COLUMNS, [_correct(it) for it in right])]
    return "\n".join(lines) + "\n"


def _bug(it: VariantResult) -> tuple[str, ...]:
    caught = ", ".join(f"`{name}`" for name in it.caught_by) or it.verdict
    if it.verdict not in ("caught", "MISSED"):
        caught += f": {first_line(it.why)}"
    return it.title, it.year, it.area, it.does, caught, f"{it.seconds:.0f}"


def _correct(it: VariantResult) -> tuple[str, ...]:
    verdict = ", ".join((it.verdict, *(f"`{name}`" for name in it.caught_by)))
    return it.title, it.year, it.area, verdict, f"{it.seconds:.0f}"


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cells = [columns, tuple("---" for _ in columns), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in cells]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
