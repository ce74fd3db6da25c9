"""The image cache: one folder per release, and its records.

    images/RELEASE/image.json      the record; it names the folder of the prepared disk
    images/RELEASE/prepared-*/     disk.raw, id_ed25519 and other files of the preparation
    images/RELEASE/trees.json      where the source tree and the sysroot are
    images/RELEASE/source/, sysroot/    unpacked from src.txz and base.txz, if those were given
    images/RELEASE/downloads/      official files, verified

A record is written after all files that it names, in one rename.  A folder without a record is a
leftover.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness import checked
from harness import release as releases
from harness.errors import CannotError, UsageError, WorkbenchError
from harness.files import cache_dir, locked, sha256_file, write_atomic
from harness.guest.freebsd import Access
from harness.image.manifest import available, check_release
from harness.image.model import ANNOUNCEMENT, ImageRecord, Imported, Prepared

Live = Callable[[str], None]
Prepare = Callable[[Imported, Path], Prepared]

_RECORD = "image.json"
_TREES = "trees.json"
_FORMAT = 1
_PATHS = ("disk", "private_key")
# What the file calls the fields of the record's access; all versions have written it so.
_ACCESS = {"private_key": "private_key", "host_key": "host_key", "login_user": "user"}


@dataclass(frozen=True)
class Trees:
    """The paths of a release's source tree and sysroot; None if not imported yet."""

    source: Path | None = None
    sysroot: Path | None = None


def folder(release: str) -> Path:
    """The release's folder in the cache, which need not exist.

    A major version by itself (14) is never imported, but callers may ask for it.
    """
    found = releases.read(release)
    if found is None or found.minor is not None:
        check_release(release)
    return cache_dir() / "images" / release


def lock(release: str) -> AbstractContextManager[None]:
    """The lock for changes to the release's files; an hour covers a slow preparation."""
    return locked(
        folder(release) / "lock", f"changing the cached FreeBSD {release}", timeout_s=3600
    )


def import_line(release: str, *, trees: bool = True) -> str:
    """The command that imports a release's files."""
    more = " --src DIR-or-src.txz --sysroot DIR-or-base.txz" if trees else ""
    return f"./inv image.import --release {release} --disk FILE{more}"


def trees_line(release: str, *, src: bool = False, sysroot: bool = False) -> str:
    """The command that imports a source tree or a sysroot, without changing the disk."""
    more = (" --src DIR-or-src.txz" if src else "") + (
        " --sysroot DIR-or-base.txz" if sysroot else ""
    )
    return f"./inv image.import --release {release}{more}"


def find(release: str) -> ImageRecord:
    """The prepared release.

    CannotError says what is missing, where it was looked for, and the remedy.
    """
    where = folder(release)
    record = read(release)
    if record is None:
        raise CannotError(
            f"no prepared FreeBSD {release} in {where}; import one: {import_line(release)}, or run "
            f"./inv image.fetch --release {release} where there is a network"
        )
    if not record.disk.is_file() or record.disk.stat().st_size != record.disk_bytes:
        raise CannotError(
            f"{record.disk}: the prepared disk is gone or was changed; import it again: "
            f"{import_line(release, trees=False)}"
        )
    if not record.access.private_key.is_file():
        raise CannotError(
            f"{record.access.private_key}: the prepared disk's key is gone; import the disk again: "
            f"{import_line(release, trees=False)}"
        )
    return record


def require_untouched(record: ImageRecord, live: Live) -> None:
    """Raise CannotError if the prepared disk was changed.

    Computing its digest takes as long as a boot, so that is done only if the file's time stamp is
    newer, which may also be caused by copying the cache.
    """
    noted = folder(record.release) / _RECORD
    changed_ns = record.disk.stat().st_mtime_ns
    if changed_ns <= noted.stat().st_mtime_ns:
        return
    live("the disk's time stamp is newer than its record: computing its digest")
    if sha256_file(record.disk) != record.disk_sha256:
        raise CannotError(
            f"{record.disk}: the prepared disk was changed since it was prepared; remove {noted} "
            f"and import it again: {import_line(record.release, trees=False)}"
        )
    os.utime(noted, ns=(changed_ns, changed_ns))


def has_record(release: str) -> bool:
    """Whether there is a record, even an unusable one."""
    return (folder(release) / _RECORD).exists()


def source(release: str) -> Path:
    """The release's source tree; CannotError with the remedy if there is none or it is gone."""
    return _tree(trees(release).source, "source tree", release, trees_line(release, src=True))


