"""The hardware probe: finds out what a backend's processor can do by trying it.

`images/vtxprobe` is a bare-metal program: it compares the capability registers with the
requirements of vmm.ko, then runs a guest of its own under EPT or nested paging, and reports over
the serial line.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import files, hostmake, progress
from harness.deadline import Deadline
from harness.errors import EXIT_CANNOT, EXIT_OK, CannotError, GuestError, MachineDied, UsageError
from harness.machine import Drive, Machine, Spec, make, traits
from harness.machine.models import Backend
from harness.probe import tap

SOURCE = files.PROJECT / "images" / "vtxprobe"
IMAGE = "vtxprobe.img"
MEMORY_BYTES = 64 << 20

_PARTS = ("*.c", "*.h", "*.S", "*.ld", "*.txt", "Makefile")
_START_LIMIT_S = 10.0
_STEP_S = 0.02
# Once the verdict is there the machine tries what may hang it, and switches itself off; what does
# not is ended after this, stretched to the backend's pace.
_LINGER_S = 1.0
_LINGER_MOST_S = 10.0


def lines_of(fault: str) -> set[str]:
    """The lines that fail because of a deliberate fault, from the probe's own list."""
    if fault.startswith("hide-"):
        return {fault.removeprefix("hide-")}
    rows = [line.split() for line in (SOURCE / "faults.txt").read_text().splitlines()]
    return {
        name for row in rows if row[:1] == [fault] for lines in row[1:] for name in lines.split(",")
    }


@dataclass(frozen=True)
class ProbeResult:
    """A probe that ran to its end.

    `cpu` is the emulator's name of another processor model than the backend's own; `run_dir` keeps
    the logs (default: a folder below `files.runs_dir` that goes away when everything held).  Raises
    UsageError for a model or fault that does not exist, CannotError when the probe cannot be built,
    GuestError with the console's tail when it did not come to its end.
    """

    backend: str
    report: tap.Report
    seconds: float
    cpu: str | None = None
    fault: str = ""

    @property
    def held(self) -> bool:
        """Whether all required tests passed."""
        return not self.report.missing

    @property
    def exit_code(self) -> int:
        """0 if all required tests passed, 3 if the backend lacks something."""
        return EXIT_OK if self.held else EXIT_CANNOT

    @property
    def reason(self) -> str:
        """One line: the first missing capability, or that none is missing."""
        where = self.backend if self.cpu is None else f"{self.backend} with {self.cpu}"
        first = self.report.first_missing
        if first is None:
            return (
                f"{where} runs virtual machines: it has everything that vmm.ko requires{self._cost}"
            )
        evidence = f": {first.notes[0]}" if first.notes else ""
        # The fault explains only its own lines.
        faulty = f" (FAULT={self.fault})" if first.name in lines_of(self.fault) else ""
        return f"{where} lacks {first.name} ({first.what}){faulty}{evidence}"

    @property
    def _cost(self) -> str:
        median = self.report.cost_cycles.get("median")
        if median is None:
            return ""
        clock = "cycles" if self.backend == "kvm" else "cycles of the emulated clock"
        return f"; a CPUID round trip takes {median} {clock}"

    def require(self) -> None:
        """Raise CannotError with the first missing capability, unless everything passed."""
        if not self.held:
            raise CannotError(self.reason)

    def to_data(self) -> dict[str, Any]:
        """All data for programs."""
        report = self.report
        first = report.first_missing
        return {
            "backend": self.backend,
            "cpu": self.cpu,
            "fault": self.fault,
            "held": self.held,
            "reason": self.reason,
            "first_missing": first.name if first else None,
            "cpuid_roundtrip_cycles": dict(report.cost_cycles),
            "seconds": round(self.seconds, 3),
            "verdict": dict(report.verdict),
            "comments": list(report.comments),
            "tests": [
                {**vars(test), "notes": list(test.notes), "needs": test.needs}
                for test in report.tests
            ],
        }


def faults() -> tuple[str, ...]:
    """The names of the deliberate faults that the probe can be built with."""
    return tuple(hostmake.make(SOURCE, "list-faults").split())


