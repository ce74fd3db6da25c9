"""vmm.ko piece by piece: each case of vmunit is a check."""

from __future__ import annotations

import pytest

from harness.bhyve import differences, vmunit
from harness.bhyve.vmm import Vmm
from harness.bhyve.vmunit import Family
from harness.guest.freebsd import Guest
from harness.machine.models import BOCHS_RUNS
from harness.report.data import N_A
from harness.run.workbench import Workbench

pytestmark = [pytest.mark.vtx, pytest.mark.tools]

CASES = vmunit.read_list()

PLACED = vmunit.Placed()


# Evaluated for each check, because a broken guest is replaced by another.
@pytest.fixture
def program(workbench: Workbench, guest: Guest, vmm: Vmm) -> str:
    """vmunit in the guest, linked with the library of the loaded module's build."""
    record, build = workbench.record, workbench.running
    assert record.source is not None
    source, sysroot = record.source, record.sysroot

    def place() -> str:
        series = workbench.series if build.series else None
        made = vmunit.compile_vmunit(build, source, series, sysroot)
        remote = f"{vmm.home}/{made.name}"
        guest.put(made, remote, mode=0o755)
        return remote

    return PLACED.path((id(workbench), workbench.breaks), build, place)


@pytest.fixture(scope="module")
def families() -> dict[str, Family]:
    """The families of which something was run."""
    return {}


def test_the_list_is_vmunits(guest: Guest, program: str) -> None:
    """harness/bhyve/vmunit.txt names exactly the cases that vmunit has"""
    assert vmunit.differences(CASES, vmunit.listed(guest, program)) == []


@pytest.mark.parametrize(
    "name", [pytest.param(it, marks=pytest.mark.together(vmunit.family(it))) for it in CASES]
)
def test_vmunit(
    workbench: Workbench,
    guest: Guest,
    program: str,
    families: dict[str, Family],
    name: str,
) -> None:
    """vmm.ko does what the manuals of processors and devices say"""
    word = vmunit.family(name)
    release = workbench.options.release
    family = families.setdefault(word, Family(word, differences.harmful(release, CASES)))
    if name in family.left_out:
        pytest.skip(f"{N_A}{differences.reason(release, name)}")
    if why := family.broke.get(name):
        pytest.fail(f"the guest broke, or time was over, while this case ran: {why}")
    if not family.cases:
        # One command runs the whole family.
        family.run(guest, program, emulated=workbench.backend in BOCHS_RUNS)
    case = family.cases.get(name)
    assert case is not None, f"vmunit reported nothing about {name}"
    if case.skipped:
        pytest.skip(case.skipped)
    print(*case.notes, sep="\n")
    if not case.held and (why := differences.reason(release, name)):
        pytest.skip(f"{N_A}{why}")
    assert case.held, f"{case.claim}: {'; '.join(case.notes)}"
