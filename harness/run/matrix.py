"""`inv matrix` and `verify --cpu-vendor both`: the same checks in several places, at once.

Each column is a separate run in its own process (harness.run.matrix_cell), with a folder below the
matrix's folder.  A column that breaks does not affect the others.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import backends, host, progress, report
from harness import release as releases
from harness.errors import CannotError, UsageError, WorkbenchError
from harness.host.survey import available_memory_bytes
from harness.image import manifest, obtain, store
from harness.machine.models import VENDORS, vendor_of
from harness.report import Cell, Matrix, matrix_store
from harness.report.matrix import numbered
from harness.run import shards
from harness.run.further_guest import FurtherGuest
from harness.run.options import Options, load_series
from harness.run.run_folder import new_run_dir
from harness.run.verify import settle

BOTH = "both"
"""The value of --cpu-vendor for Intel and AMD."""

COMMAND = (sys.executable, "-m", "harness.run.matrix_cell")
"""The command of a column's process, without its last argument, the socket's number."""

# The line of a check without news; a terminal shows only the other lines.
_AS_USUAL = re.compile(r"^ +\d+ of \d+: (?:passed|skipped|failed, as it must)")


@dataclass(frozen=True)
class Asked:
    """The requested releases, backends and processors; if empty, this program chooses.

    `vendors` may hold `both`.  With `stock` each combination also runs on the stock module.
    """

    releases: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    vendors: tuple[str, ...] = ()
    stock: bool = False

    def __post_init__(self) -> None:
        for release in self.releases:
            manifest.check_release(release)
        for backend in self.backends:
            backends.require_known(backend)
        for vendor in self.vendors:
            if vendor != BOTH:
                vendor_of(vendor)

    def makers(self, backend: str) -> tuple[str, ...]:
        """The processors to try in a backend; only Bochs has both."""
        if BOTH in self.vendors:
            return VENDORS
        return self.vendors or (VENDORS if backend == "bochs" else ("",))

    def cells(self, releases: Iterable[str]) -> tuple[Cell, ...]:
        """Every combination for these releases, each once, whether or not it can run here.

        TCG is left out unless it was named, because it runs no virtual machines.
        """
        found = [
            Cell(release, backend, vendor, stock)
            for release in releases
            for backend in self.backends or ("kvm", "bochs")
            for vendor in self.makers(backend)
            for stock in ((False, True) if self.stock else (False,))
        ]
        return tuple({cell.key: cell for cell in found}.values())


def both(options: Options) -> tuple[Cell, ...]:
    """The two columns of `verify --cpu-vendor both`."""
    return tuple(
        Cell(options.release, options.backend, vendor, options.stock) for vendor in VENDORS
    )


def here(asked: Asked, options: Options) -> tuple[Cell, ...]:
    """The columns for this machine; those that cannot be run there have the reason.

    Without a named release these are the prepared ones, or the default release if there are none;
    each other release with a manifest is a column that is not run.  Raises UsageError if there is
    no series for any of them.
    """
    ready = _newest_builds(record.release for record in store.prepared())
    named = tuple(map(store.resolve, asked.releases)) or tuple(ready) or (options.release,)
    for release in asked.releases:
        obtain.require_known(release)
    refused = _without_series(named, options)
    if len(refused) == len(named):
        raise next(iter(refused.values()))
    cells = []
    for cell in asked.cells(named):
        why = refused.get(cell.release)
        if why is not None and not cell.stock:
            if asked.releases:
                raise why
            cell = dataclasses.replace(cell, reason=why.message, named=False)
        cells.append(cell)
    by_name, facts = bool(asked.backends or asked.vendors), host.gather()
    cells = [cell if cell.reason else _placed(cell, facts, named=by_name) for cell in cells]
    if not asked.releases:
        here = {releases.parse(release).line for release in named}
        others = [release for release in manifest.available() if release not in here]
        cells += [
            dataclasses.replace(
                cell,
                named=False,
                reason=f"its image is not prepared here; ./inv image.fetch --release {cell.release}"
                " does it",
            )
            for cell in asked.cells(others)
        ]
    return tuple({(cell.key, cell.reason): cell for cell in cells}.values())


def guest_name(keep_as: str, cell: Cell) -> str:
    """The name of a column's guest that stays; a build's whole name would be too long."""
    release = releases.parse(cell.release)
    if release.build:
        short = f"{release.branch}-{release.build.partition('-')[0]}"
        cell = dataclasses.replace(cell, release=short)
    return f"{keep_as}-{cell.slug.replace('.', '-')}"


def _newest_builds(found: Iterable[str]) -> list[str]:
    """The releases, with only the newest build of each snapshot."""
    newest: dict[str, releases.Release] = {}
    for release in map(releases.parse, found):
        newest[release.line] = max(release, newest.get(release.line, release))
    return list(map(str, newest.values()))


def require_series(options: Options) -> None:
    """Raise UsageError if the requested series does not exist for the release.

    This is checked before there is a folder or a process.  The run itself reports other errors.
    """
    obtain.require_known(options.release)
    for error in _without_series([options.release], options).values():
        raise error


def _without_series(releases: Iterable[str], options: Options) -> dict[str, UsageError]:
    """The releases for which there is nothing to build, with the reason."""
    refused = {}
    for release in releases:
        try:
            load_series(settle(dataclasses.replace(options, release=release)))
        except UsageError as error:
            refused[release] = error
        except WorkbenchError:
            # The run reports this error.
            continue
    return refused


def _placed(cell: Cell, facts: host.HostFacts, *, named: bool) -> Cell:
    """The cell with the backend and processor that it gets here, or the reason why not."""
    decision = host.decide(facts, cell.backend, cell.vendor)
    if decision.backend is None:
        why = f"{decision.reason}; {decision.remedy}" if decision.remedy else decision.reason
        return dataclasses.replace(cell, reason=why, named=named)
    return dataclasses.replace(cell, backend=decision.backend.name, vendor=decision.backend.vendor)


@dataclass(frozen=True)
class Job:
    """The input of a column's process."""

    options: Options
    run_dir: Path
    keep_as: str


