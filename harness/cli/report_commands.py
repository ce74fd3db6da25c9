"""The work of `inv report`: print a report and open its page."""

from __future__ import annotations

import webbrowser

from harness import progress, report
from harness.errors import CannotError, UsageError
from harness.report import matrix_store


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
