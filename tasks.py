"""Invoke tasks: parse, call harness/, print.  `./inv --list` shows them."""

from __future__ import annotations

import subprocess
import sys

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from harness import host, packages, ui
from harness.cli import run_task

SECTIONS = ("unit", "machine")


@task
@run_task
def setup(_context: Context) -> None:
    """Install the Debian packages that are missing, or print the line that does."""
    packages.ensure()
    ui.say("setup: everything that is needed is here")


@task(
    name="test",
    help={"only": "unit or machine (default: both)", "args": "further arguments for pytest"},
)
@run_task
def run_tests(_context: Context, only: str = "", args: str = "") -> int:
    """Run the project's own tests: no FreeBSD, no KVM needed."""
    packages.ensure()
    folders = [f"tests/{section}" for section in SECTIONS if only in ("", section)]
    return subprocess.call([sys.executable, "-m", "pytest", *folders, *args.split()])


@task(help={"json": "print the findings and the facts as JSON"})
@run_task
def doctor(_context: Context, json: bool = False) -> int:
    """Show what this machine can do, what is missing, and the backend `auto` would take."""
    verdict = host.examine(host.gather())
    if json:
        ui.print_json(verdict.to_data())
    else:
        host.show(verdict)
    return verdict.exit_code


@task
@run_task
def lint(_context: Context) -> int:
    """Check the style: ruff (format and lint) and mypy --strict."""
    commands = (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"])
    return max(subprocess.call([sys.executable, "-m", *command]) for command in commands)


namespace = Collection(setup, doctor, run_tests, lint)
