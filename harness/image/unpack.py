"""Unpacks untrusted archives: of a system, of a bundle, or from a guest's tar.

Nothing is written outside the folder, whatever names and links the archive has and in whatever
order, and all sizes are bounded (limits.py).  Members are never written through a link. Owners,
set-id bits and file flags are dropped.
"""

from __future__ import annotations

import math
import os
import stat
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness import limits
from harness.errors import CannotError
from harness.files import require_room, write_sparse
from harness.image.inside import Inside, NotInside, Outside
from harness.image.packed import DAMAGED, Member, decompressed, members

_CHUNK_BYTES = 1 << 20
_EVERY_MEMBERS = 500
_SHOWN = 100


@dataclass(frozen=True)
class Unpacked:
    """The result of unpacking: the number of written members, and those left out with reasons."""

    members: int
    left_out: tuple[str, ...] = ()


def unpack(
    archive: Path,
    folder: Path,
    live: Callable[[str], None],
    *,
    only: Sequence[str] = (),
    of_a_system: bool = True,
    called: str = "",
) -> Unpacked:
    """Unpack `archive` (tar, compressed or not) into the empty `folder`.

    `only` names the folders to unpack; if empty, everything is.  An archive `of_a_system` may have
    links with an absolute target, which mean the system's own root and are made relative to the
    folder; links that lead out of it, and devices, make the archive refused.  From any other
    archive such members are left out.  `called` is the archive's name in messages.  Raises
    CannotError if it is damaged, tries to write outside the folder, or if there is no room.
    """
    name = called or str(archive)
    total = archive.stat().st_size
    try:
        with (
            archive.open("rb") as packed,
            decompressed(packed) as plain,
            Inside(folder) as inside,
        ):
            writer = _Writer(name, folder, inside, of_a_system)
            for count, member in enumerate(members(plain)):
                if count % _EVERY_MEMBERS == 0:
                    _require_files(folder, name)
                    live(f"unpacking {archive.name}: {100 * packed.tell() // max(1, total)} %")
                writer.take(member, only)
            live(f"checking the links of {archive.name}")
            writer.look_at_links()
    except DAMAGED as error:
        raise CannotError(
            f"{name}: it is not an archive, or it is damaged or truncated ({error})"
        ) from error
    except OSError as error:
        raise CannotError(f"unpacking {name} into {folder}: {error.strerror}") from error
    return Unpacked(writer.written, tuple(writer.left_out))


def _require_files(folder: Path, name: str) -> None:
    """Raise CannotError unless the file system has room for many more files."""
    require_room(folder, limits.LEAST_FREE_BYTES, f"unpacking {name}")
    room = os.statvfs(folder)
    if room.f_files and room.f_favail < limits.LEAST_FREE_FILES:
        raise CannotError(
            f"unpacking {name}: the file system of {folder} has no room for more files; remove "
            "some or choose another folder (HARNESS_CACHE, HARNESS_RUNS)"
        )


class _Foreign(Exception):
    """A member that an archive of a system must not have; from other archives it is left out."""


