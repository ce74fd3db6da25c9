"""Which snapshot fits, which is refused and why; what happens when one cannot be saved or resumed.

The machine is a fake: it "saves" a file, and comes up or breaks as the test says.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cli import image_commands
from harness.deadline import Deadline
from harness.errors import CannotError, DiskFull, GuestError, MachineDied, WaitTimeout
from harness.files import PROJECT, checksum_sparse, locked
from harness.guest import snapshot
from harness.guest.freebsd import Access, Guest
from harness.guest.snapshot import Snapshot
from harness.image import prune, store
from harness.image.model import ImageRecord
from harness.machine import Drive, Machine, Spec, Traits

ACCESS = Access(Path("key"), "ssh-ed25519 AAAA")
TRAITS = Traits("played", time_scale=1.0, virtualizes=False, saves=True)


class Played(Machine):
    """What was done is in `log`; `broken` names what goes wrong."""

    traits = TRAITS
    log: list[str]
    broken: dict[str, BaseException]
    emulator = "1"
    ends_when_saved = False

    def command(self) -> list[str]:
        return ["played"]

    def depends_on(self) -> dict[str, str]:
        return {"emulator": self.emulator}

    def start(self, deadline: Deadline) -> None:
        self.step("resume" if self.spec.resume_from else "boot")
        self.up = True

    def step(self, name: str) -> None:
        self.log.append(name)
        if name in self.broken:
            raise self.broken[name]

    def save(self, folder: Path, deadline: Deadline) -> None:
        (folder / "below").mkdir()
        (folder / "below" / "ram").write_bytes(b"memory")
        self.step("save")
        self.up = not self.ends_when_saved

    def stop(self, deadline: Deadline) -> None:
        self.log.append("stop")
        self.up = False

    @property
    def pid(self) -> int | None:
        return 1 if getattr(self, "up", False) else None

    def _prepare(self) -> None: ...
    def _start_once(self, deadline: Deadline) -> None: ...
    def powered_off(self) -> bool:
        return False

    def last_words(self) -> str:
        return ""

    def _quit(self, deadline: Deadline) -> None: ...
    def _release(self) -> None: ...


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> type[Played]:
    """A kind of machine of this test's own, and guests that take their word from it."""

    class Mine(Played):
        log: list[str] = []  # noqa: RUF012
        broken: dict[str, BaseException] = {}  # noqa: RUF012

    for name in ("wait_ready", "enter", "wake"):
        monkeypatch.setattr(Guest, name, lambda self, *_a, name=name: self.machine.step(name))
    return Mine


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    disk = tmp_path / "prepared" / "disk.raw"
    disk.parent.mkdir()
    disk.write_bytes(b"disk")
    return Spec(tmp_path / "run", Drive(disk), memory_bytes=1 << 20)


def bring_up(kind: type[Played], spec: Spec, **more: object) -> str:
    kind.log.clear()
    guest, note = snapshot.bring_up(kind, spec, ACCESS, "image", **more)  # type: ignore[arg-type]
    assert guest.machine.pid == 1
    guest.machine.up = False  # type: ignore[attr-defined]
    return note


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


def only(spec: Spec) -> Snapshot:
    (found,) = snapshot.kept(spec.drive.path)
    return found


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


def test_a_snapshot_that_never_comes_back_is_given_up(played: type[Played], spec: Spec) -> None:
    """Each try would cost a resume, a boot and another save."""
    bring_up(played, spec)
    played.broken["wake"] = GuestError("no answer")
    assert bring_up(played, spec).endswith("saved a snapshot")
    assert bring_up(played, spec).endswith("saved a snapshot")
    assert "resuming a snapshot did not work (no answer; 20" in bring_up(played, spec)
    assert played.log == ["boot", "wait_ready"]


def test_one_that_comes_back_now_and_then_is_not_given_up(played: type[Played], spec: Spec) -> None:
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


def only_of(spec: Spec, emulator: str) -> Snapshot:
    (found,) = [one for one in snapshot.kept(spec.drive.path) if one.facts["emulator"] == emulator]
    return found


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
