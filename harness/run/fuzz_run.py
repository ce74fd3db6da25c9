"""`inv fuzz`: makes bad calls to the stock module and the patched one, in one guest, one seed."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import progress
from harness.bhyve import fuzz
from harness.bhyve.fuzz import Attack, Finding, Known
from harness.errors import EXIT_CHECK_FAILED, EXIT_OK, GuestError, UsageError
from harness.files import write_atomic
from harness.run.options import Options
from harness.run.run_folder import new_run_dir
from harness.run.session import Session
from harness.run.workbench import Workbench

_MOST_BREAKS = 6
"""After this many crashes of a module the guest is not booted again."""


@dataclass(frozen=True)
class Order:
    """What to do: a seed with `first_round` repeats the calls of an earlier run.

    `with_known` also makes the calls that are known to harm stock.
    """

    seed: int
    calls: int
    first_round: int = 0
    with_known: bool = False


@dataclass(frozen=True)
class Side:
    """The result on one module."""

    module: str
    attack: Attack
    breaks: int


@dataclass(frozen=True)
class FuzzReport:
    """The result of a run; if both modules were tried, `sides` has stock first."""

    order: Order
    release: str
    backend: str
    run_dir: Path
    sides: tuple[Side, ...]
    known: tuple[Known, ...]
    avoided: tuple[str, ...]

    def fault(self, side: Side, finding: Finding) -> str:
        """Whether a finding is a known fault, happens on stock too, or is this module's own."""
        if finding.known:
            return f"known: {finding.known}"
        stock = self.sides[0]
        same = (finding.kind, finding.text)
        if side is not stock and same in {(it.kind, it.text) for it in stock.attack.findings}:
            return "stock's too"
        return "NEW"

    @property
    def exit_code(self) -> int:
        """1 if the tested module, the last one, has a fault that is neither stock's nor known."""
        side = self.sides[-1]
        new = any(self.fault(side, finding) == "NEW" for finding in side.attack.findings)
        return EXIT_CHECK_FAILED if new else EXIT_OK

    @property
    def verdict(self) -> str:
        """One line."""
        parts = []
        for side in self.sides:
            faults = Counter(self.fault(side, it).split(":")[0] for it in side.attack.findings)
            recognized = ", ".join(f"{count} {fault}" for fault, count in sorted(faults.items()))
            parts.append(
                f"{side.module}: {side.attack.calls} calls, {recognized or 'nothing found'}"
            )
        where = f"FreeBSD {self.release} in {self.backend}, seed {self.order.seed}"
        return f"{where}: {'; '.join(parts)}"

    def to_data(self) -> dict[str, Any]:
        """For --json and fuzz.json."""
        return {
            "seed": self.order.seed,
            "first_round": self.order.first_round,
            "release": self.release,
            "backend": self.backend,
            "avoided": self.avoided,
            "modules": [
                {
                    "module": side.module,
                    "rounds": side.attack.rounds,
                    "calls": side.attack.calls,
                    "breaks": side.breaks,
                    "results": dict(side.attack.results.most_common()),
                    "findings": [
                        {**dataclasses.asdict(it), "fault": self.fault(side, it)}
                        for it in side.attack.findings
                    ],
                }
                for side in self.sides
            ],
            "verdict": self.verdict,
            "exit_code": self.exit_code,
        }


def new_seed() -> int:
    """A random seed."""
    return secrets.randbelow(1 << 32)


def run(options: Options, order: Order) -> FuzzReport:
    """Start a guest and attack the module, with `side_by_side` stock's first; writes fuzz.json.

    Raises the errors of `Session.up`.  A guest that breaks under a call is a finding, and the
    guest is started again.
    """
    if order.calls < 1:
        raise UsageError(f"--calls {order.calls}: it must be at least 1")
    known = fuzz.load_known(options.release)
    avoided = () if order.with_known else tuple(story.name for story in known if story.calls)
    sides = []
    with Session(options, new_run_dir("fuzz")) as session:
        bench = session.up(lambda built: built.first)
        if bench.stock_build is not None:
            sides.append(_side(bench, "stock", order, known, avoided))
            # The patched module gets a new guest, without the damage from the calls to stock.
            built = bench.built
            bench.restart_guest(load=False)
            bench.load(built, built.build)
        name = bench.series.topic if bench.series else "stock"
        sides.append(_side(bench, name, order, known, avoided))
        report = FuzzReport(
            order,
            session.options.release,
            bench.backend,
            bench.run_dir,
            tuple(sides),
            known,
            avoided,
        )
    write_atomic(report.run_dir / "fuzz.json", json.dumps(report.to_data(), indent=2) + "\n")
    return report


