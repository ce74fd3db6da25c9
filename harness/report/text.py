"""The report of a run as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from harness import progress
from harness.report.data import KEPT, Report

# The number of slowest checks that are named.
_SLOWEST = 5


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


def show_runs(reports: Iterable[Report]) -> None:
    """Print the runs, one on each line, with their verdicts."""
    progress.table(
        ("run", "exit", "verdict"),
        [(report.run_dir.name, str(report.exit_code), report.verdict) for report in reports],
    )
