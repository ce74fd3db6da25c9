"""Checksum files, in every form that the common tools write."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

_LINE_CHARS = 8192
_SIGNED = re.compile(
    r"-----BEGIN PGP SIGNED MESSAGE-----\n(?:Hash: [^\n]*\n)*\n(.*?)-----BEGIN PGP SIGNATURE-----",
    re.S,
)
_CERTUTIL = re.compile(r"\S+ hash of (?:file )?(?P<name>.+):")


def digests(text: str, algorithm: str) -> list[tuple[str, str]]:
    """Each file's name and digest of `algorithm`, in lower case; the name is empty in a file that
    has one digest and nothing else, which is about the only file there is.

    Read are BSD's and openssl's `SHA512 (file) = hex`, GNU's `hex  file` and `hex *file`, both also
    with GNU's backslash in front for odd names, BSD's `hex file` (sha512 -r), gpg's and others'
    `file: hex` in groups, certutil's two lines, and the distribution sets' MANIFEST, whose second
    column, after a tab, is SHA-256.  A signature around it is passed over, not checked.
    """
    text = text.removeprefix("\ufeff").replace("\0", "\n").replace("\r\n", "\n")
    if signed := _SIGNED.search(text):
        text = signed[1]
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    digits = f"[0-9a-fA-F]{{{hashlib.new(algorithm).digest_size * 2}}}"
    if len(lines) == 1 and re.fullmatch(digits, lines[0].strip()):
        return [("", lines[0].strip().lower())]
    return list(_named(lines, digits, algorithm.removeprefix("sha")))


def _named(lines: list[str], digits: str, number: str) -> Iterator[tuple[str, str]]:
    shapes = [
        re.compile(rf"(?i:SHA-?{number}|SHA2-{number}) ?\((?P<name>.+)\) ?= (?P<digest>{digits})"),
        re.compile(rf"(?P<digest>{digits})(?: [ *?^U]|[ \t])(?P<name>\S.*)"),
        re.compile(rf"(?P<name>[^\t]+)\t(?P<digest>{digits})(?:\t.*)?"),
        re.compile(rf"(?P<name>.+): ?(?P<digest>{digits})"),
    ]
    before = ""
    for raw in lines:
        if len(raw) > _LINE_CHARS:
            continue
        odd = raw.startswith("\\")
        line = raw.removeprefix("\\").strip()
        # gpg and certutil write the digits in groups.
        head, colon, rest = line.rpartition(": ")
        joined = re.sub(r"\s", "", rest)
        forms = (line, f"{head}: {joined}" if colon else line)
        for match in (shape.fullmatch(form) for form in forms for shape in shapes):
            if match:
                yield _plain(match["name"], odd), match["digest"].lower()
        title = _CERTUTIL.fullmatch(before)
        if title and re.fullmatch(digits, joined):
            yield _plain(title["name"], odd=False), joined.lower()
        before = line


def _plain(name: str, odd: bool) -> str:
    """A name as it is meant: without ./ in front, with GNU's escapes undone."""
    if odd:
        name = re.sub(r"\\(.)", lambda it: {"n": "\n", "r": "\r"}.get(it[1], it[1]), name)
    return name.removeprefix("./")
