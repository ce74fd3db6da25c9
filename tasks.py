"""Invoke tasks: parse, call harness/, print.  `./inv --list` shows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from harness import host, packages, report, ui
from harness import probe as vtxprobe
from harness.cli import run_task
from harness.verify import verify as run_verify
from harness.workbench import Options

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


@task(
    iterable=["series"],
    help={
        "release": "the FreeBSD release to boot (default: 15.1)",
        "backend": "auto (default), kvm, bochs or tcg",
        "stock": "run the same checks on the unpatched module: the patch's must fail there",
        "series": "test this series (a folder or patch files, may be given again)",
        "json": "print the report as JSON",
    },
)
@run_task
def verify(
    _context: Context,
    series: list[str],
    release: str = "15.1",
    backend: str = "auto",
    stock: bool = False,
    json: bool = False,
) -> int:
    """Boot FreeBSD, build and load the patched vmm.ko, run the checks, print the verdict."""
    packages.ensure()
    options = Options(release, backend, stock, tuple(Path(path).absolute() for path in series))
    result = run_verify(options)
    if json:
        ui.print_json(result.to_data())
    else:
        report.show(result)
    return result.exit_code


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


@task(
    help={
        "backend": "auto, kvm, bochs or tcg",
        "cpu": "the emulator's name of a processor model (default: the backend's best)",
        "fault": "build a deliberate fault in; images/vtxprobe/faults.txt has the names",
        "json": "print the result as JSON",
    }
)
@run_task
def probe(
    _context: Context, backend: str = "auto", cpu: str = "", fault: str = "", json: bool = False
) -> int:
    """Try VT-x and EPT (or SVM) in a backend by running a tiny guest: seconds, no download."""
    decision = host.decide(host.gather(), backend)
    chosen = decision.require()
    ui.say(f"backend {chosen}: {decision.reason}")
    with ui.stage(f"probe on {chosen}") as stage:
        result = vtxprobe.run_probe(
            chosen, vendor_flag=decision.vendor_flag, cpu=cpu or None, fault=fault
        )
        stage.outcome = "ok" if result.held else "something is missing"
    if not result.held:
        ui.say(f"error: {result.reason}")
    if json:
        ui.print_json(result.to_data())
    else:
        vtxprobe.show(result)
    return result.exit_code


@task
@run_task
def lint(_context: Context) -> int:
    """Check the style: ruff (format and lint) and mypy --strict."""
    commands = (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"])
    return max(subprocess.call([sys.executable, "-m", *command]) for command in commands)


namespace = Collection(verify, setup, doctor, probe, run_tests, lint)
