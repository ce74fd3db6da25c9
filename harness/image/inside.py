"""A folder that is accessed only through descriptors, so that no name and no link leads out of it.

It is for folders that are filled from an archive, including links; `harness.beneath` reads and
replaces single files below an existing folder.  Paths are followed one step at a time from the
folder's own descriptor, and the kernel follows no link at any step.  Paths are never compared as
text, so names may have any length.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType

_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40
"""The number of links that Linux follows in one path."""


class NotInside(Exception):
    """A step of a path is a link or a file, but must be a folder."""


class Outside(Exception):
    """A link leads out of the folder."""


class Inside:
    """A folder accessed by its descriptor; use it as a context manager.

    Processes that write to the folder at the same time can make calls fail, but not lead them
    outside.
    """

    def __init__(self, folder: Path) -> None:
        # The chain of folders that was opened last, from the top, because archives are in order.
        self._chain: list[tuple[str, int]] = [("", os.open(folder, _STEP))]

    def __enter__(self) -> Inside:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._cut(0)

    def _cut(self, length: int) -> None:
        while len(self._chain) > length:
            os.close(self._chain.pop()[1])

    def folder(self, path: PurePosixPath, *, make: bool) -> int:
        """A descriptor of the folder at `path`, valid until the next call; `make` creates the
        folder.

        Raises NotInside if a step is not a real folder, FileNotFoundError if it does not exist.
        """
        same = 1
        for (name, _), part in zip(self._chain[1:], path.parts, strict=False):
            if name != part:
                break
            same += 1
        self._cut(same)
        for part in path.parts[same - 1 :]:
            here = self._chain[-1][1]
            if part == os.pardir:
                raise NotInside(f"{path} goes up")
            try:
                step = _step(part, here)
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(part, 0o755, dir_fd=here)
                step = _step(part, here)
            self._chain.append((part, step))
        return self._chain[-1][1]

    def kind(self, path: PurePosixPath) -> int:
        """The type of the file at `path` (stat.S_IFMT, of a link itself); 0 if there is none."""
        try:
            parent = self.folder(path.parent, make=False)
            return stat.S_IFMT(os.stat(path.name, dir_fd=parent, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return 0

    def links(self) -> Iterator[tuple[PurePosixPath, str]]:
        """Every symbolic link below the folder, with its target."""
        for path, entry in self._entries(PurePosixPath()):
            if entry.is_symlink():
                parent = self.folder(path.parent, make=False)
                yield path, os.readlink(path.name, dir_fd=parent)

    def _entries(self, path: PurePosixPath) -> Iterator[tuple[PurePosixPath, os.DirEntry[str]]]:
        with _readable(self.folder(path, make=False)) as handle, os.scandir(handle) as listing:
            entries = list(listing)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._entries(path / entry.name)
            else:
                yield path / entry.name, entry

    def follow(self, path: PurePosixPath, target: str) -> None:
        """Raise Outside if the link at `path` with this `target` leads out of the folder.

        It is followed as the kernel would, except that missing parts count as folders, because they
        may be made later.  A loop of links leads nowhere.
        """
        with contextlib.ExitStack() as opened:
            # The folder after each step so far; None if it is missing or not a folder.
            stack: list[int | None] = [self._chain[0][1]]
            for part in path.parent.parts:
                self._go(part, stack, opened)
            left = _parts(target)[::-1]
            links = 1
            while left:
                part = left.pop()
                if part == os.pardir:
                    if len(stack) == 1:
                        raise Outside
                    stack.pop()
                elif inner := self._go(part, stack, opened):
                    links += 1
                    if links > _MOST_LINKS:
                        return
                    left += _parts(inner)[::-1]

    @staticmethod
    def _go(part: str, stack: list[int | None], opened: contextlib.ExitStack) -> str:
        """Do one step; if it is a link, do not follow it but return its target."""
        here = stack[-1]
        if here is None:
            stack.append(None)
            return ""
        try:
            step = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                raise
            stack.append(None)
            return ""
        opened.callback(os.close, step)
        mode = os.fstat(step).st_mode
        if stat.S_ISLNK(mode):
            return os.readlink("", dir_fd=step)
        stack.append(step if stat.S_ISDIR(mode) else None)
        return ""


def _step(part: str, here: int) -> int:
    try:
        return os.open(part, _STEP, dir_fd=here)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise NotInside(f"{part} is not a folder") from error
        raise


def _parts(target: str) -> list[str]:
    """The steps of a link's target; Outside if the target is absolute."""
    if target.startswith("/"):
        raise Outside
    return [part for part in target.split("/") if part not in ("", os.curdir)]


@contextlib.contextmanager
def _readable(folder: int) -> Iterator[int]:
    """A descriptor for listing `folder`, because one opened with O_PATH cannot be read."""
    handle = os.open(os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield handle
    finally:
        os.close(handle)
