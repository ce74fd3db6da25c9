"""The task that runs the checks in several places and makes one report of them."""

from __future__ import annotations

from pathlib import Path

from invoke.context import Context
from invoke.tasks import task

from harness import backends, defaults
from harness.cli.options import OFFLINE_HELP, SANDBOX_HELP
from harness.cli.program import run_task
from harness.errors import UsageError
from harness.series import given as given_series


@task(
    iterable=["release", "backend", "cpu_vendor", "series", "merge"],
    optional=["plan"],
    help={
        "release": "a FreeBSD release (may be given again; default: those prepared here, for a "
        "plan those that have a manifest)",
        "backend": f"{backends.listed()}; may be given again (default: kvm and bochs)",
        "cpu-vendor": "intel, amd or both (may be given again; default: what each backend has)",
        "stock": "also run the checks on the stock module, in runs of their own",
        "series": "test this series (a folder or a patch, may be given again)",
        "topic": f"a folder of patches/, whose series and checks to use (default: "
        f"{defaults.TOPIC})",
        "only": "run the checks that match this, as pytest -k takes it",
        "full": "also run the checks that take minutes",
        **OFFLINE_HELP,
        "cold": "boot, though a snapshot could be resumed, and save none",
        "jobs": "how many runs at once (default: as many as this machine has room for)",
        "plan": "run nothing: print the jobs as JSON, for github (default) or gitlab",
        "merge": "run nothing: make one report of what runs left in this folder (may be given "
        "again, and several folders may follow)",
        "planned": "with --merge: a file that --plan printed; jobs without a report are named",
        **SANDBOX_HELP,
        "json": "print the report as JSON",
    },
)
@run_task
def matrix(
    _context: Context,
    release: list[str],
    backend: list[str],
    cpu_vendor: list[str],
    series: list[str],
    merge: list[str],
    stock: bool = False,
    topic: str = "",
    only: str = "",
    full: bool = False,
    offline: bool = False,
    cold: bool = False,
    jobs: int = 0,
    plan: str = "",
    planned: str = "",
    sandbox: bool = True,
    json: bool = False,
) -> int:
    """Run the checks with every release, backend and processor that this machine can, at once."""
    from harness.cli import matrix_commands
    from harness.run.matrix import Asked
    from harness.run.options import Options

    if plan and merge:
        raise UsageError("--plan comes before the runs and --merge after them; leave one out")
    if planned and not merge:
        raise UsageError("--planned names the plan of runs that --merge joins; add --merge DIR")
    if jobs < 0:
        raise UsageError(f"--jobs {jobs}: it must be at least 1")
    asked = Asked(tuple(release), tuple(backend), tuple(cpu_vendor), stock)
    options = Options(
        release=release[0] if len(release) == 1 else defaults.RELEASE,
        series=given_series.absolute_paths(series),
        topic=topic or None,
        offline=offline,
        full=full,
        cold=cold,
        only=only,
        alone=bool(series) and stock,
    )
    if plan:
        # Without a word after it the option says no more than that it was given.
        form = plan if isinstance(plan, str) else "github"
        matrix_commands.plan(asked, options, form)
        return 0
    if merge:
        return matrix_commands.merge([Path(folder) for folder in merge], planned, json)
    return matrix_commands.run(asked, options, jobs, sandbox, json)
