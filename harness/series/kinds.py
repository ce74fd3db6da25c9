"""Explains why a file is not an applicable patch.

git says "no valid patches" for a compressed file, a web page and a plain diff alike, and ignores
the parts of a diff that it does not know.  This module gives each case its own reason and remedy.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence

from harness.series import diffs

_MAGIC = (
    (b"\x1f\x8b", "it is compressed (gzip); unpack it first: gzip -dc FILE >x.patch"),
    (b"BZh", "it is compressed (bzip2); unpack it first: bzip2 -dc FILE >x.patch"),
    (b"\xfd7zXZ\0", "it is compressed (xz); unpack it first: xz -dc FILE >x.patch"),
    (b"\x28\xb5\x2f\xfd", "it is compressed (zstd); unpack it first: zstd -dc FILE >x.patch"),
    (b"PK\x03\x04", "it is a zip archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7-Zip archive; unpack it first"),
    (b"Rar!\x1a\x07", "it is a RAR archive; unpack it first"),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "it is a document of Microsoft Office or a mail of Outlook; save the patch as plain text",
    ),
    (b"\x78\x9f\x3e\x22", "it is a winmail.dat of Outlook; get the patch as a plain attachment"),
    (b"{\\rtf", "it is an RTF document; save the patch as plain text"),
    (b"%PDF-", "it is a PDF; get the patch itself as a file"),
    (b"# v2 git bundle", _BUNDLE := "it is a git bundle; fetch from it, then git format-patch"),
    (b"# v3 git bundle", _BUNDLE),
    (
        b"-----BEGIN PGP SIGNED MESSAGE-----",
        "it is a PGP-signed text, which changes every line that begins with -; extract the "
        "patch with gpg --decrypt",
    ),
)  # fmt: skip
_UTF16 = "it is UTF-16 text, as PowerShell's > writes it; make it again with git diff --output=FILE"
_PAGE = re.compile(rb"\s*(?:<!doctype html|<html|<\?xml)", re.I)
_NORMAL = re.compile(rb"^\d+(?:,\d+)?[acd](?:\d+(?:,\d+)?)?\r?\n(?:[<>] |[^\n]*\n\.\r?$)", re.M)
_CVS_CONTEXT = re.compile(rb"--- .*\n\*{15}")
_BEHIND_MARKS = re.compile(rb"^(?:[|>] ?)+(?:diff --git |\+\+\+ )", re.M)
_INDENTED = re.compile(rb"^[ \t]+(?:diff --git |\+\+\+ \S)", re.M)
_WORDS = re.compile(rb"\[-.*?-\]|\{\+.*?\+\}")
_PORCELAIN = re.compile(rb"^~$", re.M)
_COLOURED_WORDS = re.compile(rb"^(?:@@ .*|[^-+\x1b\n][^\n]*|)\x1b\[3[12]m[^-+\n]", re.M)
_SUBMODULE = re.compile(rb"Submodule \S+ (?:[0-9a-f]{7,64}\.{2,3}|\(|contains )")
_OTHER_FORMS = (
    (
        re.compile(rb"^\*\*\* (?:Begin Patch|Update File: |Add File: )", re.M),
        "it is in the form of an assistant's apply_patch tool; let git diff make a patch of the "
        "edited tree",
    ),
    (
        re.compile(rb"^<{5,} SEARCH$.*^>{5,} REPLACE$", re.M | re.S),
        "it is a list of texts to search and replace; let git diff make a patch of the edited tree",
    ),
    (
        re.compile(rb"^@@(?: \.\.\.)?(?: @@)?\s*$", re.M),
        "its hunks do not say where they belong (@@ without numbers); let git diff make a patch of "
        "the edited tree",
    ),
    (
        re.compile(rb"^==== //.* ====$", re.M),
        "it is a diff of Perforce, which names no files as patches do; convert it to a unified one",
    ),
    (
        re.compile(rb"^The following changes since commit [0-9a-f]+", re.M),
        "it is a request to pull, without the patches; fetch what it names, then git format-patch",
    ),
    (
        re.compile(rb"^ \d+ files? changed(?:, \d+ |$)", re.M),
        "it is the summary of a patch, without the patch; make it without --stat",
    ),
    (
        re.compile(rb"^(?::[0-7]{6} [0-7]{6} \S+ \S+ )?[AMDTRC]\d*\t\S", re.M),
        "it is a list of changed files, without the patch; make it with git diff -p",
    ),
)
_ONLY_IN = re.compile(rb"Only in ([^:\n]+): ([^\r\n]+)\r?\n?$")
_PROPERTIES = re.compile(rb"Property changes on: ([^\r\n]+)\r?\n?$")
# Lines of a git header that are changes by themselves.
_DOES = re.compile(rb"^(?:old mode|new mode|deleted file|new file|copy |rename |GIT binary)")
_BEGINNINGS = (b"diff --git ", b"Index: ", b"--- ", b"+++ ", b"@@ -")
_BROKEN = "the patch is broken at line {} of its diff (truncated, or edited by hand?)"
_MOST_NAMED = 3


def packed(name: str) -> bool:
    """Whether a file is a compressed patch, by its name."""
    return bool(re.search(r"\.(?:patch|diff|mbox|mbx|eml)\.(?:gz|bz2|xz|zst|zip)\Z", name, re.I))


def no_text(data: bytes) -> str:
    """Why a file cannot be read as a patch or a mail at all; empty if it can."""
    for begin, reason in _MAGIC:
        if data.startswith(begin):
            return reason
    if data.startswith(b"ustar", 257):
        return "it is a tar archive; unpack it first: tar -xf FILE"
    sample = data[:2000]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or sample.count(b"\0") > len(sample) / 3:
        return _UTF16
    if _PAGE.match(data[:1000]):
        return "it is a web page; get the patch itself (GitHub: add .patch to the address)"
    return ""


def no_diff(data: bytes) -> str:
    """The reason for a text in which there is no unified diff."""
    if not data.strip():
        return "it is empty"
    if _looks_encoded(data):
        return "it is encoded in base64, as Gerrit gives patches; decode it first: base64 -d"
    if data.lstrip()[:1] in b'{["' and rb"\n@@ -" in data:
        return "it is JSON with a patch in it; get the patch itself"
    for shape, reason in _OTHER_FORMS:
        if shape.search(data):
            return reason
    if _NORMAL.search(data):
        return "it is a diff without context; make a unified one (diff -u)"
    if _BEHIND_MARKS.search(data):
        return "every line of its diff begins with a mark (> or |); get the patch without it"
    if _INDENTED.search(data):
        return "every line of its diff is indented; get the patch as it was made"
    if any(_PROPERTIES.match(line) for line in data.splitlines(keepends=True)):
        return "it changes nothing but Subversion's properties, which are not applied"
    return "there is no diff in it"


def _looks_encoded(data: bytes) -> bool:
    """Whether all of a text is base64, and what is in it is a diff."""
    packed = b"".join(data.split())
    if len(packed) < 16 or re.search(rb"[^A-Za-z0-9+/=]", packed):
        return False
    try:
        plain = base64.b64decode(packed, validate=True)
    except ValueError:
        return False
    return bool(re.search(rb"^(?:diff --git |--- |Index: )", plain, re.M))


def refused(lines: Sequence[bytes]) -> str:
    """Why a diff cannot be applied, although git would ignore that part; empty if it can."""
    for at, line in enumerate(lines):
        words = line.rstrip()
        if line.startswith((b"diff --cc ", b"diff --combined ")):
            return "it is a combined diff of a merge; make one diff a commit, without merges"
        following = b"".join(lines[at + 1 : at + 3])
        if line.startswith(b"*** ") and _CVS_CONTEXT.match(following):
            return "it is a context diff; make a unified one (diff -u)"
        if _SUBMODULE.match(line):
            return (
                f"it changes a submodule ({_text(words)}), but a submodule's files are "
                f"not in the "
                "patch; make a patch of the files themselves"
            )
        if (words.startswith(b"Binary files ") and words.endswith(b" differ")) or (
            words == b"Cannot display: file marked as a binary type."
        ):
            return (
                f"it changes a binary file but does not contain its data ({_text(words)}); make it "
                "with git diff --binary"
            )
    return ""


def broken(data: bytes) -> str:
    """The kind of a diff that git cannot read, if it is known; else empty.  `data` is unchanged."""
    if _WORDS.search(data) or _PORCELAIN.search(data) or _COLOURED_WORDS.search(data):
        return "it is a diff of words; make it without --word-diff and --color-words"
    return ""


def cut_off(diff: bytes) -> str:
    """Why a diff is incomplete, although git applies the part that it finds; empty if complete."""
    lines = diff.splitlines(keepends=True)
    found = diffs.sections(lines)
    inside = {at for it in found for at in range(it.first, it.end)}
    for it in found:
        head = lines[it.first : it.end + 1]
        if not it.hunks and not any(_DOES.match(line) for line in head):
            return _BROKEN.format(it.first + 1)
        if it.hunks and it.old is None and it.new is None:
            return f"its lines {it.first + 1} and {it.first + 2} name no file on either side"
        if it.hunks and (more := _goes_on(lines, it.end)):
            return (
                f"a hunk of its diff has more lines than its header says (line {more}); let git "
                "diff make it, or correct the numbers"
            )
    for at, line in enumerate(lines):
        if at in inside:
            continue
        following = next((it for it in lines[at + 2 :] if it.strip()), b"")
        names = line.startswith(b"--- ") and b"".join(lines[at + 1 : at + 2]).startswith(b"+++ ")
        begun = not line.endswith(b"\n") and len(line) > 2
        if (
            line.startswith(b"@@ -")
            or (names and not _PROPERTIES.match(following))
            or (begun and any(_meet(line, mark) for mark in _BEGINNINGS))
        ):
            return _BROKEN.format(at + 1)
    return ""


def _goes_on(lines: Sequence[bytes], end: int) -> int:
    """The number of a changed line that stands behind the last line of a hunk; 0 without one."""
    for at in range(end, len(lines)):
        line = lines[at]
        # A mail's signature, or a line of dashes that parts something from it.
        if not line.startswith((b" ", b"+", b"-")) or re.match(rb"--\s*$|---\s*$|-----", line):
            return 0
        if line.startswith((b"--- ", b"+++ ")):
            return 0
        if line[:1] != b" ":
            return at + 1
    return 0


def _meet(line: bytes, mark: bytes) -> bool:
    return line.startswith(mark) or mark.startswith(line)


def passed_over(lines: Sequence[bytes]) -> Iterator[str]:
    """Changes that a diff mentions but does not contain, so that they cannot be applied."""
    alone = [found for line in lines if (found := _ONLY_IN.match(line))]
    if alone:
        names = [_text(found[1] + b"/" + found[2]) for found in alone]
        yield f"only in one of the two trees, so not in the patch: {_few(names)} (diff -N has them)"
    properties = [found for line in lines if (found := _PROPERTIES.match(line))]
    if properties:
        names = [_text(found[1]) for found in properties]
        yield f"Subversion's properties are not applied: those of {_few(names)}"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
