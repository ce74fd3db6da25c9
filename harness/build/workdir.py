"""The private folders in which builds run: numbered, locked and reused.

Most builds run in the first one, so ccache knows its paths.  The lock is an open file that make and
the compilers inherit, so it lasts until all of them have ended, even if the build itself was
killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness import process
from harness.deadline import Deadline
from harness.errors import CannotError, PatchError

_MOST = 256
_RUBBISH_AGE_S = 24 * 3600
_REMOVE_S = 300.0
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class WorkFolder:
    """A folder to build in, and the open file that is its lock."""

    folder: Path
    lock_fd: int


@contextmanager
def claim(root: Path) -> Iterator[WorkFolder]:
    """An empty private folder for builds below `root`; it is removed afterwards.

    Raises CannotError if none can be made.
    """
    base = root / "work"
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        got = _first(root, base)
    except OSError as error:
        raise CannotError(
            f"{base}: cannot build there: {error.strerror}; set HARNESS_CACHE to a folder that can "
            "be written"
        ) from error
    try:
        yield got
    finally:
        remove(got.folder)
        os.close(got.lock_fd)


def remove(folder: Path) -> None:
    """Remove a folder that a build wrote to, or as much of it as possible.

    A Makefile may have made folders too deep for Python's own function, or without permissions.
    """
    commands = (["rm", "-rf", "--"], ["chmod", "-R", "u+rwX", "--"], ["rm", "-rf", "--"])
    for command in commands:
        if folder.is_symlink() or not folder.exists():
            return
        with contextlib.suppress(CannotError):
            process.run([*command, str(folder)], Deadline.after(_REMOVE_S))


def take(top: Path, relative: str, target: Path) -> bool:
    """Copy a file that a build made below `top` to `target`; False if there is none.

    No part of the path may be a symbolic link, so that an untrusted Makefile cannot lead out of
    `top`.  Raises PatchError for anything but a plain file of at most a gigabyte.
    """
    *folders, name = PurePosixPath(relative).parts
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = inner
        made = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise PatchError(f"{relative}: the build made no plain file: {error.strerror}") from error
    finally:
        os.close(fd)
    try:
        state = os.fstat(made)
        if not stat.S_ISREG(state.st_mode) or state.st_size > _MOST_BYTES:
            raise PatchError(f"{relative}: the build made no plain file of a plausible size")
        with open(made, "rb", closefd=False) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    finally:
        os.close(made)
    target.chmod(state.st_mode & 0o755 | 0o600)
    return True


def sweep(root: Path) -> None:
    """Remove the files of killed builds, but not those that another build uses."""
    for path in (root / "work").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (lock_fd := _lock(root, path.name)) is not None:
                remove(path)
                os.close(lock_fd)
    for path in root.glob(".*"):
        # An incomplete copy of a build, which may be in progress for minutes.
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _RUBBISH_AGE_S:
                shutil.rmtree(path, ignore_errors=True)


def _first(root: Path, base: Path) -> WorkFolder:
    """The first folder that is not locked and can be emptied."""
    why = OSError(0, "too many folders are in use")
    for number in range(_MOST):
        lock_fd = _lock(root, str(number))
        if lock_fd is None:
            continue
        folder = base / str(number)
        try:
            remove(folder)
            folder.mkdir(mode=0o700)
            return WorkFolder(folder.resolve(), lock_fd)
        except FileExistsError as error:
            # It contains files of another user, perhaps root's, so try the next one.
            why = error
            os.close(lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise
    raise why


def _lock(root: Path, name: str) -> int | None:
    """The lock of a folder, held until the file is closed; None if another process has it."""
    path = root / "locks" / f"work.{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return fd
