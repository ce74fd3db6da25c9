"""Reading archives that strangers made: compressed streams to their true end, tar headers bounded.

Python's own readers believe more than is good.  lzma.open takes what follows a stream, if it is
not another stream at once, for the end of the file.  tarfile reads a header of any length into
memory and takes a broken header in the middle of an archive for its end.
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
# Stream padding is whole words of zeros, says the .xz format.
_PADDING_BYTES = 4

DAMAGED = (tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError)
"""What reading a damaged archive raises here."""


class XzStream(io.RawIOBase):
    """An .xz file unpacked as xz(1) does it: all streams, padding between them, nothing else.

    LZMAError for garbage and for a stream that wants too much memory, EOFError where it is cut.
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
        """Fill `buffer` as far as the next piece goes; 0 at the end of the last stream."""
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
        """Pass over padding; whether another stream begins after it."""
        rest = self._stream.unused_data
        padding = 0
        while not (left := rest.lstrip(b"\0")):
            padding += len(rest)
            rest = self._packed.read(_CHUNK_BYTES)
            if not rest:
                break
        padding += len(rest) - len(left)
        if padding % _PADDING_BYTES:
            raise lzma.LZMAError("what follows a stream is no padding of whole words")
        if not left:
            return False
        left += self._packed.read(len(_XZ) - len(left)) if len(left) < len(_XZ) else b""
        if not left.startswith(_XZ):
            raise lzma.LZMAError("something that is no xz stream follows a whole one")
        self._data, self._stream = left, self._new()
        return True


def decompressed(packed: IO[bytes]) -> IO[bytes]:
    """The stream itself, or what xz or gzip make of it; both notice where it was cut short."""
    magic = packed.read(len(_XZ))
    packed.seek(0)
    if magic == _XZ:
        return cast(IO[bytes], io.BufferedReader(XzStream(packed), _CHUNK_BYTES))
    if magic.startswith(_GZIP):
        return cast(IO[bytes], gzip.open(packed))
    return packed


class _Tape:
    """A stream that only goes on, as tarfile wants to read it.

    While a header is read, no more than its bound comes out, however long it says it is.
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
            raise tarfile.ReadError("a length below zero")
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
        """Go on to `position`; what lies between is read and forgotten."""
        if position < self._at:
            raise tarfile.ReadError("a member begins before the one ahead of it ends")
        header, self._header_left = self._header_left, None
        while self._at < position:
            if not self.read(min(_CHUNK_BYTES, position - self._at)):
                raise EOFError("the file ends within a member")
        self._header_left = header


class _Header(tarfile.TarInfo):
    """A member's header, of which a broken one is an error wherever it stands."""

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
    """One member of an archive, in turn: what its header says, and a way to read its content."""

    def __init__(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        self._tar = tar
        self.info = info

    @property
    def name(self) -> str:
        """The path as the archive has it, not checked."""
        return self.info.name

    def content(self) -> IO[bytes]:
        """A regular file's bytes, holes as zeros; only until the next member is asked for."""
        stream = self._tar.extractfile(self.info)
        if stream is None:
            raise tarfile.ReadError(f"{self.name!r} has no content")
        return stream


def members(plain: IO[bytes]) -> Iterator[Member]:
    """The members of an uncompressed tar, in its order, and then its end is looked at.

    Raises one of DAMAGED for whatever is not as it should be.  Sizes are not compared with the room
    on the disk here.
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
        # tarfile keeps all it has met.
        tar.members = []  # type: ignore[attr-defined]
        if info is None:
            break
        count += 1
        if count > limits.ARCHIVE_MEMBERS:
            raise tarfile.ReadError(f"more than {limits.ARCHIVE_MEMBERS} members")
        if info.size < 0:
            raise tarfile.ReadError(f"{info.name!r} has a length below zero")
        _check_holes(info)
        yield Member(tar, info)
    # tar stops reading at its own end; the compressor's checksum comes after that.
    tail = 0
    while rest := tape.read(_CHUNK_BYTES):
        tail += len(rest)
        if rest.count(0) != len(rest):
            raise tarfile.ReadError("something follows the archive's end mark")
        if tail > limits.ARCHIVE_TAIL_BYTES:
            raise tarfile.ReadError("its padding has no end")


class _parsing:  # noqa: N801 - it reads as what it is for
    """tarfile's parser raises whatever a forged header makes it raise; that is damage too."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, (*DAMAGED, OSError, CannotError)):
            return
        if isinstance(error, Exception):
            raise tarfile.ReadError(f"a header cannot be read ({type(error).__name__})") from error


def _check_holes(info: tarfile.TarInfo) -> None:
    """ReadError unless the pieces of a sparse file lie in order within its length."""
    end = 0
    holes: list[tuple[int, int]] = getattr(info, "sparse", None) or []
    for at, length in holes:
        if at < end or length < 0 or at + length > info.size:
            raise tarfile.ReadError(f"{info.name!r}: the map of its holes is none")
        end = at + length
