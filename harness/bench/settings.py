"""Compares QEMU's settings without KVM, by the same boot of the same guest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil

from harness.bench.model import Live, Measurements, Ratio, Result
from harness.bench.subject import Subject
from harness.errors import CannotError


@dataclass(frozen=True)
class Setting:
    """A variant of the machine; what is empty or 0 is as the workbench has it."""

    name: str
    accel: str = ""
    cpu: str = ""
    cpus: int = 0


OURS = "as it is"
SETTINGS = (
    Setting(OURS),
    Setting("one thread", accel="tcg,thread=single"),
    Setting("one processor", cpus=1),
    Setting("tb-size 32 MiB", accel="tcg,thread=multi,tb-size=32"),
    Setting("tb-size 2 GiB", accel="tcg,thread=multi,tb-size=2048"),
    Setting("-cpu qemu64", cpu="qemu64"),
)


def tcg(subject: Subject, rounds: int, live: Live) -> Result:
    """Boot with each setting in turn: the seconds until SSH, and the emulator's processor time."""
    if subject.backend != "tcg":
        raise CannotError("inv bench tcg compares settings of QEMU without KVM: --backend tcg")
    measured = Measurements()
    for number in range(rounds):
        for setting in SETTINGS:
            live(f"round {number + 1} of {rounds}: {setting.name}")
            spec = replace(
                subject.spec,
                accel=setting.accel,
                cpu=setting.cpu or subject.spec.cpu,
                cpus=setting.cpus or subject.spec.cpus,
            )
            with replace(subject, spec=spec).up(cold=True) as (guest, took_s, _):
                used = psutil.Process(guest.machine.pid).cpu_times()
            measured.add(setting.name, took_s)
            measured.add(_processor(setting), used.user + used.system)
    ours = measured.median(_processor(SETTINGS[0]))
    ratios = [
        Ratio(
            f"processor time, {setting.name} / {OURS}", measured.median(_processor(setting)) / ours
        )
        for setting in SETTINGS[1:]
    ]
    return Result(
        "tcg",
        "Start to SSH with other settings of QEMU",
        f"{subject.name} in {subject.backend}",
        measured.samples(),
        tuple(ratios),
    )


def _processor(setting: Setting) -> str:
    return f"{setting.name}: processor"
