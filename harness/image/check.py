"""Verifies the cache: computes every recorded digest again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import release as releases
from harness import sysroot
from harness.errors import CannotError, UsageError, WorkbenchError
from harness.files import human_bytes
from harness.image import fetch, rekey, store, trees
from harness.image.store import Live

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Finding:
    """The result for one file: the evidence, and the remedy if it differs from its record."""

    release: str
    what: str
    ok: bool
    evidence: str
    remedy: str = ""


def release(name: str, live: Live = lambda _line: None) -> list[Finding]:
    """Verify everything of one release; UsageError if the cache has nothing of it.

    The release's lock is held, so that nothing is changed meanwhile.
    """
    home = store.folder(name)
    if not home.is_dir():
        raise UsageError(f"--release {name}: there is nothing of it in {home.parent}")
    with store.lock(name):
        return [*_image(name, live), *_trees(name), *_downloads(name, live)]


def _image(name: str, live: Live) -> Iterator[Finding]:
    fetched = any("://" in note.url for note in fetch.notes(store.folder(name) / "downloads"))
    # With its record the disk would count as the current one, and not be prepared again.
    remedy = f"rm {store.folder(name) / 'image.json'}, then "
    remedy += (
        f"./inv image.fetch --release {name}" if fetched else store.import_line(name, trees=False)
    )
    try:
        record = store.find(name)
    except CannotError as error:
        if store.has_record(name):
            yield Finding(name, "prepared disk", False, error.message, remedy)
        return
    found = _digest(record.disk, "sha256", live)
    yield _compared(name, "prepared disk", record.disk, record.disk_sha256, found, remedy)
    key = record.access.private_key
    try:
        public = rekey.public_key(key)
    except CannotError as error:
        yield Finding(name, "private key", False, error.message, remedy)
        return
    open_to_others = key.stat().st_mode & 0o077
    yield Finding(
        name,
        "private key",
        not open_to_others,
        f"{key}: {'others may read it' if open_to_others else public[:40] + '…'}",
        f"chmod 600 {key}" if open_to_others else "",
    )


def _trees(name: str) -> Iterator[Finding]:
    known = store.trees(name)
    fits = partial(sysroot.require, major=releases.parse(name).major)
    looks: tuple[tuple[str, Path | None, str, Callable[[Path], object]], ...] = (
        ("source", known.source, "--src DIR-or-src.txz", lambda it: trees.check_release(it, name)),
        ("sysroot", known.sysroot, "--sysroot DIR-or-base.txz", fits),
    )
    for what, path, option, look in looks:
        if path is None:
            continue
        evidence = f"{path}: it exists; its files have no recorded digests"
        try:
            look(path)
        except WorkbenchError as error:
            remedy = f"./inv image.import --release {name} {option}"
            yield Finding(name, what, False, error.message, remedy)
        else:
            yield Finding(name, what, True, evidence)


def _downloads(name: str, live: Live) -> Iterator[Finding]:
    for note in fetch.notes(store.folder(name) / "downloads"):
        if not note.path.exists():
            continue
        remedy = f"rm {note.path}, then ./inv image.fetch --release {name}"
        found = _digest(note.path, note.algorithm, live)
        yield _compared(name, f"download {note.path.name}", note.path, note.digest, found, remedy)


def _compared(name: str, what: str, path: Path, wanted: str, found: str, remedy: str) -> Finding:
    size = human_bytes(path.stat().st_size)
    if found == wanted:
        return Finding(name, what, True, f"{path}: {size}, {wanted[:16]}…, as recorded")
    return Finding(
        name, what, False, f"{path}: {found[:16]}…, but {wanted[:16]}… is recorded", remedy
    )


def _digest(path: Path, algorithm: str, live: Live) -> str:
    digest = hashlib.new(algorithm)
    size, done = max(1, path.stat().st_size), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            live(f"{path.name}: {100 * done // size} %")
    return digest.hexdigest()
