"""What a run did: as data, and from that as JUnit, HTML and the table a person reads.

A room each; what others need of them is named here.
"""

from __future__ import annotations

import json

from ..files import write_atomic
from .data import LEFT_OUT, Check, Outcome, Report, StageResult, Status, stage_results
from .junit import junit
from .text import show

__all__ = [
    "LEFT_OUT",
    "Check",
    "Outcome",
    "Report",
    "StageResult",
    "Status",
    "junit",
    "save",
    "show",
    "stage_results",
]


def save(report: Report) -> None:
    """Write report.json and junit.xml into the run's folder."""
    write_atomic(report.run_dir / "report.json", json.dumps(report.to_data(), indent=2) + "\n")
    write_atomic(report.run_dir / "junit.xml", junit(report))
