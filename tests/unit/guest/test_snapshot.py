"""Which snapshot fits, which is refused and why; what happens when one cannot be saved or resumed.

The machine is a fake: it "saves" a file, and comes up or breaks as the test says.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from played import ACCESS, TRAITS, Played, bring_up, only, only_of
from played import played as played
from played import spec as spec

from harness.cli import image_commands
from harness.errors import GuestError, MachineDied
from harness.files import checksum_sparse
from harness.guest import snapshot
from harness.guest.freebsd import Access, Guest
from harness.image import prune, store
from harness.image.model import ImageRecord
from harness.machine import Machine, Spec


def test_the_first_boot_saves_and_the_next_run_resumes(played: type[Played], spec: Spec) -> None:
    assert bring_up(played, spec) == "booted: there is no snapshot yet; saved a snapshot"
    assert played.log == ["boot", "wait_ready", "save", "enter"]
    assert bring_up(played, spec) == "resumed from a snapshot"
    assert played.log == ["resume", "wake"]
    (only,) = snapshot.kept(spec.drive.path)
    assert only.state.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in snapshot.home(spec.drive.path).iterdir()) == sorted(
        [only.folder.name, "lock"]
    )


def test_cold_boots_and_leaves_snapshots_alone(played: type[Played], spec: Spec) -> None:
    bring_up(played, spec)
    assert bring_up(played, spec, cold=True) == "booted: --cold asks for it"
    assert played.log == ["boot", "wait_ready"]


def test_a_machine_that_cannot_be_saved(played: type[Played], spec: Spec) -> None:
    played.traits = replace(TRAITS, saves=False)
    assert bring_up(played, spec) == "booted: played cannot save a running guest"
    assert not snapshot.home(spec.drive.path).exists()


def other_emulator(kind: type[Played], spec: Spec) -> Spec:
    kind.emulator = "2"
    return spec


def other_time(_kind: type[Played], spec: Spec) -> Spec:
    os.utime(spec.drive.path, (1, 1))
    return spec


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_emulator, "emulator"),
        (lambda _kind, spec: replace(spec, memory_bytes=2 << 20), "memory"),
        (lambda _kind, spec: replace(spec, cpus=2), "number of processors"),
        (lambda _kind, spec: spec.drive.path.write_bytes(b"other") and spec, "disk"),
        (other_time, "disk"),
    ],
)
def test_a_snapshot_of_something_else_is_not_resumed(
    played: type[Played], spec: Spec, change: object, named: str
) -> None:
    bring_up(played, spec)
    spec = change(played, spec)  # type: ignore[operator]
    note = bring_up(played, spec)
    assert note == f"booted: the snapshot is of another {named}; saved a snapshot"
    assert bring_up(played, spec) == "resumed from a snapshot"


def test_another_image_or_version(
    played: type[Played], spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_up(played, spec)
    about = snapshot.facts(played(spec), "another")
    assert snapshot.find(spec.drive.path, about) == "the snapshot is of another image"
    monkeypatch.setattr(snapshot, "VERSION", snapshot.VERSION + 1)
    assert "another snapshot format" in bring_up(played, spec)


def damage(name: str, spec: Spec) -> None:
    folder = only(spec).folder
    ram = folder / "state" / "below" / "ram"
    match name:
        case "flipped":
            ram.write_bytes(b"memorz")
        case "cut off":
            ram.write_bytes(b"mem")
        case "gone":
            ram.unlink()
        case "more":
            (folder / "state" / "extra").touch()
        case "manifest":
            (folder / "snapshot.json").write_text("{")
        case "no manifest":
            (folder / "snapshot.json").unlink()


@pytest.mark.parametrize("how", ["flipped", "cut off", "gone", "more", "manifest", "no manifest"])
def test_a_damaged_snapshot_is_not_resumed_and_made_again(
    played: type[Played], spec: Spec, how: str
) -> None:
    bring_up(played, spec)
    where = only(spec).folder
    damage(how, spec)
    note = bring_up(played, spec)
    assert note.startswith("booted: ")
    assert str(where) in note
    assert note.endswith("; saved a snapshot")
    if "resume" in played.log:
        assert played.log.index("stop") < played.log.index("boot")
    assert bring_up(played, spec) == "resumed from a snapshot"


def test_a_file_is_read_once_until_somebody_writes_to_it(
    played: type[Played], spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its time of writing is set back, and after the host was started again."""
    read: list[Path] = []
    genuine = checksum_sparse

    def counted(path: Path) -> str:
        read.append(path)
        return genuine(path)

    bring_up(played, spec)
    saved = only(spec)
    monkeypatch.setattr(snapshot, "checksum_sparse", counted)
    saved.verify()
    assert read
    read.clear()
    saved.verify()
    assert not read
    # What image.verify does.
    assert image_commands._look_at("15.1", saved).ok
    assert read
    read.clear()
    boot = spec.run_dir.parent / "boot_id"
    boot.write_text("another")
    monkeypatch.setattr(snapshot, "_BOOT_ID", boot)
    saved.verify()
    assert read
    path = saved.state / "below" / "ram"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    damage("flipped", spec)
    os.utime(path, ns=times)
    with pytest.raises(snapshot.Unusable, match="its checksum is not the one that was saved"):
        saved.verify()
    with pytest.raises(snapshot.Unusable, match="its checksum is not the one that was saved"):
        saved.verify()


