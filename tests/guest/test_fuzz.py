"""Bad calls: any vmm.ko must survive them, and answer them as stock does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.bhyve import fuzz
from harness.bhyve.vmm import Vmm
from harness.guest.freebsd import Guest
from harness.report.data import LEFT_OUT
from harness.run import fuzz_answers
from harness.run.workbench import Workbench

pytestmark = [pytest.mark.vtx, pytest.mark.tools]

SEED = 1
_PART = 5000
minutes = pytest.mark.minutes
ANSWERS = 3000


# The twenty thousand calls of one seed are four checks, so that several guests can share them.
@pytest.mark.parametrize(
    ("first_round", "calls"),
    [
        pytest.param(0, 600, id="600"),
        *(
            pytest.param(part * _PART // fuzz.PER_ROUND, _PART, marks=minutes, id=f"20000-{part}")
            for part in range(4)
        ),
    ],
)
def test_bad_calls_do_no_harm(
    workbench: Workbench,
    guest: Guest,
    vmm: Vmm,
    first_round: int,
    calls: int,
    record_property: Callable[[str, object], None],
) -> None:
    """malformed and racing calls break, hang and leak nothing, except for known faults of stock"""
    known = fuzz.load_known(workbench.options.release)
    program = fuzz.compile_fuzzer(workbench.running, workbench.record.sysroot)
    remote = fuzz.install(guest, program, vmm.home)
    beyond = fuzz.beyond(workbench.backend, workbench.options.cpu_vendor)
    for why in beyond.values():
        record_property(LEFT_OUT, why)
    avoid = [story.name for story in known if story.calls]
    done = fuzz.attack(guest, remote, SEED, calls, first_round=first_round, avoid=[*avoid, *beyond])
    findings = (*done.findings, *fuzz.leaks(guest, vmm.loaded.path))
    assert [(it.text, it.detail) for it in findings if not fuzz.recognize(it, known)] == []
    assert done.calls > calls * 0.8
    assert vmm.names() == []


def test_bad_calls_are_answered_as_stock_answers_them(
    workbench: Workbench, guest: Guest, vmm: Vmm
) -> None:
    """calls from one thread get the same errors, registers and mappings as on the stock module"""
    stock = fuzz_answers.of_stock(workbench, SEED, ANSWERS)
    ours = fuzz_answers.of_running(workbench, SEED, ANSWERS)
    assert len(ours) > ANSWERS * 0.9
    assert fuzz.answered_otherwise(stock, ours) == []
    assert vmm.names() == []
