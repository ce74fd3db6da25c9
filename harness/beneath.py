"""File operations below one folder that follow no symbolic link, at any step of a path.

A path is checked and used in one step: each folder of it is opened from the one above with
O_NOFOLLOW, so nobody can put a link there between the check and the use.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def refusal(path: str) -> str:
    """Why `path` is not a path below a folder; empty if it is one."""
    parts = path.split("/")
    if path.startswith("/"):
        return "it is absolute"
    if "\0" in path or "" in parts or "." in parts:
        return "it has an empty part"
    return "it leads out of the folder" if ".." in parts else ""


class Beneath:
    """An open folder; use it as a context manager.

    Every method takes a path relative to it.  Raises OSError with the whole path as `filename` if a
    part of the path is missing or is a symbolic link (ELOOP, ENOTDIR).
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._fd)

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The open folder that `path` is in, and its last name there."""
        if reason := refusal(path):
            raise OSError(errno.EINVAL, reason, str(self._top / path.lstrip("/")))
        *above, name = path.split("/")
        fd = os.dup(self._fd)
        try:
            for part in above:
                inner = os.open(part, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd, name
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(self._top / path)) from error
        finally:
            os.close(fd)

    def read(self, path: str) -> tuple[bytes, os.stat_result] | None:
        """A regular file's content and state; None if it does not exist."""
        try:
            with self._parent(path) as (folder, name):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                with os.fdopen(fd, "rb") as stream:
                    return stream.read(), os.fstat(stream.fileno())
        except FileNotFoundError:
            return None

    def write(
        self, path: str, data: bytes, mode: int, owner: tuple[int, int] | None = None
    ) -> None:
        """Make a new file, on disk when this returns; FileExistsError if the name is taken."""
        with self._parent(path) as (folder, name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as stream:
                stream.write(data)
                stream.flush()
                if owner is not None:
                    os.fchown(stream.fileno(), *owner)
                os.fchmod(stream.fileno(), mode)
                os.fsync(stream.fileno())

    def set_time(self, path: str, state: os.stat_result) -> None:
        """Give a file the times of another one."""
        with self._parent(path) as (folder, name):
            times = (state.st_atime_ns, state.st_mtime_ns)
            os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)

    def replace(self, new: str, path: str) -> None:
        """Rename `new` to `path`, in one step."""
        with self._parent(new) as (source, name), self._parent(path) as (folder, target):
            os.replace(name, target, src_dir_fd=source, dst_dir_fd=folder)

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError), self._parent(path) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def make_folder(self, path: str) -> None:
        """Make one folder if it does not exist; its parent must exist."""
        with suppress(FileExistsError), self._parent(path) as (folder, name):
            os.mkdir(name, dir_fd=folder)

    def remove_folder(self, path: str) -> None:
        """Remove a folder if it exists and is empty."""
        try:
            with self._parent(path) as (folder, name):
                os.rmdir(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def sync(self) -> None:
        """fsync the folder itself."""
        os.fsync(self._fd)
