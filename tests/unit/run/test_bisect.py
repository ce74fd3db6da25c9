"""The first bad patch of a series: the search, and its steps with a fake guest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.build import builder
from harness.errors import GuestPanic, PatchError, UsageError
from harness.report import Check
from harness.report.data import StageResult
from harness.run import bisect, shards
from harness.run.options import Options
from harness.run.stages import Built
from harness.series.load import Patch, Series


@given(st.integers(1, 40), st.data())
def test_the_first_bad_one_is_among_the_suspects(total: int, data: st.DataObject) -> None:
    """Nothing is asked twice, and no more than the skipped lie beside the first bad one."""
    first = data.draw(st.integers(1, total))
    unbuildable = data.draw(st.sets(st.integers(1, max(total - 1, 1)), max_size=5)) - {total}
    asked: list[int] = []

    def try_at(number: int) -> bisect.Verdict:
        asked.append(number)
        if number in unbuildable:
            return "skipped"
        return "bad" if number >= first else "good"

    suspects = bisect.search(try_at, 0, total)
    assert first in suspects
    assert set(suspects[:-1]) <= unbuildable
    assert len(asked) == len(set(asked)) <= 6 + len(unbuildable)


Outcome = dict[str, str] | Exception
Hunt = Callable[..., bisect.Found]


@pytest.fixture
def hunt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hunt:
    """Bisect a series of which each step's checks, or error, are given; -1 is what build raises."""

    def go(steps: dict[int, Outcome], count: int = 5, **how: Any) -> bisect.Found:
        restarted: list[int] = []

        class Bench:
            def __init__(self, options: Options, run_dir: Path) -> None:
                assert not options.module
                self.options, self.run_dir = options, run_dir
                self.stages: list[StageResult] = []
                imaged = SimpleNamespace(
                    source=Path(), record=SimpleNamespace(sysroot=None, kernel=())
                )
                self.booted = SimpleNamespace(imaged=imaged)

                self.backend = "fake"

            def to_image(self) -> Any:
                return self.booted.imaged

            def boot(self, _imaged: object) -> SimpleNamespace:
                return self.booted

            def load(self, _built: Built, build: int, _stage: str) -> None:
                self.at = build

            def restart_guest(self, *, load: bool) -> None:
                assert not load
                restarted.append(self.at)

            def __enter__(self) -> Bench:
                return self

            def __exit__(self, *_exc: object) -> None: ...

        def build(
            _src: Path, _root: None, series: Series | None, _rel: str, **_more: object
        ) -> int:
            number = len(series.patches) if series else 0
            if isinstance(outcome := steps.get(number), PatchError):
                raise outcome
            return number

        def checks(bench: Bench, _tests: Path, found: list[Check], **_more: object) -> None:
            outcome = steps.get(bench.at, {"a": "passed", "b": "passed"})
            if isinstance(outcome, Exception):
                raise outcome
            found += [
                Check(name, name, result, False, 0.1, "why")  # type: ignore[arg-type]
                for name, result in outcome.items()
            ]

        patch = [
            Patch(Path(f"{n + 1:04}.patch"), "s", "", "", ("x",), str(n), b"") for n in range(count)
        ]
        series = Series("mine", "15.1", Path(), tuple(patch))
        monkeypatch.setattr(bisect, "Session", Bench)
        monkeypatch.setattr(bisect, "Workbench", lambda session, _booted: session)
        monkeypatch.setattr(bisect, "load_series", lambda _options: series)
        monkeypatch.setattr(bisect, "new_run_dir", lambda _what: tmp_path)
        monkeypatch.setattr(builder, "build", build)
        monkeypatch.setattr(bisect, "run_checks", checks)
        found = bisect.bisect(Options(guests=1), **how)
        assert [step.applied for step in found.steps if step.why == "panic"] == restarted
        return found

    return go


def test_all_guests_share_the_checks_of_a_step(hunt: Hunt, monkeypatch: pytest.MonkeyPatch) -> None:
    """The further guests stay for the whole search, and each step is a round of checks."""
    pools: list[Any] = []
    rounds: list[Any] = []

    class Pool:
        workers: ClassVar[dict[int, Any]] = {}

        def __init__(self, _session: Any, _tests: Path, count: int) -> None:
            self.count = count
            pools.append(self)

        def start_early(self, imaged: Any) -> None:
            self.imaged = imaged

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_exc: object) -> None:
            self.ended = True

    monkeypatch.setattr(shards, "Pool", Pool)
    monkeypatch.setattr(shards, "wanted", lambda _backend, _asked: 3)
    real = shards.Rounds

    def noted(pool: Any, bench: Any, phases: Any) -> shards.Rounds:
        rounds.extend(phases)
        return real(pool, bench, phases)

    monkeypatch.setattr(shards, "Rounds", noted)
    found = hunt({3: BAD, 4: BAD, 5: BAD})
    assert found.suspects == (3,)
    assert [(pool.count, pool.ended) for pool in pools] == [(3, True)]
    built = [phase.order.built.build for phase in rounds]
    assert built == [0, 5, 2, 3]
    assert not any(phase.order.stock for phase in rounds)


BAD: Outcome = {"a": "passed", "b": "failed"}


def test_the_third_of_five(hunt: Hunt) -> None:
    found = hunt({3: BAD, 4: BAD, 5: BAD})
    assert found.suspects == (3,)
    assert found.verdict == "the first bad patch is 0003.patch (3 of 5): b fails: why"
    assert found.exit_code == 1
    assert [step.applied for step in found.steps] == [0, 5, 2, 3]


def test_what_never_held_is_not_missed(hunt: Hunt) -> None:
    """A check that fails at the start says nothing of the patches."""
    always: Outcome = {"a": "passed", "b": "failed"}
    found = hunt(dict.fromkeys(range(6), always))
    assert (found.suspects, found.exit_code) == ((), 0)
    assert "no bad patch" in found.verdict


def test_a_step_that_does_not_build_is_passed_by(hunt: Hunt) -> None:
    found = hunt({2: PatchError("no hunk"), 3: BAD, 4: BAD, 5: BAD})
    assert [step.verdict for step in found.steps if step.applied == 2] == ["skipped"]
    assert found.suspects == (2, 3)
    assert "0002.patch (2 of 5), 0003.patch (3 of 5)" in found.verdict


def test_a_panic_is_bad_and_the_guest_comes_back(hunt: Hunt) -> None:
    panic = GuestPanic("panic")
    assert hunt({4: panic, 5: panic}).suspects == (4,)


def test_ends_that_cannot_be(hunt: Hunt) -> None:
    with pytest.raises(UsageError, match="the series has 5 patches"):
        hunt({}, good=3, bad=2)
    with pytest.raises(UsageError, match="has 5 patches"):
        hunt({}, bad=6)
    with pytest.raises(UsageError, match="empty"):
        hunt({}, count=0)
    with pytest.raises(UsageError, match="no check passes"):
        hunt({0: {"a": "failed"}})
    with pytest.raises(PatchError, match="with 5 patches: no hunk"):
        hunt({5: PatchError("no hunk")})
