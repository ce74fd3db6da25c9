"""One report from the folders of several machines: `inv matrix --merge`.

The folders come from jobs that may have run anything, so their contents are checked: links are not
followed, sizes are bounded, and a report that cannot be read becomes a column that was not run,
with the reason.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import progress
from harness.errors import EXIT_CANNOT, EXIT_OK, CannotError, UsageError
from harness.files import read_bounded
from harness.limits import MERGED_FILES, MERGED_PARTS, MERGED_REPORTS, REPORT_BYTES
from harness.report import junit_reader, matrix_store, store
from harness.report.data import Report
from harness.report.matrix import GRAVEST_FIRST, Cell, Matrix, numbered

JOB = "job.txt"
"""The file in which ci/verify.sh describes its job: `release=15.1` and so on, a line each."""

VERDICT = "verdict.txt"
_JUNIT = "junit.xml"
_SMALL_BYTES = 64 << 10
_SKIPPED = "skipped: "
_SAID = re.compile(r"^(?:verdict: (?:no verdict: )?|skipped: )(.{1,300})", re.MULTILINE)
_FORMS = {
    "release": re.compile(r"[0-9]{1,3}\.[0-9]{1,3}(?:-[A-Za-z0-9]{1,20})?"),
    "backend": re.compile(r"auto|kvm|bochs|tcg|kvm-in-bochs"),
    "cpu_vendor": re.compile(r"intel|amd|"),
    "stock": re.compile(r"[01]"),
}
# The characters that may become part of a folder's name.
_NAMED = {key: _FORMS[key] for key in ("release", "backend")}


def merge(folders: Sequence[Path], planned: Sequence[Cell], run_dir: Path) -> Matrix:
    """One report of all runs below `folders`, written into `run_dir` with a copy of each run's.

    `planned` jobs without a run become columns that were not run.  Raises UsageError if a folder
    does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--merge {folder}: there is no such folder")
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    seen: set[str] = set()
    cells = [cell for folder in folders for cell in _found(folder, seen)]
    missing = [
        dataclasses.replace(job, reason="no report came from this job")
        for job in planned
        if not any(cell.does(job) for cell in cells)
    ]
    saved = [_saved(cell, run_dir) for cell in numbered([*cells, *missing])]
    found = Matrix(tuple(saved), began, run_dir)
    try:
        matrix_store.save(found)
    except OSError as error:
        raise CannotError(f"{run_dir}: no report was written: {error.strerror}") from error
    return found


def _saved(cell: Cell, run_dir: Path) -> Cell:
    """The cell, with its report copied below `run_dir`."""
    if cell.report is None:
        return cell
    copy = dataclasses.replace(cell.report, run_dir=run_dir / cell.slug)
    copy.run_dir.mkdir(mode=0o700)
    store.save(copy)
    return dataclasses.replace(cell, report=copy, folder=cell.slug)


def _found(top: Path, seen: set[str]) -> Iterator[Cell]:
    """The columns of a folder, at least one; `seen` has the digests of the reports so far."""
    some = False
    for folder in _folders(top):
        if len(seen) >= MERGED_REPORTS:
            raise UsageError(
                f"--merge {top}: more than {MERGED_REPORTS} reports; merge fewer at once"
            )
        for cell in _of_folder(folder, top, seen):
            some = True
            yield cell
    if not some:
        yield _without_report(top)


def _folders(top: Path) -> Iterator[Path]:
    """`top` and the folders below it, links left out, in order."""
    looked_at = 0
    for path, folders, files in os.walk(top, followlinks=False):
        looked_at += len(folders) + len(files)
        if looked_at > MERGED_FILES:
            raise UsageError(f"--merge {top}: more than {MERGED_FILES} files; name the runs' own")
        here = Path(path)
        folders[:] = sorted(it for it in folders if not (here / it).is_symlink())
        if len(here.relative_to(top).parts) >= MERGED_PARTS:
            folders.clear()
        yield here


def _of_folder(folder: Path, top: Path, seen: set[str]) -> Iterator[Cell]:
    name = f"{top.name}/{folder.relative_to(top)}".removesuffix("/.")
    if os.path.lexists(folder / store.DATA):
        yield from _read(folder, store.DATA, name, seen)
    elif os.path.lexists(folder / matrix_store.DATA):
        try:
            kept = matrix_store.load(folder)
        except UsageError as error:
            yield _unreadable(name, error.message)
            return
        # The runs that have a report are found in their own folders.
        yield from (cell for cell in kept.cells if cell.reason and not cell.folder)
    elif os.path.lexists(folder / _JUNIT):
        yield from _read(folder, _JUNIT, name, seen)


def _read(folder: Path, file: str, name: str, seen: set[str]) -> Iterator[Cell]:
    """The column of one report, unless the same report was found before."""
    try:
        content = read_bounded(folder / file, REPORT_BYTES)
        digest = hashlib.sha256(content).hexdigest()
        if digest in seen:
            return
        seen.add(digest)
        report = store.load(folder) if file == store.DATA else junit_reader.read(content, folder)
    except UsageError as error:
        yield _unreadable(name, error.message)
    except OSError as error:
        yield _unreadable(name, f"{folder / file}: {error.strerror}")
    except ValueError as error:
        yield _unreadable(name, f"{folder / file}: {error}")
    else:
        cell = Cell.of(_honest(report))
        if all(form.fullmatch(str(getattr(cell, key))) for key, form in _NAMED.items()):
            yield cell
        else:
            yield _unreadable(name, f"{folder / file}: it names no release or no backend")


def _honest(report: Report) -> Report:
    """The report, with an exit code that fits its contents: an error is not a success."""
    code = report.error_exit_code
    if report.error and (code == EXIT_OK or code not in GRAVEST_FIRST):
        return dataclasses.replace(report, error_exit_code=EXIT_CANNOT)
    return report


def _unreadable(name: str, why: str) -> Cell:
    return Cell("?", name=progress.printable(name), reason=progress.printable(why)[:400])


def _without_report(top: Path) -> Cell:
    """The column of a folder without a report: how its job describes itself, if it does."""
    said = re.search(_SAID, _text(top / VERDICT))
    skipped = _text(top / VERDICT).startswith(_SKIPPED)
    reason = progress.printable(said[1]) if said else "there is no report in its folder"
    job = dict(line.split("=", 1) for line in _text(top / JOB).splitlines() if line.count("=") == 1)
    known = {key: job.get(key, "") for key in _FORMS}
    if all(form.fullmatch(known[key]) for key, form in _FORMS.items()):
        return Cell(
            known["release"],
            known["backend"],
            known["cpu_vendor"],
            known["stock"] == "1",
            reason=reason,
            named=not skipped,
        )
    return dataclasses.replace(_unreadable(top.name, reason), named=not skipped)


def _text(path: Path) -> str:
    try:
        return read_bounded(path, _SMALL_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
