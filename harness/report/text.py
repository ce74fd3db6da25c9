"""The report of a run as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from harness import progress
from harness.report.data import KEPT, Report
from harness.report.matrix import WORDS, Matrix
from harness.report.shares import shares

# The number of slowest checks that are named.
_SLOWEST = 5
# Up to so many columns a terminal shows every check; with more, those that did not hold everywhere.
_ALL_ROWS = 3


def show(report: Report) -> None:
    """Print the checks, the stages with their seconds, and the verdict."""
    if report.checks:
        stock = report.side_by_side
        rows = []
        for check in report.checks:
            status, why = report.status(check)
            note = check.title if not why else f"{check.title}: {why}"
            beside = (check.on_stock or "-",) if stock else ()
            rows.append((status, *beside, f"{check.seconds:.1f} s", check.name, note))
        column = ("on stock",) if stock else ()
        progress.table(("status", *column, "took", "check", "what it says"), rows)
    if figures := report.figures:
        both = any(there for _, there, _ in figures)
        measured = [(name, *((there or "-",) if both else ()), it) for name, there, it in figures]
        progress.table(("measured", *(("on stock",) if both else ()), "figure"), measured)
    progress.table(
        ("stage", "result", "took", "note"),
        [(s.name, s.outcome, f"{s.seconds:.1f} s", s.note) for s in report.stages],
    )
    if len(report.checks) > _SLOWEST:
        slow = sorted(report.checks, key=lambda check: -check.seconds)[:_SLOWEST]
        named = ", ".join(f"{check.name} {check.seconds:.1f} s" for check in slow)
        progress.out.print(progress.clean(f"slowest: {named}"), markup=False)
        progress.out.print(f"time:    {shares(report)}", markup=False)
    for check in report.checks:
        if report.status(check)[0] == "FAILED" and check.detail:
            progress.out.print(progress.clean(f"--- {check.name}\n{check.detail}\n"), markup=False)
    if report.panic:
        frames = "\n".join(f"  {frame}" for frame in report.panic.frames)
        progress.out.print(progress.clean(f"{report.panic.message}\n{frames}\n"), markup=False)
    progress.out.print(progress.clean(f"verdict: {report.verdict}"), markup=False)
    progress.out.print(f"run:     {report.run_dir}", markup=False)
    if KEPT in report.properties:
        progress.out.print(f"kept:    {report.properties[KEPT]}", markup=False)


def show_runs(reports: Iterable[Report | Matrix]) -> None:
    """Print the runs, one a line, each with its verdict."""
    progress.table(
        ("run", "exit", "verdict"),
        [(report.run_dir.name, str(report.exit_code), report.verdict) for report in reports],
    )


def show_matrix(matrix: Matrix) -> None:
    """Print the checks with a column for each run, the runs, and the verdict."""
    labels = matrix.labels
    every = len(labels) <= _ALL_ROWS
    rows = [
        (
            *(result[0] if result else "-" for result in row.results),
            row.name,
            ": ".join(filter(None, (row.title, "; ".join(row.reasons(labels))))),
        )
        for row in matrix.rows
        if every or not row.held or row.reasons(labels)
    ]
    if rows:
        progress.table((*labels, "check", "what it says"), rows)
    for cell in matrix.cells:
        for check in cell.report.checks if cell.report else ():
            if cell.report and cell.report.status(check)[0] == "FAILED" and check.detail:
                text = f"--- {cell.label}: {check.name}\n{check.detail}\n"
                progress.out.print(progress.clean(text), markup=False)
        if cell.report and cell.report.panic:
            frames = "\n".join(f"  {frame}" for frame in cell.report.panic.frames)
            text = f"{cell.label}: {cell.report.panic.message}\n{frames}\n"
            progress.out.print(progress.clean(text), markup=False)
    progress.table(
        ("run", "result", "checks took", "exit", "in words"),
        [
            (
                cell.label,
                "not run" if cell.not_run else WORDS.get(cell.exit_code, "failed"),
                "-" if cell.not_run else f"{cell.checks_s:.1f} s",
                "-" if cell.not_run else str(cell.exit_code),
                cell.words,
            )
            for cell in matrix.cells
        ],
    )
    for note in matrix.notes:
        progress.out.print(progress.clean(f"note: {note}"), markup=False)
    progress.out.print(progress.clean(f"verdict: {matrix.verdict}"), markup=False)
    progress.out.print(f"run:     {matrix.run_dir}", markup=False)
    for cell in matrix.cells:
        if cell.report and KEPT in cell.report.properties:
            kept = f"kept:    {cell.label}: {cell.report.properties[KEPT]}"
            progress.out.print(progress.clean(kept), markup=False)
