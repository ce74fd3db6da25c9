"""Tasks that build patches and maintain a series."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from harness import defaults
from harness.cli.options import SANDBOX_HELP
from harness.cli.program import run_task

SERIES_HELP = {
    "series": "a folder of patches, a patch, a mailbox, or - for standard input (may be repeated)",
    "topic": "a folder of patches/ (default: meminfo)",
    "release": f"{defaults.RELEASE} or 14 (default: what the tree is, or {defaults.RELEASE})",
}


@task(
    iterable=["series"],
    help={
        **SERIES_HELP,
        "stock": "build without any patch",
        "src": "FreeBSD source tree (default: the imported one)",
        "sysroot": "FreeBSD's headers and libraries (default: the imported ones)",
        "builder": "auto (default), host, or guest: FreeBSD's own compiler, in a guest made for it",
        **SANDBOX_HELP,
        "json": "print the result as JSON",
    },
)
@run_task
def build(
    _context: Context,
    series: list[str],
    release: str = "",
    stock: bool = False,
    topic: str = "",
    src: str = "",
    sysroot: str = "",
    builder: str = "auto",
    sandbox: bool = True,
    json: bool = False,
) -> int:
    """Build vmm.ko, libvmmapi and vmmls from source and series, if anything has changed."""
    from harness.build import sandbox as fence
    from harness.cli import patch_commands

    fence.choose(sandbox)
    return patch_commands.run_build(release, stock, series, topic, src, sysroot, json, builder)


@task(name="list", help={"topic": SERIES_HELP["topic"], "json": "print it as JSON"})
@run_task
def patch_list(_context: Context, topic: str = "", json: bool = False) -> int:
    """Show every series, patch by patch."""
    from harness.cli import patch_commands

    return patch_commands.show_list(topic, json)


@task(
    name="check",
    iterable=["series"],
    help={
        **SERIES_HELP,
        "release": f"{defaults.RELEASE} or 14 (default: every release, or what the tree is)",
        "tree": "source tree to apply it to (default: the imported one, if any)",
        "files": "web address of a source tree, of which only the touched files are fetched",
        "json": "print the findings as JSON",
    },
)
@run_task
def patch_check(
    _context: Context,
    series: list[str],
    release: str = "",
    tree: str = "",
    topic: str = "",
    json: bool = False,
    files: str = "",
) -> int:
    """Check a series: applies, drift, style(9), message, sign-off, manuals; exit with 5 if
    wrong.
    """
    from harness.cli import patch_commands

    if files:
        return patch_commands.check_files(series, topic, release, tree, files, json)
    return patch_commands.check(series, topic, release, tree, json)


@task(name="apply", iterable=["series"], help={**SERIES_HELP, "tree": "the source tree to change"})
@run_task
def patch_apply(
    _context: Context, tree: str, series: list[str], release: str = "", topic: str = ""
) -> int:
    """Apply a series to a source tree: all of it or nothing."""
    from harness.cli import patch_commands

    return patch_commands.apply(tree, series, topic, release)


@task(
    name="refresh",
    iterable=["series"],
    help={
        **SERIES_HELP,
        "tree": "the tree with the series applied and edits made",
        "pristine": "the tree without series and edits (default: the imported one)",
        "into": "the patch that gets the edited files that no patch touches",
    },
)
@run_task
def patch_refresh(
    _context: Context,
    tree: str,
    series: list[str],
    pristine: str = "",
    release: str = "",
    topic: str = "",
    into: str = "",
) -> int:
    """Write the edits made in a tree back into the series' patches."""
    from harness.cli import patch_commands

    return patch_commands.refresh_series(tree, pristine, series, topic, release, into)


@task(
    name="export",
    iterable=["series"],
    help={
        **SERIES_HELP,
        "out": "the file to write (default: TOPIC-RELEASE.mbox)",
        "author": 'who sends it, "Name <mail>", where the patches have a placeholder',
        "signoff": "add that person's Signed-off-by to every patch",
    },
)
@run_task
def patch_export(
    _context: Context,
    series: list[str],
    release: str = "",
    topic: str = "",
    out: str = "",
    author: str = "",
    signoff: bool = False,
) -> int:
    """Write a series as one mbox, ready for git am or a review tool."""
    from harness.cli import patch_commands

    return patch_commands.export(series, topic, release, out, author, signoff)


@task(
    name="commits",
    positional=["repo"],
    help={
        "repo": "the checkout with the commits",
        "base": "the commit before the first one to write",
        "out": "the folder to write the patches to, new or empty",
    },
)
@run_task
def patch_commits(_context: Context, repo: str, base: str, out: str) -> int:
    """Write the commits after --base as a series, one patch for each, together exactly HEAD."""
    from harness.cli import patch_commands

    return patch_commands.commits(repo, base, out)


PATCH_TASKS = (patch_list, patch_check, patch_apply, patch_refresh, patch_export, patch_commits)
