"""Gets the files that a series touches from a web address, instead of a whole source tree."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import requests

from harness.errors import CannotError, UsageError
from harness.image import network
from harness.image.network import Broken, Limits
from harness.source_tree import NEWVERS, PARAM

ADDRESS = "https://raw.githubusercontent.com/freebsd/freebsd-src/main"
"""Where FreeBSD publishes single files of main, for messages and help."""

_MOST_BYTES = 16 << 20
_ABSENT = re.compile(r"HTTP (?:404|410)\b")


def fetch(
    touched: Sequence[str],
    address: str,
    folder: Path,
    *,
    live: Callable[[str], None] = lambda _line: None,
    limits: Limits | None = None,
) -> tuple[str, ...]:
    """Fetch the touched files, and those that name the tree's release, into `folder`.

    Returns the paths that are not at the address; the series may add them.  Raises UsageError for
    what is no address of a source tree, CannotError if a file cannot be fetched.
    """
    if not re.fullmatch(r"https?://[^\s/]+(?:/\S*)?", address):
        raise UsageError(
            f"--files {address}: must be an http:// or https:// address of a source tree, like "
            f"{ADDRESS}"
        )
    absent = []
    marks = [path for path in (NEWVERS, PARAM) if not (folder / path).exists()]
    with requests.Session() as session:
        for path in dict.fromkeys((*marks, *touched)):
            live(f"fetching {path}")
            data = _one(session, f"{address.rstrip('/')}/{quote(path)}", limits or Limits())
            if data is None:
                absent.append(path)
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    if lost := [path for path in (NEWVERS, PARAM) if path in absent]:
        raise UsageError(
            f"--files {address}: it is not the top of a FreeBSD source tree ({lost[0]} is not "
            f"there); give an address like {ADDRESS}"
        )
    return tuple(absent)


def _one(session: requests.Session, url: str, limits: Limits) -> bytes | None:
    """A file's content; None if there is no such file."""

    def get() -> bytes:
        data = bytearray()
        with network.get(session, url, limits) as answer:
            for chunk in answer.chunks():
                data += chunk
                if len(data) > _MOST_BYTES:
                    raise Broken(f"it is longer than {_MOST_BYTES} bytes")
            if answer.total_bytes is not None and len(data) < answer.total_bytes:
                raise Broken("the connection broke")
        return bytes(data)

    try:
        return network.patiently(get, limits)
    except Broken as error:
        if _ABSENT.match(str(error)):
            return None
        raise CannotError(f"cannot fetch {url}: {error}") from error
