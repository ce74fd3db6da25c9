"""Checks that each hunk of a patch fits in only one place of another version of its file.

git takes the nearest place.  In repetitive text (several empty cases, several similar functions)
that is a guess, and it may be the wrong function.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from harness.series import diffs

CHECKING = re.compile(r"^Checking patch (?P<path>.*)\.\.\.$")
OFFSET = re.compile(r"^Hunk #(?P<hunk>\d+) succeeded at \d+ \(offset (?P<offset>-?\d+) lines?\)")
_HUNK = re.compile(rb"^@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")


@dataclass(frozen=True)
class Doubt:
    """A hunk that fits in `places` places of a file that differs from the one it was made from."""

    path: str
    hunk: int
    places: int


@dataclass(frozen=True)
class _Hunk:
    offset_lines: int
    places: int


def doubtful(
    output: str, data: bytes, folder: Path, *, reverse: bool, bare: bool = False
) -> Doubt | None:
    """The first hunk of a patch that may belong elsewhere in its file; None if all are certain.

    `output` is what is printed of `git apply --check -v` for the patch `data` in `folder`, with
    --unidiff-zero if `bare`.  There is doubt only if the file is known to be another version than
    the one the patch was made from: its name in git's `index` line differs, or hunks moved.  A hunk
    is certain if it fits in only one place, or moved exactly as far as the nearest one that does.
    """
    lines = data.splitlines(keepends=True)
    found = {_path(it, reverse): it for it in diffs.sections(lines)}
    for path, moved in _moved(output):
        section = found.get(path)
        if section is None or not _is_other(folder / path, section, reverse, bool(moved)):
            continue
        hunks = [
            _Hunk(moved.get(number, 0), places)
            for number, places in enumerate(
                _places(folder / path, lines, section, reverse, bare), 1
            )
        ]
        for number, hunk in enumerate(hunks, 1):
            if hunk.places > 1 and not _is_sure(hunks, number - 1):
                return Doubt(path, number, hunk.places)
    return None


def is_blob(file: Path, wanted: str) -> bool:
    """Whether a file has the content with git's name `wanted`, which may be abbreviated."""
    try:
        data = file.read_bytes()
    except OSError:
        return False
    blob = b"blob %d\0%s" % (len(data), data)
    return any(
        hashlib.new(kind, blob, usedforsecurity=False).hexdigest().startswith(wanted)
        for kind in ("sha1", "sha256")
    )


def _is_other(file: Path, section: diffs.Section, reverse: bool, moved: bool) -> bool:
    if section.whole or not section.blobs:
        return moved
    return not is_blob(file, section.blobs[1 if reverse else 0])


def _moved(output: str) -> Iterator[tuple[str, dict[int, int]]]:
    """Each file that git examined, with its moved hunks and their distances."""
    found: list[tuple[str, dict[int, int]]] = []
    for line in output.splitlines():
        if checking := CHECKING.match(line):
            found.append((_before(checking["path"]), {}))
        elif (offset := OFFSET.match(line)) and found:
            found[-1][1][int(offset["hunk"])] = int(offset["offset"])
    yield from found


def _before(name: str) -> str:
    """The old name of a renamed file, which git prints as sys/{a.c => b.c}."""
    return re.sub(r"/{2,}", "/", re.sub(r"\{(.*?) => .*?\}", r"\1", name)).partition(" => ")[0]


def _path(section: diffs.Section, reverse: bool) -> str:
    name = section.new if reverse else section.old
    return diffs.strip(name or b"", 1).decode("utf-8", "surrogateescape")


def _places(
    file: Path, lines: Sequence[bytes], section: diffs.Section, reverse: bool, bare: bool
) -> Iterator[int]:
    """The number of places in a file where each hunk fits."""
    try:
        have = file.read_bytes().splitlines(keepends=True)
    except OSError:
        have = []
    starts = [at for at in range(section.paths, section.end) if _HUNK.match(lines[at])]
    for at, end in pairwise((*starts, section.end)):
        head = _HUNK.match(lines[at])
        gone = b"+" if reverse else b"-"
        body = [line for line in lines[at + 1 : end] if not line.startswith(b"\\")]
        wanted = [line[1:] or b"\n" for line in body if line[:1] in (b" ", b"\n", gone)]
        at_end = not body or body[-1][:1] not in (b" ", b"\n")
        at_begin = head is not None and int(head[2 if reverse else 1]) <= 1
        if not wanted or (not bare and (at_end or at_begin)):
            # If a hunk has no context on one side, git applies it only at that end of the file.
            yield 1
            continue
        last = len(have) - len(wanted)
        yield sum(have[at : at + len(wanted)] == wanted for at in range(last + 1))


def _is_sure(hunks: Sequence[_Hunk], at: int) -> bool:
    """Whether a hunk with several places moved as far as the nearest hunk with only one."""
    near = sorted(
        (abs(other - at), it.offset_lines) for other, it in enumerate(hunks) if it.places == 1
    )
    return any(offset == hunks[at].offset_lines for far, offset in near if far == near[0][0])
