"""Whose complaint a kernel's message is, and which check it fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes import FakeGuest
from fakes import bench as fake_bench
from kernel_texts import HELD, REVERSAL, TYPE

from harness import progress
from harness.deadline import Deadline
from harness.guest import kernel_messages
from harness.report import Check
from harness.run import complaints, outcomes, plugin
from harness.run.complaints import Complaints

pytest_plugins = ["pytester"]


class Guest(FakeGuest):
    """Its message buffer has what the console has, or `buffer` if there is one; it counts."""

    buffer = ""

    def dmesg(self, deadline: Deadline | None = None) -> list[str]:
        self.said.append("dmesg")
        return self.buffer.splitlines() or super().dmesg(deadline)


class Kernel:
    """A guest whose kernel prints on its console and in its buffer."""

    def __init__(self, file: Path | None = None) -> None:
        self.guest = Guest()
        self.console = cast(Any, self.guest.machine.console)
        self.properties: dict[str, str] = {}
        self.heard = Complaints(self.properties)
        self.heard.file = file
        self.mark = 0

    def says(self, text: str) -> None:
        self.mark = self.console.mark
        self.console.text += text
        self.guest.buffer += text

    def load(self) -> None:
        self.heard.loading(self.console)

    def hear(self, *, stock: bool = False) -> list[str]:
        found = self.heard.hear(self.guest, self.mark, stock)
        return [it.kind for it in found]


def test_of_the_patch() -> None:
    kernel = Kernel()
    kernel.load()
    kernel.says("quiet\n")
    assert kernel.hear() == []
    assert kernel.guest.said == []
    kernel.says(REVERSAL)
    assert kernel.hear() == ["lock order"]
    # It stays the patch's, however often it comes; the guest is asked once.
    kernel.says(REVERSAL)
    assert kernel.hear() == ["lock order"]
    assert kernel.guest.said == ["dmesg"]
    assert kernel.properties == {}


def test_of_the_boot() -> None:
    """The console's text begins when a snapshot is resumed, the buffer with the boot."""
    kernel = Kernel()
    kernel.guest.buffer = f"---<<BOOT>>---\n{REVERSAL}"
    kernel.load()
    kernel.says(REVERSAL.replace("0xfffff80003b0d068", "0xfffff80003b0d999"))
    assert kernel.hear() == []
    kernel.says(HELD)
    assert kernel.hear() == ["locks held"]
    assert kernel.properties[complaints.PROPERTY].startswith("1: lock order reversal: (sleepable")


