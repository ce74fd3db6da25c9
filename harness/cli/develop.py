"""Tasks for work on the project itself: its tests and its style."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.util import find_spec

from invoke.context import Context
from invoke.tasks import task

from harness import progress
from harness.cli.program import run_task
from harness.errors import UsageError
from harness.files import PROJECT

SECTIONS = {"unit": ("tests/unit", "patches/meminfo/unit"), "machine": ("tests/machine",)}
# Asked for by name, as each takes long.
SLOW = ("kvm", "soak")

# import-linter has no `python -m` of its own.
_LAYERS = "from importlinter.cli import lint_imports_command; lint_imports_command()"
STYLE = {
    "format": ["-m", "ruff", "format", "--check", "."],
    "lint": ["-m", "ruff", "check", "."],
    "types": ["-m", "mypy"],
    "layers": ["-c", _LAYERS],
}


def _style() -> int:
    """Run every style check; print the names of those that failed last."""
    # Not by process.run: the checks print directly to the user's terminal.
    failed = [
        name
        for name, command in STYLE.items()
        if subprocess.call([sys.executable, *command], stdout=sys.stderr, cwd=PROJECT)
    ]
    progress.say(f"style: {', '.join(failed)} failed" if failed else "style: ok")
    return 1 if failed else 0


@task(
    name="test",
    help={
        "only": "style, unit, machine, kvm or soak (default: the first three)",
        "args": "further arguments for pytest",
    },
)
@run_task
def run_tests(_context: Context, only: str = "", args: str = "") -> int:
    """Run the project's own tests: no FreeBSD, no KVM needed."""
    from harness import debian

    known = ("style", *SECTIONS, *SLOW)
    if only not in ("", *known):
        raise UsageError(f"--only {only}: no such part of the tests; there are {', '.join(known)}")
    if only == "style":
        return _style()
    debian.ensure()
    if only in SLOW:
        # One after another: soak counts what a test holds open, and kvm's tests share one machine.
        # Not by process.run, here and below: pytest prints directly to the user's terminal.
        slow = [sys.executable, "-m", "pytest", "tests/machine", "-m", only, "-s"]
        return subprocess.call([*slow, *shlex.split(args)], cwd=PROJECT)
    # Without the development packages the style cannot be checked.
    style = _style() if not only and find_spec("ruff") else 0
    folders = [it for name, paths in SECTIONS.items() if only in ("", name) for it in paths]
    # One worker for each processor; without pytest-xdist the tests run one after another.
    workers = ["-n", "logical", "--dist", "worksteal"] if find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", *folders, *workers, *shlex.split(args)]
    # Not by process.run, see above.
    return subprocess.call(command, cwd=PROJECT) or style


@task
@run_task
def lint(_context: Context) -> int:
    """Check the style: ruff (format and lint), mypy --strict, and the layers of the packages."""
    return _style()


@task(help={"check": "write nothing; exit with 1 if a file is out of date"})
@run_task
def docs(_context: Context, check: bool = False) -> int:
    """Write docs/tasks.md and docs/inv-vmm.1 from the tasks themselves."""
    from harness.cli import docs as pages
    from harness.cli.tasks import namespace
    from harness.files import write_atomic

    stale = []
    for name, write in (("tasks.md", pages.markdown), ("inv-vmm.1", pages.manual)):
        path, text = PROJECT / "docs" / name, write(namespace)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(f"docs/{name}")
            if not check:
                write_atomic(path, text)
    if check and stale:
        progress.say(f"error: {', '.join(stale)}: does not match the tasks; run ./inv docs")
        return 1
    progress.say(f"docs: {', '.join(stale) or 'nothing'} written")
    return 0
