"""Tasks about this machine: what it needs, what it can do, the bare-metal probe."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from harness import backends, progress
from harness.cli.program import run_task


@task(
    help={
        "bochs": "also unpack this Bochs (2.7, 3.0) next to the installed one; "
        "HARNESS_BOCHS chooses it"
    }
)
@run_task
def setup(_context: Context, bochs: str = "") -> None:
    """Install the Debian packages that are missing, or print the command that does."""
    from harness import debian
    from harness.machine import bochs_packages

    if bochs:
        # The version is checked before anything is installed.
        bochs_packages.folder(bochs)
    debian.ensure(optional=True)
    progress.say("setup: everything that is needed is installed")
    if bochs:
        with progress.stage(f"Bochs {bochs}") as step:
            step.note = str(bochs_packages.unpack(bochs))
        progress.say(f"setup: HARNESS_BOCHS={bochs} uses it")


@task(help={"json": "print the findings and the facts as JSON"})
@run_task
def doctor(_context: Context, json: bool = False) -> int:
    """Show what this machine can do, what is missing, and the backend `auto` would take."""
    from harness.run import doctor as doctor_run

    verdict = doctor_run.examine(doctor_run.gather())
    if json:
        progress.print_json(verdict.to_data())
    else:
        doctor_run.show(verdict)
    return verdict.exit_code


@task(
    help={
        "backend": backends.listed(first="auto (default)"),
        "cpu-vendor": "intel or amd (default: that of the backend; intel in Bochs)",
        "cpu": "the emulator's name of a processor model (default: the backend's best)",
        "fault": "build in a deliberate fault; images/vtxprobe/faults.txt has the names",
        "json": "print the result as JSON",
    }
)
@run_task
def probe(
    _context: Context,
    backend: str = "auto",
    cpu_vendor: str = "",
    cpu: str = "",
    fault: str = "",
    json: bool = False,
) -> int:
    """Try VT-x and EPT (or SVM) in a backend with a tiny guest: takes seconds, no download."""
    from harness import host
    from harness.probe import run as vtxprobe

    decision = host.decide(host.gather(), backend, cpu_vendor)
    chosen = decision.require()
    progress.say(f"backend {chosen}: {decision.reason}")
    with progress.stage(f"probe on {chosen}") as stage:
        result = vtxprobe.run_probe(chosen, cpu=cpu or None, fault=fault)
        stage.outcome = "ok" if result.held else "something is missing"
    if not result.held:
        progress.say(f"error: {result.reason}")
    if json:
        progress.print_json(result.to_data())
    else:
        vtxprobe.show(result)
    return result.exit_code


MACHINE_TASKS = (setup, doctor, probe)
