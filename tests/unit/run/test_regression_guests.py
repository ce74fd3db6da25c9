"""Patches in several guests: who gets which, and what becomes of one whose guest's process ends."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.run import regression_guests
from harness.run.options import Options
from harness.run.regression_data import VariantResult
from harness.run.regression_guests import Others, Todo
from harness.run.related import related

# A guest's process that is none: it judges what it is given, or ends at the patch named bad.
CHILD = """
import sys
from multiprocessing.connection import Connection
from harness.run.regression_data import VariantResult
from harness.run.regression_guests import OutsideBaseline

line = Connection(int(sys.argv[-1]))
job = line.recv()
line.send(OutsideBaseline({"test_x": "no such program"}))
while (name := line.recv()) is not None:
    if name == "bad":
        sys.exit("the emulator is gone")
    why = job.run_dir.name
    line.send(VariantResult(name, "", "", "", "", False, "caught", ("test_y",), why, 1.0))
"""


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    """As much of a workbench as a further guest is given."""
    return SimpleNamespace(
        booted=SimpleNamespace(imaged="an image"), run_dir=tmp_path, options=Options()
    )


@pytest.fixture(autouse=True)
def child(monkeypatch: pytest.MonkeyPatch) -> None:
    """The played process in place of the real one."""
    monkeypatch.setattr(regression_guests, "COMMAND", (sys.executable, "-c", CHILD))


def test_each_patch_is_handed_out_once() -> None:
    todo = Todo(["a", "b"])
    assert todo.next(done=False) == "a"
    assert todo.next(done=True) == "b"
    assert todo.next(done=True) is None


def test_what_was_given_back_comes_next() -> None:
    todo = Todo(["a", "b"])
    assert todo.next(done=False) == "a"
    todo.give_back("a")
    assert todo.next(done=False) == "a"


def test_another_guest_judges_too(bench: Any, tmp_path: Path) -> None:
    took: list[tuple[int, VariantResult]] = []
    todo = Todo(["a", "b", "c"])
    with Others(todo, lambda guest, judged: took.append((guest, judged))) as others:
        others.start(bench, 2, tmp_path, tmp_path, every=False)
        others.wait()
    assert sorted(judged.name for _, judged in took) == ["a", "b", "c"]
    assert {judged.why for guest, judged in took} <= {"guest-2", "guest-3"}
    assert all(judged.why == f"guest-{guest}" for guest, judged in took)
    assert others.without == {
        "test_x (guest 2)": "no such program", "test_x (guest 3)": "no such program"
    }  # fmt: skip
    assert others.notes == []


def test_a_process_that_ends_gives_its_patch_back(bench: Any, tmp_path: Path) -> None:
    took: list[str] = []
    todo = Todo(["bad", "good"])
    with Others(todo, lambda _, judged: took.append(judged.name)) as others:
        others.start(bench, 1, tmp_path, tmp_path, every=False)
        others.wait()
    assert others.notes == ["guest 2: its process ended; see guest-2/process.log"]
    assert took == []
    assert todo.next(done=False) == "bad"
    assert todo.next(done=True) == "good"
    assert todo.next(done=True) is None
    assert "the emulator is gone" in (tmp_path / "guest-2" / "process.log").read_text()


def test_no_further_guest(bench: Any, tmp_path: Path) -> None:
    with Others(Todo(["a"]), lambda *_: None) as others:
        others.start(bench, 0, tmp_path, tmp_path, every=False)
        others.wait()
    assert not (tmp_path / "guest-2").exists()


def test_what_looks_at_a_file() -> None:
    assert related(["sys/amd64/vmm/io/vatpit.c"]) == ("test_vmunit.py::test_vmunit[timer.",)
    assert (
        related(["sys/amd64/vmm/vmm_instruction_emul.c"])[0] == "test_vmunit.py::test_vmunit[emul."
    )
    assert related(["usr.sbin/bhyve/iov.c"])[0] == "test_bhyveunit.py"
    assert related(["README"]) == ()
