"""One file that brings a prepared release to machines without a network.

A bundle is a tar of at most eight members, in this order; the first lists the others with size and
SHA-256:

    bundle.json      the record of the image, the digests, the pins of what was fetched
    disk.raw.xz      the prepared disk
    console-password the serial line's, for root
    src.txz          the source tree       (or the fetched file of that name)
    base.txz         headers and libraries (the same)
    id_ed25519       with a snapshot only: the image's private key
    snapshot.txz     a snapshot, if it was asked for (bundle_snapshot.py)

The private key of the image is not in it, unless there is a snapshot.  Every import makes new keys
and writes them to its copy of the disk (rekey.py), unless it uses the snapshot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO

from harness import sysroot as sysroots
from harness.errors import CannotError, UsageError
from harness.files import atomic_path, human_bytes, require_room, sha256_file, write_atomic
from harness.guest.keys import make_key
from harness.guest.snapshot import Snapshot
from harness.image import bundle_snapshot, fetch, rekey, store, trees
from harness.image import disk as disks
from harness.image.bundle_index import (
    DISK,
    FORMAT,
    INDEX,
    KEY,
    PASSWORD,
    SOURCE,
    STATE,
    SYSROOT,
    Index,
    Record,
    read_index,
)
from harness.image.manifest import check_release
from harness.image.model import ImageRecord, Imported, Login, Prepared
from harness.image.packed import DAMAGED, Member, members
from harness.image.store import Live

_SCRATCH = ".bundle"
_CHUNK_BYTES = 1 << 20
_CHANGE = "keys: new ones, written when {} was imported; it was prepared at {}"


@dataclass(frozen=True)
class Bundle:
    """A written bundle: its path, size, SHA-256 and members."""

    path: Path
    size_bytes: int
    sha256: str
    members: tuple[str, ...]


def write(
    release: str, out: Path, live: Live = lambda _line: None, *, snapshot: bool = False
) -> Bundle:
    """Pack a prepared release into `out`, completely or not at all.

    With `snapshot` the last used snapshot goes into it, and the private key.  Raises CannotError if
    the release is not prepared, if its disk differs from the record, or if there is no snapshot.
    """
    with store.lock(release):
        record = store.find(release)
        if sha256_file(record.disk) != record.disk_sha256:
            raise CannotError(
                f"{record.disk}: it was changed since it was prepared; run ./inv image.verify"
            )
        with tempfile.TemporaryDirectory(prefix=".bundle.", dir=store.folder(release)) as scratch:
            kept = bundle_snapshot.choose(record) if snapshot else None
            parts = _parts(record, Path(scratch), live)
            if kept is not None:
                live("packing the snapshot")
                parts += _snapshot_parts(record, kept, Path(scratch))
            plain = store.to_data(record)
            index = {
                "format": FORMAT,
                "record": {each.name: plain[each.name] for each in fields(Record)},
                "public_key": rekey.public_key(record.access.private_key),
                "pins": [
                    {"name": note.path.name, "url": note.url, "digest": note.digest, "at": note.at}
                    for note in fetch.notes(store.folder(release) / "downloads")
                ],
                "members": {
                    part.name: {"size_bytes": part.stat().st_size, "sha256": sha256_file(part)}
                    for part in parts
                },
            }
            (Path(scratch) / INDEX).write_text(json.dumps(index, indent=2) + "\n")
            parts.insert(0, Path(scratch) / INDEX)
            whole = sum(part.stat().st_size for part in parts)
            require_room(out.absolute().parent, whole, f"writing {out.name}")
            live(f"writing {out.name}: {human_bytes(whole)}")
            with atomic_path(out.absolute()) as temporary:
                with tarfile.open(temporary, "w") as tar:
                    for part in parts:
                        tar.add(part, part.name, filter=_anonymous)
                temporary.chmod(0o600)
    return Bundle(out, out.stat().st_size, sha256_file(out), tuple(part.name for part in parts))


def _parts(record: ImageRecord, scratch: Path, live: Live) -> list[Path]:
    """The members' files; those that do not exist yet are made in `scratch`."""
    live("packing the disk")
    with _packed(scratch / DISK) as out, record.disk.open("rb") as disk:
        shutil.copyfileobj(disk, out, _CHUNK_BYTES)
    parts = [scratch / DISK]
    password = record.disk.parent / PASSWORD
    if password.is_file():
        parts.append(Path(shutil.copyfile(password, scratch / PASSWORD)))
    for name, tree in ((SOURCE, record.source), (SYSROOT, record.sysroot)):
        if tree is None:
            continue
        live(f"packing {tree}")
        with _packed(scratch / name) as out, tarfile.open(fileobj=out, mode="w|") as tar:
            # The same layout as the distribution sets, so that both are imported in the same way.
            inside = "usr/src" if name == SOURCE else "."
            tar.add(tree, inside, filter=_own if name == SYSROOT else _source)
        parts.append(scratch / name)
    return parts


