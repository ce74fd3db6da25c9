"""Reports of bad calls: what vmmfuzz prints, what a console shows, and whether a finding is the
patch's fault.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from fakes import FakeGuest

from harness.bhyve import fuzz
from harness.bhyve.fuzz import Attack, Finding
from harness.errors import GuestError, GuestPanic, UsageError
from harness.guest.panic_report import Frame, Panic
from harness.run import fuzz_run
from harness.run.fuzz_run import FuzzReport, Order, Side

PRINTED = """\
hang 4 stall 0.64:VM_LAPIC_MSI
hang 7 call 0.1:VM_RUN 1.9:VM_REINIT
seed 2
rounds 20
calls 1867
count 0 12 VM_RUN
count 22 3 VM_RUN
count 22 1855 raw ioctl
count -1 5 raw ioctl
end
"""


def test_what_vmmfuzz_prints() -> None:
    guest = FakeGuest({"/x/vmmfuzz": (1, PRINTED, "")})
    console: Any = guest.machine.console
    console.text = ""
    found = fuzz.attack(guest, "/x/vmmfuzz", 2, 1867, first_round=3, avoid=["rtc-time"])
    assert guest.said == ["/x/vmmfuzz -s 2 -n 1867 -r 3 -p 200 -c /dev/console -x rtc-time"]
    assert (found.rounds, found.calls) == (20, 1867)
    assert found.results == {"EINVAL": 1858, "success": 12, "left out": 5}
    assert [(it.kind, it.text, it.round) for it in found.findings] == [
        ("stall", "only SIGKILL ends VM_LAPIC_MSI", 4),
        ("hang", "not even SIGKILL ends VM_REINIT or VM_RUN", 7),
    ]


def test_what_does_not_come_to_its_end() -> None:
    guest = FakeGuest({"/x/vmmfuzz": (139, PRINTED.removesuffix("end\n"), "")})
    with pytest.raises(GuestError, match="with seed 2 ended early"):
        fuzz.attack(guest, "/x/vmmfuzz", 2, 10)


def test_a_panic_names_the_last_call() -> None:
    guest = FakeGuest()

    def panics() -> tuple[int, str, str]:
        guest.machine.console.text += (  # type: ignore[attr-defined]
            "FUZZ 0.0.0 VM_RUN 0x80187601\r\nFUZZ 0.1.7 raw ioctl 0xc018761a\r\npanic: x\r\n"
        )
        raise GuestPanic("the guest panicked: x", detail="its story")

    guest.answers = {"/x/vmmfuzz": panics}
    with pytest.raises(
        fuzz.Fell, match=r"raw ioctl .0xc018761a., call 7 of thread 1 in round 0"
    ) as fell:
        fuzz.attack(guest, "/x/vmmfuzz", 1, 10)
    assert fell.value.calls == 2
    assert fell.value.detail == "its story"


def test_leaks_are_read_when_the_module_is_unloaded() -> None:
    guest = FakeGuest()

    def unload() -> tuple[int, str, str]:
        guest.machine.console.text += (  # type: ignore[attr-defined]
            "Warning: memory type vmmdev leaked memory on destroy (-2 allocations, -32 bytes "
            "leaked).\r\nWarning: memory type vm leaked memory on destroy (1 allocations, 9 bytes "
            "leaked).\r\n"
        )
        return 0, "", ""

    guest.answers = {"kldunload": unload}
    found = fuzz.leaks(guest, "/x/vmm.ko")
    assert [it.text for it in found] == [
        "memory type vmmdev: freed more often than allocated",
        "memory type vm: leaked",
    ]
    assert guest.said[-1] == "kldload /x/vmm.ko"


def test_the_stories_that_ship() -> None:
    """Each can be left out by vmmfuzz, and has a signature that does not take everything."""
    source = (fuzz.SOURCES / "main.c").read_text()
    stories = fuzz.load_known("15.1")
    assert stories
    for story in stories:
        assert story.calls == (f'"{story.name}"' in source)
        assert story.title
        # The entry also says who could do harm with it, and whether it was reported to FreeBSD.
        assert "root" in story.who
        assert story.reported
        assert len(story.story) > 100
        assert not any(it.search("panic: something new; VM_X") for it in story.signatures)
    assert fuzz.load_known("12.0") == ()
    stall = Finding("stall", "only SIGKILL ends VM_LAPIC_MSI", 4)
    assert fuzz.recognize(stall, stories) == "lapic-msi"
    twice = Finding("leak", "memory type vmmdev: freed more often than allocated", -1)
    assert fuzz.recognize(twice, stories) == "devmem-name"
    assert fuzz.recognize(Finding("panic", "page fault", 1), stories) == ""


def test_known_faults_are_those_of_a_release_or_of_its_branch() -> None:
    """FreeBSD 14 frees a device memory segment's name once."""
    in_14 = {story.name for story in fuzz.load_known("14.2-STABLE")}
    assert "lapic-msi" in in_14
    assert "devmem-name" not in in_14
    assert in_14 == {story.name for story in fuzz.load_known("14.4")}
    names = {story.name for story in fuzz.load_known("15.0")}
    assert names == {story.name for story in fuzz.load_known("15.1")} == in_14 | {"devmem-name"}
    assert fuzz.load_known("15.9") == ()


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "title = 1",
        'title="t"\nreleases=["15"]\nseen=true\ncalls=true\nsignatures=["("]\nstory=""',
    ],
)
def test_a_known_fault_in_the_wrong_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.toml").write_text(text)
    with pytest.raises(UsageError, match=r"odd\.toml: this does not describe a known fault"):
        fuzz.load_known("15", tmp_path)


