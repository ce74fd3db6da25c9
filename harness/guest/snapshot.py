"""Snapshots: a booted guest, stored with its image, which later runs resume instead of booting.

    FOLDER/snapshots/KEY/snapshot.json    the facts that it depends on, and the checksum of every
    file FOLDER/snapshots/KEY/state/           what the machine wrote; afterwards only read
    FOLDER/snapshots/KEY/verified.json    inode, size and times of the files before they were last
    read FOLDER/snapshots/KEY.failed.json      a failure to save or resume (snapshot_failures)

FOLDER is the prepared disk's, so a snapshot is removed with its image.  KEY is the digest of
everything that a state depends on; if the facts differ, the snapshot is only used to say why.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness import checked
from harness.deadline import Deadline
from harness.errors import CannotError, DiskFull, GuestError, WorkbenchError
from harness.files import (
    atomic_dir,
    checksum_sparse,
    human_bytes,
    locked,
    require_room,
    sha256_text,
)
from harness.guest import snapshot_failures as failures
from harness.guest.freebsd import Access, Guest
from harness.machine import Machine, Spec
from harness.machine.base import PortTaken

VERSION = 1
"""Increase this if the way to save or resume a snapshot changes."""

KEEP = 4
"""The number of snapshots stored for an image; the least recently used is removed first."""

_NAME = "snapshots"
MANIFEST = "snapshot.json"
STATE = "state"
_VERIFIED = "verified.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Resuming reads the memory first, which a busy machine does slowly; an emulator that ends is
# noticed at once.
_START_S = 180.0
_RESUME_S = 5.0
# Saving spares the next run a boot, so it may take as long as this run's boot took, or this
# minimum.
_SAVE_AT_LEAST_S = 10.0

Make = Callable[[Spec], Machine]
Attend = Callable[[Guest], AbstractContextManager[None]]


class Unusable(CannotError):
    """A snapshot that exists but must not be resumed: it is damaged, or cannot be read."""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot in the cache; `files` has the checksum of each file below its state."""

    folder: Path
    made_at: checked.Line
    facts: dict[str, str]
    files: dict[str, str]

    @property
    def state(self) -> Path:
        """The folder that `Machine.save` filled."""
        return self.folder / STATE

    @property
    def size_bytes(self) -> int:
        """Its size on the disk."""
        return _size_bytes(self.folder)

    def describe(self) -> str:
        """One line: its backend, time and size."""
        about = f"{self.facts.get('backend', '?')}, made {self.made_at}"
        return f"{about}, {human_bytes(self.size_bytes)}: {self.folder}"

    def verify(self, *, again: bool = False) -> None:
        """Raise Unusable unless every file exists and is unchanged.

        The files are read once after each boot of the host, whenever inode, size or times of one
        have changed (the change time cannot be set back), and if `again` is set.
        """
        there = {str(path.relative_to(self.state)) for path in _files(self.state)}
        if wrong := sorted(there ^ set(self.files)):
            raise Unusable(f"{self.state / wrong[0]}: it is not the file that was saved")
        # This is done before anything is read, so that files that change meanwhile are read again
        # next time.
        seen = self._seen()
        known = self.folder / _VERIFIED
        with contextlib.suppress(OSError, ValueError):
            if not again and checked.table(known.read_bytes()) == seen:
                return
        for name, digest in self.files.items():
            if checksum_sparse(self.state / name) != digest:
                raise Unusable(f"{self.state / name}: its checksum is not the one that was saved")
        # Do not create the folder: another run may have removed the snapshot.
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(prefix=f".{_VERIFIED}.", dir=self.folder)
            with os.fdopen(handle, "w") as stream:
                json.dump(seen, stream)
            os.replace(name, known)

    def _seen(self) -> dict[str, object]:
        """Facts that change if a file is written to, or if the host reboots."""
        seen: dict[str, object] = {"checksums": self.files}
        with contextlib.suppress(OSError):
            seen["host's start"] = _BOOT_ID.read_text()
        for name in self.files:
            is_now = (self.state / name).stat()
            times = (is_now.st_mtime_ns, is_now.st_ctime_ns)
            seen[f"file {name}"] = [is_now.st_dev, is_now.st_ino, is_now.st_size, *times]
        return seen


def home(disk: Path) -> Path:
    """The folder of a prepared disk's snapshots, which need not exist."""
    return disk.parent / _NAME


