"""Parses a unified diff: the files in it, their names, and the conversion of paths to a/ and b/.

git apply expects paths with one leading part (-p1).  Users' diffs may have none (svn, FreeBSD's
advisories, --no-prefix) or several (diff -r /usr/src.orig /usr/src).  This module converts them to
the usual form, so that the rest of this package handles only that form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

# The top of a FreeBSD source tree of any supported release.
TOP_NAMES = frozenset(
    (
        "bin", "cddl", "contrib", "crypto", "etc", "gnu", "include", "kerberos5", "krb5", "lib",
        "libexec", "packages", "release", "rescue", "sbin", "secure", "share", "stand", "sys",
        "targets", "tests", "tools", "usr.bin", "usr.sbin", ".arcconfig", ".cirrus.yml",
        ".clang-format", ".git-blame-ignore-revs", ".gitattributes", ".github", ".gitignore",
        ".mailmap", "CONTRIBUTING.md", "COPYRIGHT", "LOCKS", "MAINTAINERS", "Makefile",
        "Makefile.inc1", "Makefile.libcompat", "Makefile.sys.inc", "ObsoleteFiles.inc", "README",
        "README.md", "RELNOTES", "UPDATING",
    )
)  # fmt: skip

_HUNK = re.compile(rb"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_EXTENDED = re.compile(
    rb"^(?:old mode|new mode|deleted file mode|new file mode|copy from|copy to|rename from"
    rb"|rename to|rename old|rename new|similarity index|dissimilarity index|index) "
)
_INDEX = re.compile(rb"^index ([0-9a-f]{4,64})\.\.([0-9a-f]{4,64})\b")
_MOVED = re.compile(rb"^((?:rename|copy) (?:from|to|old|new)) (.*?)\r?\n?$")
_COLOURED = re.compile(rb"^(?:\x1b\[[0-9;]*[mK])+(?:diff --git |--- |\+\+\+ |@@ )", re.M)
_COLOUR = re.compile(rb"\x1b\[[0-9;]*[mK]")
_SVN = re.compile(rb"[ \t]+\((revision \d+|working copy|nonexistent)\)$")
_ESCAPES = {
    b"a": 7, b"b": 8, b"t": 9, b"n": 10, b"v": 11, b"f": 12, b"r": 13, b'"': 34, b"\\": 92
}  # fmt: skip
# git's prefixes of the two sides: a/ b/, or those of diff.mnemonicPrefix.
_SIDES = {
    (b"a", b"b"), (b"b", b"a"), (b"i", b"w"), (b"c", b"i"), (b"c", b"w"), (b"o", b"w"),
    (b"1", b"2"),
}  # fmt: skip
_NO_FILE = b"/dev/null"


@dataclass(frozen=True)
class Hunk:
    """Where a hunk stands in the old file, how many lines both sides have, how many are context.

    `ends` says which kinds of its lines (context, removed, added) end a file without a newline.
    """

    old_start: int
    old_lines: int
    new_lines: int
    context: int
    ends: bytes = b""


@dataclass(frozen=True)
class Section:
    """The part of a diff for one file: lines `first` to `end` (exclusive) of the text.

    `old` and `new` are the names as written, including prefixes; None means no file.  `paths` is
    the number of the line that begins with `--- `, or -1.  `blobs` are git's abbreviated names for
    the old and the new content, if there is an `index` line.
    """

    first: int
    end: int
    old: bytes | None
    new: bytes | None
    paths: int = -1
    hunks: tuple[Hunk, ...] = ()
    blobs: tuple[str, str] | None = None

    @property
    def bare(self) -> tuple[Hunk, ...]:
        """The hunks without context, unless the file is added or removed."""
        return () if self.whole else tuple(hunk for hunk in self.hunks if not hunk.context)

    @property
    def whole(self) -> bool:
        """Whether it adds or removes the file."""
        return self.old is None or self.new is None


def plain(data: bytes) -> bytes:
    """A diff without the colours, byte order mark and CRs that terminals and mail programs add.

    CRs are removed only if the diff's own headers have them: git writes headers without CRs, so
    then the whole text was converted.  A diff of a file with CRLF has CRs only in its hunks, and
    these stay.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if _COLOURED.search(data):
        data = _COLOUR.sub(b"", data)
    if re.search(rb"^(?:@@ -\d.* @@|\+\+\+ |diff --git ).*\r$", data, re.M):
        data = re.sub(rb"\r$", b"", data, flags=re.M)
    return _with_last_newline(data)


