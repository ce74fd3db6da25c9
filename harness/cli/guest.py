"""Invoke tasks for guests that stay."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from harness import defaults
from harness.cli.options import BACKEND_HELP, OFFLINE_HELP, RELEASE_HELP, SANDBOX_HELP
from harness.cli.program import after_dashes, run_task
from harness.series import given as given_series

NAME_HELP = {"name": "the guest's name (default: guest)"}


@task(
    iterable=["series"],
    help={
        "name": "the guest's name (default: guest); several guests may be up",
        **RELEASE_HELP,
        **BACKEND_HELP,
        "stock": "load the unpatched module",
        "series": "load this series' module (a folder, a patch, - for stdin; may be repeated)",
        "module": "--no-module builds and loads nothing",
        **SANDBOX_HELP,
        **OFFLINE_HELP,
        "cold": "boot even if a snapshot could be resumed, and save none",
        "dry-run": "print the emulator's command line and start nothing",
    },
)
@run_task
def up(
    _context: Context,
    series: list[str],
    name: str = defaults.GUEST,
    release: str = defaults.RELEASE,
    backend: str = "auto",
    cpu_vendor: str = "",
    stock: bool = False,
    module: bool = True,
    sandbox: bool = True,
    offline: bool = False,
    cold: bool = False,
    dry_run: bool = False,
) -> int:
    """Boot a guest that stays, with the module built and loaded; see ssh, console, reload, down."""
    from harness import debian
    from harness.build import sandbox as fence
    from harness.cli import guest_commands
    from harness.run.options import Options

    fence.choose(sandbox)
    debian.ensure()
    given = given_series.absolute_paths(series)
    options = Options(
        release,
        backend,
        stock,
        given,
        offline=offline,
        module=module,
        cold=cold,
        cpu_vendor=cpu_vendor,
    )
    return guest_commands.dry_run(options) if dry_run else guest_commands.up(options, name)


@task(
    help={
        **NAME_HELP,
        "all": "end every guest",
        "hard": "do not ask the guest to shut down first",
    }
)
@run_task
def down(_context: Context, name: str = "", all: bool = False, hard: bool = False) -> int:  # noqa: A002
    """End a guest; its logs stay."""
    from harness.cli import guest_commands

    return guest_commands.down(name, all, hard)


@task(help={"name": "one guest (default: all)", "json": "print it as JSON"})
@run_task
def status(_context: Context, name: str = "", json: bool = False) -> int:
    """Show the guests that are up: their state, the loaded module, and where their logs are."""
    from harness.cli import guest_commands

    return guest_commands.status(name, json)


@task(help=NAME_HELP)
@run_task
def ssh(_context: Context, name: str = defaults.GUEST) -> int:
    """Open a shell in the guest, or run one command there: ./inv ssh -- COMMAND."""
    from harness.cli import guest_commands

    return guest_commands.ssh(name, after_dashes())


@task(help={**NAME_HELP, "lines": "how many of the earlier lines are shown (default: 200)"})
@run_task
def console(_context: Context, name: str = defaults.GUEST, lines: int = 200) -> int:
    """Connect to the guest's serial line, after its earlier lines; Ctrl-] leaves it."""
    from harness.cli import guest_commands

    return guest_commands.console(name, lines)


@task(
    help={
        **NAME_HELP,
        "which": "console (default), keeper, emulator or bochs",
        "lines": "how many of the last lines are printed (default: 100)",
        "follow": "print new lines until the guest ends",
    }
)
@run_task
def logs(
    _context: Context,
    name: str = defaults.GUEST,
    which: str = "console",
    lines: int = 100,
    follow: bool = False,
) -> int:
    """Print a log of the guest: its serial line, or the output of its emulator or keeper."""
    from harness.cli import guest_commands

    return guest_commands.logs(name, which, lines, follow)


@task(help={**NAME_HELP, "local": "a file or folder here", "remote": "its new path in the guest"})
@run_task
def push(_context: Context, local: str, remote: str, name: str = defaults.GUEST) -> int:
    """Copy a file or a folder into the guest."""
    from harness.cli import guest_commands

    return guest_commands.push(name, local, remote)


@task(help={**NAME_HELP, "remote": "a file or folder in the guest", "local": "its new path here"})
@run_task
def pull(_context: Context, remote: str, local: str, name: str = defaults.GUEST) -> int:
    """Copy a file or a folder out of the guest."""
    from harness.cli import guest_commands

    return guest_commands.pull(name, remote, local)


@task(
    iterable=["series"],
    help={
        **NAME_HELP,
        "stock": "load the unpatched module",
        "series": "load the module of this series (default: the one that the guest was "
        "started with)",
        **SANDBOX_HELP,
    },
)
@run_task
def reload(
    _context: Context,
    series: list[str],
    name: str = defaults.GUEST,
    stock: bool = False,
    sandbox: bool = True,
) -> int:
    """Build the module, unload the old one and load the new one, to try an edit."""
    from harness.build import sandbox as fence
    from harness.cli import guest_commands

    fence.choose(sandbox)
    changes: dict[str, object] = {}
    if stock or series:
        given = given_series.absolute_paths(series)
        changes = {"stock": stock, "series": given}
    return guest_commands.reload(name, changes)


@task(help=NAME_HELP)
@run_task
def reboot(_context: Context, name: str = defaults.GUEST) -> int:
    """Reboot the guest and wait until it answers again."""
    from harness.cli import guest_commands

    return guest_commands.reboot(name)


@task(
    iterable=["command"],
    help={
        **NAME_HELP,
        "symbols": "a kernel with symbols (default: the sysroot's kernel.debug, or the guest's)",
        "command": "a command that gdb runs first (may be given again)",
    },
)
@run_task
def gdb(
    _context: Context, command: list[str], name: str = defaults.GUEST, symbols: str = ""
) -> int:
    """Run gdb on the guest's kernel and module, through QEMU's stub."""
    from harness.cli import guest_commands

    return guest_commands.gdb(name, symbols, command)


GUEST_TASKS = (up, down, status, ssh, console, logs, push, pull, reload, reboot, gdb)