def facts(machine: Machine, image_sha256: str) -> dict[str, str]:
    """All facts that a snapshot of `machine` depends on, each with a name for people."""
    spec = machine.spec
    return {
        "snapshot format": str(VERSION),
        "image": image_sha256,
        "disk": disk_fact(spec.drive.path),
        "backend": machine.backend,
        "memory": str(spec.memory_bytes),
        "number of processors": str(spec.cpus),
        "processor": spec.cpu or "",
        **machine.depends_on(),
    }


def disk_fact(path: Path) -> str:
    """What a snapshot depends on besides the contents of its disk."""
    is_now = path.stat()
    return f"{path.absolute()} {is_now.st_size} {is_now.st_mtime_ns}"


def key(about: dict[str, str]) -> str:
    """The name of the folder of a snapshot with these facts."""
    return sha256_text(*(f"{name}={value}" for name, value in sorted(about.items())))[:32]


def find(disk: Path, about: dict[str, str]) -> Snapshot | str:
    """The snapshot that can be used, or why there is none."""
    folder = home(disk) / key(about)
    if folder.is_dir():
        try:
            found = read(folder)
        except Unusable as error:
            _discard(folder)
            return error.message
        if found.facts == about:
            return found
    others = [other for other in kept(disk) if other.facts.get("backend") == about["backend"]]
    if not others:
        return "there is no snapshot yet"
    was = others[0].facts
    changed = sorted(name for name in was.keys() | about.keys() if was.get(name) != about.get(name))
    return f"the snapshot is of another {', '.join(changed)}"


def kept(disk: Path) -> list[Snapshot]:
    """Every readable snapshot of a disk, the most recently used first."""
    found = []
    for path in home(disk).glob(f"*/{MANIFEST}"):
        with contextlib.suppress(Unusable):
            found.append((path.stat().st_mtime_ns, read(path.parent)))
    return [snapshot for _, snapshot in sorted(found, key=lambda pair: pair[0], reverse=True)]


def to_data(kept: Snapshot) -> dict[str, object]:
    """A snapshot for JSON."""
    return {**asdict(kept), "folder": str(kept.folder), "size_bytes": kept.size_bytes}


def prune(disk: Path) -> int:
    """Remove leftovers and all but each backend's newest snapshot; returns the bytes freed."""
    if not home(disk).is_dir():
        return 0
    before = _size_bytes(home(disk))
    failures.forget_all(home(disk))
    with locked(_lock(disk), "removing old snapshots"):
        seen: set[str] = set()
        keep = set()
        for snapshot in kept(disk):
            backend = snapshot.facts.get("backend", "")
            if backend not in seen:
                keep.add(snapshot.folder)
            seen.add(backend)
        for path in home(disk).iterdir():
            if path.is_dir() and path not in keep:
                _discard(path)
    return before - _size_bytes(home(disk))