def _side(
    bench: Workbench, name: str, order: Order, known: Sequence[Known], avoided: Sequence[str]
) -> Side:
    """Attack the loaded module; after each crash a new guest is started."""
    program = fuzz.compile_fuzzer(bench.running, bench.record.sysroot)
    before = bench.breaks
    findings: list[Finding] = []
    counts: Counter[tuple[str, int]] = Counter()
    rounds = calls = 0
    first, left = order.first_round, order.calls
    with progress.stage(f"bad calls on {name}", bench.stages) as step:
        while left > 0 and bench.breaks - before < _MOST_BREAKS:
            try:
                part = _attack(bench, program, order.seed, left, first, avoided)
            except fuzz.Fell as fell:
                done = fell.call.round - first + 1 if fell.call else 1
                findings.append(_fall(bench, fell, first))
                rounds, calls = rounds + done, calls + fell.calls
                first, left = first + done, left - done * fuzz.PER_ROUND
                progress.say(f"{name}: {findings[-1].text}; last call: {fell.call}")
                bench.restart_guest()
            else:
                rounds, calls = rounds + part.rounds, calls + part.calls
                counts += part.counts
                findings += part.findings
                left = 0
        recognized = [dataclasses.replace(it, known=fuzz.recognize(it, known)) for it in findings]
        step.note = f"{calls} calls in {rounds} rounds, {len(recognized)} findings"
        for why in fuzz.beyond(bench.backend, bench.options.cpu_vendor).values():
            step.note += f"; left out: {why}"
    return Side(name, Attack(rounds, calls, counts, tuple(recognized)), bench.breaks - before)


def _attack(
    bench: Workbench, program: Path, seed: int, calls: int, first: int, avoided: Sequence[str]
) -> Attack:
    remote = fuzz.install(bench.guest, program, str(Path(bench.loaded.path).parent))
    avoided = (*avoided, *fuzz.beyond(bench.backend, bench.options.cpu_vendor))
    attack = fuzz.attack(bench.guest, remote, seed, calls, first_round=first, avoid=avoided)
    # A hanging call keeps the module in use, so only a new guest helps.
    if any(finding.kind == "hang" for finding in attack.findings):
        return attack
    lost = fuzz.leaks(bench.guest, bench.loaded.path)
    return dataclasses.replace(attack, findings=(*attack.findings, *lost))


def _fall(bench: Workbench, fell: fuzz.Fell, first: int) -> Finding:
    """A finding from a crash: the panic's message and place, without its numbers."""
    at = fell.call.round if fell.call else first
    call = str(fell.call) if fell.call else ""
    panic = bench.collect_panic()
    if panic is None:
        return Finding("died", _first_words(fell.cause), at, call, fell.detail)
    # Without the kernel's symbols the innermost place may be just an address, which is useless.
    places = panic.frames[panic.frames.index(panic.culprit) :] if panic.culprit else ()
    named = next((frame.function for frame in places if frame.function), "")
    where = f", in {named}" if named else ""
    return Finding("panic", f"{panic.message}{where}", at, call, panic.to_text())


def _first_words(error: GuestError) -> str:
    return error.message.split(";")[0]


def show(report: FuzzReport) -> None:
    """Print the calls, their results, the findings and the verdict."""
    order = report.order
    for side in report.sides:
        results = ", ".join(f"{n} {name}" for name, n in side.attack.results.most_common())
        progress.out.print(
            f"{side.module}: {side.attack.calls} calls in {side.attack.rounds} rounds", markup=False
        )
        progress.out.print(f"  {results or 'nothing was counted'}", markup=False)
        rows = [
            (report.fault(side, it), it.kind, str(it.round) if it.round >= 0 else "-",
             progress.clean(f"{it.text}{f' [{it.call}]' if it.call else ''}"))
            for it in side.attack.findings
        ]  # fmt: skip
        if rows:
            progress.table(("whose", "kind", "round", f"found on {side.module}"), rows)
    for story in filter(lambda it: it.calls, report.known):
        left_out = "left out" if story.name in report.avoided else "called too"
        how = "seen" if story.seen else "found by reading the source, not seen"
        line = f"known of stock ({left_out}; {how}): {story.name}: {story.title}"
        progress.out.print(line, markup=False)
    again = f"./inv fuzz --seed {order.seed} --calls {order.calls}"
    again += " --known" if order.with_known else ""
    again += " --stock" if [side.module for side in report.sides] == ["stock"] else ""
    progress.out.print(f"again:   {again}", markup=False)
    progress.out.print(f"verdict: {report.verdict}", markup=False)
    progress.out.print(f"run:     {report.run_dir}", markup=False)