def build(fault: str = "") -> Path:
    """The probe's disk image, built unless the cache has one for the current sources.

    Raises UsageError for an unknown fault, CannotError with the compiler's messages if the build
    fails.
    """
    sources = sorted(path for pattern in _PARTS for path in SOURCE.glob(pattern))
    if not sources:
        raise CannotError(f"{SOURCE} contains no sources; restore them from the repository")
    digest = files.sha256_text(
        fault, *(text for path in sources for text in (path.name, path.read_text()))
    )
    cache = files.cache_dir() / "vtxprobe"
    image = cache / digest[:32] / IMAGE
    if image.exists():
        return image
    if fault and fault not in (known := faults()):
        raise UsageError(f"--fault {fault}: there is no such fault; choose from {', '.join(known)}")
    with files.locked(cache / "lock", "building the probe"):
        if not image.exists():
            with files.atomic_dir(image.parent) as target:
                hostmake.make(SOURCE, "all", f"FAULT={fault}", result=IMAGE, target=target / IMAGE)
    return image


def run_probe(
    backend: Backend,
    *,
    cpu: str | None = None,
    fault: str = "",
    run_dir: Path | None = None,
) -> ProbeResult:
    """Boot the probe in `backend` (kvm, bochs or tcg) and read its report.

    `cpu` is the emulator's name of another processor model than the backend's own; `run_dir` keeps
    the logs (default: a folder below `files.runs_dir` that goes away when everything held).  Raises
    UsageError for a model or fault that does not exist, CannotError when the probe cannot be built,
    GuestError with the console's tail when it did not come to its end.
    """
    scale = traits(backend.name).time_scale
    image = build(fault)
    folder = run_dir or Path(tempfile.mkdtemp(prefix="probe-", dir=files.runs_dir()))
    spec = Spec(
        run_dir=folder,
        drive=Drive(image),
        memory_bytes=MEMORY_BYTES,
        cpu=cpu,
        ssh=False,
        debug_exit=True,
        name="probe",
    )
    begun = time.monotonic()
    machine = make(backend, spec)
    with machine:
        try:
            _start(machine, cpu)
        except UsageError:
            if run_dir is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        # This includes the emulator's own start, whose time depends on the host, not on the
        # backend.
        _wait(machine, Deadline.after(10 + 2 * scale), min(_LINGER_MOST_S, _LINGER_S * scale))
        died = machine.exit_code
    seconds = time.monotonic() - begun
    report = tap.parse(machine.console.since(0))
    if report.problem:
        if died is None:
            how = f"it was ended after {seconds:.0f} s"
        else:
            how = f"the emulator ended with {died}"
        words = "" if report.bail else machine.last_words()
        raise GuestError(
            f"the probe did not finish on {backend}: {report.problem} ({how}); the console's log "
            f"is {spec.console_log}",
            detail="\n".join(filter(None, (words, machine.console.tail()))),
        )
    result = ProbeResult(backend.name, report, seconds, cpu, fault)
    if run_dir is None and result.held:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _start(machine: Machine, cpu: str | None) -> None:
    try:
        machine.start(Deadline.after(_START_LIMIT_S))
    except MachineDied as error:
        if cpu is None:
            raise
        helps = "bochs --help cpu" if machine.backend == "bochs" else "qemu-system-x86_64 -cpu help"
        raise UsageError(
            f"--cpu {cpu}: {machine.backend} does not start with it; {helps} lists the models",
            detail=error.detail,
        ) from error


def _wait(machine: Machine, deadline: Deadline, linger_s: float) -> None:
    """Until the emulator ended, or gave its verdict and had a moment to end."""
    said_all_at_s: float | None = None
    while machine.wait_ended(Deadline.after(_STEP_S)) is None and not deadline.expired:
        if said_all_at_s is None:
            report = tap.parse(machine.console.since(0))
            if report.verdict or report.bail is not None:
                said_all_at_s = time.monotonic()
        elif time.monotonic() - said_all_at_s > linger_s:
            return


def show(result: ProbeResult) -> None:
    """Print the table of capabilities for people."""
    rows = [
        (test.name, _status(test), "\n".join((test.what, *test.notes)))
        for test in result.report.tests
    ]
    if result.report.unanswered:
        what = "the machine hung in an optional step that has no part in the verdict"
        rows.append(("(after the verdict)", "no answer", what))
    progress.table(("capability", "status", "what it is, and what was found"), rows)
    progress.out.print(f"{result.reason}; {result.seconds:.1f} s", markup=False)


def _status(test: tap.Test) -> str:
    if test.held:
        return "ok"
    if test.optional:
        return "absent (optional)"
    return "not run" if test.needs else "MISSING"