def save(machine: Machine, about: dict[str, str], deadline: Deadline) -> None:
    """Save the running guest under its facts, completely or not at all.

    Raises CannotError if another run is saving one or there is no room, GuestError or OSError if it
    could not be written.  The machine's `pid` says whether the guest continues.
    """
    disk = machine.spec.drive.path
    folder = home(disk)
    with locked(_lock(disk), "saving a snapshot", timeout_s=0):
        # Only the holder of the lock writes here, so hidden files were left by a killed run.
        for left in folder.glob(".*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        require_room(folder, machine.spec.memory_bytes, "a snapshot")
        with atomic_dir(folder / key(about)) as place:
            (place / STATE).mkdir(mode=0o700)
            machine.save(place / STATE, deadline)
            manifest = {
                "facts": about,
                "made_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "files": {
                    str(path.relative_to(place / STATE)): checksum_sparse(path)
                    for path in _files(place / STATE)
                },
            }
            (place / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for old in kept(disk)[KEEP:]:
            _discard(old.folder)


def _lock(disk: Path) -> Path:
    return home(disk) / "lock"


def read(folder: Path) -> Snapshot:
    """The snapshot in a folder; Unusable if its manifest cannot be used."""
    try:
        data = checked.table((folder / MANIFEST).read_bytes())
        return checked.convert(Snapshot, {**data, "folder": folder})
    except (OSError, ValueError) as error:
        raise Unusable(f"{folder / MANIFEST}: cannot be used ({error})") from error


def _size_bytes(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if not path.is_dir())


def _discard(folder: Path) -> None:
    """Remove a snapshot in one step; guests resumed from it still have its files open."""
    gone = folder.with_name(f".{folder.name}.gone.{os.getpid()}")
    with contextlib.suppress(OSError):
        folder.replace(gone)
    shutil.rmtree(gone, ignore_errors=True)


def bring_up(
    make: Make,
    spec: Spec,
    access: Access,
    image_sha256: str,
    *,
    cold: bool = False,
    attend: Attend = lambda _guest: contextlib.nullcontext(),
) -> tuple[Guest, str]:
    """A guest that answers SSH, and a text that says whether it was resumed, or why it was booted.

    After a boot a snapshot is saved if possible, unless `cold` is set.  `attend` is entered around
    every wait for a guest, with that guest; the last one is returned, or is the one that broke if
    this raises GuestError.
    """
    machine = make(spec)
    if cold:
        return _boot(machine, access, attend), "booted: --cold asks for it"
    if not machine.traits.saves:
        why = f"{machine.backend} cannot save a running guest"
        return _boot(machine, access, attend), f"booted: {why}"
    about = facts(machine, image_sha256)
    beside, name = home(spec.drive.path), key(about)
    failure = failures.of(beside, name)
    if failure and failure.settled:
        return _boot(machine, access, attend), f"booted: {failure}"
    found = find(spec.drive.path, about)
    if isinstance(found, Snapshot):
        try:
            guest = _resume(make, spec, access, found, attend)
        except (GuestError, CannotError) as error:
            if isinstance(error, GuestError | Unusable) and not isinstance(error, PortTaken):
                _discard(found.folder)
                # A damaged file or a full disk says nothing about whether resuming works.
                if not isinstance(error, Unusable | DiskFull):
                    failures.note(beside, name, "resuming", error.message)
            found = f"the snapshot could not be resumed: {error.message}"
        else:
            failures.forget(beside, name)
            return guest, "resumed from a snapshot"
    begun_s = time.monotonic()
    guest = _boot(make(replace(spec, savable=True)), access, attend)
    worth_s = max(_SAVE_AT_LEAST_S, time.monotonic() - begun_s)
    guest.disconnect()
    saved = "saved a snapshot"
    try:
        save(guest.machine, about, Deadline.after(worth_s))
    except (WorkbenchError, OSError) as error:
        saved = f"no snapshot was saved: {error}"
        if isinstance(error, GuestError) and not isinstance(error, DiskFull):
            failures.note(beside, name, "saving", error.message)
    note = f"booted: {found}; {saved}"
    try:
        if guest.machine.pid is not None:
            guest.enter()
            return guest, note
    except GuestError as error:
        note += f"; booted again: {error.message}"
    guest.machine.stop(Deadline.after(10))
    found = find(spec.drive.path, about)
    if isinstance(found, Snapshot):
        return _resume(make, spec, access, found, attend), note
    return _boot(make(spec), access, attend), note


def is_there(machine: Machine, image_sha256: str) -> bool:
    """Whether a machine can probably be resumed from a snapshot; its checksums are not read."""
    if not machine.traits.saves:
        return False
    disk, about = machine.spec.drive.path, facts(machine, image_sha256)
    failure = failures.of(home(disk), key(about))
    return not (failure and failure.settled) and isinstance(find(disk, about), Snapshot)


def _boot(machine: Machine, access: Access, attend: Attend) -> Guest:
    guest = Guest(machine, access)
    with attend(guest), _stopped_on_error(machine):
        machine.start(Deadline.after(_START_S))
        guest.wait_ready()
    return guest


def _resume(make: Make, spec: Spec, access: Access, snapshot: Snapshot, attend: Attend) -> Guest:
    """Resume a snapshot; its checksums are verified meanwhile, before the guest is used."""
    machine = make(replace(spec, resume_from=snapshot.state))
    guest = Guest(machine, access)
    with (
        attend(guest),
        _stopped_on_error(machine),
        ThreadPoolExecutor(1, "checksum") as pool,
    ):
        verified = pool.submit(snapshot.verify)
        try:
            machine.start(Deadline.after(_START_S))
            guest.wake(guest.deadline(_RESUME_S))
        except GuestError:
            # If a file is damaged, that explains any other failure.
            verified.result()
            raise
        verified.result()
    # The time of its last use.
    with contextlib.suppress(OSError):
        os.utime(snapshot.folder / MANIFEST)
    return guest


@contextlib.contextmanager
def _stopped_on_error(machine: Machine) -> Iterator[None]:
    try:
        yield
    except BaseException:
        machine.stop(Deadline.after(5))
        raise