def test_a_damaged_file_explains_an_emulator_that_refuses(played: type[Played], spec: Spec) -> None:
    bring_up(played, spec)
    damage("flipped", spec)
    played.broken["resume"] = MachineDied("exited with 1")
    assert "its checksum is not the one that was saved" in bring_up(played, spec)


@pytest.mark.parametrize("where", ["resume", "wake"])
def test_a_guest_that_does_not_come_back_is_booted(
    played: type[Played], spec: Spec, where: str
) -> None:
    bring_up(played, spec)
    played.broken[where] = GuestError("no answer")
    note = bring_up(played, spec)
    assert note == ("booted: the snapshot could not be resumed: no answer; saved a snapshot")
    assert "stop" in played.log


def test_ctrl_c_while_resuming_stops_the_machine_and_keeps_the_snapshot(
    played: type[Played], spec: Spec
) -> None:
    bring_up(played, spec)
    played.broken["wake"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bring_up(played, spec)
    assert played.log[-1] == "stop"
    assert only(spec)


def test_a_snapshot_that_never_resumes_is_not_tried_again(played: type[Played], spec: Spec) -> None:
    """Each try would cost a resume, a boot and another save."""
    bring_up(played, spec)
    played.broken["wake"] = GuestError("no answer")
    assert bring_up(played, spec).endswith("saved a snapshot")
    assert bring_up(played, spec).endswith("saved a snapshot")
    assert "resuming a snapshot did not work (no answer; 20" in bring_up(played, spec)
    assert played.log == ["boot", "wait_ready"]


def test_one_that_resumes_sometimes_is_tried_again(played: type[Played], spec: Spec) -> None:
    bring_up(played, spec)
    for _ in range(3):
        played.broken["wake"] = GuestError("no answer")
        assert bring_up(played, spec).endswith("saved a snapshot")
        del played.broken["wake"]
        assert bring_up(played, spec) == "resumed from a snapshot"


def test_a_note_that_cannot_be_read_is_none(played: type[Played], spec: Spec) -> None:
    played.broken["save"] = GuestError("QEMU would not")
    bring_up(played, spec)
    (noted,) = snapshot.home(spec.drive.path).glob("*.failed.json")
    for text in ("{", "[]", '{"what": 1}'):
        noted.write_text(text)
        bring_up(played, spec)
        assert "save" in played.log


def test_a_boot_that_fails_leaves_no_machine(played: type[Played], spec: Spec) -> None:
    played.broken["wait_ready"] = GuestError("no SSH")
    with pytest.raises(GuestError, match="no SSH"):
        bring_up(played, spec)
    assert played.log == ["boot", "wait_ready", "stop"]


def test_every_wait_is_attended(played: type[Played], spec: Spec) -> None:
    raised: list[Machine] = []

    @contextlib.contextmanager
    def attend(guest: Guest) -> Iterator[None]:
        raised.append(guest.machine)
        yield
        assert played.log

    bring_up(played, spec)
    played.broken["wake"] = GuestError("no answer")
    guest, _ = snapshot.bring_up(played, spec, ACCESS, "image", attend=attend)
    assert [machine.spec.resume_from is None for machine in raised] == [False, True]
    assert guest.machine is raised[-1]


def test_the_image_tasks_know_of_snapshots(
    played: type[Played],
    spec: Spec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = spec.drive.path
    text: dict[str, Any] = dict.fromkeys(("origin", "origin_sha256", "disk_sha256", "uname"), "x")
    record = ImageRecord(
        **text,
        release="15.1",
        origin_format="raw",
        disk=disk,
        disk_bytes=4,
        access=Access(disk, "x"),
        osversion=1501000,
        prepared_at="now",
        prepare_version=4,
    )
    monkeypatch.setattr(store, "find", lambda _release: record)
    monkeypatch.setattr(store, "prepared", lambda: [record])
    monkeypatch.setattr(store, "known", list)
    monkeypatch.setattr(prune, "small_guests", lambda: 0)
    for played.emulator in ("1", "2"):
        bring_up(played, spec)
        os.utime(
            only_of(spec, played.emulator).folder / "snapshot.json", (int(played.emulator),) * 2
        )
    image_commands.show_info("15.1", as_json=True)
    raised = json.loads(capsys.readouterr().out)["snapshots"]
    assert [one["facts"]["emulator"] for one in raised] == ["2", "1"]
    image_commands.show_info("15.1", as_json=False)
    assert "played, made 20" in capsys.readouterr().out
    image_commands.prune_all()
    assert "0 B freed" not in capsys.readouterr().err
    assert only(spec).facts["emulator"] == "2"
