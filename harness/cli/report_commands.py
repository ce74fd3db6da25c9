"""The work of `inv report`: print a report and open its page."""

from __future__ import annotations

import webbrowser

from harness import progress, report
from harness.errors import CannotError, UsageError
from harness.report import matrix_store, share


def show(run: str, open_page: bool, as_json: bool) -> None:
    """Print a run (the last one when `run` is empty), and write its page again.

    Raises UsageError when there is no such run, CannotError when there is no browser.
    """
    folder = report.find(run)
    if matrix_store.is_matrix(folder):
        several = matrix_store.load(folder)
        page, data = matrix_store.write_page(several), several.to_data()
        if not as_json:
            report.show_matrix(several)
    else:
        found = report.load(folder)
        page, data = report.write_page(found), found.to_data()
        if not as_json:
            report.show(found)
    if as_json:
        progress.print_json({**data, "page": str(page)})
    else:
        progress.out.print(f"page:    {page}", markup=False)
    if open_page and not webbrowser.open(page.as_uri()):
        raise CannotError(f"no browser was found; open {page} yourself")


def share_run(run: str, as_json: bool) -> None:
    """Write the file of a run that may be sent to others, and say where it is and where it goes."""
    folder = report.find(run)
    several = matrix_store.is_matrix(folder)
    found = matrix_store.load(folder) if several else report.load(folder)
    path = share.write(found)
    if as_json:
        progress.print_json({**share.shared(found), "file": str(path)})
        return
    progress.out.print(f"shared:  {path}", markup=False)
    progress.say(
        "It has no consoles, commands or logs, and names, paths, addresses and keys are left out. "
        "Read it, then attach it to an issue of the project (docs/report.md)"
    )


def show_list(as_json: bool) -> None:
    """Print the runs that left a report, the newest first; UsageError when there are none."""
    found = list(matrix_store.runs())
    if not found:
        raise UsageError("no run has a report yet; ./inv verify makes one")
    if as_json:
        progress.print_json(
            [
                {"run": one.run_dir.name, "exit_code": one.exit_code, "verdict": one.verdict}
                for one in found
            ]
        )
    else:
        report.show_runs(found)
