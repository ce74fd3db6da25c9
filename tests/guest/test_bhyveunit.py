"""Parts of bhyve(8) that need no virtual machine, each tested by itself."""

from __future__ import annotations

import pytest

from harness.bhyve import bhyveunit, differences
from harness.bhyve.bhyveunit import Part
from harness.bhyve.vmm import Vmm
from harness.errors import PatchError
from harness.guest.freebsd import Guest
from harness.run.workbench import Workbench

pytestmark = [pytest.mark.tools]


@pytest.mark.parametrize("part", bhyveunit.PARTS, ids=lambda part: part.name)
def test_a_part_of_bhyve(workbench: Workbench, guest: Guest, vmm: Vmm, part: Part) -> None:
    """a part of bhyve behaves as its callers and its guests expect"""
    record, build = workbench.record, vmm.build
    assert record.source is not None
    assert record.sysroot is not None
    if bhyveunit.find(part, record.source) is None:
        pytest.skip(f"the tree has no {part.file}")
    series = workbench.series if build.series else None
    if series is not None and not bhyveunit.concerns(series):
        pytest.skip("the series changes neither bhyve nor headers")
    try:
        made = bhyveunit.compile_part(part, build, record.source, series, record.sysroot)
    except PatchError as error:
        pytest.skip(f"{part.file} cannot be compiled by itself: {error.message}")
    remote = f"{vmm.home}/{made.name}"
    guest.put(made, remote, mode=0o755)
    cases = bhyveunit.run(guest, remote)
    print(*cases, sep="\n")
    missed = [case for case in cases if not case.held]
    reasons = {it.name: differences.reason(workbench.options.release, it.name) for it in missed}
    assert [str(case) for case in missed if not reasons[case.name]] == []
    # The other cases of the part were judged above.
    for name, why in reasons.items():
        print(f"{name} does not apply: {why}")
