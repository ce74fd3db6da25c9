"""The tasks that give a verdict, and the one that prints it again."""

from __future__ import annotations

from pathlib import Path

from invoke.context import Context
from invoke.tasks import task

from harness import defaults, progress
from harness.cli.options import (
    BACKEND_HELP,
    OFFLINE_HELP,
    RELEASE_HELP,
    SANDBOX_HELP,
    VERIFY_VENDOR_HELP,
    VIRTUALIZING_HELP,
)
from harness.cli.program import run_task
from harness.errors import EXIT_USAGE, UsageError
from harness.series import given as given_series


@task(
    iterable=["series"],
    help={
        **RELEASE_HELP,
        **BACKEND_HELP,
        **VERIFY_VENDOR_HELP,
        "stock": "run the same checks on the unpatched module; the patch's checks must fail there",
        "series": "test this series (a folder, a patch, - for stdin; may be repeated)",
        "topic": "a folder of patches/, whose series and checks to use (default: "
        "meminfo); if it has no patches, only its checks run, on the stock module or on --series",
        "side-by-side": "run the checks on the stock module too (--series does so by itself)",
        "alone": "with --series: leave the stock module out",
        "go-on": "when the guest breaks, start it again for the remaining checks",
        "only": "run only the checks that match this, as pytest's -k does",
        **OFFLINE_HELP,
        "cold": "boot even if a snapshot could be resumed, and save none",
        "full": "also run the checks that take minutes, such as those with a guest "
        "inside the guest",
        "guests": "in how many guests at once the checks run (default: one for each processor)",
        "keep": "leave the guest up if the verdict is bad, and say how to enter it",
        "name": "with --keep: the guest's name (default: verify)",
        "builder": "who builds vmm.ko: auto (default), host, or guest (FreeBSD's own compiler)",
        **SANDBOX_HELP,
        "coverage": "count which lines run, and say which changed lines did not",
        "json": "print the report as JSON",
    },
)
@run_task
def verify(
    _context: Context,
    series: list[str],
    release: str = defaults.RELEASE,
    backend: str = "auto",
    cpu_vendor: str = "",
    stock: bool = False,
    offline: bool = False,
    full: bool = False,
    topic: str = "",
    side_by_side: bool = False,
    alone: bool = False,
    go_on: bool = False,
    only: str = "",
    cold: bool = False,
    keep: bool = False,
    name: str = "",
    builder: str = "auto",
    sandbox: bool = True,
    coverage: bool = False,
    json: bool = False,
    guests: int = 0,
) -> int:
    """Boot FreeBSD, build and load the patched vmm.ko, run the checks, print the verdict."""
    from harness import debian, report
    from harness.build import sandbox as fence
    from harness.run import matrix
    from harness.run.options import Options, name_to_keep
    from harness.run.verify import settle
    from harness.run.verify import verify as run_verify

    given = given_series.absolute_paths(series)
    keep_as = name_to_keep(keep, name)
    options = Options(
        release,
        backend,
        stock,
        given,
        topic or None,
        offline=offline,
        full=full,
        cold=cold,
        side_by_side=side_by_side,
        alone=alone,
        go_on=go_on,
        only=only,
        builder=builder,
        coverage=coverage,
        cpu_vendor="" if cpu_vendor == matrix.BOTH else cpu_vendor,
        guests=guests,
    )
    fence.choose(sandbox)
    debian.ensure()
    if cpu_vendor == matrix.BOTH:
        if backend not in ("auto", "bochs"):
            raise UsageError(
                f"--cpu-vendor both: {backend} has one processor; use --backend auto or bochs"
            )
        from harness.cli import matrix_commands

        options = settle(options)
        matrix.require_series(options)
        all_of_it = matrix.run(
            matrix.both(options),
            options,
            what="verify-both",
            keep_as=keep_as,
        )
        matrix_commands.show(all_of_it, json)
        return all_of_it.exit_code
    result = run_verify(options, keep_as=keep_as)
    if result.error and result.error_exit_code == EXIT_USAGE and not json:
        # Nothing was run, so there are no stages to show.
        raise UsageError(result.error)
    if json:
        progress.print_json(result.to_data())
    else:
        report.show(result)
    return result.exit_code


