"""Runs in their folders: written, found again, read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UsageError
from ..files import runs_dir, write_atomic
from ..transcript import Asked, Evidence
from . import html
from .data import Check, Report, StageResult
from .junit import junit

DATA = "report.json"
PAGE = "report.html"
_LOOK_BACK = 40

T = TypeVar("T")


def save(report: Report) -> None:
    """Write report.json, junit.xml and report.html into the run's folder."""
    write_atomic(report.run_dir / DATA, json.dumps(report.to_data(), indent=2) + "\n")
    write_atomic(report.run_dir / "junit.xml", junit(report))
    write_page(report)


def write_page(report: Report) -> Path:
    """Write report.html, with what the other module did beside it if a run knows; its path."""
    page = report.run_dir / PAGE
    write_atomic(page, html.render(report, counterpart(report)))
    return page


def load(run_dir: Path) -> Report:
    """Read a run back; UsageError when its folder holds no report, or none that can be read."""
    path = run_dir / DATA
    try:
        data = json.loads(path.read_text())
        return Report(
            **{
                **_known(Report, data),
                "run_dir": run_dir,
                "stages": tuple(StageResult(**_known(StageResult, s)) for s in data["stages"]),
                "checks": tuple(_check(check) for check in data["checks"]),
            }
        )
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}; `./inv report --list` shows the runs that have a report"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: no report of this program: {error}") from error


def _check(data: Mapping[str, Any]) -> Check:
    known = _known(Check, data)
    told = known.get("evidence", {})
    lists: dict[str, Any] = {
        "commands": tuple(Asked(**_known(Asked, one)) for one in told.get("commands", ())),
        "console": tuple(told.get("console", ())),
        "dmesg": tuple(told.get("dmesg", ())),
    }
    return Check(**{**known, "evidence": Evidence(**{**_known(Evidence, told), **lists})})


def _known(kind: type[T], data: Mapping[str, Any]) -> dict[str, Any]:
    """What `kind` has a field for: reports are read that older and newer programs wrote."""
    return {field.name: data[field.name] for field in fields(kind) if field.name in data}  # type: ignore[arg-type]


def find(name: str) -> Path:
    """The folder of a run: by its name in the runs' folder, by a path, or the last one.

    Raises UsageError when there is none.
    """
    root = runs_dir()
    if not name:
        if (root / "latest").is_dir():
            return (root / "latest").resolve()
        raise UsageError(f"{root}: no run yet; ./inv verify makes one")
    for folder in (root / name, Path(name).absolute()):
        if folder.is_dir():
            return folder.resolve()
    raise UsageError(f"{name}: no such run in {root}; `./inv report --list` shows them")


def runs() -> Iterator[Report]:
    """Every run with a report that can be read, the newest first."""
    folders = (path.parent for path in runs_dir().glob(f"*/{DATA}"))
    for folder in sorted((f for f in folders if not f.is_symlink()), reverse=True):
        try:
            yield load(folder)
        except UsageError:
            continue


def counterpart(report: Report) -> Report | None:
    """The newest run of the other module, stock or not, on the same image and backend.

    None for a run that tried both itself.
    """
    image = report.properties.get("image sha256")
    if report.side_by_side or not image or not report.checks:
        return None
    for number, other in enumerate(runs()):
        if number == _LOOK_BACK:
            break
        if (
            other.stock != report.stock
            and other.checks
            and other.properties.get("image sha256") == image
            and (other.backend, other.release) == (report.backend, report.release)
        ):
            return other
    return None
