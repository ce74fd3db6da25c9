"""Measures how many cycles each kind of VM exit takes, by the clock of a tiny guest.

The topic `benchmark` has the program (patches/benchmark/guest); this runs it and compares.  All
costs are cycles of the guest's time-stamp counter.  In an emulator the counter counts executed
instructions, so two modules can be compared well, but the figures say nothing about a real
processor.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.bhyve.vmm_module import load
from harness.build.builder import Build, compile_program
from harness.errors import CannotError, GuestError
from harness.guest.freebsd import Guest
from harness.image import store

_VMUNIT = Path(__file__).parent / "guest_src" / "vmunit"
_BORROWED = ("vm.c", "paging.c", "guest.S")
_EMPTY = "nothing"
"""The kind without an exit: the cost of reading the clock, which is subtracted from all others."""
_ROUND_S = 0.02


@dataclass(frozen=True)
class Cost:
    """A kind's cycles: the median of all rounds, the 10th and the 90th percentile."""

    median: int
    low: int
    high: int
    rounds: int
    exits: int = 0

    def __str__(self) -> str:
        return f"{self.median:,} cycles ({self.low:,} to {self.high:,})"


Costs = Mapping[str, Cost]


@dataclass(frozen=True)
class Ratio:
    """The ratio of a kind's cost, patched to stock: the median, and the range of all pairs."""

    stock_cycles: float
    patched_cycles: float
    median: float
    low: float
    high: float

    def exceeds(self, limit: float) -> bool:
        """Whether every pair of measurements is above the limit, so that it is not chance."""
        return self.low > limit

    def __str__(self) -> str:
        return (
            f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f}), "
            f"stock {self.stock_cycles:,.0f}, patched {self.patched_cycles:,.0f} cycles"
        )


def compile_bench(build: Build, folder: Path, sysroot: Path | None, release: str) -> Path:
    """Compile the program in `folder` (C and assembler) for a build, with vmunit's code for VMs.

    CannotError without a sysroot, PatchError when it does not compile.
    """
    if sysroot is None:
        raise CannotError(
            "the benchmark program needs FreeBSD's headers and libraries; import them: "
            + store.trees_line(release, sysroot=True)
        )
    own = sorted((*folder.glob("*.c"), *folder.glob("*.S")))
    return compile_program(
        build,
        [*own, *(_VMUNIT / name for name in _BORROWED)],
        sysroot=sysroot,
        name="bench",
        libraries=("vmmapi", "util", "pthread"),
        headers=(_VMUNIT / "vmunit.h",),
    )


def run(guest: Guest, build: Build, program: Path, rounds: int, *kinds: str) -> Costs:
    """Load a build's module unless it is already loaded, and measure some kinds of exits, or all.

    Raises GuestError if the program fails, or if its output cannot be parsed.
    """
    home = load_once(guest, build)
    for file in (program, build.library):
        if file is not None and not guest.exists(f"{home}/{file.name}"):
            guest.put(file, f"{home}/{file.name}", mode=0o755)
    limit = guest.deadline(20 + rounds * _ROUND_S)
    return parse(guest.must([f"{home}/{program.name}", str(rounds), *kinds], limit))


def load_once(guest: Guest, build: Build) -> str:
    """Load a build's module unless it is already loaded; returns its folder in the guest."""
    path = next((kld.path for kld in guest.klds() if kld.name == "vmm.ko"), "")
    if not path.endswith(f"/{build.key[:16]}/vmm.ko"):
        path = load(guest, build).path
    return path.rpartition("/")[0]


def parse(text: str) -> Costs:
    """Parse the program's output; GuestError if a line has the wrong form."""
    found = {}
    try:
        for line in text.splitlines():
            name, *numbers = line.split()
            median, low, high, rounds, exits = map(int, numbers)
            found[name] = Cost(median, low, high, rounds, exits)
    except ValueError as error:
        raise GuestError(f"the benchmark program printed {line!r}", detail=text) from error
    return found


def net(costs: Costs) -> dict[str, Cost]:
    """The costs minus the time of reading the clock itself."""
    empty = costs[_EMPTY].median if _EMPTY in costs else 0
    return {
        name: Cost(it.median - empty, it.low - empty, it.high - empty, it.rounds, it.exits)
        for name, it in costs.items()
        if name != _EMPTY
    }


def ratios(stock: Sequence[Costs], patched: Sequence[Costs]) -> dict[str, Ratio]:
    """Each kind's ratio, from pairs of measurements that were made one after the other.

    Raises ValueError if there is no pair, or if a kind costs 0 cycles.
    """
    if not stock or len(stock) != len(patched):
        raise ValueError(f"{len(stock)} measurements on stock and {len(patched)} on the patches")
    found = {}
    pairs = [(net(one), net(other)) for one, other in zip(stock, patched, strict=True)]
    for name in pairs[0][0]:
        before = [one[name].median for one, _ in pairs]
        after = [other[name].median for _, other in pairs]
        if min(before) <= 0:
            raise ValueError(f"{name} costs 0 cycles on stock: {before}")
        each = sorted(b / a for a, b in zip(before, after, strict=True))
        found[name] = Ratio(
            statistics.median(before),
            statistics.median(after),
            statistics.median(each),
            each[0],
            each[-1],
        )
    return found
