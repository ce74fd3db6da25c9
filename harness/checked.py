"""Checks the types of values from files and from other programs before they are used.

msgspec compares JSON with a dataclass's own types.  The types in this module add what a plain type
cannot express (one line of text, a digest, a plausible time); fields use them as annotations.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from harness import release

T = TypeVar("T")

_REGEX = re.compile(r"`str` matching regex '.*'(?= - at |$)")

_UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"

Line = Annotated[str, msgspec.Meta(max_length=4096, pattern=rf"\A[^{_UNPRINTABLE}]*\Z")]
"""One line of text without control characters."""

Name = Annotated[str, msgspec.Meta(max_length=255, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._+-]*\Z")]
"""A file's name without a folder, which no command takes for an option."""

User = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_.-]{0,31}\Z")]
"""A user's name."""

MaybeUser = Annotated[str, msgspec.Meta(pattern=r"\A(?:[A-Za-z_][A-Za-z0-9_.-]{0,31})?\Z")]
"""A user's name, or nothing."""

Moment = Annotated[
    str, msgspec.Meta(pattern=r"\A(?:\d{4}-\d\d-\d\dT[0-9:.]{5,15}[0-9:Z+-]{0,6})?\Z")
]
"""A time as ISO 8601 writes it, or nothing."""

Release = Annotated[str, msgspec.Meta(pattern=rf"\A{release.TEXT}\Z")]
"""A release like 15.1 or 16.0-CURRENT."""

Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{64}|[0-9a-f]{128})\Z")]
"""A SHA-256, or a SHA-512."""

HostKey = Annotated[str, msgspec.Meta(pattern=r"\Assh-ed25519 AAAA[A-Za-z0-9+/]{64}\Z")]
"""An Ed25519 public key as in known_hosts: 51 bytes, in Base64 without padding."""

Url = Annotated[str, msgspec.Meta(max_length=4096, pattern=r"\Ahttps?://[!-~]+\Z")]

Osversion = Annotated[int, msgspec.Meta(ge=100_000, le=99_999_999)]
"""__FreeBSD_version."""

Seconds = Annotated[float, msgspec.Meta(ge=-1e8, le=1e8)]
"""A duration or a moment of a run in seconds: at most three years."""

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""A number of bytes or of events."""

Address = Annotated[int, msgspec.Meta(ge=0)]
"""An address in memory; a kernel's addresses are in the upper half of 64 bits."""

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Pid = Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]


def decode(kind: type[T], text: str | bytes) -> T:
    """A value of type `kind` from JSON; ValueError names the place where the type is wrong.

    Keys without a field in the dataclass are ignored, because older and newer versions wrote files
    too.
    """
    with _in_words():
        return msgspec.json.decode(text, type=kind, dec_hook=_path)


def convert(kind: type[T], data: Any) -> T:
    """Like `decode`, but from data that a JSON reader or Python has already parsed."""
    with _in_words():
        return msgspec.convert(data, type=kind, dec_hook=_path)


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except (RecursionError, OverflowError) as error:
        raise ValueError(
            f"it is nested too deeply or too large ({type(error).__name__})"
        ) from error
    except msgspec.ValidationError as error:
        raise ValueError(_REGEX.sub("text in the wrong form", str(error))) from error


def table(text: str | bytes) -> dict[str, Any]:
    """A JSON object; ValueError when the data is something else."""
    return decode(dict[str, Any], text)


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    if kind is Path and isinstance(value, Path):
        return value
    raise ValueError("it must be a path")
