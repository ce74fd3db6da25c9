"""FreeBSD's own tests of vmm, and those of the series."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from harness.bhyve import atf
from harness.bhyve.vmm import Vmm
from harness.guest.freebsd import Guest
from harness.run.workbench import Workbench

pytestmark = [pytest.mark.vtx, pytest.mark.tools]


@pytest.fixture(scope="module")
def programs(workbench: Workbench, guest: Guest, vmm: Vmm) -> dict[str, atf.Program]:
    """The programs of the tree's tests/sys/vmm, in the guest, next to the build's library."""
    record = workbench.record
    assert record.source is not None
    assert record.sysroot is not None
    series = workbench.series if vmm.build.series else None
    found = atf.install(guest, vmm.home, record.source, series, vmm.build, record.sysroot)
    return {program.name: program for program in found}


def _run(guest: Guest, vmm: Vmm, programs: Iterable[atf.Program]) -> tuple[atf.Verdict, ...]:
    verdicts = tuple(it for program in programs for it in atf.run(guest, vmm.home, program))
    print(*verdicts, sep="\n")
    return verdicts


def test_freebsds_own_tests_hold(guest: Guest, vmm: Vmm, programs: dict[str, atf.Program]) -> None:
    """no case of the tree's own tests/sys/vmm fails, and not all are skipped"""
    verdicts = _run(guest, vmm, [it for it in programs.values() if not it.of_series])
    assert [str(it) for it in verdicts if it.outcome in ("failed", "broken")] == []
    assert "passed" in [it.outcome for it in verdicts]


@pytest.mark.patch
@pytest.mark.parametrize("name", ["vmm_mem_test", "vmmls_test"])
def test_the_tests_of_the_series_pass(
    guest: Guest, vmm: Vmm, programs: dict[str, atf.Program], name: str
) -> None:
    """every case of the tests that the series adds to FreeBSD's passes, and none is skipped"""
    assert name in programs, f"the tree has no {name}"
    verdicts = _run(guest, vmm, [programs[name]])
    assert [str(it) for it in verdicts if it.outcome != "passed"] == []