def _snapshot_parts(record: ImageRecord, kept: Snapshot, scratch: Path) -> list[Path]:
    key = Path(shutil.copyfile(record.access.private_key, scratch / KEY))
    with (
        _packed(scratch / STATE) as out,
        tarfile.open(fileobj=out, mode="w|") as tar,
    ):
        bundle_snapshot.pack(kept, tar)
    return [key, scratch / STATE]


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _source(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "/.git" in member.name else _anonymous(member)


def _own(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Select only the files of a sysroot that builds read; the folder may contain a whole
    system.
    """
    name = member.name.removeprefix("./").removeprefix(".")
    wanted = any(
        f"{part}/".startswith(f"{name}/") or name.startswith(f"{part}/") or not name
        for part in sysroots.PARTS
    )
    return _anonymous(member) if wanted else None


@contextmanager
def _packed(target: Path) -> Iterator[IO[bytes]]:
    """A file to write to whose contents are compressed with xz, on all processors if xz is
    installed.
    """
    if not shutil.which("xz"):
        with lzma.open(target, "wb", preset=1) as stream:
            yield stream
        return
    with target.open("wb") as out:
        # Not by process.run: this process writes gigabytes to it.
        process = subprocess.Popen(
            ["xz", "-1", "-T0", "-c"], stdin=subprocess.PIPE, stdout=out, start_new_session=True
        )
        assert process.stdin is not None
        try:
            with process.stdin as stream:
                yield stream
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.wait():
            raise CannotError(f"{target}: xz ended with {process.returncode}; is the disk full?")


def take_in(
    path: Path,
    release: str = "",
    live: Live = lambda _line: None,
    *,
    snapshot: bool = False,
    note: Callable[[str], None] = lambda _line: None,
) -> ImageRecord:
    """Import a bundle's release into the cache, with new keys.

    With `snapshot` the snapshot in it is used if it fits this machine, together with the bundle's
    keys; `note` gets a line about it.  If `release` is given, the bundle must be of that release.
    Raises UsageError if the file is not a bundle, or of another release; CannotError if it is
    damaged or made by another version of the workbench.  Then nothing of it stays.
    """
    try:
        with path.open("rb") as stream:
            parts = members(stream)
            index = read_index(path, parts)
            about = index.record.release
            if release not in ("", about):
                raise UsageError(
                    f"{path}: it contains FreeBSD {about}, but --release says {release}"
                )
            home = store.folder(check_release(about))
            home.mkdir(parents=True, exist_ok=True)
            with store.lock(about), _scratch(home) as scratch:
                _extract(path, parts, index, scratch, live)
                _disk(path, index.record, scratch, live)
                taken = _snapshot(index, scratch, live, note) if snapshot else None
                record = _enter(path, index, scratch, live, taken)
                if taken is not None:
                    bundle_snapshot.place(taken, record)
                    note("its snapshot will be resumed, with the keys of the bundle")
                elif STATE in index.members and not snapshot:
                    note("it has a snapshot, which was not imported; --snapshot imports it, too")
                return record
    except DAMAGED as error:
        raise CannotError(
            f"{path}: it is not a bundle, or it is damaged or truncated ({error})"
        ) from error
    except OSError as error:
        raise CannotError(f"{error.filename or path}: {error.strerror}") from error


@contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    folder = home / _SCRATCH
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract(path: Path, parts: Iterator[Member], index: Index, scratch: Path, live: Live) -> None:
    """Extract exactly the members that the index names to `scratch`, and verify their digests."""
    missing = dict(index.members)
    for member in parts:
        size = member.info.size
        wanted = missing.pop(member.name, None)
        if wanted is None or not member.info.isreg() or size != wanted.size_bytes:
            raise CannotError(f"{path}: {member.name!r} does not match {INDEX}; nothing was stored")
        require_room(scratch, size, f"unpacking {path.name}")
        live(f"unpacking {member.name}: {human_bytes(size)}")
        found = hashlib.sha256()
        with (scratch / member.name).open("wb") as out:
            content = member.content()
            while chunk := content.read(_CHUNK_BYTES):
                found.update(chunk)
                out.write(chunk)
        if found.hexdigest() != wanted.sha256:
            raise CannotError(
                f"{path}: {member.name} is damaged: its digest is {found.hexdigest()[:16]}…, not "
                f"{wanted.sha256[:16]}…; copy the bundle again; nothing was stored"
            )
    if missing:
        raise CannotError(
            f"{path}: it is truncated: {', '.join(missing)} missing; nothing was stored"
        )


def _disk(path: Path, record: Record, scratch: Path, live: Live) -> None:
    """Unpack the disk, and compare its digest."""
    disk = scratch / "disk.raw"
    require_room(scratch.parent, record.disk_bytes, f"unpacking {path.name}")
    disks.decompress(scratch / DISK, disk, live, record.disk_bytes)
    live("taking the disk's digest")
    if sha256_file(disk) != record.disk_sha256:
        raise CannotError(f"{path}: the disk in it is not the one that was prepared")


def _snapshot(
    index: Index, scratch: Path, live: Live, note: Callable[[str], None]
) -> bundle_snapshot.Taken | None:
    """The snapshot in the bundle, with the keys that belong to it; None if it does not fit."""
    if STATE not in index.members:
        note("there is no snapshot in it")
        return None
    disk = scratch / "disk.raw"
    taken = bundle_snapshot.take(scratch, disk, index.record.disk_sha256, live)
    if isinstance(taken, str):
        note(f"its snapshot is not used: {taken}")
        return None
    key = scratch / KEY
    key.chmod(0o600)
    if rekey.public_key(key) != index.public_key:
        raise CannotError(f"{KEY}: it is not the key of this image")
    # The emulator compares the time with the one in the snapshot.
    os.utime(disk, ns=(taken.disk_mtime_ns, taken.disk_mtime_ns))
    return taken


def _enter(
    path: Path,
    index: Index,
    scratch: Path,
    live: Live,
    taken: bundle_snapshot.Taken | None,
) -> ImageRecord:
    """Turn the unpacked files into the release in the cache.

    Every step that can fail happens in `scratch`, before an existing release is replaced.
    """
    record = index.record
    release, home = record.release, scratch.parent
    disk = scratch / "disk.raw"
    source = sysroot = None
    if SOURCE in index.members:
        source = trees.source(scratch / SOURCE, release, scratch / "source", live)
    if SYSROOT in index.members:
        sysroot = trees.sysroot(scratch / SYSROOT, release, scratch / "sysroot", live)
    key = scratch / KEY
    host_key, changes = record.host_key, record.changes
    if taken is None:
        live("making new keys")
        key.unlink(missing_ok=True)
        public = make_key(key, "vmm-workbench").rsplit(" ", 1)[0]
        host_key = rekey.rekey(disk, index.public_key, public, record.host_key)
        changes = (*changes, _CHANGE.format(path.name, record.prepared_at))
    imported = Imported(
        release=release,
        disk=disk,
        disk_format=record.origin_format,
        disk_bytes=record.disk_bytes,
        disk_sha256=record.origin_sha256,
        origin=record.origin,
        login=Login(record.login_user),
    )

    def ready(_imported: Imported, place: Path) -> Prepared:
        disk.rename(place / "disk.raw")
        (place / "disk.raw").chmod(0o400)
        key.rename(place / key.name)
        if PASSWORD in index.members:
            write_atomic(place / PASSWORD, (scratch / PASSWORD).read_bytes(), mode=0o600)
        return Prepared(
            disk_raw=place / "disk.raw",
            private_key=place / key.name,
            host_key=host_key,
            osversion=record.osversion,
            uname=record.uname,
            changes=changes,
            kernel=record.kernel,
        )

    store.add(imported, ready, record.prepare_version, live)
    store.set_trees(release, store.Trees(_placed(source, home), _placed(sysroot, home)))
    for pin in index.pins:
        target = home / "downloads" / pin.name
        with contextlib.suppress(CannotError):
            if fetch.pin_of(target) is None:
                fetch.write_note(fetch.Fetched(target, pin.url, pin.digest, pin.at))
    return store.find(release)


def _placed(tree: Path | None, home: Path) -> Path | None:
    """Move an unpacked tree from the folder `.bundle` of `home` to its place; returns its path."""
    if tree is None:
        return None
    top, *below = tree.relative_to(home / _SCRATCH).parts
    place = home / top
    if place.exists():
        place.rename(home / _SCRATCH / f"{top}.was")
    (home / _SCRATCH / top).rename(place)
    return place.joinpath(*below)
