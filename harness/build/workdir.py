"""The private folders that builds are made in: numbered, locked, used again.

Most builds run in the first, and ccache knows its paths.  The lock is an open file that make and
the compilers inherit: it lasts as long as any of them, also when the build itself was killed.
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
    """An empty private folder for builds that go to `root`; it is removed afterwards.

    CannotError when none can be made.
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
    """Remove a folder that a build wrote to, or as much of it as can be removed.

    A Makefile may have made it deeper than Python's own function can go, or closed to its owner.
    """
    commands = (["rm", "-rf", "--"], ["chmod", "-R", "u+rwX", "--"], ["rm", "-rf", "--"])
    for command in commands:
        if folder.is_symlink() or not folder.exists():
            return
        with contextlib.suppress(CannotError):
            process.run([*command, str(folder)], Deadline.after(_REMOVE_S))


def take(top: Path, relative: str, target: Path) -> bool:
    """Copy a file that a build made below `top` to `target`; False when there is none.

    What a stranger's Makefile left is not followed out of `top`: no part of the path may be a
    symbolic link.  Raises PatchError for anything but a plain file of at most a gigabyte.
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
        raise PatchError(f"{relative}: the build left no plain file: {error.strerror}") from error
    finally:
        os.close(fd)
    try:
        state = os.fstat(made)
        if not stat.S_ISREG(state.st_mode) or state.st_size > _MOST_BYTES:
            raise PatchError(f"{relative}: the build left no plain file of a sane size")
        with open(made, "rb", closefd=False) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    finally:
        os.close(made)
    target.chmod(state.st_mode & 0o755 | 0o600)
    return True


def sweep(root: Path) -> None:
    """Remove what killed builds left; what another build has in hand stays."""
    for path in (root / "work").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (lock_fd := _lock(root, path.name)) is not None:
                remove(path)
                os.close(lock_fd)
    for path in root.glob(".*"):
        # Half a build on its way into place, which takes minutes.
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _RUBBISH_AGE_S:
                shutil.rmtree(path, ignore_errors=True)


def _first(root: Path, base: Path) -> WorkFolder:
    """The first that nobody holds and that can be emptied."""
    why = OSError(0, "too many are in use")
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
            # What is in there is somebody else's, root's perhaps: the next will do.
            why = error
            os.close(lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise
    raise why


def _lock(root: Path, name: str) -> int | None:
    """The lock of a folder, held until the file is closed; None when somebody has it."""
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
