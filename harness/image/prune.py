"""Removes from the cache what is not needed: downloads, leftovers, and old small guests."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness import release as releases
from harness.files import cache_dir, locked
from harness.image import store
from harness.image.model import ImageRecord

# Folder of the cache -> its lock.  Each has a folder for each digest of the sources.
_SMALL_GUESTS = {"vtxprobe": "vtxprobe/lock", "l2rom": "l2rom.lock", "standin": "standin/lock"}

_DIGEST = re.compile(r"[0-9a-f]{16,64}")


def release(name: str) -> int:
    """Remove downloads, logs and leftovers of a prepared release; returns the bytes freed."""
    home = store.folder(name)
    if not home.is_dir():
        return 0
    if releases.parse(name).build and not store.has_anything(name):
        # A build that was not prepared is replaced by the next one, and its pins are of no use.
        with store.lock(name):
            return remove(home)
    with store.lock(name):
        rubbish = list(_rubbish(home, store.read(name), store.trees(name)))
        return sum(remove(path) for path in rubbish)


def small_guests() -> int:
    """Remove all but the newest probe, boot ROM and stand-in; returns the bytes freed.

    They can be built again in seconds, the stand-in in a minute.
    """
    freed = 0
    for name, lock in _SMALL_GUESTS.items():
        home = cache_dir() / name
        if not home.is_dir():
            continue
        with locked(cache_dir() / lock, f"pruning {home}"):
            built = [path for path in home.iterdir() if _DIGEST.fullmatch(path.name)]
            built.sort(key=lambda path: path.stat().st_mtime)
            freed += sum(remove(path) for path in built[:-1])
    return freed


def remove(path: Path) -> int:
    """Remove a file or folder; returns its size in bytes."""
    freed = size(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return freed


def size(path: Path) -> int:
    """The room a file or folder takes, in bytes; 0 if it does not exist."""
    if not os.path.lexists(path):
        return 0
    paths = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    return sum(one.lstat().st_blocks * 512 for one in paths)


def _rubbish(home: Path, record: ImageRecord | None, used: store.Trees) -> Iterator[Path]:
    for path in home.iterdir():
        if path.name in ("source", "sysroot"):
            tree = used.source if path.name == "source" else used.sysroot
            if tree is None or not tree.is_relative_to(path):
                yield path
        elif path.name.startswith("prepared-"):
            if record is None or record.disk.parent != path:
                yield path
        elif path.name == "failed" or path.name.startswith("."):
            yield path
        elif path.name == "downloads":
            # The notes stay, because a later fetch is compared with their digests.
            yield from (inner for inner in path.iterdir() if inner.suffix not in (".json", ".lock"))
