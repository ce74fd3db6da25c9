"""One file that brings a prepared release to machines without a network.

A bundle is a tar of at most six members, in this order; all but the first are named in it with
size and SHA-256:

    bundle.json      the record of the image, the digests, the pins of what was fetched
    disk.raw.xz      the prepared disk
    console-password the serial line's, for root
    src.txz          the source tree       (or what was fetched under that name)
    base.txz         headers and libraries (likewise)

The private key that opens the image stays behind.  Who takes a bundle in makes keys of his own and
writes them to his copy of the disk (rekey.py).
"""

from __future__ import annotations

import contextlib
import json
import lzma
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from harness.errors import CannotError, UsageError
from harness.files import atomic_path, human_bytes, require_room, sha256_file, write_atomic
from harness.guest.keys import make_key
from harness.image import disk as disks
from harness.image import fetch, prepare, rekey, store, trees
from harness.image.manifest import check_release
from harness.image.model import ImageRecord, Imported, Login, Prepared
from harness.image.packed import DAMAGED, Member, members
from harness.image.store import Live

_FORMAT = 1
_INDEX = "bundle.json"
_DISK, _PASSWORD, _SOURCE, _SYSROOT = "disk.raw.xz", "console-password", "src.txz", "base.txz"
_MEMBERS = (_DISK, _PASSWORD, _SOURCE, _SYSROOT)
_MOST_INDEX_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_KEPT = (
    "release", "origin", "origin_format", "origin_sha256", "disk_bytes", "disk_sha256", "host_key",
    "osversion", "uname", "prepared_at", "prepare_version", "login_user", "changes",
)  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written: where, how large, its SHA-256 and what is in it."""

    path: Path
    size_bytes: int
    sha256: str
    members: tuple[str, ...]


def write(release: str, out: Path, live: Live = lambda _line: None) -> Bundle:
    """Pack a prepared release into `out`, whole or not at all.

    CannotError when the release is not prepared, or its disk is not what was written down.
    """
    with store.lock(release):
        record = store.find(release)
        if sha256_file(record.disk) != record.disk_sha256:
            raise CannotError(f"{record.disk}: it is not what was prepared; run ./inv image.verify")
        with tempfile.TemporaryDirectory(prefix=".bundle.", dir=store.folder(release)) as scratch:
            parts = _parts(record, Path(scratch), live)
            index = {
                "format": _FORMAT,
                "record": {name: asdict(record)[name] for name in _KEPT},
                "public_key": rekey.public_key(record.private_key),
                "pins": [
                    {"name": note.path.name, "url": note.url, "digest": note.digest, "at": note.at}
                    for note in fetch.notes(store.folder(release) / "downloads")
                ],
                "members": {
                    part.name: {"size_bytes": part.stat().st_size, "sha256": sha256_file(part)}
                    for part in parts
                },
            }
            (Path(scratch) / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
            parts.insert(0, Path(scratch) / _INDEX)
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
    """The members' files, made in `scratch` where they are not at hand."""
    live("packing the disk")
    with _packed(scratch / _DISK) as out, record.disk.open("rb") as disk:
        shutil.copyfileobj(disk, out, _CHUNK_BYTES)
    parts = [scratch / _DISK]
    password = record.disk.parent / _PASSWORD
    if password.is_file():
        parts.append(Path(shutil.copyfile(password, scratch / _PASSWORD)))
    for name, tree in ((_SOURCE, record.source), (_SYSROOT, record.sysroot)):
        if tree is None:
            continue
        live(f"packing {tree}")
        with _packed(scratch / name) as out, tarfile.open(fileobj=out, mode="w|") as tar:
            # As the distribution sets have it, so that either is taken in alike.
            inside = "usr/src" if name == _SOURCE else "."
            tar.add(tree, inside, filter=_own if name == _SYSROOT else _source)
        parts.append(scratch / name)
    return parts


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _source(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "/.git" in member.name else _anonymous(member)


def _own(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Of a sysroot only what builds read: somebody's may be a whole system."""
    name = member.name.removeprefix("./").removeprefix(".")
    wanted = any(
        f"{part}/".startswith(f"{name}/") or name.startswith(f"{part}/") or not name
        for part in trees.SYSROOT_PARTS
    )
    return _anonymous(member) if wanted else None


@contextmanager
def _packed(target: Path) -> Iterator[IO[bytes]]:
    """A file to write to that arrives compressed with xz, by all processors where xz is there."""
    if not shutil.which("xz"):
        with lzma.open(target, "wb", preset=1) as stream:
            yield stream
        return
    with target.open("wb") as out:
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


def take_in(path: Path, release: str = "", live: Live = lambda _line: None) -> ImageRecord:
    """Take a bundle's release into the cache, with keys of this machine's own.

    `release` is what it must be about, if given.  UsageError when the file is no bundle, or of
    another release; CannotError when it is damaged or does not fit this workbench.  Then nothing of
    it is kept.
    """
    try:
        with path.open("rb") as stream:
            parts = members(stream)
            index = _index(path, parts)
            about = str(index["record"]["release"])
            if release not in ("", about):
                raise UsageError(f"{path}: it holds FreeBSD {about}, and --release says {release}")
            home = store.folder(check_release(about))
            home.mkdir(parents=True, exist_ok=True)
            with store.lock(about), _scratch(home) as scratch:
                _extract(path, parts, index, scratch, live)
                return _enter(path, index, scratch, live)
    except DAMAGED as error:
        raise CannotError(f"{path}: no bundle, damaged or cut short ({error})") from error
    except OSError as error:
        raise CannotError(f"{error.filename or path}: {error.strerror}") from error


@contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    folder = home / ".bundle"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _index(path: Path, parts: Iterator[Member]) -> dict[str, Any]:
    """What the bundle says of itself, looked at before anything is written."""
    first = next(parts, None)
    if (
        first is None
        or first.name != _INDEX
        or not first.info.isreg()
        or first.info.size > _MOST_INDEX_BYTES
    ):
        raise UsageError(f"{path}: it is no bundle of ./inv image.bundle ({_INDEX} is not in it)")
    try:
        index = json.loads(first.content().read())
        wrong = _what_is_wrong(index)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"not as it is written: {error!r}"
    if wrong:
        raise CannotError(f"{path}: {_INDEX} cannot be used ({wrong})")
    record = index["record"]
    if record["prepare_version"] != prepare.VERSION:
        raise CannotError(
            f"{path}: it was prepared by another version of the workbench "
            f"({record['prepare_version']}, here {prepare.VERSION}); make the bundle anew"
        )
    return dict(index)


def _what_is_wrong(index: Any) -> str:
    """Why an index cannot be used, or nothing; of another shape it raises what that raises."""
    if index["format"] != _FORMAT:
        return f"its format is {index['format']}, known here is {_FORMAT}"
    members = index["members"]
    if not {_DISK} <= set(members) <= set(_MEMBERS) or not set(_KEPT) <= set(index["record"]):
        return "something is missing in it, or too much"
    sound = all(
        isinstance(member["size_bytes"], int) and len(member["sha256"]) == 64
        for member in members.values()
    )
    keys = (index["public_key"], index["record"]["host_key"])
    sound = sound and all(key.startswith("ssh-ed25519 ") for key in keys)
    return "" if sound else "a digest or a key in it is none"


def _extract(
    path: Path, parts: Iterator[Member], index: dict[str, Any], scratch: Path, live: Live
) -> None:
    """Every member to `scratch`, exactly those that the index names, with their digests."""
    missing = dict(index["members"])
    for member in parts:
        size = member.info.size
        wanted = missing.pop(member.name, None)
        if wanted is None or not member.info.isreg() or size != wanted["size_bytes"]:
            raise CannotError(f"{path}: {member.name!r} is not as {_INDEX} says; nothing was kept")
        require_room(scratch, size, f"unpacking {path.name}")
        live(f"unpacking {member.name}: {human_bytes(size)}")
        with (scratch / member.name).open("wb") as out:
            shutil.copyfileobj(member.content(), out, _CHUNK_BYTES)
        if (found := sha256_file(scratch / member.name)) != wanted["sha256"]:
            raise CannotError(
                f"{path}: {member.name} is damaged: its digest is {found[:16]}…, not "
                f"{wanted['sha256'][:16]}…; copy the bundle again; nothing was kept"
            )
    if missing:
        raise CannotError(f"{path}: cut short: {', '.join(missing)} missing; nothing was kept")


def _enter(path: Path, index: dict[str, Any], scratch: Path, live: Live) -> ImageRecord:
    """What was unpacked becomes the release in the cache; the disk last of all."""
    record = index["record"]
    release, home = record["release"], scratch.parent
    disk = scratch / "disk.raw"
    require_room(home, record["disk_bytes"], f"unpacking {path.name}")
    disks.decompress(scratch / _DISK, disk, live)
    live("taking the disk's digest")
    if sha256_file(disk) != record["disk_sha256"]:
        raise CannotError(f"{path}: the disk in it is not the one that was prepared")
    source = sysroot = None
    if _SOURCE in index["members"]:
        source = trees.source(scratch / _SOURCE, release, home / "source", live)
    if _SYSROOT in index["members"]:
        sysroot = trees.sysroot(scratch / _SYSROOT, home / "sysroot", live)
    imported = Imported(
        release=release,
        disk=disk,
        disk_format=record["origin_format"],
        disk_bytes=record["disk_bytes"],
        disk_sha256=record["origin_sha256"],
        origin=record["origin"],
        login=Login(record["login_user"]),
        source=source,
        sysroot=sysroot,
    )

    def with_keys_of_our_own(_imported: Imported, place: Path) -> Prepared:
        live("making keys of this machine's own")
        disk.rename(place / "disk.raw")
        key = place / "id_ed25519"
        public = make_key(key, "vmm-workbench").rsplit(" ", 1)[0]
        host_key = rekey.rekey(place / "disk.raw", index["public_key"], public, record["host_key"])
        (place / "disk.raw").chmod(0o400)
        if _PASSWORD in index["members"]:
            write_atomic(place / _PASSWORD, (scratch / _PASSWORD).read_bytes(), mode=0o600)
        return Prepared(
            disk_raw=place / "disk.raw",
            private_key=key,
            host_key=host_key,
            osversion=record["osversion"],
            uname=record["uname"],
            changes=(*record["changes"], _CHANGE.format(path.name, record["prepared_at"])),
        )

    made = store.add(imported, with_keys_of_our_own, record["prepare_version"], live)
    for pin in index["pins"]:
        target = home / "downloads" / Path(pin["name"]).name
        with contextlib.suppress(CannotError):
            if fetch.pin_of(target) is None:
                fetch.write_note(fetch.Fetched(target, pin["url"], pin["digest"], pin["at"]))
    return made


_CHANGE = "keys: new ones, written when {} was taken in; it was prepared at {}"
