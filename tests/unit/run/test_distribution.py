"""Distribution of checks: none is lost, none runs twice, long ones start first."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.run import distribution
from harness.run.distribution import Distributor, Group


def test_groups_stay_together_and_the_longest_goes_first() -> None:
    items = [("a", "f::x"), ("b", "f::y"), ("a", "f::z"), ("c", "f::w")]
    made = distribution.groups(items, {"f::x": 1.0, "f::z": 1.0, "f::y": 9.0, "f::w": 2.0})
    assert [group.names for group in made] == [("f::y",), ("f::x", "f::z"), ("f::w",)]


def test_what_never_ran_is_taken_to_need_a_while() -> None:
    made = distribution.groups([("a", "d/f::short"), ("b", "d/f::new")], {"f::short": 0.1})
    assert [group.names for group in made] == [("d/f::new",), ("d/f::short",)]


def test_what_a_worker_had_not_begun_comes_back() -> None:
    distributor = Distributor([Group(("a", "b", "c"), 3.0)])
    assert distributor.next(2) == ("a", "b", "c")
    distributor.begun(2, "a")
    distributor.gone(2)
    assert distributor.next(1) == ("b", "c")
    assert distributor.next(1) == ()


def test_a_worker_waits_for_what_may_come_back() -> None:
    distributor = Distributor([Group(("a",), 1.0)])
    assert distributor.next(2) == ("a",)
    got: list[tuple[str, ...]] = []
    waiting = threading.Thread(target=lambda: got.append(distributor.next(1)))
    waiting.start()
    time.sleep(0.05)
    assert got == []
    distributor.gone(2)
    waiting.join(10)
    assert got == [("a",)]


@given(st.lists(st.integers(1, 4), max_size=12), st.integers(1, 4))
def test_everything_is_dealt_once(sizes: list[int], workers: int) -> None:
    todo = [Group(tuple(f"{n}.{k}" for k in range(size)), 1.0) for n, size in enumerate(sizes)]
    distributor, ran, lock = Distributor(todo), [], threading.Lock()  # type: ignore[var-annotated]

    def work(number: int) -> None:
        while names := distributor.next(number):
            with lock:
                ran.extend(names)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(ran) == sorted(name for group in todo for name in group.names)


def test_times_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    assert distribution.known_times("bochs") == {}
    distribution.note_times("bochs", {"a": 4.0, "b": 1.0})
    distribution.note_times("bochs", {"a": 2.0})
    distribution.note_times("kvm", {"a": 0.5})
    assert distribution.known_times("bochs") == {"a": 3.0, "b": 1.0}
    assert distribution.known_times("kvm") == {"a": 0.5}


@pytest.mark.parametrize("text", ["", "[]", '{"bochs": 3}', '{"bochs": {"a": "x"}}', "\x00"])
def test_times_that_cannot_be_read_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    (tmp_path / "check-times.json").write_text(text)
    assert distribution.known_times("bochs") == {}
    distribution.note_times("bochs", {"a": 1.0})
    assert distribution.known_times("bochs") == {"a": 1.0}
