"""Saving a snapshot: when it fails, is interrupted, or would take too long."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from played import TRAITS, Played, bring_up, only, only_of
from played import played as played
from played import spec as spec

from harness.deadline import Deadline
from harness.errors import CannotError, DiskFull, GuestError, MachineDied, WaitTimeout
from harness.files import PROJECT, locked
from harness.guest import snapshot
from harness.machine import Spec


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), DiskFull("no room"), CannotError("no cc")]
)
def test_a_run_goes_on_when_nothing_can_be_saved(
    played: type[Played], spec: Spec, error: BaseException
) -> None:
    played.broken["save"] = error
    note = bring_up(played, spec)
    assert note == f"booted: there is no snapshot yet; no snapshot was saved: {error}"
    assert played.log[-1] == "enter"
    assert [path.name for path in snapshot.home(spec.drive.path).iterdir()] == ["lock"]
    assert "there is no snapshot yet" in bring_up(played, spec)
    assert "save" in played.log


@pytest.mark.parametrize(
    "error", [GuestError("QEMU would not"), WaitTimeout("not saved in time"), MachineDied("gone")]
)
def test_saving_that_does_not_work_is_tried_once(
    played: type[Played], spec: Spec, error: GuestError
) -> None:
    """Until something changes that it depends on, or somebody says to forget it."""
    played.broken["save"] = error
    assert f"no snapshot was saved: {error}" in bring_up(played, spec)
    note = bring_up(played, spec)
    assert played.log == ["boot", "wait_ready"]
    assert note.startswith(f"booted: saving a snapshot did not work ({error}; 20")
    assert note.endswith("nothing has changed since; ./inv image.prune forgets that")
    played.emulator = "2"
    bring_up(played, spec)
    assert "save" in played.log
    snapshot.prune(spec.drive.path)
    del played.broken["save"]
    assert bring_up(played, spec).endswith("saved a snapshot")
    assert bring_up(played, spec) == "resumed from a snapshot"


def test_saving_takes_no_longer_than_booting(
    played: type[Played], spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    save = played.save

    def noted(self: Played, folder: Path, deadline: Deadline) -> None:
        given.append(deadline.limit_s)
        save(self, folder, deadline)

    clock = iter((100.0, 137.0))
    monkeypatch.setattr(played, "save", noted)
    monkeypatch.setattr(played, "traits", replace(TRAITS, time_scale=12.0))
    monkeypatch.setattr(snapshot, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    bring_up(played, spec)
    assert given == [37.0]
    snapshot.prune(spec.drive.path)
    played.emulator = "2"
    clock = iter((100.0, 100.5))
    bring_up(played, spec)
    assert given == [37.0, 10.0]


def test_a_full_disk_is_asked_before(
    played: type[Played], spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(spec, memory_bytes=1 << 60)
    note = bring_up(played, spec)
    assert "no snapshot was saved: a snapshot needs" in note
    assert "save" not in played.log


def test_two_runs_do_not_save_at_once(played: type[Played], spec: Spec) -> None:
    with locked(snapshot.home(spec.drive.path) / "lock", "the other run"):
        note = bring_up(played, spec)
    assert "no snapshot was saved: saving a snapshot: another run holds" in note
    assert "save" not in played.log


def test_a_machine_that_ends_when_saved_is_resumed(played: type[Played], spec: Spec) -> None:
    played.ends_when_saved = True
    assert bring_up(played, spec).startswith("booted: there is no snapshot yet; saved")
    assert played.log == ["boot", "wait_ready", "save", "stop", "resume", "wake"]


def test_a_guest_that_is_broken_by_saving_is_booted_again(played: type[Played], spec: Spec) -> None:
    played.broken |= {"save": GuestError("QMP"), "enter": GuestError("gone")}
    note = bring_up(played, spec)
    assert "booted again: gone" in note
    assert played.log == ["boot", "wait_ready", "save", "enter", "stop", "boot", "wait_ready"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from harness.cli import image_commands
from harness.guest import snapshot
from harness.deadline import Deadline
sys.path[:0] = ["tests/unit/support", "tests/unit/guest"]
from test_snapshot import Played
from harness.machine import Drive, Spec
class Dying(Played):
    log, broken = [], {}
    def step(self, name):
        os.kill(os.getpid(), signal.SIGKILL)
machine = Dying(Spec(Path("/nonexistent"), Drive(Path(sys.argv[1])), memory_bytes=1 << 20))
snapshot.save(machine, snapshot.facts(machine, "image"), Deadline.after(5))
"""


def test_killed_while_saving_leaves_nothing_that_is_resumed(
    played: type[Played], spec: Spec
) -> None:
    command = [sys.executable, "-c", _KILLED, str(spec.drive.path)]
    assert subprocess.run(command, cwd=PROJECT, check=False).returncode == -9
    home = snapshot.home(spec.drive.path)
    assert len(list(home.glob(".*"))) == 1
    assert bring_up(played, spec) == "booted: there is no snapshot yet; saved a snapshot"
    assert not list(home.glob(".*"))


def test_only_the_last_few_are_kept_and_prune_keeps_one(played: type[Played], spec: Spec) -> None:
    for number in range(snapshot.KEEP + 2):
        played.emulator = str(number)
        bring_up(played, spec)
        # File systems tell times apart by their ticks only.
        os.utime(only_of(spec, str(number)).folder / "snapshot.json", (number, number))
    found = snapshot.kept(spec.drive.path)
    last = snapshot.KEEP + 1
    assert [one.facts["emulator"] for one in found] == [str(last - n) for n in range(snapshot.KEEP)]
    (snapshot.home(spec.drive.path) / ".left").mkdir()
    snapshot.prune(spec.drive.path)
    assert only(spec).facts["emulator"] == str(last)
    assert sorted(path.name for path in snapshot.home(spec.drive.path).iterdir()) == sorted(
        [only(spec).folder.name, "lock"]
    )
