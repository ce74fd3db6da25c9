"""Unpacking an archive of a system, without trusting it.

Nothing is written outside the folder, whatever the archive's names, links and their order say;
device nodes are refused; owners, set-id bits and file flags are dropped.  Links with an absolute
target, which mean the system's own root, are made relative to the folder.
"""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, cast

from ..errors import CannotError
from ..files import require_room

_CHUNK_BYTES = 1 << 20
_LEAST_FREE_BYTES = 512 << 20
_EVERY_MEMBERS = 500


def unpack(
    archive: Path,
    folder: Path,
    live: Callable[[str], None],
    *,
    only: Sequence[str] = (),
) -> None:
    """Unpack `archive` (tar, compressed or not) into the empty `folder`.

    `only` names the folders to take, all of it when empty.  CannotError when the archive is
    damaged, tries to get out of the folder, or there is no room.
    """
    writer = _Writer(archive, folder)
    total = archive.stat().st_size
    try:
        with (
            archive.open("rb") as packed,
            _decompressed(packed) as plain,
            tarfile.open(fileobj=plain, mode="r|") as tar,
        ):
            for count, member in enumerate(tar):
                if count % _EVERY_MEMBERS == 0:
                    require_room(folder, _LEAST_FREE_BYTES, f"unpacking {archive.name}")
                    live(f"unpacking {archive.name}: {100 * packed.tell() // max(1, total)} %")
                path = writer.path_of(member.name)
                if not _wanted(path, only):
                    continue
                if member.islnk() and not _wanted(writer.path_of(member.linkname), only):
                    continue  # what it is another name of was left out
                writer.write(tar, member, path)
            # tar stops reading at its own end; the compressor's checksum comes after that.
            while plain.read(_CHUNK_BYTES):
                pass
    except (tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise CannotError(f"{archive}: no archive, damaged or cut short ({error})") from error
    except OSError as error:
        raise CannotError(f"unpacking {archive.name} into {folder}: {error.strerror}") from error


def _decompressed(packed: IO[bytes]) -> IO[bytes]:
    """The stream itself, or what xz or gzip make of it; both notice where it was cut short."""
    magic = packed.read(6)
    packed.seek(0)
    if magic == b"\xfd7zXZ\0":
        return lzma.open(packed)
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(packed))
    return packed


def _wanted(path: PurePosixPath, only: Sequence[str]) -> bool:
    return not only or any(path.is_relative_to(folder) for folder in only)


class _Writer:
    def __init__(self, archive: Path, folder: Path) -> None:
        self._archive = archive
        self._folder = folder
        self._root = os.path.realpath(folder)
        self._inside: set[Path] = set()

    def _refuse(self, name: str, why: str) -> CannotError:
        return CannotError(f"{self._archive}: refused: {name!r} {why}; nothing of it was kept")

    def path_of(self, name: str) -> PurePosixPath:
        """A member's place below the folder."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise self._refuse(name, "would be written outside its folder")
        return path

    def write(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: PurePosixPath) -> None:
        """Write one member."""
        if path == PurePosixPath("."):
            return
        target = self._folder / path
        self._need_inside(member.name, target.parent)
        if member.isdir():
            if not target.is_dir():
                target.mkdir()
            return
        if target.is_symlink() or target.exists():
            target.unlink()
        if member.isreg():
            self._write_file(tar, member, target)
        elif member.issym():
            target.symlink_to(self._symlink(member, path))
        elif member.islnk():
            existing = self._folder / self.path_of(member.linkname)
            self._need_inside(member.name, existing.parent)
            os.link(existing, target, follow_symlinks=False)
        else:
            raise self._refuse(member.name, "is a device or of an unknown kind")

    def _need_inside(self, name: str, parent: Path) -> None:
        """Make `parent`; refuse when links on the way to it lead out of the folder."""
        if parent in self._inside:
            return
        real = os.path.realpath(parent)
        if real != self._root and not real.startswith(self._root + os.sep):
            raise self._refuse(name, "would be written outside its folder through a link")
        parent.mkdir(parents=True, exist_ok=True)
        # Only real folders are remembered: a link could be pointed elsewhere by a later member.
        if real == os.path.join(self._root, os.path.relpath(parent, self._folder)):
            self._inside.add(parent)

    def _write_file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
        content = tar.extractfile(member)
        assert content is not None
        mode = 0o644 | (member.mode & stat.S_IXUSR and 0o111)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(handle, "wb") as out:
            while chunk := content.read(_CHUNK_BYTES):
                out.write(chunk)
        os.utime(target, (member.mtime, member.mtime))

    def _symlink(self, member: tarfile.TarInfo, path: PurePosixPath) -> str:
        """Where a link points, below the folder."""
        link = member.linkname
        if link.startswith("/"):
            link = os.path.relpath(link.lstrip("/") or ".", path.parent)
        landing = os.path.realpath(self._folder / path.parent / link)
        if landing != self._root and not landing.startswith(self._root + os.sep):
            raise self._refuse(member.name, f"is a link out of its folder, to {member.linkname!r}")
        return link