def run(
    cells: Sequence[Cell],
    options: Options,
    *,
    what: str = "matrix",
    keep_as: str = "",
    jobs: int = 0,
) -> Matrix:
    """Run the columns, as many at once as this machine has room for, and write the report.

    `jobs` is the number of runs at once; 0 means as many as there is room for.  With `keep_as` the
    guest of a failed run stays up, under this name and its column's.  An interruption ends all
    runs, and is raised when the report is written.
    """
    facts = host.gather()
    placed = numbered(cell if cell.reason else _placed(cell, facts, named=True) for cell in cells)
    todo = [cell for cell in placed if not cell.reason]
    room = shards.how_many(available_memory_bytes(), len(os.sched_getaffinity(0)))
    at_once = max(1, min(jobs or room, len(todo)))
    run_dir = new_run_dir(what)
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    guests = options.guests or max(1, room // at_once)
    given = {}
    for cell in todo:
        (run_dir / cell.slug).mkdir(mode=0o700)
        name = guest_name(keep_as, cell) if keep_as else ""
        given[cell.label] = Job(_options(options, cell, guests), run_dir / cell.slug, name)
    runs = _Runs(given)
    done: dict[str, Cell] = {}
    interrupted = False
    with progress.stage(f"{len(todo)} runs, {at_once} at once") as step:
        runs.live = step.live
        with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
            waiting = [threads.submit(runs.one, cell) for cell in todo]
            try:
                concurrent.futures.wait(waiting)
            except KeyboardInterrupt:
                interrupted = True
                runs.stop()
        for cell in (future.result() for future in waiting):
            done[cell.label] = cell
        step.note = "interrupted" if interrupted else f"see {run_dir}"
    found = Matrix(tuple(done.get(cell.label, cell) for cell in placed), began, run_dir)
    try:
        matrix_store.save(found)
    except OSError as error:
        raise CannotError(f"{run_dir}: no report was written: {error.strerror}") from error
    if interrupted:
        raise KeyboardInterrupt
    return found


def _options(options: Options, cell: Cell, guests: int) -> Options:
    """The options of a column's run; a column of the stock module gets no series."""
    of_stock = cell.stock and not options.stock
    return dataclasses.replace(
        options,
        release=cell.release,
        backend=cell.backend,
        cpu_vendor=cell.vendor,
        stock=cell.stock,
        series=() if of_stock else options.series,
        side_by_side=options.side_by_side and not of_stock,
        alone=options.alone and not of_stock,
        guests=guests,
    )


class _Runs:
    """The processes of the columns, and their progress."""

    def __init__(self, jobs: dict[str, Job]) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._going: dict[str, FurtherGuest] = {}
        self._stopped = False
        self._stages: dict[str, str] = {}
        self.live: Callable[[str], None] = lambda _line: None

    def one(self, cell: Cell) -> Cell:
        """Run a column to its end; the cell with its report, or with the reason why there is none.

        To be called in a thread.
        """
        job = self._jobs[cell.label]
        with self._lock:
            if self._stopped:
                return dataclasses.replace(cell, reason="interrupted")
            try:
                guest = FurtherGuest(COMMAND, job.run_dir, job)
            except OSError as error:
                why = f"its process could not be started: {error.strerror}"
                return dataclasses.replace(cell, reason=why)
            self._going[cell.label] = guest
        why = f"its process ended without a report; see {cell.slug}/process.log"
        try:
            while True:
                kind, first, second = guest.line.recv()
                if kind in ("done", "refused"):
                    why = first or why
                    break
                self._heard(cell.label, kind, first, second)
        except (EOFError, OSError):
            pass
        finally:
            with self._lock:
                self._stages.pop(cell.label, None)
                del self._going[cell.label]
            FurtherGuest.end([guest])
        try:
            found = report.load(job.run_dir)
        except UsageError:
            return dataclasses.replace(cell, reason=why)
        return dataclasses.replace(cell, report=found, folder=cell.slug)

    def stop(self) -> None:
        """Interrupt all runs and start no more; each run ends its own guests."""
        with self._lock:
            self._stopped = True
            going = list(self._going.values())
        for guest in going:
            guest.hang_up()

    def _heard(self, label: str, kind: str, first: str, second: str) -> None:
        """Show a message of a run, with its label."""
        terminal = progress.err.is_terminal
        if kind == "begin":
            self._stages[label] = first
            if not terminal:
                progress.say(f"{label}: {first} ...")
        elif kind == "end":
            note = f": {second}" if second else ""
            progress.say(f"{label}: {self._stages.pop(label, 'stage')}: {first}{note}")
        elif kind == "say" and not (terminal and _AS_USUAL.match(first)):
            progress.say(f"{label}: {first}")
        elif kind == "detail":
            progress.say_detail(f"{label}:\n{first}")
        elif kind == "live" and terminal:
            self._stages[label] = f"{self._stages.get(label, '').partition(': ')[0]}: {first}"
            self.live("; ".join(f"{name}: {it}" for name, it in sorted(self._stages.items())))
