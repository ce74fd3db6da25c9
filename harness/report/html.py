"""A run as one HTML page: nothing is loaded from elsewhere, and no script runs.

A guest's output may contain anything, so all text is escaped, and unprintable characters are shown
as symbols.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from harness.errors import (
    EXIT_CANNOT,
    EXIT_CHECK_FAILED,
    EXIT_GUEST,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PATCH,
    EXIT_USAGE,
)
from harness.report import coverage, timeline
from harness.report.data import Check, Report, Status
from harness.report.matrix import Matrix, Row
from harness.report.shares import shares

_HEAD_BYTES = 32 << 10
_TAIL_BYTES = 128 << 10
_TEXT_CHARS = 200_000
_SLOWEST = 5

_LOGS = (
    "panic.txt",
    "*/panic.txt",
    "guest*/console.log",
    "guest*/dmesg.txt",
    "guest*/emulator.log",
    "pytest*.log",
    "series.log",
    "probe/console.log",
)

_WORDS = {"passed": "holds", "failed": "fails", "error": "broke", "skipped": "not run", "": "-"}
_ORDER: dict[Status, int] = {"FAILED": 0, "as stock": 1, "not run": 2, "n/a": 3, "ok": 4}
_VERDICTS = {
    EXIT_OK: ("ok", "All held"),
    EXIT_CHECK_FAILED: ("failed", "A check failed"),
    EXIT_USAGE: ("failed", "Used wrongly"),
    EXIT_CANNOT: ("none", "Not everything was run"),
    EXIT_GUEST: ("failed", "The guest broke"),
    EXIT_PATCH: ("failed", "The patch does not apply or build"),
    EXIT_INTERRUPTED: ("none", "Interrupted"),
}


@dataclass(frozen=True)
class Line:
    """A check on the page; `stock` and `patched` are its results on the two modules.

    `other_says` is the reason on the module that is not this run's.
    """

    id: str
    check: Check
    status: Status
    why: str
    stock: str
    patched: str
    other_says: str = ""

    @property
    def file(self) -> str:
        """The file that contains the check."""
        return self.check.name.partition("::")[0]

    @property
    def function(self) -> str:
        """The name of its function."""
        return self.check.name.partition("::")[2] or self.check.name


@dataclass(frozen=True)
class Log:
    """A log of the run's folder, possibly shortened."""

    name: str
    size_bytes: int
    text: str


def render(report: Report, beside: Report | None = None) -> str:
    """The page; `beside` is a run of the other module, stock or patched, for comparison."""
    lines = _lines(report, beside)
    tone, word = _VERDICTS.get(report.exit_code, ("failed", "Failed"))
    return (
        _template("report.html.j2")
        .render(
            report=report,
            beside=beside,
            tone=tone,
            word=word,
            groups=_groups(lines),
            failing=[line for line in lines if line.status == "FAILED"],
            panicked=next((line for line in lines if _saw_panic(report, line.check)), None),
            two=report.side_by_side or beside is not None,
            counts=[
                (status, number, tone)
                for status, tone in (
                    ("ok", "ok"),
                    ("FAILED", "failed"),
                    ("as stock", "none"),
                    ("not run", "none"),
                    ("n/a", "none"),
                )
                if (number := report.count(status))  # type: ignore[arg-type]
            ],
            shares=shares(report) if report.checks else None,
            slowest=sorted(report.checks, key=lambda check: -check.seconds)[:_SLOWEST],
            total=timeline.duration(
                max((stage.at_s + stage.seconds for stage in report.stages), default=0.0)
            ),
            charts=[
                ("The whole run, stage by stage", timeline.of_stages(report)),
                (
                    "The checks, file by file",
                    timeline.of_checks(report, {line.check.name: line.id for line in lines}),
                ),
            ],
            facts=_facts(report),
            coverage=coverage.load(report.run_dir),
            unseen=coverage.UNSEEN,
            logs=list(_logs(report.run_dir)),
        )
        .lstrip()
    )


def render_matrix(matrix: Matrix) -> str:
    """The page of several runs: a column for each."""
    tone, word = _VERDICTS.get(matrix.exit_code, ("failed", "Failed"))
    if matrix.exit_code == EXIT_OK and len(matrix.ran) < len(matrix.cells):
        word = "All that was run held"
    rows = sorted(matrix.rows, key=_worst)
    return (
        _template("matrix.html.j2")
        .render(
            matrix=matrix,
            tone=tone,
            word=word,
            rows=[(row, row.reasons(matrix.labels)) for row in rows],
            words=_VERDICTS,
            failing=[
                (cell, check, cell.report.status(check)[1])
                for cell in matrix.cells
                if cell.report
                for check in cell.report.checks
                if cell.report.status(check)[0] == "FAILED"
            ],
        )
        .lstrip()
    )