def test_of_stock(tmp_path: Path) -> None:
    first = Kernel(tmp_path / complaints.FILE)
    first.load()
    first.says(REVERSAL + TYPE)
    assert first.hear(stock=True) == []
    assert first.properties[complaints.PROPERTY].startswith("2: lock order reversal")
    first.says(REVERSAL + HELD)
    assert first.hear() == ["locks held"]
    # Another guest of this run, or a later run, reads it: there stock need not run.
    second = Kernel(tmp_path / complaints.FILE)
    second.load()
    second.says(TYPE + HELD)
    assert second.hear() == ["locks held"]
    # A new kernel may do without it, but what was learned stays beside the old one's disk.
    third = Kernel(tmp_path / "other" / complaints.FILE)
    third.load()
    third.says(TYPE)
    assert third.hear() == ["leaked type"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": "\\n"}'])
def test_a_damaged_record_of_stock_is_no_use_and_no_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / complaints.FILE
    file.write_text(content)
    kernel = Kernel(file)
    kernel.load()
    kernel.says(REVERSAL)
    assert kernel.hear() == ["lock order"]
    assert kernel.hear(stock=True) == []
    again = Kernel(file)
    again.load()
    again.says(REVERSAL)
    assert again.hear() == []


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kernel = Kernel(tmp_path / "file" / complaints.FILE)
    kernel.load()
    kernel.says(REVERSAL)
    assert kernel.hear(stock=True) == []
    assert kernel.hear() == []


def test_a_broken_guest_is_not_asked() -> None:
    kernel = Kernel()
    kernel.load()
    kernel.says(REVERSAL)
    kernel.console.panic = "x"
    assert kernel.hear() == ["lock order"]
    assert kernel.guest.said == []


def test_what_is_said_while_the_module_is_loaded_is_a_result_of_its_own() -> None:
    kernel = Kernel()
    assert kernel.heard.checks() == ()
    kernel.heard.outside += kernel_messages.read((REVERSAL + TYPE).splitlines())
    (check,) = kernel.heard.checks()
    assert (check.outcome, check.name) == ("failed", complaints.CHECK)
    assert check.message.startswith("the kernel complained 2 times: lock order reversal: (sleep")
    assert TYPE.strip() in check.detail
    assert [it.kind for it in kernel.heard.take()] == ["lock order", "leaked type"]
    assert kernel.heard.checks() == ()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    # A run of pytest in this process forgets the modules that it imported first, so that what was
    # made of their classes is of no use afterwards.
    assert progress.err.is_terminal in (False, True)
    monkeypatch.setattr(progress, "say", lambda _line: None)


class Recorded:
    """Runs tests as verify does; `checks` are their results."""

    def __init__(self, pytester: pytest.Pytester, *, stock: bool = False) -> None:
        self.pytester = pytester
        self.bench = fake_bench(Guest())
        self.bench.on_stock = stock
        self.bench.stages = [SimpleNamespace(began_s=0.0)]
        self.checks: list[Check] = []

    def run(self, text: str) -> dict[str, Check]:
        self.pytester.makepyfile(
            f"import pytest\nREVERSAL = {REVERSAL!r}\nHELD = {HELD!r}\n"
            "def say(guest, text):\n    guest.machine.console.text += text\n" + text
        )
        recorder = outcomes.Recorder(
            cast(Any, self.bench), self.checks, self.pytester.path, beside=False
        )
        self.pytester.runpytest_inprocess("-p", "no:cacheprovider", plugins=[recorder])
        return {check.name.rpartition("::")[2]: check for check in self.checks}


CHECKS = """
def test_before(guest): pass
def test_passes(guest): say(guest, REVERSAL)
def test_after(guest): pass
def test_fails(guest):
    say(guest, HELD)
    assert 0, "its own reason"
def test_skips(guest):
    say(guest, HELD)
    pytest.skip("no")
@pytest.mark.xfail
def test_must_fail(guest):
    say(guest, HELD)
    assert 0
@pytest.fixture
def loud_before(guest): say(guest, HELD)
@pytest.fixture
def loud_after(guest):
    yield
    say(guest, HELD)
def test_set_up(guest, loud_before): pass
def test_taken_down(guest, loud_after): pass
def test_last(guest): pass
"""


def test_the_current_check_fails(pytester: pytest.Pytester) -> None:
    found = Recorded(pytester).run(CHECKS)
    assert {name: check.outcome for name, check in found.items()} == {
        "test_before": "passed",
        "test_passes": "failed",
        "test_after": "passed",
        "test_fails": "failed",
        "test_skips": "failed",
        "test_must_fail": "failed",
        "test_set_up": "failed",
        "test_taken_down": "failed",
        "test_last": "passed",
    }
    assert found["test_passes"].message.startswith(
        "the kernel complained: lock order reversal: (sleepable after non-sleepable)"
    )
    for line in REVERSAL.splitlines():
        assert line in found["test_passes"].detail
    # A check's own failure stays the first reason; the kernel's words are beside it.
    assert "its own reason" in found["test_fails"].message
    assert "--- the kernel complained\nSleeping on" in found["test_fails"].detail


def test_on_stock_it_is_noted_alone(pytester: pytest.Pytester) -> None:
    recorded = Recorded(pytester, stock=True)
    found = recorded.run(CHECKS)
    assert found["test_passes"].outcome == "passed"
    assert found["test_set_up"].outcome == "passed"
    assert recorded.bench.properties[complaints.PROPERTY].startswith("2: lock order reversal")


def test_no_command_is_added_to_a_quiet_check(pytester: pytest.Pytester) -> None:
    recorded = Recorded(pytester)
    recorded.run("def test_a(guest): guest.run(['true'])\ndef test_b(guest): pass\n")
    assert recorded.bench.guest.said.count("dmesg") == 1, "the one before the first check"
    assert plugin.COMPLAINED
