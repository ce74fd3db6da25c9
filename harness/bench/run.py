"""Runs benches and writes the table, the JSON and the charts."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import host, progress
from harness.bench import boots, builds, chart, checks, phases, settings, shell, subject, where
from harness.bench.model import Live, Result
from harness.errors import EXIT_CHECK_FAILED, EXIT_OK, CannotError, UsageError
from harness.files import write_atomic
from harness.machine.models import Backend
from harness.run.run_folder import new_run_dir

FindGuest = Callable[[], subject.Subject]
Bench = Callable[[FindGuest, int, Live], Result]
"""A bench asks for its guest when it needs one: finding it may build the stand-in."""


def _with_guest(measure: Callable[[subject.Subject, int, Live], Result]) -> Bench:
    return lambda find, rounds, live: measure(find(), rounds, live)


BENCHES: dict[str, tuple[Bench, int, str]] = {
    "boot": (_with_guest(boots.boot), 3, "cold and resumed, to the first SSH command"),
    "harness": (
        _with_guest(boots.harness),
        3,
        "the time that the workbench adds to the bare emulator",
    ),
    "ssh": (_with_guest(shell.ssh), 3, "a remote command, compared with OpenSSH"),
    "build": (_with_guest(builds.build), 3, "from scratch, one file touched, nothing changed"),
    "parallel": (_with_guest(boots.parallel), 3, "several guests at once, compared with one"),
    "bochs": (
        _with_guest(phases.bochs),
        1,
        "the time of each phase of a boot, in each Bochs",
    ),
    "tcg": (_with_guest(settings.tcg), 1, "a boot in QEMU without KVM, with other settings"),
    "guests": (_with_guest(checks.guests), 1, "the checks of verify in one guest and in several"),
    "mutation": (
        _with_guest(checks.mutation),
        1,
        "twelve wrong variants in one guest and in several",
    ),
    "checks": (
        lambda *_: checks.recorded(),
        1,
        "the checks of the last run, compared with the run before",
    ),
}
"""By name: the bench, its rounds, and what it measures."""


def run(names: Sequence[str], release: str, backend: str, rounds: int, as_json: bool) -> int:
    """Run some benches, by default all; returns 1 if a ratio missed its goal.

    `backend` auto is QEMU: KVM where a guest gets VMX there, else TCG; the bench named bochs runs
    in Bochs unless another backend is named, guests and mutation in KVM or Bochs.  A bench that
    cannot run here is reported and left out; if it is the only one, it fails.
    """
    for name in names:
        if name not in BENCHES:
            raise UsageError(
                f"inv bench {name}: there is no such bench; choose from {', '.join(BENCHES)}"
            )
    if rounds < 0:
        raise UsageError(f"--rounds {rounds}: it must be at least 1")
    folder = new_run_dir("bench")
    here = where.machine()
    results: list[Result] = []
    with contextlib.suppress(KeyboardInterrupt) if len(names) != 1 else contextlib.nullcontext():
        for name in names or tuple(BENCHES):
            bench, usual, _ = BENCHES[name]
            try:
                with progress.stage(f"bench {name}") as step:
                    find = functools.partial(_find, name, backend, release)
                    results.append(bench(find, rounds or usual, step.live))
                    step.note = "; ".join(chart.ratios(results[-1]))
                # Written after each bench, because the later ones may take long and be interrupted.
                _save(folder, results, here)
            except CannotError as error:
                if len(names) == 1:
                    raise
                progress.say(f"bench {name}: left out: {error.message}")
    if as_json:
        progress.print_json(_data(results, here))
    else:
        _show(results, here, folder)
    held = all(ratio.held is not False for result in results for ratio in result.ratios)
    return EXIT_OK if held else EXIT_CHECK_FAILED


def _find(name: str, backend: str, release: str) -> subject.Subject:
    return subject.find(_backend(name, backend), release)


def _backend(name: str, given: str) -> Backend:
    if given != "auto":
        return host.decide(host.gather(), given).require()
    if name in ("bochs", "tcg"):
        return Backend(name)
    chosen = host.decide(host.gather(), "auto").backend
    # The checks need VMX, which TCG lacks; the others compare with QEMU.
    other = Backend("bochs") if name in ("guests", "mutation") else Backend("tcg")
    return chosen if chosen and chosen.name == "kvm" else other


def _data(results: Sequence[Result], here: dict[str, Any]) -> dict[str, Any]:
    return {"machine": here, "benches": [result.to_data() for result in results]}


def _save(folder: Path, results: Sequence[Result], here: dict[str, Any]) -> None:
    write_atomic(folder / "bench.json", json.dumps(_data(results, here), indent=2) + "\n")
    for result in results:
        write_atomic(folder / f"{result.name}.svg", chart.draw(result, where.line(here)))


def _show(results: Sequence[Result], here: dict[str, Any], folder: Path) -> None:
    rows = [
        (
            result.name,
            samples.name,
            f"{samples.median:.3g} {samples.unit}",
            f"{min(samples.values):.3g} to {max(samples.values):.3g}, {len(samples.values)} taken",
        )
        for result in results
        for samples in result.samples
    ]
    progress.out.print(where.line(here), markup=False)
    progress.table(("bench", "what", "median", "least to most"), rows)
    for result in results:
        for line in chart.ratios(result):
            progress.out.print(f"{result.name}: {line} [{result.subject}]", markup=False)
        for note in result.notes:
            progress.out.print(f"{result.name}: {progress.clean(note)}", markup=False)
    progress.say(f"bench.json and the charts are in {folder}")
