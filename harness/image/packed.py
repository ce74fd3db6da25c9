"""Reads untrusted archives: compressed streams to their true end, tar headers with bounds.

Python's own readers trust their input too much.  lzma.open ignores data after a stream unless it is
another stream.  tarfile reads a header of any length into memory, and takes a broken header in the
middle of an archive for its end.
"""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, cast

from harness import limits
from harness.errors import CannotError

_XZ = b"\xfd7zXZ\0"
_GZIP = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 20
# In the .xz format, stream padding consists of whole words of zeros.
_PADDING_BYTES = 4

DAMAGED = (tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError)
"""The exceptions of this module for damaged archives."""


class XzStream(io.RawIOBase):
    """An .xz file unpacked as xz(1) does it: all streams, padding between them, nothing else.

    Raises LZMAError for garbage and for a stream that needs too much memory, EOFError if it is
    truncated.
    """

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._data = b""
        self._stream = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=limits.XZ_MEMORY_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` with the next piece of data; 0 at the end of the last stream."""
        view = memoryview(buffer).cast("B")
        while len(view):
            if self._stream.eof and not self._next_stream():
                return 0
            if self._stream.needs_input and not self._data:
                self._data = self._packed.read(_CHUNK_BYTES)
                if not self._data:
                    raise EOFError("the file ends before its last stream does")
            plain = self._stream.decompress(self._data, len(view))
            self._data = b""
            if plain:
                view[: len(plain)] = plain
                return len(plain)
        return 0

    def _next_stream(self) -> bool:
        """Skip padding; returns whether another stream follows."""
        rest = self._stream.unused_data
        padding = 0
        while not (left := rest.lstrip(b"\0")):
            padding += len(rest)
            rest = self._packed.read(_CHUNK_BYTES)
            if not rest:
                break
        padding += len(rest) - len(left)
        if padding % _PADDING_BYTES:
            raise lzma.LZMAError("a stream is followed by data that is not padding of whole words")
        if not left:
            return False
        left += self._packed.read(len(_XZ) - len(left)) if len(left) < len(_XZ) else b""
        if not left.startswith(_XZ):
            raise lzma.LZMAError("a complete stream is followed by data that is not an xz stream")
        self._data, self._stream = left, self._new()
        return True


def decompressed(packed: IO[bytes]) -> IO[bytes]:
    """The stream itself, or its contents unpacked by xz or gzip, which notice truncation."""
    magic = packed.read(len(_XZ))
    packed.seek(0)
    if magic == _XZ:
        return cast(IO[bytes], io.BufferedReader(XzStream(packed), _CHUNK_BYTES))
    if magic.startswith(_GZIP):
        return cast(IO[bytes], gzip.open(packed))
    return packed


class _Tape:
    """A stream without seeking back, in the form that tarfile reads.

    A header is read only up to a bound, whatever length it claims.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._at = 0
        self._header_left: int | None = None

    def begin_header(self) -> None:
        self._header_left = limits.ARCHIVE_HEADER_BYTES

    def end_header(self) -> None:
        self._header_left = None

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        if size < 0:
            raise tarfile.ReadError("a negative length")
        if self._header_left is not None:
            self._header_left -= size
            if self._header_left < 0:
                raise tarfile.ReadError(
                    f"a member's headers are longer than {limits.ARCHIVE_HEADER_BYTES} bytes"
                )
        parts = []
        while size:
            part = self._stream.read(min(size, _CHUNK_BYTES))
            if not part:
                break
            parts.append(part)
            size -= len(part)
            self._at += len(part)
        if self._at > limits.ARCHIVE_PLAIN_BYTES:
            raise tarfile.ReadError(f"it is longer than {limits.ARCHIVE_PLAIN_BYTES} bytes")
        return b"".join(parts)

    def seek(self, position: int) -> None:
        """Skip to `position`; the data before it is read and discarded."""
        if position < self._at:
            raise tarfile.ReadError("a member begins before the previous one ends")
        header, self._header_left = self._header_left, None
        while self._at < position:
            if not self.read(min(_CHUNK_BYTES, position - self._at)):
                raise EOFError("the file ends within a member")
        self._header_left = header


class _Header(tarfile.TarInfo):
    """A member's header; a broken one is an error at any position."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.EOFHeaderError, tarfile.SubsequentHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise EOFError("the file ends without an end mark") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class Member:
    """The current member of an archive: its header, and a way to read its content."""

    def __init__(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        self._tar = tar
        self.info = info

    @property
    def name(self) -> str:
        """The path in the archive, not checked."""
        return self.info.name

    def content(self) -> IO[bytes]:
        """A regular file's bytes, holes as zeros; only until the next member is read."""
        stream = self._tar.extractfile(self.info)
        if stream is None:
            raise tarfile.ReadError(f"{self.name!r} has no content")
        return stream


def members(plain: IO[bytes]) -> Iterator[Member]:
    """The members of an uncompressed tar in order; then its end is checked.

    Raises one of DAMAGED for any fault.  Sizes are not compared with the room on the disk here.
    """
    tape = _Tape(plain)
    count = 0
    tape.begin_header()
    with _parsing():
        tar = tarfile.TarFile(fileobj=cast(IO[bytes], tape), tarinfo=_Header, errorlevel=2)
    while True:
        tape.begin_header()
        with _parsing():
            info = tar.next()
        tape.end_header()
        # tarfile stores all members that it has read.
        tar.members = []  # type: ignore[attr-defined]
        if info is None:
            break
        count += 1
        if count > limits.ARCHIVE_MEMBERS:
            raise tarfile.ReadError(f"more than {limits.ARCHIVE_MEMBERS} members")
        if info.size < 0:
            raise tarfile.ReadError(f"{info.name!r} has a negative length")
        _check_holes(info)
        yield Member(tar, info)
    # tar stops reading at its own end; the compressor's checksum comes after that.
    tail = 0
    while rest := tape.read(_CHUNK_BYTES):
        tail += len(rest)
        if rest.count(0) != len(rest):
            raise tarfile.ReadError("there is data after the archive's end mark")
        if tail > limits.ARCHIVE_TAIL_BYTES:
            raise tarfile.ReadError("its padding does not end")


class _parsing:  # noqa: N801 - it is used like a keyword
    """Turn any exception of tarfile's parser into an error for a damaged archive."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, (*DAMAGED, OSError, CannotError)):
            return
        if isinstance(error, Exception):
            raise tarfile.ReadError(f"a header cannot be read ({type(error).__name__})") from error


def _check_holes(info: tarfile.TarInfo) -> None:
    """Raise ReadError unless the pieces of a sparse file are in order and within its length."""
    end = 0
    holes: list[tuple[int, int]] = getattr(info, "sparse", None) or []
    for at, length in holes:
        if at < end or length < 0 or at + length > info.size:
            raise tarfile.ReadError(f"{info.name!r}: the map of its holes is invalid")
        end = at + length