def _worst(row: Row) -> int:
    """Where a row stands: by the gravest of its results."""
    return min((_ORDER[found[0]] for found in row.results if found), default=len(_ORDER))


def _saw_panic(report: Report, check: Check) -> bool:
    """Whether a check's failure contains the panic's message."""
    return report.panic is not None and report.panic.message in check.message + check.detail


def _groups(lines: list[Line]) -> list[tuple[str, list[Line]]]:
    """The checks grouped by result, the most serious first, and then by file."""
    ordered = sorted(lines, key=lambda line: _ORDER[line.status])
    return [
        (file, list(group))
        for (_, file), group in itertools.groupby(ordered, lambda line: (line.status, line.file))
    ]


def _facts(report: Report) -> list[tuple[str, str]]:
    return [
        ("series", "none: the stock module" if report.stock else report.series),
        *([("topic", f"{report.topic}, without patches")] if report.topic else []),
        ("FreeBSD release", report.release),
        ("backend", report.backend or "none"),
        ("began", report.started_at),
        *report.properties.items(),
    ]


def _lines(report: Report, beside: Report | None) -> list[Line]:
    others = {check.name: check for check in beside.checks} if beside else {}
    lines = []
    for number, check in enumerate(report.checks, 1):
        status, why = report.status(check)
        known = others.get(check.name)
        own, other = (
            _WORDS[check.outcome],
            _WORDS[check.on_stock or (known.outcome if known else "")],
        )
        stock, patched = (own, other) if report.stock else (other, own)
        says = check.stock_message or (known.message if known else "")
        lines.append(Line(f"check-{number}", check, status, why, stock, patched, says))
    return lines


def _logs(run_dir: Path) -> Iterator[Log]:
    seen: set[Path] = set()
    for pattern in _LOGS:
        for path in sorted(run_dir.glob(pattern)):
            if path in seen or not path.is_file() or not path.stat().st_size:
                continue
            seen.add(path)
            yield Log(str(path.relative_to(run_dir)), path.stat().st_size, excerpt(path))


def excerpt(path: Path) -> str:
    """A file's text; if it is long, its beginning and its end with a note between them."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= _HEAD_BYTES + _TAIL_BYTES:
            return stream.read().decode("utf-8", "replace")
        head = stream.read(_HEAD_BYTES)
        stream.seek(size - _TAIL_BYTES)
        tail = stream.read()
    note = f"\n\n[... {size - _HEAD_BYTES - _TAIL_BYTES} bytes are left out here ...]\n\n"
    return head.decode("utf-8", "replace") + note + tail.decode("utf-8", "replace")


@functools.cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "templates"),
        autoescape=True,
        finalize=_plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    environment.filters["duration"] = timeline.duration
    environment.filters["size"] = _size
    return environment.get_template(name)


def _size(size_bytes: int) -> str:
    if size_bytes < 10_000:
        return f"{size_bytes} bytes"
    return (
        f"{size_bytes / 1000:.0f} kB" if size_bytes < 10_000_000 else f"{size_bytes / 1e6:.0f} MB"
    )


# A terminal's usual sequences, each as a unit, and other characters that a page must not contain.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n\t -~]")


def symbols(text: str) -> str:
    """`text` with a symbol for each unprintable character, except newline and tab."""
    return _CONTROL.sub(lambda match: "".join(map(_symbol, match[0])), text)


def _symbol(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    # Unassigned, private, surrogate and format characters; format characters can reverse a line.
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"\u27e8U+{code:04X}\u27e9"
    return char


def visible(text: str) -> Markup:
    """`text` for a page's <pre>: escaped, with unprintable characters shown and marked."""
    cut = len(text) - _TEXT_CHARS
    if cut > 0:
        half = _TEXT_CHARS // 2
        text = f"{text[:half]}\n[... {cut} characters are left out here ...]\n{text[-half:]}"
    safe = str(escape(text.replace("\r\n", "\n")))
    return Markup(_CONTROL.sub(_apart, safe))  # noqa: S704  (escaped, but for our own tag)


def _apart(match: re.Match[str]) -> str:
    shown = symbols(match[0])
    return shown if shown == match[0] else f'<i class="c">{shown}</i>'


def _plain(value: Any) -> str:
    """Any value as text for the template, without characters that a page cannot contain."""
    return value if isinstance(value, Markup) else symbols(str(value))
