"""Files that appear completely or not at all, digests, and the folders of cache and runs."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import pwd
import shlex
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import platformdirs

from harness.errors import CannotError

PROJECT = Path(__file__).resolve().parents[1]
"""The checkout: `images/`, `patches/` and `tests/` are below it."""

_CHUNK_BYTES = 1 << 20
# A compiler that finds no room deletes its output again, so the disk may no longer be full.
_FULL_BYTES = 1 << 20
_SYNC_EACH = 32


# Folders and files of the checkout that are outside the library.
_CHECKOUT = ("images/prepare.sh", "patches", "tests/guest")


def not_a_checkout(top: Path = PROJECT) -> str:
    """Why nothing can be run below `top`: it is an installed wheel; empty for a checkout."""
    missing = [name for name in _CHECKOUT if not (top / name).exists()]
    if not missing:
        return ""
    return (
        f"{top} is not a checkout of vmm-workbench ({', '.join(missing)} not there): an installed "
        "wheel contains only the library; clone the repository and work there"
    )


def cache_dir() -> Path:
    """The folder of prepared images and builds: $HARNESS_CACHE or the user's cache folder.

    Raises CannotError when the folder cannot be made.
    """
    given = os.environ.get("HARNESS_CACHE")
    path = Path(given).absolute() if given else Path(platformdirs.user_cache_dir("vmm-workbench"))
    return _private(path, "set HARNESS_CACHE to a folder of yours")


def runs_dir() -> Path:
    """The folder that contains a folder for each run: $HARNESS_RUNS or `runs/` in the checkout."""
    given = os.environ.get("HARNESS_RUNS")
    path = Path(given).absolute() if given else PROJECT / "runs"
    return _private(path, "set HARNESS_RUNS to a folder of yours")


def _private(path: Path, remedy: str) -> Path:
    """Make `path` if it is missing; CannotError unless it is ours and nobody else may write to it.

    Later runs trust its contents: records, builds, trees that are compiled.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        link, state = path.lstat(), path.stat()
        foreign = next((it.st_uid for it in (link, state) if it.st_uid != os.geteuid()), None)
        if foreign is not None:
            raise CannotError(
                f"{path}: it belongs to {_user(foreign)}, who could change its contents; {remedy}"
            )
        if state.st_mode & 0o022:
            raise CannotError(
                f"{path}: others may write there (mode {state.st_mode & 0o7777:04o}); run chmod "
                f"go-w {shlex.quote(str(path))} once you know what is in it, or {remedy}"
            )
        if state.st_mode & 0o077 and not any(path.iterdir()):
            path.chmod(0o700)
    except OSError as error:
        raise CannotError(f"{path}: {error.strerror}; {remedy}") from error
    return path


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


