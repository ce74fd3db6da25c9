"""Variants for several guests: each is tried once, and what a lost guest had goes to another."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import GuestError, PatchError
from harness.run import catches
from harness.run.trial_work import Board, Task, require_none_left
from harness.run.trials import Baseline, Trial, Variant

PLANNED = [
    ("k1", "f/test_x.py::a", "test_x.py::a"),
    ("k2", "f/test_x.py::b", "test_x.py::b"),
    ("k2", "f/test_x.py::c", "test_x.py::c"),
]
BASELINE = Baseline({"test_x.py::a": 1.0, "test_x.py::b": 2.0, "test_x.py::c": 3.0}, {})
HELD = Trial((), "", 2, 1.0)
CAUGHT = Trial(("test_x.py::a",), "it fails", 1, 1.0)


def variant(name: str) -> Variant:
    made: Any = SimpleNamespace(name=name)
    return Variant(name, made, Path("vmtool"))


def board(*tasks: Task, took: list[Any] | None = None, **more: Any) -> Board:
    more.setdefault("planned", PLANNED)
    found: list[Any] = [] if took is None else took
    return Board(
        tasks,
        BASELINE,
        lambda guest, name, result: found.append((guest, name, result)),
        _together,
        **more,
    )


def _together(parts: Any, _seconds: float) -> Trial:
    caught = tuple(it for part in parts for it in part.caught)
    return Trial(caught, "", sum(part.checks_run for part in parts), 0.0)


def single(name: str) -> Task:
    return Task(name, lambda: variant(name))


def shared(name: str) -> Task:
    return Task(name, lambda: variant(name), shared=True)


def name_of(work: Any) -> str:
    return work.name if work else ""


def test_each_variant_is_handed_out_once() -> None:
    took: list[Any] = []
    todo = board(single("a"), single("b"), took=took)
    assert [name_of(todo.next(1)), name_of(todo.next(2))] == ["a", "b"]
    todo.done(2, CAUGHT)
    todo.done(1, HELD)
    assert todo.next(1) is None
    assert took == [(2, "b", CAUGHT), (1, "a", HELD)]
    require_none_left(todo)


def test_a_variant_whose_guest_ended_goes_to_another() -> None:
    todo = board(single("a"), single("b"))
    todo.next(1)
    todo.next(2)
    waiting: list[str] = []
    todo.done(1, HELD)
    thread = threading.Thread(target=lambda: waiting.append(name_of(todo.next(1))))
    thread.start()
    todo.gone(2)
    thread.join()
    assert waiting == ["b"]


def test_guests_share_the_checks_of_a_variant_that_must_hold() -> None:
    took: list[Any] = []
    todo = board(single("a"), shared("right"), took=took)
    assert name_of(todo.next(1)) == "a"
    assert name_of(todo.next(2)) == "right"
    # What shares a set-up stays together, and the longest comes first.
    assert todo.group(2) == ("f/test_x.py::b", "f/test_x.py::c")
    todo.done(1, CAUGHT)
    assert name_of(todo.next(1)) == "right"
    assert todo.group(1) == ("f/test_x.py::a",)
    assert todo.group(1) == ()
    todo.done(1, HELD)
    assert took == [(1, "a", CAUGHT)]
    assert todo.group(2) == ()
    todo.done(2, HELD)
    assert took[1] == (2, "right", Trial((), "", 4, 0.0))
    assert todo.next(1) is None


def test_a_lost_guest_s_share_runs_again() -> None:
    took: list[Any] = []
    todo = board(shared("right"), took=took)
    todo.next(1)
    todo.next(2)
    assert todo.group(2)
    assert todo.group(2)
    assert todo.group(1) == ()
    todo.done(1, Trial((), "", 0, 0.0))
    todo.gone(2)
    assert took == []
    assert todo.left == ("right",)
    with pytest.raises(GuestError, match="without a result, because their guests ended: right"):
        require_none_left(todo)
    assert name_of(todo.next(1)) == "right"
    assert len(todo.group(1)) + len(todo.group(1)) == 3
    todo.done(1, HELD)
    assert [name for _, name, _ in took] == ["right"]


def test_a_guest_that_ends_before_its_first_check_leaves_nothing_open() -> None:
    took: list[Any] = []
    todo = board(shared("right"), took=took)
    todo.next(1)
    todo.next(2)
    assert todo.group(1)
    assert todo.group(1)
    todo.done(1, HELD)
    assert took == []
    todo.gone(2)
    assert [name for _, name, _ in took] == ["right"]
    require_none_left(todo)


@pytest.mark.parametrize("stop_early", [True, False])
def test_the_first_failure_ends_a_shared_variant(stop_early: bool) -> None:
    todo = board(shared("right"), stop_early=stop_early)
    todo.next(1)
    todo.next(2)
    assert todo.group(1)
    todo.done(1, CAUGHT)
    assert bool(todo.group(2)) is not stop_early


def test_the_first_guest_says_which_checks_there_are() -> None:
    todo = board(shared("series"), planned=None)
    todo.next(2)
    got: list[tuple[str, ...]] = []
    thread = threading.Thread(target=lambda: got.append(todo.group(2)))
    thread.start()
    todo.next(1)
    todo.offer(PLANNED)
    thread.join()
    assert got == [("f/test_x.py::b", "f/test_x.py::c")]
    assert todo.planned == PLANNED


def test_only_the_baseline_s_checks_are_shared() -> None:
    todo = Board(
        [shared("right")],
        Baseline({"test_x.py::c": 1.0}, {"test_x.py::a": "it fails"}),
        lambda *_a: None,
        lambda parts, _seconds: parts[0],
        planned=PLANNED,
    )
    todo.next(1)
    assert todo.group(1) == ("f/test_x.py::c",)
    assert todo.group(1) == ()


def test_what_was_not_built_needs_no_guest() -> None:
    todo = board(Task("stale", lambda: None), Task("none", lambda: None, shared=True), single("a"))
    assert name_of(todo.next(1)) == "a"
    todo.done(1, HELD)
    assert todo.next(1) is None
    require_none_left(todo)


def test_an_error_of_a_build_ends_the_run_for_all() -> None:
    def build() -> Variant:
        raise PatchError("wrong-a: it does not build")

    todo = board(Task("wrong-a", build), single("b"))
    for guest in (1, 2):
        with pytest.raises(PatchError, match="wrong-a: it does not build"):
            todo.next(guest)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "meminfo" / "mutants"


def test_the_last_run_s_catch_is_tried_early(folder: Path) -> None:
    last = catches.Last("bochs", folder)
    last.note("a", Trial(("test_x.py::a[1]", "a panic"), "", 3, 2.0))
    last.note("b", Trial(("a panic",), "", 3, 30.0))
    last.save()
    again = catches.Last("bochs", folder)
    assert again.longest_first(["a", "new", "b"]) == ["b", "new", "a"]
    first = again.wrapped("a", lambda: variant("a"))()
    assert first is not None
    assert first.related == ("test_x.py::a[1]",)
    for name in ("b", "new"):
        plain = variant(name)
        assert again.wrapped(name, lambda plain=plain: plain)() is plain  # type: ignore[misc]
    assert again.wrapped("a", lambda: None)() is None
    # Another backend or folder has its own.
    assert catches.Last("kvm", folder).longest_first(["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("text", ["", "[]", '{"bochs meminfo/mutants/a": {"check": 7}}'])
def test_a_damaged_record_changes_nothing(folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "last-catches.json").write_text(text)
    last = catches.Last("bochs", folder)
    assert last.longest_first(["b", "a"]) == ["b", "a"]
    last.note("a", CAUGHT)
    last.save()
    assert catches.Last("bochs", folder).longest_first(["b", "a"]) == ["b", "a"]
