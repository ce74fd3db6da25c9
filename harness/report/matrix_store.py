"""A report of several runs in its folder: written, and read back.

matrix.json     the columns, each with the folder of its run
FOLDER/report.json, FOLDER/report.html ...      a run of its own
report.html, junit.xml      all of them together
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from harness import checked
from harness.errors import UsageError
from harness.files import read_bounded, write_atomic
from harness.limits import REPORT_BYTES
from harness.report import html, store
from harness.report.data import Report
from harness.report.junit import junit_of_all
from harness.report.matrix import Cell, Matrix

DATA = store.MATRIX


@dataclass(frozen=True)
class _Column:
    """What matrix.json says of a column; the rest is its run's own."""

    release: checked.Release
    backend: checked.Name
    vendor: checked.Line = ""
    stock: bool = False
    reason: str = ""
    named: bool = True
    number: checked.Count = 1
    folder: checked.Line = ""
    name: checked.Line = ""


@dataclass(frozen=True)
class _Data:
    cells: Annotated[tuple[_Column, ...], msgspec.Meta(max_length=1000)]
    started_at: checked.Line = ""
    notes: tuple[checked.Line, ...] = ()


def save(matrix: Matrix) -> None:
    """Write matrix.json, junit.xml and report.html into the matrix's folder."""
    data = json.dumps(matrix.to_data(whole=False), indent=2)
    write_atomic(matrix.run_dir / DATA, data + "\n")
    reports = [(cell.label, cell.report) for cell in matrix.cells if cell.report]
    missing = [(cell.label, cell.not_run) for cell in matrix.cells if not cell.report]
    write_atomic(matrix.run_dir / "junit.xml", junit_of_all(reports, missing))
    write_page(matrix)


def write_page(matrix: Matrix) -> Path:
    """Write report.html; its path."""
    page = matrix.run_dir / store.PAGE
    write_atomic(page, html.render_matrix(matrix))
    return page


def is_matrix(folder: Path) -> bool:
    """Whether a folder holds the report of several runs."""
    return (folder / DATA).exists()


def runs() -> Iterator[Report | Matrix]:
    """Every run and every matrix whose report can be read, the newest first."""
    for folder in sorted(store.with_report(), reverse=True):
        with contextlib.suppress(UsageError):
            yield load(folder) if is_matrix(folder) else store.load(folder)


def load(folder: Path) -> Matrix:
    """Read a matrix back; UsageError when the folder holds none, or none that can be read."""
    path = folder / DATA
    try:
        data = checked.decode(_Data, read_bounded(path, REPORT_BYTES))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; ./inv matrix makes one") from error
    except ValueError as error:
        raise UsageError(f"{path}: no report of this program: {error}") from error
    return Matrix(
        tuple(_cell(column, folder) for column in data.cells),
        data.started_at,
        folder,
        data.notes,
    )


def _cell(column: _Column, folder: Path) -> Cell:
    cell = Cell(**vars(column))
    if not column.folder or Path(column.folder).name != column.folder:
        return dataclasses.replace(cell, folder="")
    with contextlib.suppress(UsageError):
        return dataclasses.replace(cell, report=store.load(folder / column.folder))
    return cell
