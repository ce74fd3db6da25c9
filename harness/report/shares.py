"""Where the time of a run went: the emulator, SSH, the guest's own work, this machine."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from harness.report.data import Report

EMPTY_COMMAND = "seconds of an empty command"
"""The property with the time of a command that does nothing, as measured after the load."""

_EMULATOR = ("boot", "load", "load stock")


@dataclass(frozen=True)
class Shares:
    """Seconds of a run; those of checks are added up over all guests.

    `emulator_s` is the time of the boot and the loads, `build_s` that of the build.  The time of
    the checks has three parts: `ssh_s`, the time that the same number of commands takes if they do
    nothing; `guest_s`, the rest of the commands' time; and `here_s`, the time without a command.
    `ssh_s` is None if the run did not measure it; then it is part of `guest_s`.
    """

    emulator_s: float
    build_s: float
    commands: int
    ssh_s: float | None
    guest_s: float
    here_s: float

    def __str__(self) -> str:
        ssh = "" if self.ssh_s is None else f"SSH {self.ssh_s:.1f} s, "
        return (
            f"emulator {self.emulator_s:.1f} s (boot and load), build {self.build_s:.1f} s; "
            f"checks: {self.commands} commands, {ssh}the guest {self.guest_s:.1f} s, "
            f"this machine {self.here_s:.1f} s"
        )


def shares(report: Report) -> Shares:
    """The shares of a run."""
    stages = {stage.name: stage.seconds for stage in report.stages}
    commands = sum(check.evidence.count for check in report.checks)
    asked_s = sum(check.evidence.seconds for check in report.checks)
    ssh_s: float | None = None
    with contextlib.suppress(KeyError, ValueError):
        ssh_s = min(asked_s, commands * float(report.properties[EMPTY_COMMAND]))
    return Shares(
        emulator_s=sum(stages.get(name, 0.0) for name in _EMULATOR),
        build_s=stages.get("build", 0.0),
        commands=commands,
        ssh_s=ssh_s,
        guest_s=asked_s - (ssh_s or 0.0),
        here_s=max(0.0, sum(check.seconds for check in report.checks) - asked_s),
    )
