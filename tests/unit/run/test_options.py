"""The rules about what goes with what hold for every task, as they are the options' own."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from harness import defaults, keeper
from harness.errors import GuestError, UsageError
from harness.files import PROJECT
from harness.run import persistent_session
from harness.run.options import Options, name_to_keep

SERIES = (Path("mine.patch"),)


@pytest.mark.parametrize(
    ("given", "topic", "with_stock"),
    [
        ({}, defaults.TOPIC, False),
        ({"series": SERIES}, "", True),
        ({"series": SERIES, "topic": "boot"}, "boot", True),
        ({"series": SERIES, "alone": True}, "", False),
        ({"side_by_side": True}, defaults.TOPIC, True),
        ({"stock": True}, defaults.TOPIC, False),
        ({"topic": ""}, "", False),
    ],
)
def test_a_series_has_no_topic_and_is_compared_with_stock(
    given: dict[str, Any], topic: str, with_stock: bool
) -> None:
    options = Options(**given)
    assert (options.topic_name, options.with_stock) == (topic, with_stock)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"alone": True}, "--alone needs --series"),
        ({"alone": True, "series": SERIES, "side_by_side": True}, "leave out --side-by-side or"),
        ({"stock": True, "series": SERIES}, "leave out --series or --stock"),
        ({"stock": True, "side_by_side": True}, "leave out --stock or --side-by-side"),
        ({"guests": -1}, "--guests -1: it must be at least 1"),
        ({"builder": "nobody"}, "--builder nobody"),
        ({"coverage": True, "builder": "guest"}, "--coverage needs the compiler"),
    ],
)
def test_what_does_not_go_together(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Options(**given)


def test_a_name_is_for_a_guest_that_stays() -> None:
    assert name_to_keep(keep=False, name="") == ""
    assert name_to_keep(keep=True, name="") == "verify"
    assert name_to_keep(keep=True, name="mine") == "mine"
    with pytest.raises(UsageError, match="--name mine belongs to --keep"):
        name_to_keep(keep=False, name="mine")


def test_a_guest_is_loaded_again_with_other_patches_by_the_same_rules(tmp_path: Path) -> None:
    """`inv reload --series` after `inv up`, and the way back."""
    started = persistent_session.to_data(Options())
    owner = keeper.record.Process(1, "")
    record = keeper.Record("guest", tmp_path, owner, "ready", options=started)
    for changes, topic in (({"series": SERIES}, ""), ({"stock": True}, defaults.TOPIC)):
        session = persistent_session.AttachedSession(record, **changes)
        assert session.options.topic_name == topic
    # As versions of before wrote it.
    old = {**started, "topic": "meminfo", "series": ["mine.patch"]}
    del old["alone"]
    record = keeper.Record("guest", tmp_path, owner, "ready", options=old)
    assert persistent_session.options_of(record).series == SERIES


TASKS = sorted((PROJECT / "harness/cli").glob("*.py"))


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.name)
def test_no_task_has_rules_of_its_own_about_series_and_topic(path: Path) -> None:
    """A task hands on what the user named: nothing is decided by it before."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Options":
            for keyword in node.keywords:
                if keyword.arg in ("topic", "side_by_side"):
                    names = (it.id for it in ast.walk(keyword.value) if isinstance(it, ast.Name))
                    named = {*names} - {"defaults", "path", "Path", "tuple"}
                    assert len(named) <= 1, f"{keyword.arg} is made of {sorted(named)}"


def test_a_guest_of_another_version_is_named_with_the_way_to_end_it(tmp_path: Path) -> None:
    options = {**persistent_session.to_data(Options()), "of_tomorrow": True}
    record = keeper.Record("old", tmp_path, keeper.record.Process(1, ""), "ready", options=options)
    with pytest.raises(GuestError, match=r"another version .*; \./inv down --name old ends it"):
        persistent_session.options_of(record)