def report(stock: tuple[Finding, ...] | None, series: tuple[Finding, ...]) -> FuzzReport:
    counts = Counter({("VM_RUN", 22): 7})
    sides = [Side("mine", Attack(1, 7, counts, series), 0)]
    if stock is not None:
        sides.insert(0, Side("stock", Attack(1, 7, counts, stock), 0))
    return FuzzReport(Order(5, 7), "15.1", "bochs", Path("run"), tuple(sides), (), ())


PANIC = Finding("panic", "panic: general protection fault, in vcpu_set_state", 19)


@pytest.mark.parametrize(
    ("stock", "series", "code", "words"),
    [
        ((), (), 0, "stock: 7 calls, nothing found; mine: 7 calls, nothing found"),
        ((), (PANIC,), 1, "mine: 7 calls, 1 NEW"),
        ((PANIC,), (PANIC,), 0, "mine: 7 calls, 1 stock's too"),
        ((PANIC,), (), 0, "stock: 7 calls, 1 NEW; mine: 7 calls, nothing found"),
        (None, (PANIC,), 1, "mine: 7 calls, 1 NEW"),
        (None, (Finding("stall", "x", 1, known="lapic-msi"),), 0, "mine: 7 calls, 1 known"),
    ],
)
def test_whose_fault_it_is(
    stock: tuple[Finding, ...] | None,
    series: tuple[Finding, ...],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = report(stock, series)
    assert result.exit_code == code == result.to_data()["exit_code"]
    assert words in result.verdict
    fuzz_run.show(result)
    said = capsys.readouterr().out
    assert "7 EINVAL" in said
    assert "./inv fuzz --seed 5 --calls 7\n" in said


def test_what_is_to_be_typed_again_makes_the_same_calls(
    capsys: pytest.CaptureFixture[str],
) -> None:
    side = Side("stock", Attack(1, 7, Counter(), ()), 0)
    order = Order(5, 7, with_known=True)
    fuzz_run.show(FuzzReport(order, "15.1", "bochs", Path("run"), (side,), (), ()))
    assert "./inv fuzz --seed 5 --calls 7 --known --stock\n" in capsys.readouterr().out


def test_a_panic_is_called_by_the_innermost_place_that_has_a_name() -> None:
    """Without the kernel's symbols the innermost is an address, another one after each build."""
    frames = (
        Frame("calltrap", 8),
        Frame("", 0, 0xFFFFFFFF80B628BA),
        Frame("vcpu_set_state_all", 2),
    )

    class Bench:
        def collect_panic(self) -> Panic:
            return Panic("Fatal trap 9", (), frames)

    fell = fuzz.Fell(GuestError("it fell"), ())
    found = fuzz_run._fall(cast("Any", Bench()), fell, 3)
    assert (found.kind, found.text, found.round) == (
        "panic",
        "Fatal trap 9, in vcpu_set_state_all",
        3,
    )


ANSWERED = """\
answer 0.0 22 cbf29ce484222325 VM_MMAP_MEMSEG
answer 0.1 0 af63bd4c8601b7be VM_GET_REGISTER
answer 0.2 -1 cbf29ce484222325 VM_LAPIC_MSI
seed 1
rounds 1
calls 2
end
"""


def test_answers_are_compared() -> None:
    guest = FakeGuest({"/x/vmmfuzz": (0, ANSWERED, "")})
    stock = fuzz.answers(guest, "/x/vmmfuzz", 1, 3, avoid=["any-run"])
    assert guest.said == ["/x/vmmfuzz -a -s 1 -n 3 -p 200 -x any-run"]
    assert stock == {
        "0.0 VM_MMAP_MEMSEG": "EINVAL cbf29ce484222325",
        "0.1 VM_GET_REGISTER": "success af63bd4c8601b7be",
        "0.2 VM_LAPIC_MSI": "left out cbf29ce484222325",
    }
    assert fuzz.answered_otherwise(stock, dict(stock)) == []
    ours = {**stock, "0.0 VM_MMAP_MEMSEG": "success cbf29ce484222325", "0.3 X": "EPERM 0"}
    del ours["0.1 VM_GET_REGISTER"]
    assert fuzz.answered_otherwise(stock, ours) == [
        "0.0 VM_MMAP_MEMSEG: success cbf29ce484222325, stock answers EINVAL cbf29ce484222325",
        "0.1 VM_GET_REGISTER: no answer, stock answers success af63bd4c8601b7be",
        "0.3 X: EPERM 0, stock was not asked",
    ]


def test_what_an_emulator_does_not_bear_is_left_out() -> None:
    for backend in ("bochs", "kvm-in-bochs"):
        assert list(fuzz.beyond(backend, "amd")) == ["any-run"]
    assert fuzz.beyond("bochs", "") == fuzz.beyond("kvm", "amd") == {}


def test_the_known_leak_is_left_out() -> None:
    known = fuzz.load_known("15.1")
    names = ("SMR SHARED", "SMR CPU", "malloc-64", "wired pages")
    assert fuzz.unknown_leaks(names, known) == {"malloc-64", "wired pages"}