def _with_last_newline(data: bytes) -> bytes:
    """Add a last newline, which copying and pasting may lose; but an added line may be
    truncated.
    """
    last = data.rpartition(b"\n")[2]
    return data + b"\n" if last.startswith((b" ", b"-", b"\\")) and data.count(b"\n") else data


def sections(lines: Sequence[bytes]) -> tuple[Section, ...]:
    """The files of a diff; text between them is ignored, as by git."""
    found: list[Section] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith(b"diff --git "):
            found.append(_git_section(lines, at))
        elif _begins_paths(lines, at) and at + 2 < len(lines) and _HUNK.match(lines[at + 2]):
            found.append(_with_paths(lines, Section(at, at, None, None), at))
        else:
            at += 1
            continue
        at = max(found[-1].end, at + 1)
    return tuple(found)


def _begins_paths(lines: Sequence[bytes], at: int) -> bool:
    return (
        at + 1 < len(lines) and lines[at].startswith(b"--- ") and lines[at + 1].startswith(b"+++ ")
    )


def _git_section(lines: Sequence[bytes], first: int) -> Section:
    old, new = _git_names(lines[first])
    at = first + 1
    blobs = None
    while at < len(lines) and _EXTENDED.match(lines[at]):
        if lines[at].startswith(b"new file"):
            old = None
        if lines[at].startswith(b"deleted file"):
            new = None
        if found := _INDEX.match(lines[at]):
            blobs = found[1].decode(), found[2].decode()
        at += 1
    section = Section(first, at, old, new, blobs=blobs)
    if _begins_paths(lines, at):
        return _with_paths(lines, section, at)
    # Git accepts one of the two lines by itself, and uses it if it could not parse the first.
    if at < len(lines) and lines[at].startswith(b"--- ") and old is None:
        return replace(section, end=at + 1, old=_name(lines[at]))
    if at < len(lines) and lines[at].startswith(b"+++ ") and new is None:
        return replace(section, end=at + 1, new=_name(lines[at]))
    return section


def _with_paths(lines: Sequence[bytes], section: Section, at: int) -> Section:
    """A section with the names and hunks from its `--- ` line on."""
    old, new = _name(lines[at]), _name(lines[at + 1])
    hunks: list[Hunk] = []
    paths = at
    at += 2
    while at < len(lines) and (head := _HUNK.match(lines[at])):
        old_left, new_left = (int(head[n]) if head[n] else 1 for n in (2, 4))
        hunk = Hunk(int(head[1]), old_left, new_left, 0)
        context = 0
        begin = at
        at += 1
        while at < len(lines) and (old_left > 0 or new_left > 0):
            kind = lines[at][:1]
            if kind in (b" ", b"\n", b"\r"):
                old_left, new_left, context = old_left - 1, new_left - 1, context + 1
            elif kind == b"-":
                old_left -= 1
            elif kind == b"+":
                new_left -= 1
            elif kind != b"\\":
                # A truncated or wrapped line; git reports it.
                break
            at += 1
        while at < len(lines) and lines[at].startswith(b"\\"):
            at += 1
        ends = b"".join(
            lines[number - 1][:1] for number in range(begin + 2, at) if lines[number][:1] == b"\\"
        )
        hunks.append(replace(hunk, context=context, ends=ends))
    if section.first == paths and hunks and old is not None and new is not None:
        # Not from git: svn and diff -N also name files that do not exist.
        if hunks[0].old_lines == 0 and lines[paths].rstrip().endswith(b"(nonexistent)"):
            old = None
        if lines[paths + 1].rstrip().endswith(b"(nonexistent)"):
            new = None
    return replace(section, end=at, old=old, new=new, paths=paths, hunks=tuple(hunks))