def sysroot(release: str) -> Path:
    """The release's sysroot; CannotError with the remedy if there is none or it is gone."""
    return _tree(trees(release).sysroot, "sysroot", release, trees_line(release, sysroot=True))


def _tree(path: Path | None, what: str, release: str, remedy: str) -> Path:
    if path is None:
        raise CannotError(f"no {what} was imported for FreeBSD {release}; run {remedy}")
    if not path.is_dir():
        raise CannotError(f"{path}: the {what} of FreeBSD {release} is gone; run {remedy}")
    return path


def prepared() -> list[ImageRecord]:
    """Every prepared release whose record can be read, newest release first."""
    found = []
    for path in (cache_dir() / "images").glob(f"*/{_RECORD}"):
        try:
            record = read(path.parent.name)
        except (CannotError, UsageError):
            continue
        if record is not None and record.disk.is_file():
            found.append(record)
    return sorted(found, key=lambda record: record.osversion, reverse=True)


def cached() -> list[str]:
    """Releases that have anything in the cache."""
    return sorted(
        (path.name for path in (cache_dir() / "images").glob("*") if path.is_dir()), reverse=True
    )


def resolve(release: str) -> str:
    """The build that a snapshot's name means: the newest in the cache; any other text is unchanged.

    What was imported under exactly this name comes first.  A build may be named by its date.  The
    name is returned as it is if no build of it is here.  Raises UsageError if a date means two.
    """
    asked = releases.read(release)
    if asked is None or asked.minor is None or not asked.kind or has_anything(release):
        return release
    found = [
        it
        for name in cached()
        if (it := releases.read(name))
        and it.build
        and it.line == asked.line
        and (not asked.build or it.build.startswith(f"{asked.build}-"))
    ]
    found = [it for it in found if has_record(str(it))] or [
        it for it in found if has_anything(str(it))
    ]
    if not found:
        return release
    if asked.build and len(found) > 1:
        names = ", ".join(str(it) for it in sorted(found))
        raise UsageError(f"--release {release}: there are several builds of that day; use {names}")
    return str(max(found))


def has_anything(release: str) -> bool:
    """Whether a disk or a tree was imported for it; downloads alone do not count."""
    home = folder(release)
    return (home / _RECORD).exists() or (home / _TREES).exists()


def known() -> list[str]:
    """Releases that have a manifest or anything in the cache."""
    return sorted({*cached(), *available()}, reverse=True)


def trees(release: str) -> Trees:
    """The recorded paths of the trees, which may be gone."""
    data = _read_json(folder(release) / _TREES)
    if data is None:
        return Trees()
    try:
        lines = checked.convert(dict[str, checked.Line | None], data)
        return Trees(*(_path(lines[name]) for name in ("source", "sysroot")))
    except (KeyError, ValueError) as error:
        raise _unreadable(folder(release) / _TREES, error) from error


def _path(line: str | None) -> Path | None:
    return Path(line) if line else None


def set_trees(release: str, change: Trees) -> None:
    """Record the paths of the trees; None in `change` leaves the earlier path."""
    old = trees(release)
    new = Trees(change.source or old.source, change.sysroot or old.sysroot)
    data = {"source": _text(new.source), "sysroot": _text(new.sysroot)}
    write_atomic(folder(release) / _TREES, json.dumps(data, indent=2) + "\n")


def _text(path: Path | None) -> str | None:
    return str(path) if path else None


def add(imported: Imported, prepare: Prepare, prepare_version: int, live: Live) -> ImageRecord:
    """Prepare an imported disk, and make it the release's image.

    `prepare` gets an empty private folder.  An earlier image is used until the new one is complete;
    if `prepare` raises, its logs stay in `failed/` and everything else is unchanged.
    """
    home = folder(imported.release)
    home.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="prepared-", dir=home))
    try:
        made = prepare(imported, place)
        live("computing the prepared disk's digest")
        record = _record(imported, made, prepare_version)
        text = json.dumps(to_data(record), indent=2) + "\n"
        _read_back(text, record, home)
        write_atomic(home / _RECORD, text)
    except BaseException as error:
        _keep_logs(place, home / "failed")
        if isinstance(error, WorkbenchError):
            # The path of the logs in the message must still be valid afterwards.
            error.message = error.message.replace(str(place), str(home / "failed"))
            error.args = (error.message,)
        raise
    set_trees(imported.release, Trees(imported.source, imported.sysroot))
    for other in [*home.glob("prepared-*"), home / "failed"]:
        if other != place:
            shutil.rmtree(other, ignore_errors=True)
    return find(imported.release)


