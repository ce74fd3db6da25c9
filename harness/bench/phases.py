"""Where the seconds of a boot go, told from the console as it happens."""

from __future__ import annotations

import re
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from harness.bench.model import Live, Result, Taken
from harness.bench.subject import Subject
from harness.deadline import Deadline
from harness.files import runs_dir
from harness.guest.freebsd import Guest

# What ends each phase; a phase whose end never shows is counted with the next.
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


def bochs(subject: Subject, rounds: int, live: Live) -> Result:
    """Boot, and take down when each phase's last line came."""
    taken = Taken()
    for number in range(rounds):
        live(f"round {number + 1} of {rounds}")
        for name, took_s in _phases(subject):
            taken.add(name, took_s)
    total = sum(sample.median for sample in taken.samples())
    return Result(
        "bochs" if subject.backend == "bochs" else f"phases-{subject.backend}",
        "Where the seconds of a boot go",
        f"{subject.name} in {subject.backend}",
        taken.samples(),
        notes=(f"together {total:.1f} s",),
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
                    # A line may come so soon after another that only the later one is met.
                    last = [at for at, (_, end) in enumerate(left) if re.search(end, text)]
                    if last:
                        seen.append((left[last[-1]][0], time.monotonic()))
                        del left[: last[-1] + 1]

            thread = threading.Thread(target=watch, name="phases", daemon=True)
            thread.start()
            with Guest(machine, subject.access) as guest:
                guest.wait_ready()
                seen_s = time.monotonic()
            ended.set()
            thread.join()
    ends = [*seen, (_LAST, seen_s)]
    begins = [start, *(at for _, at in ends)]
    return [(name, max(0.0, at - begin)) for (name, at), begin in zip(ends, begins, strict=False)]
