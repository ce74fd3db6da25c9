"""The report of a run: as data, and from that as JUnit, HTML and tables for a terminal.

Each form has a module; this file names their public functions.
"""

from __future__ import annotations

from harness.report.data import (
    KEPT,
    LEFT_OUT,
    NOT_TESTED,
    Check,
    Outcome,
    Report,
    StageResult,
    Status,
    stage_results,
)
from harness.report.junit import junit
from harness.report.matrix import Cell, Matrix
from harness.report.merge import merge as merge_folders
from harness.report.shares import EMPTY_COMMAND, shares
from harness.report.store import PAGE, counterpart, find, load, runs, save, write_page
from harness.report.text import show, show_matrix, show_runs

__all__ = [
    "EMPTY_COMMAND",
    "KEPT",
    "LEFT_OUT",
    "NOT_TESTED",
    "PAGE",
    "Cell",
    "Check",
    "Matrix",
    "Outcome",
    "Report",
    "StageResult",
    "Status",
    "counterpart",
    "find",
    "junit",
    "load",
    "merge_folders",
    "runs",
    "save",
    "shares",
    "show",
    "show_matrix",
    "show_runs",
    "stage_results",
    "write_page",
]
