"""Lists the files of a series, from its `series` file or its folder.

A `series` file is read as quilt reads it: one patch per line, followed by options (-p0, -R); `#`
begins a comment.  Files of a folder that are not used are reported, so that none is left out
unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import PatchError, UsageError
from harness.series import kinds

SERIES = "series"
COMMON = "common"
_SUFFIXES = (".patch", ".diff", ".mbox", ".mbx", ".eml")
_COMMENT = re.compile(r"(?:^|\s)#.*")
_LEVEL = re.compile(r"(?:-p|--strip=)(\d+)\Z")
_NAMED = 5


@dataclass(frozen=True)
class Entry:
    """A file of patches; `level` is the number of leading parts to remove, None if unknown."""

    path: Path
    level: int | None = None
    reverse: bool = False


@dataclass(frozen=True)
class Listing:
    """The files of a series in order, and the other files of its folder."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    by_name: bool = False
    """No file says the order: the names do."""
    from_file: bool = False
    """A `series` file names them."""


def from_folder(folder: Path) -> Listing:
    """The patches in a folder without a `series` file, sorted by name, with numbers by value."""
    there = sorted((path for path in folder.iterdir()), key=_by_number)
    taken = [path for path in there if _is_patch(path)]
    if lost := [path for path in there if path.is_symlink() and not path.exists()]:
        raise UsageError(f"{lost[0]}: a link that leads nowhere; repair it or remove it")
    if not taken:
        held = f"; it holds {_few([path.name for path in there])}" if there else ""
        inner = [path for path in there if path.is_dir() and not path.name.startswith(".")]
        raise UsageError(
            f"{folder}: neither a `series` file nor patches ({', '.join(_SUFFIXES)}) in it{held}"
            + (f"; folders in it are not looked into: name {inner[0]} itself" if inner else "")
        )
    left = _left_out(folder, there, taken)
    return Listing(tuple(Entry(path) for path in taken), left, by_name=True)


def _is_patch(path: Path) -> bool:
    """Whether a file counts as a patch; a compressed one does too, and is refused when read."""
    named = path.suffix.lower() in _SUFFIXES or kinds.packed(path.name)
    # What begins with a dot is an editor's or macOS's (._0001.patch), not a patch.
    return named and not path.name.startswith(".") and path.is_file()


def from_file(listing: Path) -> Listing:
    """The files in a `series` file; PatchError names a wrong line."""
    folder = listing.parent
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PatchError(f"{listing}: cannot be read as text: {error}") from error
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        words = _COMMENT.sub("", line).split()
        if not words:
            continue
        at = f"{listing}:{number}"
        entry = _entry(folder, line, at)
        if entry.path in [it.path for it in entries]:
            raise PatchError(f"{at}: it names {words[0]} a second time")
        entries.append(entry)
    there = sorted(folder.iterdir(), key=_by_number)
    patches = [path for path in there if _is_patch(path)]
    left = _left_out(folder, patches, [entry.path for entry in entries])
    return Listing(tuple(entries), left, from_file=True)


def _entry(folder: Path, line: str, at: str) -> Entry:
    """Parse one line.  A name may contain blanks if there is such a file."""
    whole = _COMMENT.sub("", line).strip()
    name, options = whole, ""
    if not _is_file(folder / whole):
        name, options = (*whole.split(maxsplit=1), "")[:2]
    entry = Entry(folder / name)
    top, common = folder.resolve(), (folder.parent / COMMON).resolve()
    try:
        place = entry.path.resolve()
    except (OSError, ValueError):
        place = Path("/")
    if "\0" in name or (not place.is_relative_to(top) and place.parent != common):
        raise PatchError(
            f"{at}: {name!r} is neither in the folder of the series nor in ../{COMMON}"
        )
    if not entry.path.is_file():
        raise PatchError(f"{at}: it names {name}, which does not exist")
    return _with_options(entry, options, at)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _with_options(entry: Entry, options: str, at: str) -> Entry:
    words = iter(options.split())
    for word in words:
        given = f"{word}{next(words, '')}" if word in ("-p", "--strip") else word
        if given in ("-pab", "-pba"):
            # quilt's words for a/ and b/.
            entry = replace(entry, level=1)
        elif found := _LEVEL.match(given):
            entry = replace(entry, level=int(found[1]))
        elif word in ("-R", "--reverse"):
            entry = replace(entry, reverse=True)
        else:
            raise PatchError(
                f"{at}: the option {word} of {entry.path.name} is unknown; only -pN and "
                f"-R are supported"
            )
    return entry


def _left_out(folder: Path, there: list[Path], taken: list[Path]) -> tuple[str, ...]:
    names = [path.name for path in there if path not in taken and path.name != SERIES]
    if not names:
        return ()
    why = "not in its series file" if (folder / SERIES).is_file() else "no patches, by their names"
    return (f"{folder}: not part of the series: {_few(names)} ({why})",)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _by_number(path: Path) -> list[tuple[int, str]]:
    """A sort key by which 10.patch follows 9.patch."""
    return list(_parts(path.name))


def _parts(name: str) -> Iterator[tuple[int, str]]:
    for digits, text in re.findall(r"(\d+)|(\D+)", name):
        yield (int(digits), "") if digits else (-1, text)
