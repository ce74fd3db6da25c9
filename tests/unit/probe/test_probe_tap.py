"""The probe's report, read from what came over the serial line."""

from __future__ import annotations

import pytest

from harness.errors import CannotError
from harness.probe import tap
from harness.probe.run import ProbeResult

WHOLE = """\
SeaBIOS\r
TAP version 13\r
# cpu vendor=GenuineIntel family=6
# msr 0x480 IA32_VMX_BASIC 0x00d810000000002b
1..5
ok 1 - vmx.cpuid: CPUID announces VMX
not ok 2 - procbased.monitor_trap: monitor trap flag # TODO optional
# processor-based controls = 0xf7f9fffe04006172: bit 59 is 0
ok 3 - vmxon: VMXON
ok 4 - l2.cpuid_roundtrip: 1001 CPUID round trips
# cpuid_roundtrip_cycles median=195 min=191 p90=196 max=200 samples=1001
ok 5 - vmxoff: VMXOFF
# verdict vt=vmx module=1 failed=0 first_missing=none cpuid_roundtrip_cycles=195
"""
LACKING = """\
TAP version 13
1..4
ok 1 - svm.cpuid: CPUID announces SVM
not ok 2 - l2.nrip: nRIP points behind the CPUID
# not run: needs svm.nrip_save
not ok 3 - svm.nrip_save: next RIP saved on exit
# CPUID 0x8000000a EDX = 0x7: bit 3 is 0
not ok 4 - svm.lbr: last-branch virtualization # TODO optional
# verdict vt=svm failed=2
"""


def test_whole() -> None:
    report = tap.parse(WHOLE)
    assert report.problem == ""
    assert report.plan == 5
    assert report.comments[0] == "cpu vendor=GenuineIntel family=6"
    assert [test.held for test in report.tests] == [True, False, True, True, True]
    second = report.tests[1]
    assert (second.name, second.what) == ("procbased.monitor_trap", "monitor trap flag")
    assert second.optional
    assert second.notes == ("processor-based controls = 0xf7f9fffe04006172: bit 59 is 0",)
    assert report.missing == ()
    assert report.first_missing is None
    assert report.cost_cycles == {
        "median": 195,
        "min": 191,
        "p90": 196,
        "max": 200,
        "samples": 1001,
    }
    assert report.verdict["vt"] == "vmx"


def test_lacking() -> None:
    report = tap.parse(LACKING)
    assert report.problem == ""
    assert [test.name for test in report.missing] == ["l2.nrip", "svm.nrip_save"]
    assert report.missing[0].needs == "svm.nrip_save"
    # The one that ran and failed explains the other, wherever it stands.
    assert report.first_missing is report.missing[1]
    assert report.cost_cycles == {}


def test_every_truncation_is_a_problem() -> None:
    for end in range(len(WHOLE)):
        assert tap.parse(WHOLE[:end]).problem, f"cut after {WHOLE[:end][-30:]!r}"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("1..5", "1..6", "it ended after 5 of 6 tests"),
        ("ok 3 - vmxon", "ok 4 - vmxon", "its tests are not numbered in order"),
        ("ok 3 - vmxon: VMXON\n", "", "its tests are not numbered in order"),
        ("ok 3 - vmxon", "not ok 3 - vmxon", "its verdict counts 0 failed, its lines 1"),
        ("failed=0", "failed=1", "its verdict counts 1 failed, its lines 0"),
        ("failed=0 ", "", "its verdict counts nothing failed, its lines 0"),
        ("ok 5 - vmxoff: VMXOFF", "Bail out! exception 13", "it stopped early: exception 13"),
        ("TAP version 13", "TAP version", "it printed nothing"),
    ],
)
def test_what_does_not_add_up(old: str, new: str, problem: str) -> None:
    assert old in WHOLE
    assert tap.parse(WHOLE.replace(old, new)).problem == problem


def test_nothing() -> None:
    assert tap.parse("").problem == "it printed nothing"
    assert tap.parse("\x00\xff no TAP\n").problem == "it printed nothing"


def test_a_reset_begins_again() -> None:
    half = WHOLE[: WHOLE.index("ok 3")]
    assert tap.parse(half + WHOLE).problem == ""
    assert tap.parse(WHOLE + half).problem


def test_what_follows_the_verdict_does_not_count() -> None:
    assert tap.parse(WHOLE + "ok 6 - late: too late\n").problem == ""


AFTER = WHOLE.replace("1..5", "1..6").replace("first_missing=none", "first_missing=none after=1")
LAST = "not ok 6 - l2.interrupt_masked: masked # TODO optional\n# no interrupt\n"


def test_a_line_after_the_verdict_is_read() -> None:
    report = tap.parse(AFTER + LAST)
    assert report.problem == ""
    assert report.unanswered == 0
    assert report.tests[-1].name == "l2.interrupt_masked"
    assert report.tests[-1].notes == ("no interrupt",)
    assert report.missing == ()


def test_a_machine_that_hangs_after_its_verdict_has_given_it() -> None:
    for cut in ("", LAST[:20]):
        report = tap.parse(AFTER + cut)
        assert report.problem == ""
        assert report.unanswered == 1
    assert result(AFTER).held


@pytest.mark.parametrize("after", ["0", "x", "-1", ""])
def test_only_lines_that_were_to_follow_the_verdict_may_be_absent(after: str) -> None:
    text = AFTER.replace("after=1", f"after={after}")
    assert tap.parse(text).problem == "it ended after 5 of 6 tests"


def test_a_line_before_the_verdict_may_not_be_absent() -> None:
    text = AFTER.replace("1..6", "1..7")
    assert tap.parse(text).problem == "it ended after 5 of 7 tests"
    assert tap.parse(text + LAST).problem == "it ended after 6 of 7 tests"


def result(text: str, **changes: str) -> ProbeResult:
    return ProbeResult(backend="bochs", report=tap.parse(text), seconds=0.5, **changes)


def test_result_that_held() -> None:
    held = result(WHOLE)
    assert held.exit_code == 0
    held.require()
    assert "195 cycles of the emulated clock" in held.reason
    data = held.to_data()
    assert data["held"] is True
    assert data["first_missing"] is None
    assert data["cpuid_roundtrip_cycles"]["median"] == 195
    assert data["tests"][0]["name"] == "vmx.cpuid"


def test_result_that_lacks() -> None:
    lacks = result(LACKING, cpu="phenom", fault="hide-svm.nrip_save")
    assert lacks.exit_code == 3
    with pytest.raises(CannotError) as caught:
        lacks.require()
    assert caught.value.message == (
        "bochs with phenom lacks svm.nrip_save (next RIP saved on exit) "
        "(FAULT=hide-svm.nrip_save): "
        "CPUID 0x8000000a EDX = 0x7: bit 3 is 0"
    )
    assert lacks.to_data()["first_missing"] == "svm.nrip_save"


@pytest.mark.parametrize("fault", ["", "no-hlt", "hide-vmx.cpuid"])
def test_a_fault_is_not_named_beside_what_it_did_not_do(fault: str) -> None:
    assert "FAULT" not in result(LACKING, fault=fault).reason
