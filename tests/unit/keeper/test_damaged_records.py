"""A guest's record that cannot be read hides no other guest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness import files, keeper
from harness.cli import guest_commands
from harness.errors import EXIT_CANNOT, EXIT_OK, CannotError
from harness.keeper.record import Process

DAMAGED = (b"", b"{", b"[]", b"\xff", b'{"name": "two"}', b'{"name": 3, "run_dir": 4}')


@pytest.fixture(autouse=True)
def guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of records, with one guest `one` that is fine."""
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))
    owner = Process.of(os.getpid())
    assert owner is not None
    keeper.save(keeper.Record("one", tmp_path / "runs" / "up-one", owner, stage=keeper.READY))
    return files.runs_dir() / "guests"


@pytest.mark.parametrize("content", DAMAGED)
def test_status_lists_the_others_and_names_the_damaged_one(
    guests: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (guests / "two.json").write_bytes(content)
    assert guest_commands.status("", json=True) == EXIT_CANNOT
    said = capsys.readouterr()
    assert [it["name"] for it in json.loads(said.out)] == ["one"]
    text = "".join(said.err.split())
    assert f"{guests}/two.json:cannotberead" in text
    assert text.endswith("removeit")


def test_a_file_that_no_guest_can_have_made_is_none(
    guests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (guests / "-x y.json").write_text("{}")
    assert guest_commands.status("", json=True) == EXIT_OK
    assert [it["name"] for it in json.loads(capsys.readouterr().out)] == ["one"]


def test_a_damaged_record_that_is_asked_for_is_refused(guests: Path) -> None:
    (guests / "two.json").write_text("{")
    with pytest.raises(CannotError, match=r"two\.json: cannot be read .*remove it"):
        guest_commands.status("two", json=False)
    assert guest_commands.status("one", json=True) == EXIT_OK


def test_only_damaged_records_are_not_called_no_guest(
    guests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (guests / "one.json").write_text("{")
    assert guest_commands.status("", json=False) == EXIT_CANNOT
    said = capsys.readouterr()
    assert "no guest is up" not in said.out + said.err


def test_down_of_all_ends_the_others(guests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (guests / "two.json").write_text("{")
    ended: list[str] = []

    def end(name: str, _hard: bool, _live: object) -> str:
        ended.append(name)
        return "ended"

    monkeypatch.setattr(keeper, "down", end)
    assert guest_commands.down("", everything=True, hard=False) == EXIT_CANNOT
    assert ended == ["one"]