@task(
    name="report",
    help={
        "run": "a run of --list, or its folder (default: the last one)",
        "list": "list the runs that left a report",
        "open": "open the page in a browser",
        "share": "write one file for sending, without names, paths, addresses and keys",
        "json": "print it as JSON",
    },
)
@run_task
def show_report(
    _context: Context,
    run: str = "",
    list: bool = False,  # noqa: A002
    open: bool = False,  # noqa: A002
    share: bool = False,
    json: bool = False,
) -> None:
    """Print the report of a run, write its page (report.html) again, and open it if asked to."""
    from harness.cli import report_commands

    if share and (list or open):
        raise UsageError("--share writes the file of one run; leave out --list and --open")
    if list:
        report_commands.show_list(json)
    elif share:
        report_commands.share_run(run, json)
    else:
        report_commands.show(run, open, json)


@task(
    aliases=["teeth"],
    iterable=["only", "checks"],
    help={
        "only": "the name of a variant to run (may be given again; default: all)",
        "checks": "run, besides those that a variant names, only the checks with this in their "
        "file::name (may be given again; default: all)",
        "regressions": "a folder of patches that put real bugs back, instead of the mutants",
        "at-least": "with --regressions: fail below this rate, in per cent (default: 80)",
        "guests": "in how many guests at once (default: as many as fit into memory)",
        "table": "with --regressions: also write the result into the tables of this page",
        "topic": f"whose mutants to try: a folder of patches/ (default: {defaults.TOPIC})",
        "release": f"with --regressions: the FreeBSD release (default: {defaults.RELEASE})",
        **VIRTUALIZING_HELP,
        "all": "run every check on each variant, and name all that fail",
        "full": "also run the checks that take minutes",
        **OFFLINE_HELP,
        **SANDBOX_HELP,
        "json": "print the result as JSON",
    },
)
@run_task
def mutation(
    _context: Context,
    only: list[str],
    checks: list[str],
    regressions: str = "",
    at_least: int = 80,
    guests: int = 0,
    table: str = "",
    topic: str = "",
    release: str = defaults.RELEASE,
    backend: str = "auto",
    cpu_vendor: str = "",
    all: bool = False,  # noqa: A002  (it is the option's name)
    full: bool = False,
    offline: bool = False,
    sandbox: bool = True,
    json: bool = False,
) -> int:
    """Run the checks on wrong variants of the patch, or on real bugs: what do they catch?"""
    from harness import debian
    from harness.build import sandbox as fence
    from harness.run import mutation as mutants
    from harness.run import regression_table
    from harness.run import regressions as bugs
    from harness.run.options import Options

    if table and not regressions:
        raise UsageError("--table needs --regressions")
    if topic and regressions:
        raise UsageError(
            "--topic chooses mutants, but --regressions uses other patches; leave out one of them"
        )
    if checks and regressions:
        raise UsageError("--checks chooses among the checks for mutants; --regressions has its own")
    if not 0 <= at_least <= 100:
        raise UsageError(f"--at-least {at_least}: it must be a rate from 0 to 100 per cent")
    fence.choose(sandbox)
    debian.ensure()
    options = Options(
        release=release,
        backend=backend,
        topic=topic or None,
        offline=offline,
        full=full,
        cpu_vendor=cpu_vendor,
        guests=guests,
    )
    if not regressions:
        result = mutants.mutation(options, only, every=all, only_checks=checks)
        if json:
            progress.print_json(result.to_data())
        else:
            mutants.show(result)
        return result.exit_code
    folder = Path(regressions).absolute()
    tried = bugs.regressions(options, folder, only, at_least=at_least, every=all, guests=guests)
    if table:
        regression_table.update(Path(table), tried)
    if json:
        progress.print_json(tried.to_data())
    else:
        bugs.show(tried)
    return tried.exit_code
