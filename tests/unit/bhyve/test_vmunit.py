"""vmunit's answers: cases, what is skipped, what breaks off, and the list of cases."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
from fakes import FakeGuest

from harness.bhyve import vmunit
from harness.build.builder import Build
from harness.errors import GuestError, GuestPanic, WaitTimeout
from harness.machine import bochs, qemu
from harness.probe import tap
from harness.run.pytest_run import PYTEST_OPTIONS

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


def test_a_program_in_an_emulator_gets_an_option_for_it() -> None:
    guest = FakeGuest({"/x/vmunit": (0, PRINTED, "")})
    vmunit.run(guest, "/x/vmunit", "lapic.", emulated=True)
    assert guest.said == ["/x/vmunit -c /dev/console -e lapic."]


@pytest.mark.parametrize(
    ("printed", "problem"),
    [
        (PRINTED.partition("not ok")[0], "it ended after 1 of 3 tests"),
        (PRINTED.replace("failed=1", "failed=0"), "its verdict counts 0 failed, its lines 1"),
        ("TAP version 13\n1..3\nBail out! lapic.msi does not end\n", "lapic.msi does not end"),
        ("", "it printed nothing"),
    ],
)
def test_what_breaks_off_is_an_error(printed: str, problem: str) -> None:
    guest = FakeGuest({COMMAND: (1, printed, "words")})
    with pytest.raises(GuestError, match=rf"vmunit lapic\.: .*{re.escape(problem)}"):
        vmunit.run(guest, "/x/vmunit", "lapic.", emulated=False)


def broken(guest: FakeGuest, error: GuestError) -> Callable[[], tuple[int, str, str]]:
    def breaks() -> tuple[int, str, str]:
        guest.machine.console.text += (  # type: ignore[attr-defined]
            "VMUNIT lapic.reset_values\r\nVMUNIT lapic.msi\r\npanic: x\r\n"
        )
        raise error

    return breaks


@pytest.mark.parametrize(
    "error", [GuestPanic("the guest panicked: x"), WaitTimeout("`vmunit` did not end within 60 s")]
)
def test_what_breaks_the_guest_is_named_and_left_out_from_then_on(error: GuestError) -> None:
    guest, family = FakeGuest(), vmunit.Family("lapic")
    guest.answers = {COMMAND: broken(guest, error)}
    with pytest.raises(type(error), match=r"; last case of vmunit: lapic\.msi"):
        family.run(guest, "/x/vmunit", emulated=False)
    assert family.broke == {"lapic.msi": error.message}
    guest.answers = {"/x/vmunit": (1, PRINTED, "")}
    family.run(guest, "/x/vmunit", emulated=False)
    assert guest.said[-1] == "/x/vmunit -c /dev/console -x lapic.msi lapic."
    assert "lapic.lvt_bits" in family.cases


def test_a_family_that_hangs_is_ended_by_its_own_deadline_everywhere() -> None:
    """Not by pytest's limit for a check, which says nothing of the case that hangs."""
    slowest = max(traits.time_scale for traits in (bochs.TRAITS, qemu.KVM, qemu.TCG))
    pytest_s = next(int(it.partition("=")[2]) for it in PYTEST_OPTIONS if it.startswith("timeout="))
    assert vmunit.FAMILY_S * slowest < pytest_s


def test_each_build_gets_its_own_program_though_the_module_is_the_same() -> None:
    """A patch of libvmmapi alone: the module and its build id are the stock's."""
    placed, made = vmunit.Placed(), iter(("/one/vmunit", "/two/vmunit", "/three/vmunit"))
    stock, patched = (cast(Build, SimpleNamespace(build_id="1234", key=key)) for key in "ab")
    assert placed.path("guest", stock, lambda: next(made)) == "/one/vmunit"
    assert placed.path("guest", patched, lambda: next(made)) == "/two/vmunit"
    assert placed.path("guest", stock, lambda: next(made)) == "/one/vmunit"
    assert placed.path("guest after a panic", stock, lambda: next(made)) == "/three/vmunit"


def test_the_list_names_each_case_once_in_words_that_tap_takes() -> None:
    lines = vmunit.LIST.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(vmunit.read_list()) > 300
    for number, line in enumerate(lines, 1):
        report = tap.parse(f"TAP version 13\n1..1\nok {number} - {line}\n# verdict failed=0\n")
        assert [f"{test.name}: {test.what}" for test in report.tests] == [line]


def test_the_list_has_the_claims_of_the_program() -> None:
    """The names of emulation's cases are made by the program, so only their claims are compared."""
    sources = sorted((vmunit.SOURCES).glob("*.c"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    text = re.sub(r'"\s*\n\s*"', "", text)
    cases = dict(re.findall(r'\{ "([a-z]+\.\w+)",\s*"([^"]+)",', text))
    kinds = re.findall(r'\{ "\w+",\s*"(w[^"]+)",\s*\w+,\s*(?:true|false) \}', text)
    [made] = re.findall(r'"(emulation gives [^"]+ %s)"', text)
    listed = vmunit.read_list()
    assert len(cases) > 200
    assert len(kinds) == 6
    for name, claim in listed.items():
        assert cases.get(name, claim) == claim
        assert name in cases or claim in {made % kind for kind in kinds}
    assert cases.keys() <= listed.keys()


def test_the_list_is_compared_by_name_and_claim() -> None:
    assert vmunit.differences({"a.b": "x", "a.c": "y"}, {"a.b": "x", "a.d": "z"}) == [
        "-a.c: y",
        "+a.d: z",
    ]