def _read_back(text: str, record: ImageRecord, home: Path) -> None:
    """Raise CannotError if the new record could not be used later; then the old one stays."""
    try:
        again = _from_data(checked.table(text), record.release, home)
    except (KeyError, TypeError, ValueError) as error:
        raise CannotError(
            f"FreeBSD {record.release}: its record could not be read back ({error})"
        ) from error
    if again != replace(record, source=None, sysroot=None):
        raise CannotError(f"FreeBSD {record.release}: reading back its record gives another result")


def _keep_logs(place: Path, failed: Path) -> None:
    """Store the logs of a failed preparation, but no large or secret files."""
    shutil.rmtree(failed, ignore_errors=True)
    for log in [*place.rglob("*.log"), *place.rglob("*.txt")]:
        target = failed / log.relative_to(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, target)
    shutil.rmtree(place, ignore_errors=True)


def _record(imported: Imported, made: Prepared, prepare_version: int) -> ImageRecord:
    now = datetime.datetime.now(datetime.UTC)
    return ImageRecord(
        release=imported.release,
        origin=imported.origin,
        origin_format=imported.disk_format,
        origin_sha256=imported.disk_sha256,
        disk=made.disk_raw,
        disk_bytes=made.disk_raw.stat().st_size,
        disk_sha256=sha256_file(made.disk_raw),
        access=Access(made.private_key, made.host_key, imported.login.user, ANNOUNCEMENT),
        osversion=made.osversion,
        uname=made.uname,
        prepared_at=now.isoformat(timespec="seconds"),
        prepare_version=prepare_version,
        changes=made.changes,
        kernel=made.kernel,
    )


def flat(record: ImageRecord) -> dict[str, Any]:
    """The record as files and users know it, with the fields of its access among the others."""
    data: dict[str, Any] = {}
    for name, value in asdict(record).items():
        if name == "access":
            data |= {"private_key": value["private_key"], "host_key": value["host_key"]}
        else:
            data[name] = value
        if name == "prepare_version":
            data["login_user"] = record.access.user
    return data


def to_data(record: ImageRecord) -> dict[str, Any]:
    """The record for its file: paths are relative to the release's folder, without the trees."""
    home = folder(record.release)
    data = {"format": _FORMAT, **flat(record)}
    for name in ("source", "sysroot"):
        del data[name]
    for name in _PATHS:
        data[name] = str(data[name].relative_to(home))
    return data


def read(release: str) -> ImageRecord | None:
    """The stored record, or None; CannotError if it cannot be used."""
    path = folder(release) / _RECORD
    data = _read_json(path)
    if data is None:
        return None
    try:
        record = _from_data(data, release, path.parent)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    own = trees(release)
    return replace(record, source=_there(own.source), sysroot=_there(own.sysroot))


def _from_data(data: dict[str, Any], release: str, home: Path) -> ImageRecord:
    """The record in a file's data; KeyError, TypeError or ValueError if it is invalid."""
    if data.pop("format") != _FORMAT:
        raise ValueError("it was written by another version of the workbench")
    if data["release"] != release:
        raise ValueError(f"it is about {data['release']!r}")
    for name in _PATHS:
        inside = Path(checked.convert(checked.Line, data[name]))
        if inside.is_absolute() or ".." in inside.parts:
            raise ValueError(f"{name} is not in the release's folder")
        data[name] = home / inside
    access = {field: data.pop(name) for name, field in _ACCESS.items() if name in data}
    data["access"] = {**access, "announces": ANNOUNCEMENT}
    return checked.convert(ImageRecord, {**data, "source": None, "sysroot": None})


def _there(path: Path | None) -> Path | None:
    return path if path and path.is_dir() else None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return checked.table(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CannotError:
    return CannotError(
        f"{path}: cannot be used ({error}); remove it and import the image again: "
        f"{import_line(path.parent.name)}"
    )


def remove(release: str) -> None:
    """Remove a release from the cache.  The user's trees stay."""
    home = folder(release)
    if not home.is_dir():
        raise UsageError(f"--release {release}: there is nothing of it in {home.parent}")
    with lock(release):
        shutil.rmtree(home, ignore_errors=True)
