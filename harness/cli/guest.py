"""Invoke tasks for a guest that stays; tasks.py takes them in."""

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
        "name": "what it is to be called (default: guest); several may be up",
        **RELEASE_HELP,
        **BACKEND_HELP,
        "stock": "load the unpatched module",
        "series": "load this series' module (a folder, a patch, - for stdin; may be repeated)",
        "module": "--no-module builds and loads nothing",
        **SANDBOX_HELP,
        **OFFLINE_HELP,
        "cold": "boot, though a snapshot could be resumed, and save none",
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
    from harness.run.session import Options

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
    """Show the guests that are up: how far they are, what is loaded, where their logs are."""
    from harness.cli import guest_commands

    return guest_commands.status(name, json)


@task(help=NAME_HELP)
@run_task
def ssh(_context: Context, name: str = defaults.GUEST) -> int:
    """A shell in the guest, or one command: ./inv ssh -- COMMAND; its exit code is passed on."""
    from harness.cli import guest_commands

    return guest_commands.ssh(name, after_dashes())


@task(help={**NAME_HELP, "lines": "how much of what came before is shown (default: 200 lines)"})
@run_task
def console(_context: Context, name: str = defaults.GUEST, lines: int = 200) -> int:
    """The guest's serial line, with what it said before; Ctrl-] leaves it and the guest goes on."""
    from harness.cli import guest_commands

    return guest_commands.console(name, lines)


@task(
    help={
        **NAME_HELP,
        "which": "console (default), keeper, emulator or bochs",
        "lines": "how many of the last lines (default: 100)",
        "follow": "go on with what comes, until the guest ends",
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
    """Print a log of the guest: what it said on its serial line, what its emulator said."""
    from harness.cli import guest_commands

    return guest_commands.logs(name, which, lines, follow)


@task(help={**NAME_HELP, "local": "a file or folder here", "remote": "where it goes in the guest"})
@run_task
def push(_context: Context, local: str, remote: str, name: str = defaults.GUEST) -> int:
    """Copy a file or a folder into the guest."""
    from harness.cli import guest_commands

    return guest_commands.push(name, local, remote)


@task(help={**NAME_HELP, "remote": "a file or folder in the guest", "local": "where it goes here"})
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
        "series": "load the module of this series (default: what the guest was started with)",
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
    """Build the module, unload the one that runs, load the new: what an edit needs to be tried."""
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
        "command": "a command for gdb to begin with (may be given again)",
    },
)
@run_task
def gdb(
    _context: Context, command: list[str], name: str = defaults.GUEST, symbols: str = ""
) -> int:
    """gdb on the guest's kernel and module, through QEMU's stub; the guest goes on afterwards."""
    from harness.cli import guest_commands

    return guest_commands.gdb(name, symbols, command)


GUEST_TASKS = (up, down, status, ssh, console, logs, push, pull, reload, reboot, gdb)
