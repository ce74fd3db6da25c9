"""Writes reports into the runs' folders, finds them and reads them."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from harness import checked
from harness.errors import UsageError
from harness.files import read_bounded, runs_dir, write_atomic
from harness.limits import REPORT_BYTES
from harness.report import html
from harness.report.data import Report
from harness.report.junit import junit

DATA = "report.json"
MATRIX = "matrix.json"
PAGE = "report.html"
_LOOK_BACK = 40


def save(report: Report) -> None:
    """Write report.json, junit.xml and report.html into the run's folder."""
    write_atomic(report.run_dir / DATA, json.dumps(report.to_data(), indent=2) + "\n")
    write_atomic(report.run_dir / "junit.xml", junit(report))
    write_page(report)


def write_page(report: Report) -> Path:
    """Write report.html, with the other module's results if there is such a run; returns its
    path.
    """
    page = report.run_dir / PAGE
    write_atomic(page, html.render(report, counterpart(report)))
    return page


def load(run_dir: Path) -> Report:
    """Read a report; UsageError if the run's folder has none, or none that can be read."""
    path = run_dir / DATA
    try:
        data = checked.table(read_bounded(path, REPORT_BYTES))
        data["properties"] = {key: str(value) for key, value in data["properties"].items()}
        if isinstance(panic := data.get("panic"), dict):
            # JSON has the panic's facts as a table; here they are in order.
            tables = {name: it for name, it in panic.items() if isinstance(it, dict)}
            data["panic"] = {**panic, **{name: list(it.items()) for name, it in tables.items()}}
        report = checked.convert(Report, {**data, "run_dir": run_dir})
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}; `./inv report --list` shows the runs that have a report"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: this is not a report of this program: {error}") from error
    return report


def find(name: str) -> Path:
    """The folder of a run, given by name or path; by default the last run with a report.

    Raises UsageError when there is none.
    """
    root = runs_dir()
    if not name:
        last = max(with_report(), default=None)
        if last is None:
            raise UsageError(f"{root}: no run has a report yet; ./inv verify makes one")
        return last
    for folder in (root / name, Path(name).absolute()):
        if folder.is_dir():
            return folder.resolve()
    raise UsageError(
        f"{name}: there is no such run in {root}; `./inv report --list` shows the runs"
    )


def runs() -> Iterator[Report]:
    """Every single run with a report that can be read, the newest first."""
    for folder in sorted(with_report(), reverse=True):
        with contextlib.suppress(UsageError):
            yield load(folder)


def with_report() -> list[Path]:
    """The folders of the runs, and of several runs together, that left a report."""
    folders = (path.parent for name in (DATA, MATRIX) for path in runs_dir().glob(f"*/{name}"))
    return [folder for folder in folders if not folder.is_symlink()]


def counterpart(report: Report) -> Report | None:
    """The newest run of the other module, stock or not, of the same topic, image and backend.

    It is None for a run that tried both modules itself.
    """
    image = report.properties.get("image sha256")
    if report.side_by_side or not image or not report.checks:
        return None
    for other in itertools.islice(runs(), _LOOK_BACK):
        if (
            (other.stock != report.stock and other.topic == report.topic)
            and other.checks
            and other.properties.get("image sha256") == image
            and (other.backend, other.release) == (report.backend, report.release)
        ):
            return other
    return None