def _name(line: bytes) -> bytes | None:
    """The file that a `--- ` or `+++ ` line names."""
    text = line[4:].rstrip(b"\r\n")
    if text.startswith(b'"'):
        return unquote(text.rpartition(b"\t")[0] if text.count(b'"') < 2 else text)
    name = _SVN.sub(b"", text).partition(b"\t")[0].rstrip(b" ")
    return None if name == _NO_FILE else name


def _git_names(line: bytes) -> tuple[bytes | None, bytes | None]:
    """Both names of a `diff --git` line; (None, None) if they cannot be separated."""
    text = line[len(b"diff --git ") :].rstrip(b"\r\n")
    if text.startswith(b'"') or text.endswith(b'"'):
        found = re.findall(rb'"(?:[^"\\]|\\.)*"|[^ "]+', text)
        return (unquote(found[0]), unquote(found[1])) if len(found) == 2 else (None, None)
    blanks = [at for at, byte in enumerate(text) if byte == 0x20]
    for at in blanks:
        old, new = text[:at], text[at + 1 :]
        if old == new or old.partition(b"/")[2] == new.partition(b"/")[2] != b"":
            return old, new
    if len(blanks) == 1:
        return text[: blanks[0]], text[blanks[0] + 1 :]
    return None, None


def unquote(name: bytes) -> bytes:
    """Decode a name as git prints it: odd names are in double quotes with C escapes."""
    if not (name.startswith(b'"') and b'"' in name[1:]):
        return name
    inner = name[1 : name.rindex(b'"')]

    def character(found: re.Match[bytes]) -> bytes:
        code = found[1]
        return bytes([int(code, 8) & 0xFF if code.isdigit() else _ESCAPES[code]])

    return re.sub(rb'\\([0-7]{1,3}|[abtnvfr"\\])', character, inner)


def _quote(name: bytes) -> bytes:
    if all(0x20 <= byte < 0x7F and byte not in b'"\\' for byte in name):
        return name
    inner = b"".join(
        bytes([byte]) if 0x20 <= byte < 0x7F and byte not in b'"\\' else b"\\%03o" % byte
        for byte in name
    )
    return b'"' + inner + b'"'


def strip(name: bytes, level: int) -> bytes:
    """A name without its first `level` parts, as with patch -p; empty if nothing is left."""
    parts = re.sub(rb"/+", b"/", name).split(b"/")
    return b"/".join(part for part in parts[level:] if part != b".")


def prefix(name: bytes, level: int) -> bytes:
    """The part that `strip` removes, without git's a/ or b/: src of a/src/sys/x.h at level 2."""
    parts = re.sub(rb"/+", b"/", name).split(b"/")[:level]
    return b"/".join(parts[1:] if parts and any(parts[0] in it for it in _SIDES) else parts)


def fitting_level(
    found: Sequence[Section],
    tops: frozenset[str],
    exists: Callable[[str], bool] | None = None,
    prefixes: frozenset[bytes] = frozenset(),
) -> int | None:
    """The number of leading parts to remove so that the names are in a source tree, or None.

    `tops` are the names at the tree's top; `exists`, if there is a tree, says whether a path is a
    file in it.  Of several possible levels, the one with the most existing files is chosen, then
    the lowest.  `prefixes` are those of earlier patches of the series that matched the tree.
    """
    names = {name for it in found for name in (it.old, it.new) if name is not None}
    present = {it.old for it in found if it.old is not None}
    sides = all(_is_sided(it) for it in found)
    scores = {}
    for level in range(max((name.count(b"/") for name in names), default=0) + 1):
        stripped = [strip(name, level) for name in names]
        if not all(_top(name) in tops for name in stripped):
            continue
        there = sum(exists(_text(strip(name, level))) for name in present) if exists else 0
        scores[level] = there
    if sides:
        # The usual form.  A deeper level needs evidence, because a new folder may be at the top.
        if 1 in scores:
            return 1
        deeper = [
            level
            for level, there in scores.items()
            if level > 1
            and (
                (present and there == len(present))
                or (prefixes and all(prefix(name, level) in prefixes for name in names))
            )
        ]
        if not deeper and exists and present:
            usual = [exists(_text(strip(name, 1))) for name in present]
            return 1 if any(usual) else None
        return deeper[0] if deeper else 1
    if not scores:
        return None
    return min(scores, key=lambda level: (-scores[level], level))


