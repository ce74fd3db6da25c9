"""benchmark: the cost of each kind of VM exit, and the ratio of the patches to stock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.bhyve import exits
from harness.bhyve.exits import Costs, Ratio
from harness.build.builder import Build
from harness.guest.freebsd import Guest
from harness.run.workbench import Workbench

pytestmark = [pytest.mark.vtx, pytest.mark.tools]

SOURCES = Path(__file__).parents[1] / "guest"
ROUNDS = 400
PAIRS = 3
"""The number of times that stock and patched are measured, alternately."""

KINDS = {
    "cpuid": "CPUID",
    "port-kernel": "port that vmm.ko answers",
    "port-user": "port that bhyve answers",
    "mmio-kernel": "MMIO that vmm.ko handles (local APIC)",
    "mmio-user": "MMIO that bhyve answers",
    "msr-kernel": "MSR that vmm.ko answers",
    "msr-user": "MSR that bhyve answers",
    "hlt": "HLT with an interrupt that is already pending",
    "ipi-self": "IPI sent",
    "ipi-answered": "IPI to another vCPU and its answer",
    "ept-fault": "EPT fault, a page touched for the first time",
    "create": "VM with 16 MiB made",
    "destroy": "VM with 16 MiB destroyed",
}
LIMIT = 1.10
LIMITS = {"ipi-answered": 1.25, "create": 1.25, "destroy": 1.25}
"""The largest ratio to stock of each kind; these kinds depend on the scheduler and on UMA."""
EMULATED_LIMIT = 1.03
EMULATED_LIMITS = {"ipi-answered": 1.25, "create": 1.10, "destroy": 1.10}
"""The same where a cycle is an instruction: most kinds then cost exactly the same each time."""

Measure = Callable[[Build], Costs]


@pytest.fixture(scope="module")
def measure(workbench: Workbench, guest: Guest) -> Iterator[Measure]:
    """Measure a build's module; afterwards the earlier module is loaded again."""
    record, release = workbench.record, workbench.options.release

    def run(build: Build) -> Costs:
        program = exits.compile_bench(build, SOURCES, record.sysroot, release)
        return exits.run(guest, build, program, ROUNDS)

    yield run
    if workbench.module is not None and not guest.given_up:
        exits.load_once(guest, workbench.running)


@pytest.fixture(scope="module")
def costs(workbench: Workbench, measure: Measure) -> Costs:
    """The costs with the loaded module."""
    return exits.net(measure(workbench.running))


@pytest.fixture(scope="module")
def ratios(workbench: Workbench, measure: Measure) -> dict[str, Ratio]:
    """The ratios of patched to stock, measured alternately in the same guest."""
    assert workbench.stock_build is not None
    stock, patched = [], []
    for _ in range(PAIRS):
        stock.append(measure(workbench.stock_build))
        patched.append(measure(workbench.build))
    return exits.ratios(stock, patched)


@pytest.mark.parametrize("kind", KINDS)
def test_cost(costs: Costs, kind: str, record_property: Callable[[str, object], None]) -> None:
    """the exit happens in each round, and its cost is a plausible number of cycles"""
    assert kind in costs, f"the program measured only {', '.join(costs)}"
    cost = costs[kind]
    record_property(f"{KINDS[kind]}", cost)
    assert 0 < cost.low <= cost.median <= cost.high
    # Leaving and entering a guest executes hundreds of instructions of the host.
    assert cost.median > 100


@pytest.mark.parametrize("kind", [it for it in KINDS if it.endswith("-kernel")])
def test_user_space_costs_more(costs: Costs, kind: str) -> None:
    """an exit that a program handles costs more than one that the kernel handles"""
    assert costs[kind.replace("-kernel", "-user")].median > costs[kind].median


@pytest.mark.beside
@pytest.mark.parametrize("kind", KINDS)
def test_not_slower_than_stock(
    guest: Guest,
    ratios: dict[str, Ratio],
    kind: str,
    record_property: Callable[[str, object], None],
) -> None:
    """the exit costs hardly more with the patches than on stock, measured alternately"""
    if guest.machine.backend == "bochs":
        limit = EMULATED_LIMITS.get(kind, EMULATED_LIMIT)
    else:
        limit = LIMITS.get(kind, LIMIT)
    record_property(f"{KINDS[kind]}, patched to stock", ratios[kind])
    assert not ratios[kind].exceeds(limit), f"{ratios[kind]}; at most {limit} is allowed"
