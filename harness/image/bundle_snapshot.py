"""The snapshot in a bundle: packed where the release was prepared, placed where it is imported.

A snapshot has the guest's memory, in which sshd(8) holds its host key, so it works only with the
keys and the unchanged disk of the machine that saved it.  Both come with it:

    id_ed25519       the private key of the image
    snapshot.txz     snapshot.json and the files of the state, as the cache has them

It is used only where every fact that it depends on is the same: the emulator, its settings, the
processor.  Otherwise the image is imported without it.
"""

from __future__ import annotations

import datetime
import json
import shutil
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import machine
from harness.errors import CannotError, WorkbenchError
from harness.files import write_atomic
from harness.guest import snapshot
from harness.guest.snapshot import Snapshot
from harness.image import unpack
from harness.image.bundle_index import STATE
from harness.image.model import ImageRecord
from harness.image.store import Live
from harness.machine import Backend, Drive, Machine, Spec
from harness.machine.models import VENDORS

_DISK = "disk"
# A state is the memory, and the devices with a part of the disk.
_MOST_BESIDES_MEMORY_BYTES = 1 << 30
_MOST_FILES = 200


@dataclass(frozen=True)
class Taken:
    """A snapshot from a bundle that fits this machine, unpacked but not yet in its place."""

    found: Snapshot
    disk_mtime_ns: int


def choose(record: ImageRecord) -> Snapshot:
    """The most recently used snapshot of the image that can be brought to other machines.

    Raises CannotError if there is none.
    """
    why = "there is none yet"
    for kept in snapshot.kept(record.disk):
        try:
            kept.verify(again=True)
            fitting = _fitting(kept, record.disk, record.disk_sha256)
            if isinstance(fitting, str):
                why = fitting
                continue
            _require_own(kept, fitting)
        except CannotError as error:
            why = error.message
            continue
        if kept.facts.get(_DISK) == snapshot.disk_fact(record.disk):
            return kept
        why = "it is of another disk"
    raise CannotError(
        f"no snapshot of FreeBSD {record.release} can be bundled: {why}; save one: "
        "./inv verify --backend bochs"
    )


def pack(kept: Snapshot, tar: tarfile.TarFile) -> None:
    """Write a snapshot's files to a tar."""
    for path in (kept.folder / snapshot.MANIFEST, *sorted(kept.state.iterdir())):
        tar.add(path, str(path.relative_to(kept.folder)), recursive=False)


def take(folder: Path, disk: Path, disk_sha256: str, live: Live) -> Taken | str:
    """The snapshot in the bundle unpacked into `folder`, or why it does not fit this machine.

    `disk` is the unpacked disk.  Raises CannotError if the snapshot is damaged or not what one
    should be.
    """
    live("looking at the snapshot")
    place = folder / "snapshot"
    place.mkdir(mode=0o700)
    unpack.unpack(folder / STATE, place, live, called=STATE)
    _require_plain(place)
    found = snapshot.read(place)
    try:
        moment_ns = int(found.facts[_DISK].rsplit(" ", 1)[1])
        _times(moment_ns)
    except (KeyError, IndexError, ValueError, OverflowError, OSError) as error:
        raise CannotError(f"{STATE}: {snapshot.MANIFEST} does not name its disk") from error
    fitting = _fitting(found, disk, disk_sha256)
    if isinstance(fitting, str):
        return fitting
    _require_own(found, fitting)
    live("taking the snapshot's checksums")
    found.verify(again=True)
    return Taken(found, moment_ns)


def place(taken: Taken, record: ImageRecord) -> None:
    """Move a snapshot to its place beside the imported disk."""
    fitting = _fitting(taken.found, record.disk, record.disk_sha256)
    if isinstance(fitting, str):
        raise CannotError(f"{STATE}: {fitting}")
    taken.found.state.chmod(0o700)
    about = snapshot.facts(fitting, record.disk_sha256)
    data = {"facts": about, "made_at": taken.found.made_at, "files": taken.found.files}
    target = snapshot.home(record.disk) / snapshot.key(about)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(taken.found.folder / snapshot.MANIFEST, json.dumps(data, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    taken.found.folder.rename(target)


def _times(moment_ns: int) -> None:
    """Raise ValueError if a time is not plausible."""
    year = datetime.datetime.fromtimestamp(moment_ns / 1e9, datetime.UTC).year
    if not 2000 <= year <= 2200:
        raise ValueError(year)


def _require_plain(place: Path) -> None:
    """Raise CannotError unless there are a manifest and a flat folder of plain files."""
    names = {path.name for path in place.iterdir()}
    if names != {snapshot.MANIFEST, snapshot.STATE}:
        raise CannotError(f"{STATE}: it is not a snapshot of ./inv image.bundle")
    count = 0
    for path in (place / snapshot.MANIFEST, *(place / snapshot.STATE).iterdir()):
        count += 1
        if not stat.S_ISREG(path.lstat().st_mode) or path.lstat().st_nlink != 1:
            raise CannotError(f"{STATE}: {path.name!r} is not a plain file; nothing was stored")
        path.chmod(0o600)
    if count > _MOST_FILES:
        raise CannotError(f"{STATE}: it has more than {_MOST_FILES} files; nothing was stored")


def _require_own(found: Snapshot, fitting: Machine) -> None:
    """Raise CannotError unless the state is one that such a machine saved."""
    size = sum(path.stat().st_size for path in found.state.iterdir())
    if size > fitting.spec.memory_bytes + _MOST_BESIDES_MEMORY_BYTES:
        raise CannotError(f"{STATE}: its files are larger than a machine's state")
    fitting.require_own_state(found.state)


def _fitting(found: Snapshot, disk: Path, disk_sha256: str) -> Machine | str:
    """The machine that can be resumed from a snapshot, or which facts differ.

    Raises CannotError if the snapshot does not describe a machine.
    """
    closest: list[str] = []
    for candidate in _machines(found.facts, disk):
        try:
            about = snapshot.facts(candidate, disk_sha256)
        except WorkbenchError as error:
            # For example, this machine does not have the emulator.
            return error.message
        differ = sorted(
            name
            for name in about.keys() | found.facts.keys()
            if name != _DISK and about.get(name) != found.facts.get(name)
        )
        if not differ:
            return candidate
        closest = min(closest or differ, differ, key=len)
    return f"it is of another {', '.join(closest)}"


def _machines(facts: dict[str, str], disk: Path) -> Iterator[Machine]:
    """Machines that a snapshot with these facts may be of: one for each processor's vendor."""
    try:
        memory_bytes, cpus = int(facts["memory"]), int(facts["number of processors"])
        name = facts["backend"]
    except (KeyError, ValueError) as error:
        raise CannotError(f"{snapshot.MANIFEST}: it does not describe a machine") from error
    for vendor in VENDORS:
        try:
            backend = Backend(name, vendor)
        except WorkbenchError as error:
            raise CannotError(f"{snapshot.MANIFEST}: it does not describe a machine") from error
        spec = Spec(disk.parent, Drive(disk), memory_bytes, cpus)
        yield machine.make(backend, spec)
