"""Tasks for work on the project itself: its tests and its style."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.util import find_spec

from invoke.context import Context
from invoke.tasks import task

from harness.cli.program import run_task
from harness.errors import UsageError

SECTIONS = {"unit": ("tests/unit", "patches/meminfo/unit"), "machine": ("tests/machine",)}


@task(
    name="test",
    help={
        "only": "unit, machine or soak (default: the first two)",
        "args": "further arguments for pytest",
    },
)
@run_task
def run_tests(_context: Context, only: str = "", args: str = "") -> int:
    """Run the project's own tests: no FreeBSD, no KVM needed."""
    from harness import debian

    if only not in ("", *SECTIONS, "soak"):
        raise UsageError(f"--only {only}: one of {', '.join(SECTIONS)}, soak is meant")
    debian.ensure()
    if only == "soak":
        # One after another: what a test holds is counted.
        soak = [sys.executable, "-m", "pytest", "tests/machine", "-m", "soak", "-s"]
        return subprocess.call([*soak, *shlex.split(args)])
    folders = [it for name, paths in SECTIONS.items() if only in ("", name) for it in paths]
    # A worker for each processor; without pytest-xdist they run one after another.
    workers = ["-n", "logical", "--dist", "worksteal"] if find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", *folders, *workers, *shlex.split(args)]
    return subprocess.call(command)


@task
@run_task
def lint(_context: Context) -> int:
    """Check the style: ruff (format and lint) and mypy --strict."""
    commands = (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"])
    return max(subprocess.call([sys.executable, "-m", *command]) for command in commands)
