"""Compares checks: the last recorded run with the one before, and one guest with several."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import process
from harness.bench.model import Live, Measurements, Ratio, Result, at_least
from harness.bench.subject import Subject
from harness.deadline import Deadline
from harness.errors import EXIT_OK, CannotError, UsageError
from harness.files import PROJECT
from harness.host.survey import available_memory_bytes
from harness.report import Report
from harness.report import store as reports
from harness.run import mutants, shards

_TASK_S = 3600.0
# Enough variants that the baseline is not most of the time, which these few checks keep short.
_VARIANTS = 12
_FEW_CHECKS = ("--checks", "test_limit.py", "--checks", "test_sysctls.py")
# On two processors two guests should take at most 1 / 1.7 of the time of one.
_EFFICIENCY_WANTED = 0.85


def guests(subject: Subject, rounds: int, live: Live) -> Result:
    """Run `verify` with one guest and with as many as this machine has room for, by turns."""
    room = _room(subject, "guests")
    measured = Measurements()
    for number, count in itertools.product(range(rounds), (1, room)):
        live(f"round {number + 1} of {rounds}: verify with --guests {count}")
        done = _task(subject, ["verify"], count)
        report = reports.load(Path(json.loads(done)["run_dir"]))
        measured.add(_name(count), report.checks_s)
        measured.add(f"{_name(count)}, whole run", sum(s.seconds for s in report.stages))
    return _compared(subject, "guests", "The checks of verify", measured, room)


def mutation(subject: Subject, rounds: int, live: Live) -> Result:
    """Try some wrong variants with as many guests as this machine has room for, and with one."""
    room = _room(subject, "mutation")
    chosen = [mutant.name for mutant in mutants.load() if mutant.patch is not None]
    wanted = [word for name in chosen[:_VARIANTS] for word in ("--only", name)]
    measured = Measurements()
    # What is not built yet is built in the first run, so it counts against several guests.
    for number, count in itertools.product(range(rounds), (room, 1)):
        live(f"round {number + 1} of {rounds}: mutation with --guests {count}")
        done = _task(subject, ["mutation", *wanted, *_FEW_CHECKS], count)
        measured.add(_name(count), float(json.loads(done)["seconds"]))
    title = f"{_VARIANTS} variants of mutation"
    return _compared(subject, "mutation", title, measured, room)


def _compared(subject: Subject, name: str, title: str, measured: Measurements, room: int) -> Result:
    ratio = measured.median(_name(1)) / measured.median(_name(room))
    return Result(
        name,
        title,
        f"{subject.name} in {subject.backend}",
        measured.samples(),
        (at_least(f"1 guest / {room} guests", ratio, _EFFICIENCY_WANTED * room),),
    )


def _room(subject: Subject, name: str) -> int:
    """The number of guests that this machine has room for; CannotError if it is one."""
    if subject.record is None:
        raise CannotError(f"inv bench {name} needs a prepared FreeBSD; run ./inv image.fetch")
    room = shards.how_many(available_memory_bytes(), len(os.sched_getaffinity(0)))
    if room < 2:
        raise CannotError(
            f"inv bench {name} needs room for two guests; this machine has it for one"
        )
    return room


def _name(count: int) -> str:
    return "1 guest" if count == 1 else f"{count} guests"


def _task(subject: Subject, words: Sequence[str], count: int) -> str:
    """What a task prints as JSON, in a process of its own; CannotError if it did not pass."""
    assert subject.record is not None
    command = [
        *(sys.executable, "-m", "harness.cli.program", *words),
        *("--backend", subject.backend, "--release", subject.record.release, "--json"),
        *("--guests", str(count)),
    ]
    done = process.run(command, Deadline.after(_TASK_S), cwd=PROJECT, environment=os.environ)
    if done.code != EXIT_OK:
        raise CannotError(
            f"{words[0]} --guests {count} exited with {done.code}; run it by itself, and measure "
            "when it passes"
        )
    return done.stdout


def recorded() -> Result:
    """Compare the checks of the last recorded run with those of the run before; nothing is run.

    Only the checks that passed in both runs count, and only runs of the same backend and release.
    The times of all checks are added up over all guests; from the first to the last check is what a
    clock shows, for the checks that did not pass too.
    """
    last, before, common = _last_two()
    measured = Measurements()
    for name, report in (("before", before), ("last", last)):
        checks = [check for check in report.checks if check.name in common]
        commands = sum(check.evidence.count for check in checks)
        asked_s = sum(check.evidence.seconds for check in checks)
        measured.add(f"{name}: all checks", sum(check.seconds for check in checks))
        measured.add(f"{name}: from first to last", report.checks_s)
        measured.add(f"{name}: commands a check", commands / len(checks))
        measured.add(f"{name}: a command", asked_s / max(1, commands))
    ratio = measured.median("last: all checks") / measured.median("before: all checks")
    slower = sorted(common.items(), key=lambda item: item[1], reverse=True)[:3]
    return Result(
        "checks",
        f"{len(common)} checks that passed in both runs",
        f"FreeBSD {last.release} in {last.backend}",
        measured.samples({f"{name}: commands a check": "" for name in ("before", "last")}),
        (Ratio("last / before", ratio),),
        (
            f"last: {last.run_dir.name}; before: {before.run_dir.name}",
            "slower by: " + ", ".join(f"{name} {by_s:+.1f} s" for name, by_s in slower),
        ),
    )


def _last_two() -> tuple[Report, Report, dict[str, float]]:
    """The last run with checks, the comparable one before, and the common checks.

    A common check's value says by how many seconds it took longer in the last run.
    """
    last: Report | None = None
    for folder in sorted(reports.with_report(), reverse=True):
        try:
            report = reports.load(folder)
        except UsageError:
            continue
        passed = {check.name: check for check in report.checks if check.outcome == "passed"}
        if not passed:
            continue
        if last is None:
            last, known = report, passed
        elif (report.backend, report.release, report.stock) == (
            last.backend,
            last.release,
            last.stock,
        ):
            common = {
                name: check.seconds - passed[name].seconds
                for name, check in known.items()
                if name in passed
            }
            if common:
                return last, report, common
    raise CannotError(
        "inv bench checks compares two runs of verify with the same backend and release, and there "
        "are no two; run ./inv verify again"
    )
