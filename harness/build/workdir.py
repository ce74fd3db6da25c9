"""The private folders that builds are made in: numbered, locked, used again.

Most builds run in the first, and ccache knows its paths.  The lock is an open file that make and
the compilers inherit: it lasts as long as any of them, also when the build itself was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import CannotError
from harness.files import sha256_text

_MOST = 256
_RUBBISH_AGE_S = 24 * 3600


@dataclass(frozen=True)
class Workshop:
    """A folder to build in, and the open file that is its lock."""

    folder: Path
    lock_fd: int


@contextmanager
def claim(root: Path) -> Iterator[Workshop]:
    """An empty folder of one's own for builds kept in `root`; it is gone afterwards.

    CannotError when there is none to be had.
    """
    base = _base(root)
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        if base.stat().st_uid != os.getuid():
            raise CannotError(f"{base} belongs to somebody else; set TMPDIR")
        got = _first(root, base)
    except OSError as error:
        raise CannotError(f"{base}: cannot build there: {error.strerror}") from error
    try:
        yield got
    finally:
        shutil.rmtree(got.folder, ignore_errors=True)
        os.close(got.lock_fd)


def sweep(root: Path) -> None:
    """Remove what killed builds left; what another build has in hand stays."""
    for path in _base(root).glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (lock_fd := _lock(root, path.name)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock_fd)
    for path in root.glob(".*"):
        # Half a build on its way into place, which takes minutes.
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _RUBBISH_AGE_S:
                shutil.rmtree(path, ignore_errors=True)


def _base(root: Path) -> Path:
    """Where the folders are: make cannot stand blanks in paths."""
    base = root / "work"
    if len(str(base).split()) > 1:
        digest = sha256_text(str(root))[:8]
        base = Path(tempfile.gettempdir()) / f"vmm-workbench-{os.getuid()}-{digest}"
        if len(str(base).split()) > 1:
            raise CannotError(f"{base}: make cannot work below a path with blanks; set TMPDIR")
    return base


def _first(root: Path, base: Path) -> Workshop:
    """The first that nobody holds and that can be emptied."""
    why = OSError(0, "too many are in use")
    for number in range(_MOST):
        lock_fd = _lock(root, str(number))
        if lock_fd is None:
            continue
        folder = base / str(number)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            return Workshop(folder.resolve(), lock_fd)
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
