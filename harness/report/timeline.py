"""Where a run's time went, as rows of bars; positions are in per cent of the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from harness.report.data import Check, Report, StageResult

_TICKS = 6


@dataclass(frozen=True)
class Bar:
    """A period of time: `tone` is ok, failed or none, `target` the id of the linked element."""

    left: float
    width: float
    tone: str
    tip: str
    target: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the chart: its label and its bars."""

    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Chart:
    """A chart: rows with a common axis, and the axis's ticks."""

    rows: tuple[Row, ...]
    ticks: tuple[tuple[float, str], ...]


def total_s(report: Report) -> float:
    """The duration of the run, from its first stage's beginning to its last one's end."""
    return max((at_s + stage.seconds for at_s, stage in _placed(report.stages)), default=0.0)


def of_stages(report: Report) -> Chart | None:
    """A chart of the whole run, with a row for each stage that took time."""
    whole_s = total_s(report)
    rows = [
        Row(
            f"{stage.name}, {duration(stage.seconds)}",
            (_bar(at_s, stage.seconds, whole_s, _tone(stage.outcome), stage.note),),
        )
        for at_s, stage in _placed(report.stages)
    ]
    return Chart(tuple(rows), _ticks(whole_s)) if whole_s else None


def of_checks(report: Report, ids: dict[str, str]) -> Chart | None:
    """A chart of the checks: a row for each guest; if there is only one, for each file."""
    timed = _in_order(report.checks)
    if not timed:
        return None
    start_s = timed[0][0]
    whole_s = max(at_s + check.seconds for at_s, check in timed) - start_s
    if not whole_s:
        return None
    rows: dict[str, list[tuple[float, Check]]] = {}
    several = len({check.guest for check in report.checks}) > 1
    for at_s, check in timed:
        lane = f"guest {check.guest}" if several else check.name.partition("::")[0]
        rows.setdefault(lane, []).append((at_s, check))
    if several:
        rows = dict(sorted(rows.items(), key=lambda row: row[1][0][1].guest))
    return Chart(
        tuple(
            Row(
                f"{name}, {duration(sum(check.seconds for _, check in checks))}",
                tuple(
                    _bar(
                        at_s - start_s,
                        check.seconds,
                        whole_s,
                        _tone(report.status(check)[0]),
                        f"{check.name if several else check.name.partition('::')[2]}, "
                        f"{duration(check.seconds)}",
                        ids.get(check.name, ""),
                    )
                    for at_s, check in checks
                ),
            )
            for name, checks in rows.items()
        ),
        _ticks(whole_s),
    )


def duration(seconds: float) -> str:
    """`0.3 s`, `95 s`, `4 min 08 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02} s"


def _placed(stages: Iterable[StageResult]) -> list[tuple[float, StageResult]]:
    """The stages that ran and their beginnings; one after the other if these were not recorded."""
    ran = [stage for stage in stages if stage.outcome != "not run"]
    if any(stage.at_s for stage in ran):
        return [(stage.at_s, stage) for stage in ran]
    return [(sum(s.seconds for s in ran[:n]), stage) for n, stage in enumerate(ran)]


def _in_order(checks: Iterable[Check]) -> list[tuple[float, Check]]:
    ran = list(checks)
    if any(check.at_s for check in ran):
        return sorted(((check.at_s, check) for check in ran), key=lambda pair: pair[0])
    return [(sum(c.seconds for c in ran[:n]), check) for n, check in enumerate(ran)]


def _tone(outcome: str) -> str:
    return {"ok": "ok", "failed": "failed", "FAILED": "failed"}.get(outcome, "none")


def _bar(at_s: float, seconds: float, whole_s: float, tone: str, tip: str, target: str = "") -> Bar:
    share = 100 / whole_s if whole_s else 0.0
    return Bar(round(at_s * share, 3), round(seconds * share, 3), tone, tip, target)


def _ticks(whole_s: float) -> tuple[tuple[float, str], ...]:
    """Round numbers of seconds, at most `_TICKS` of them."""
    step_s = next(
        (s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800) if whole_s / s < _TICKS),
        3600 * max(1, math.ceil(whole_s / 3600 / _TICKS)),
    )
    return tuple(
        (round(100 * at_s / whole_s, 3), f"{at_s} s" if step_s < 60 else f"{at_s // 60} min")
        for at_s in range(0, int(whole_s) + 1, step_s)
    )