@contextmanager
def atomic_path(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary name in the folder of `target`, renamed to `target` if the block succeeds.

    The file is synced before it is renamed, unless it is not `durable` since it will soon be
    removed.  If the block raises, it is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(target.parent)


def write_atomic(target: Path, data: str | bytes, mode: int = 0o644) -> None:
    """Write `data` to `target`, completely or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        temporary.chmod(mode)


@contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """A temporary folder next to `target`, renamed to `target` if the block succeeds.

    An existing `target` is replaced only then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        _sync_below(temporary)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.replace(old / "was")
            try:
                temporary.replace(target)
            except BaseException:
                (old / "was").replace(target)
                old.rmdir()
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(target)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
    sync(target.parent)


def _sync_below(folder: Path) -> None:
    """Write everything below `folder` to the disk.

    If there are many files, the whole file system is synced at once.  Syncing 5,000 files of 6 KB
    one by one took 25 s, the file system 0.2 s, and FreeBSD's source has twenty times as many
    files.
    """
    paths = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    if len(paths) > _SYNC_EACH and _sync_file_system(folder):
        return
    for path in paths:
        if path.is_file() and not path.is_symlink():
            sync(path)
    for root, _, _ in os.walk(folder):
        sync(Path(root))


def _sync_file_system(folder: Path) -> bool:
    """syncfs(2), which Python does not offer; False where there is none."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return bool(ctypes.CDLL(None).syncfs(handle) == 0)
    except (AttributeError, OSError):
        return False
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, what: str, timeout_s: float = 600.0) -> Iterator[None]:
    """Hold an exclusive lock on `path`; CannotError if another process holds it too long."""
    # It imports asyncio, which `inv --list` would wait for.
    import filelock

    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout_s)
    except filelock.Timeout as error:
        held = f"has held {path} for {timeout_s:.0f} s" if timeout_s else f"holds {path}"
        raise CannotError(f"{what}: another run {held}; wait for it or end it") from error
    except OSError as error:
        raise CannotError(
            f"{what}: cannot lock {path}: {error.strerror}; make it yours, or set HARNESS_CACHE to "
            "a folder that can be written"
        ) from error
    try:
        yield
    finally:
        lock.release()


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The file's SHA-256 as hex; `progress` gets the number of bytes read so far."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(done)
    return digest.hexdigest()


def checksum_sparse(path: Path) -> str:
    """A checksum of a file that skips long runs of zeros quickly, whether holes or written zeros.

    SHA-256 over the CRC-32 of each MiB: four times as fast as SHA-256 alone.  It detects damage,
    not forgery: an attacker who could forge the file could also write its checksum again.
    """
    sums = hashlib.sha256()
    zeros = bytes(_CHUNK_BYTES)
    with path.open("rb") as stream:
        fd = stream.fileno()
        size = os.fstat(fd).st_size
        at = 0
        while at < size:
            try:
                # Seek from the chunk's beginning, because file systems differ in what they store as
                # a hole.
                at = max(at, os.lseek(fd, at, os.SEEK_DATA) // _CHUNK_BYTES * _CHUNK_BYTES)
            except OSError:
                break
            chunk = os.pread(fd, _CHUNK_BYTES, at)
            if chunk != zeros[: len(chunk)]:
                sums.update(b"%d %d\n" % (at, zlib.crc32(chunk)))
            at += _CHUNK_BYTES
    return sha256_text(str(size), sums.hexdigest())


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """A file that somebody else wrote: a plain file, no link, and no longer than `most_bytes`.

    OSError where it is not there or cannot be read, ValueError where it is something else.
    """
    # Not to wait for somebody to write into a pipe, nor to be led elsewhere by a link.
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(number, "rb") as stream:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise ValueError("it is no plain file")
        data = stream.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it is longer than {human_bytes(most_bytes)}")
    return data


def sha256_text(*parts: str) -> str:
    """One digest of several texts, separated so that ("ab", "c") differs from ("a", "bc")."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogateescape")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def require_room(folder: Path, needed_bytes: int, what: str) -> None:
    """CannotError unless the file system under `folder` has `needed_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise CannotError(
            f"{what} needs {human_bytes(needed_bytes)} in {folder}, {human_bytes(free)} are free; "
            "free some room or choose another folder (HARNESS_CACHE, HARNESS_RUNS)"
        )


def out_of_room(folder: Path, said: str) -> CannotError | None:
    """The error to raise instead, if the failure in `folder` with the message `said` was a full
    disk.
    """
    if os.strerror(errno.ENOSPC) not in said and shutil.disk_usage(folder).free > _FULL_BYTES:
        return None
    return CannotError(
        f"{folder}: its disk is full; free some room or choose another folder (HARNESS_CACHE, "
        "HARNESS_RUNS)",
        detail=said,
    )


def write_sparse(out: IO[bytes], chunk: bytes) -> None:
    """Write a piece of a new file; zeros become a hole.  The caller truncates the file at its
    end.
    """
    if chunk.count(0) == len(chunk):
        out.seek(len(chunk), os.SEEK_CUR)
    else:
        out.write(chunk)


def human_bytes(count: int) -> str:
    """A size for people, in binary units: 512 B, 1.5 KiB, 3.0 GiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
