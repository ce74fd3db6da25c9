"""A folder that is only reached through descriptors, so that no name and no link leads out of it.

It is for folders that are filled from an archive, links and all; `harness.beneath` reads and
replaces single files below a folder that is there.  Paths are walked a step at a time from the
folder's own descriptor, and the kernel is asked not to follow a link at any step.  Nothing here
compares texts of paths: names may be as long as they like.
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
"""How many links Linux follows for one path."""


class NotInside(Exception):
    """A step of a path is a link, or a file, where a folder has to be."""


class Outside(Exception):
    """A link leads out of the folder."""


class Inside:
    """A folder by its descriptor; use it as a context manager.

    Whoever may write to the folder at the same time can make calls fail, not lead them outside.
    """

    def __init__(self, folder: Path) -> None:
        # The chain of folders that was opened last, from the top: archives come in order.
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
        """A descriptor of the folder at `path`, good until the next call; made where `make`.

        NotInside when a step is no real folder; FileNotFoundError when it is absent.
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
        """The kind of what is at `path` (stat.S_IFMT), a link's own; 0 when nothing is."""
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
        """Outside when the link at `path` with this `target` leads out of the folder.

        It is followed as the kernel would, except that what is missing counts as a folder: somebody
        may make it later.  Links without an end lead nowhere.
        """
        with contextlib.ExitStack() as opened:
            # What the steps so far led to; None is what is missing or no folder.
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
        """One step on; the target when it is a link, which is not taken."""
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
            raise NotInside(f"{part} is no folder") from error
        raise


def _parts(target: str) -> list[str]:
    """A link's target as steps; Outside when it begins at the root of everything."""
    if target.startswith("/"):
        raise Outside
    return [part for part in target.split("/") if part not in ("", os.curdir)]


@contextlib.contextmanager
def _readable(folder: int) -> Iterator[int]:
    """A descriptor to list `folder` with; one opened with O_PATH cannot be read."""
    handle = os.open(os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield handle
    finally:
        os.close(handle)
