"""Every task that takes --series follows the same rules about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context

from harness import debian, defaults
from harness.build import sandbox as fence
from harness.cli import guest, guest_commands
from harness.cli import series as series_tasks
from harness.cli import verify as verify_tasks
from harness.run import bisect, fuzz_run, verify
from harness.run.options import Options


class _Stop(BaseException):
    """The options have been seen."""


@pytest.fixture
def options_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Options]:
    """The options that a task makes of its arguments."""
    seen: list[Options] = []

    def stop(options: Options, *_more: Any, **_named: Any) -> None:
        seen.append(options)
        raise _Stop

    monkeypatch.setattr(fence, "choose", lambda _sandbox: None)
    monkeypatch.setattr(debian, "ensure", lambda: None)
    monkeypatch.setattr(verify, "verify", stop)
    monkeypatch.setattr(guest_commands, "up", stop)
    monkeypatch.setattr(fuzz_run, "run", stop)
    monkeypatch.setattr(bisect, "bisect", stop)

    def go(task: Any, *arguments: Any, **named: Any) -> Options:
        with pytest.raises(_Stop):
            task.body(Context(), *arguments, **named)
        return seen.pop()

    return go


TASKS = (verify_tasks.verify, guest.up, series_tasks.fuzz, series_tasks.bisect)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_series_means_no_topic_and_a_comparison_with_stock(
    options_of: Callable[..., Options], tmp_path: Path, task: Any
) -> None:
    patch = tmp_path / "mine.patch"
    options = options_of(task, [str(patch)])
    assert options.series == (patch,)
    assert options.topic_name == ""
    assert options.with_stock


@pytest.mark.parametrize("task", TASKS[:3], ids=lambda task: task.name)
def test_without_one_the_topic_is_the_default(
    options_of: Callable[..., Options], task: Any
) -> None:
    assert options_of(task, []).topic_name == defaults.TOPIC


@pytest.mark.parametrize("task", TASKS[::2], ids=lambda task: task.name)
def test_a_topic_that_was_named_stays(
    options_of: Callable[..., Options], tmp_path: Path, task: Any
) -> None:
    given = [str(tmp_path / "mine.patch")]
    assert options_of(task, given, topic="boot").topic_name == "boot"
