"""Measures how long each phase of a boot takes, by the console's lines."""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.bench.model import Live, Measurements, Ratio, Result
from harness.bench.subject import Subject
from harness.deadline import Deadline
from harness.files import runs_dir
from harness.guest.freebsd import Guest
from harness.machine import bochs_program
from harness.machine.bochs_program import Bochs

# The line that ends each phase; if it never appears, the phase is counted with the next one.
_FREEBSD = (
    ("firmware", r"BTX loader|FreeBSD/x86 bootstrap|Consoles: "),
    ("loader", r"---<<BOOT>>---|Copyright \(c\) 1992"),
    ("kernel", r"Trying to mount root from"),
    ("mount, init", r"Setting hostuuid|Starting file system checks|Entropy harvesting|/etc/rc"),
    ("rc until sshd", r"Starting sshd|Performing sanity check on sshd"),
    ("sshd", r"vmm-workbench: sshd is up"),
)
_STANDIN = (("firmware, GRUB, kernel", r"\S"), ("init until login", r"login: "))
_LAST = "SSH connection"
_LOOK_S = 0.05
_START_S = 30.0
_LOGIN_S = 30.0


def bochs(subject: Subject, rounds: int, live: Live) -> Result:
    """Boot in each installed Bochs, and record when each phase's last line came."""
    if subject.backend == "bochs" and len(each := bochs_program.found()) > 1:
        return _compared(subject, rounds, live, each)
    measured = Measurements()
    for number in range(rounds):
        live(f"round {number + 1} of {rounds}")
        for name, took_s in _phases(subject):
            measured.add(name, took_s)
    total = sum(sample.median for sample in measured.samples())
    return Result(
        "bochs" if subject.backend == "bochs" else f"phases-{subject.backend}",
        "The time of each phase of a boot",
        f"{subject.name} in {subject.backend}",
        measured.samples(),
        notes=(f"together {total:.1f} s",),
    )


def _compared(subject: Subject, rounds: int, live: Live, each: Sequence[Bochs]) -> Result:
    """Measure several versions alternately, and compare each with the first."""
    measured = Measurements()
    for number in range(rounds):
        for program in each:
            live(f"round {number + 1} of {rounds}: {program.version}")
            with bochs_program.using(program):
                phases = _phases(subject)
            for name, took_s in phases:
                measured.add(f"{program.version}: {name}", took_s)
            measured.add(f"{program.version}: together", sum(took_s for _, took_s in phases))
    first, *others = [program.version for program in each]
    ratios = [
        Ratio(
            f"a boot in {first} / in {other}",
            measured.median(f"{first}: together") / measured.median(f"{other}: together"),
        )
        for other in others
    ]
    return Result(
        "bochs",
        "The time of each phase of a boot, in each Bochs that is installed",
        f"{subject.name} in {subject.backend}",
        measured.samples(),
        tuple(ratios),
        tuple(f"{program.version}: {program.path}" for program in each),
    )


def _phases(subject: Subject) -> list[tuple[str, float]]:
    wanted = _FREEBSD if subject.record else _STANDIN
    seen: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=runs_dir()) as folder:
        machine = subject.make(replace(subject.spec, run_dir=Path(folder) / "guest"))
        ended = threading.Event()
        start = time.monotonic()
        with machine:
            machine.start(Deadline.after(_START_S))

            def watch() -> None:
                left = list(wanted)
                while left and not ended.wait(_LOOK_S):
                    text = machine.console.since(0)
                    # A line may follow another so quickly that only the later one is seen.
                    last = [at for at, (_, end) in enumerate(left) if re.search(end, text)]
                    if last:
                        seen.append((left[last[-1]][0], time.monotonic()))
                        del left[: last[-1] + 1]

            thread = threading.Thread(target=watch, name="phases", daemon=True)
            thread.start()
            if subject.record:
                with Guest(machine, subject.access) as guest:
                    guest.wait_ready()
                    seen_s = time.monotonic()
            else:
                # The stand-in's driver does not work with Bochs's network card.
                limit = Deadline.scaled(_LOGIN_S, machine.traits.time_scale)
                machine.console.talk(0).expect_any(["login: "], "the login prompt", limit)
                thread.join(timeout=2 * _LOOK_S)
            ended.set()
            thread.join()
    ends = [*seen, (_LAST, seen_s)] if subject.record else seen
    begins = [start, *(at for _, at in ends)]
    return [(name, max(0.0, at - begin)) for (name, at), begin in zip(ends, begins, strict=False)]