class _Writer:
    def __init__(self, archive: str, folder: Path, inside: Inside, of_a_system: bool) -> None:
        self._archive = archive
        self._folder = folder
        self._inside = inside
        self._of_a_system = of_a_system
        self.written = 0
        self.left_out: list[str] = []

    def _refuse(self, name: str, why: str) -> CannotError:
        shown = repr(name if len(name) <= _SHOWN else name[:_SHOWN] + "…")
        return CannotError(f"{self._archive}: refused: {shown} {why}; nothing of it was stored")

    def _path_of(self, name: str) -> PurePosixPath:
        """A member's path below the folder."""
        path = PurePosixPath(name)
        if path.is_absolute() or os.pardir in path.parts or "\0" in name:
            raise self._refuse(name, "would be written outside its folder")
        if (
            len(os.fsencode(name)) > limits.PATH_BYTES
            or len(path.parts) > limits.PATH_PARTS
            or any(len(os.fsencode(part)) > os.pathconf("/", "PC_NAME_MAX") for part in path.parts)
        ):
            raise self._refuse(name, "is longer than any path of FreeBSD's")
        return path

    def take(self, member: Member, only: Sequence[str]) -> None:
        """Write one member, if it is selected and allowed."""
        info = member.info
        path = self._path_of(info.name)
        if not _wanted(path, only):
            return
        if info.islnk() and not _wanted(self._path_of(info.linkname), only):
            return  # the file that it is another name of was left out
        if path == PurePosixPath("."):
            if not info.isdir():
                raise self._refuse(info.name, "has no name below the folder")
            return
        try:
            self._write(member, path)
        except NotInside:
            raise self._refuse(
                info.name, "would be written outside its folder through a link, or below a file"
            ) from None
        except _Foreign as error:
            if self._of_a_system:
                raise self._refuse(info.name, str(error)) from None
            self.left_out.append(f"{info.name!r} {error}")
            return
        self.written += 1

    def _write(self, member: Member, path: PurePosixPath) -> None:
        info = member.info
        parent = self._inside.folder(path.parent, make=True)
        there = self._inside.kind(path)
        if info.isdir():
            if stat.S_ISDIR(there):
                return
            self._unlink(path, there)
            os.mkdir(path.name, 0o755, dir_fd=parent)
            return
        if stat.S_ISDIR(there):
            raise self._refuse(info.name, "takes the place of a folder")
        if info.isreg():
            require_room(
                self._folder,
                info.size + limits.LEAST_FREE_BYTES,
                f"unpacking {self._archive}",
            )
            self._unlink(path, there)
            self._write_file(member, path.name, parent)
        elif info.issym():
            target = self._target(info, path)
            self._unlink(path, there)
            os.symlink(target, path.name, dir_fd=parent)
        elif info.islnk():
            self._hard_link(info, path, there)
        else:
            raise _Foreign("is a device or of an unknown kind")

    def _unlink(self, path: PurePosixPath, there: int) -> None:
        if there:
            os.unlink(path.name, dir_fd=self._inside.folder(path.parent, make=False))

    def _write_file(self, member: Member, name: str, parent: int) -> None:
        info = member.info
        handle = os.open(
            name,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600 | info.mode & 0o755,
            dir_fd=parent,
        )
        with os.fdopen(handle, "wb") as out:
            content = member.content()
            done = 0
            while chunk := content.read(_CHUNK_BYTES):
                write_sparse(out, chunk)
                done += len(chunk)
            if done != info.size:
                raise EOFError(f"{info.name!r} ends after {done} of {info.size} bytes")
            out.truncate(done)
            out.flush()
            if math.isfinite(info.mtime) and 0 <= info.mtime <= limits.LATEST_TIME_S:
                os.utime(handle, (info.mtime, info.mtime))

    def _target(self, info: tarfile.TarInfo, path: PurePosixPath) -> str:
        """The target that a link gets; the place it leads to is checked after everything is
        unpacked.
        """
        link = info.linkname
        if not link or "\0" in link or len(os.fsencode(link)) > limits.PATH_BYTES:
            raise _Foreign("is a link to a path that FreeBSD cannot have")
        if link.startswith("/"):
            if not self._of_a_system:
                raise _Foreign(f"is a link out of its folder, to {link!r}")
            link = os.path.relpath(link.lstrip("/") or ".", path.parent)
        return link

    def _hard_link(self, info: tarfile.TarInfo, path: PurePosixPath, there: int) -> None:
        existing = self._path_of(info.linkname)
        if not stat.S_ISREG(self._inside.kind(existing)):
            raise _Foreign(
                f"is another name of {info.linkname!r}, which is not a file of the archive"
            )
        if existing == path:
            return
        self._unlink(path, there)
        # The descriptor of one folder is valid only until the next is requested.
        source = os.dup(self._inside.folder(existing.parent, make=False))
        try:
            parent = self._inside.folder(path.parent, make=False)
            os.link(
                existing.name,
                path.name,
                src_dir_fd=source,
                dst_dir_fd=parent,
                follow_symlinks=False,
            )
        finally:
            os.close(source)

    def look_at_links(self) -> None:
        """The last pass: check that no link leads outside, not even by way of other links."""
        for path, target in list(self._inside.links()):
            try:
                self._inside.follow(path, target)
            except Outside:
                why = f"is a link out of its folder, to {target[:_SHOWN]!r}"
                if self._of_a_system:
                    raise self._refuse(str(path), why) from None
                self._unlink(path, stat.S_IFLNK)
                self.left_out.append(f"{str(path)!r} {why}")


def _wanted(path: PurePosixPath, only: Sequence[str]) -> bool:
    return not only or any(path.is_relative_to(folder) for folder in only)
