"""vmunit's answers: cases, what is skipped, what breaks off, and the list of cases."""

from __future__ import annotations

import re

import pytest
from fakes import FakeGuest

from harness.bhyve import vmunit
from harness.errors import GuestError, GuestPanic
from harness.probe import tap

PRINTED = """\
TAP version 13
1..3
ok 1 - lapic.reset_values: registers after a reset
# took 0.012 s
not ok 2 - lapic.lvt_bits: the LVT's bits
# LVT 0x320 is 0x1, not 0x2
# took 1.500 s
ok 3 - lapic.msi: MSIs find whom they are for # SKIP hw.vmm.maxcpu is 1
# took 0.001 s
# verdict failed=1 total=3
"""
COMMAND = "/x/vmunit -c /dev/console lapic."


def test_cases_come_with_their_evidence() -> None:
    guest = FakeGuest({COMMAND: (1, PRINTED, "")})
    cases = vmunit.run(guest, "/x/vmunit", "lapic.", emulated=False)
    assert guest.said == [COMMAND]
    assert list(cases) == ["lapic.reset_values", "lapic.lvt_bits", "lapic.msi"]
    bad, skipped = cases["lapic.lvt_bits"], cases["lapic.msi"]
    assert (bad.held, bad.notes, bad.seconds) == (False, ("LVT 0x320 is 0x1, not 0x2",), 1.5)
    assert (skipped.held, skipped.skipped) == (True, "hw.vmm.maxcpu is 1")
    assert skipped.claim == "MSIs find whom they are for"


def test_what_runs_in_an_emulator_is_told_so() -> None:
    guest = FakeGuest({"/x/vmunit": (0, PRINTED, "")})
    vmunit.run(guest, "/x/vmunit", "lapic.", emulated=True)
    assert guest.said == ["/x/vmunit -c /dev/console -e lapic."]


@pytest.mark.parametrize(
    ("printed", "problem"),
    [
        (PRINTED.partition("not ok")[0], "it ended after 1 of 3 tests"),
        (PRINTED.replace("failed=1", "failed=0"), "its verdict counts 0 failed, its lines 1"),
        ("TAP version 13\n1..3\nBail out! lapic.msi does not end\n", "lapic.msi does not end"),
        ("", "it said nothing"),
    ],
)
def test_what_breaks_off_is_an_error(printed: str, problem: str) -> None:
    guest = FakeGuest({COMMAND: (1, printed, "words")})
    with pytest.raises(GuestError, match=rf"vmunit lapic\.: .*{re.escape(problem)}"):
        vmunit.run(guest, "/x/vmunit", "lapic.", emulated=False)


def test_a_panic_names_the_last_case() -> None:
    guest = FakeGuest()

    def panics() -> tuple[int, str, str]:
        guest.machine.console.text += (  # type: ignore[attr-defined]
            "VMUNIT lapic.reset_values\r\nVMUNIT lapic.msi\r\npanic: x\r\n"
        )
        raise GuestPanic("the guest panicked: x")

    guest.answers = {COMMAND: panics}
    with pytest.raises(GuestPanic, match=r"the guest panicked: x; last case of vmunit: lapic\.msi"):
        vmunit.run(guest, "/x/vmunit", "lapic.", emulated=False)


def test_the_list_names_each_case_once_in_words_that_tap_takes() -> None:
    lines = vmunit.LIST.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(vmunit.read_list()) > 300
    for number, line in enumerate(lines, 1):
        report = tap.parse(f"TAP version 13\n1..1\nok {number} - {line}\n# verdict failed=0\n")
        assert [f"{test.name}: {test.what}" for test in report.tests] == [line]


def test_the_list_is_compared_by_name_and_claim() -> None:
    assert vmunit.differences({"a.b": "x", "a.c": "y"}, {"a.b": "x", "a.d": "z"}) == [
        "-a.c: y",
        "+a.d: z",
    ]