def _is_sided(section: Section) -> bool:
    """Whether the two names have git's prefixes."""
    old, new = ((name or b"").partition(b"/")[0] for name in (section.old, section.new))
    return any(
        (section.old is None or old == left) and (section.new is None or new == right)
        for left, right in _SIDES
    )


def _top(name: bytes) -> str:
    return _text(name.partition(b"/")[0])


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def with_usual_paths(lines: Sequence[bytes], found: Sequence[Section], level: int) -> bytes:
    """The diff with names as git writes them (a/PATH b/PATH), after removing `level` parts."""
    new_lines = list(lines)
    for section in found:
        for at, line in _rewritten(lines, section, level):
            new_lines[at] = line
    return b"".join(new_lines)


def _rewritten(lines: Sequence[bytes], section: Section, level: int) -> Iterator[tuple[int, bytes]]:
    old, new = (name and strip(name, level) for name in (section.old, section.new))
    by_git = lines[section.first].startswith(b"diff --git ")
    if by_git:
        for at in range(section.first, section.end if section.paths < 0 else section.paths):
            if found := _MOVED.match(lines[at]):
                name = _moved_name(unquote(found[2]), (old, new), level)
                yield at, found[1] + b" " + _quote(name) + b"\n"
        if old or new:
            both = (_quote(b"a/" + (old or new or b"")), _quote(b"b/" + (new or old or b"")))
            yield section.first, b"diff --git " + b" ".join(both) + b"\n"
    elif old is not None and new is not None:
        # Of x.c.orig and x.c the file is the shorter one, as in git and patch.
        old = new = old if new.startswith(old) else new
    if section.paths < 0:
        return
    for at, mark, side, path in (
        (section.paths, b"--- ", b"a/", old),
        (section.paths + 1, b"+++ ", b"b/", new),
    ):
        written = _NO_FILE if path is None else _quote(side + path)
        _, tab, stamp = lines[at].rstrip(b"\r\n").partition(b"\t")
        blank = b"\t" if b" " in written else b""
        yield at, mark + written + (tab + stamp if tab else blank) + b"\n"


def _moved_name(name: bytes, paths: tuple[bytes | None, bytes | None], level: int) -> bytes:
    """The path in a `rename` line, which has no prefix."""
    for less in range(level + 1):
        if strip(name, less) in paths:
            return strip(name, less)
    return strip(name, max(level - 1, 0))


def with_exact_lines(lines: Sequence[bytes]) -> bytes:
    """A diff without context for git apply --unidiff-zero: an empty side gets the next line's
    number.

    diff writes the number of the line before it, and git would search one line too early.
    """
    exact = list(lines)
    for section in sections(lines):
        for at in range(section.first, section.end):
            if not (head := _HUNK.match(lines[at])):
                continue
            sides = []
            for start, count in ((head[1], head[2]), (head[3], head[4])):
                many = int(count) if count else 1
                sides.append(b"%d,%d" % (int(start) + (not many), many))
            exact[at] = b"@@ -%s +%s @@" % (*sides,) + lines[at][head.end() :]
    return b"".join(exact)


def is_usual(lines: Sequence[bytes], found: Sequence[Section]) -> bool:
    """Whether a diff needs no change except the removal of one part of its names."""
    return all(
        lines[it.first].startswith(b"diff --git ")
        or it.whole
        or strip(it.old or b"", 1) == strip(it.new or b"", 1)
        for it in found
    )


def needs_no_context(found: Sequence[Section]) -> bool:
    """Whether a diff was certainly made without context (diff -U0).

    In a diff with context, a hunk without context can only replace a whole file.
    """
    return any(
        len(it.hunks) > 1 or hunk.old_start > 1 or (hunk.old_start > 0 and not hunk.old_lines)
        for it in found
        for hunk in it.bare
    )
