"""What `inv matrix` does and prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import debian, progress
from harness.build import sandbox as fence
from harness.image import manifest
from harness.report import Matrix, merge_folders, show_matrix
from harness.run import matrix, matrix_plan
from harness.run.options import Options
from harness.run.run_folder import new_run_dir


def run(asked: matrix.Asked, options: Options, jobs: int, sandbox: bool, as_json: bool) -> int:
    """Run what was asked for as far as this machine can, and print the report; the exit code."""
    cells = matrix.here(asked, options)
    fence.choose(sandbox)
    debian.ensure()
    found = matrix.run(cells, options, jobs=jobs)
    show(found, as_json)
    return found.exit_code


def plan(asked: matrix.Asked, options: Options, form: str) -> None:
    """Print the jobs for a CI engine on one line, which its variables can hold."""
    known = manifest.available()
    for release in asked.releases:
        manifest.check_release(release)
        if manifest.find(release) is None:
            progress.say(
                f"warning: --release {release}: there is no manifest for it (only for "
                f"{', '.join(known)}), so each runner must have imported it"
            )
    cells = asked.cells(asked.releases or manifest.published_releases())
    jobs = matrix_plan.plan(cells, options, form, named=bool(asked.backends))
    sys.stdout.write(json.dumps(jobs) + "\n")


def merge(folders: Sequence[Path], planned: str, as_json: bool) -> int:
    """Make one report of what runs left, and print it; the exit code."""
    jobs = matrix_plan.read(Path(planned)) if planned else ()
    found = merge_folders(folders, jobs, new_run_dir("matrix"))
    show(found, as_json)
    return found.exit_code


def show(found: Matrix, as_json: bool) -> None:
    """Print a report of several runs, as tables or as data."""
    if as_json:
        progress.print_json(found.to_data())
    else:
        show_matrix(found)
        progress.out.print(f"page:    {found.run_dir / 'report.html'}", markup=False)
