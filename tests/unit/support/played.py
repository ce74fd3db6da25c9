"""A machine that only plays: it saves a file, and comes up or breaks as the test wants."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.guest import snapshot
from harness.guest.freebsd import Access, Guest
from harness.guest.snapshot import Snapshot
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


def only(spec: Spec) -> Snapshot:
    (found,) = snapshot.kept(spec.drive.path)
    return found


def only_of(spec: Spec, emulator: str) -> Snapshot:
    (found,) = [one for one in snapshot.kept(spec.drive.path) if one.facts["emulator"] == emulator]
    return found
