"""Reads a patch file: one or several mails, encoded or not, or just a diff.

git parses the mails (mailsplit, mailinfo), as for git am.  Unlike with git am, a diff in a commit's
message is part of the message, and is not applied.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import PatchError
from harness.series import arrange, diffs, kinds
from harness.series.arrange import Tags
from harness.series.git import run_git

_FROM = re.compile(rb"From .*\r?\n")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")
_OF_MAILS = {
    b"from", b"subject", b"date", b"message-id", b"mime-version", b"content-type", b"return-path",
    b"received",
}  # fmt: skip
_MOST_HEADER_BYTES = 1 << 16
_INNER_FIELD = re.compile(rb"(?:From|Subject): ")
_COVER = re.compile(r"Subject:[ \t]*\[[^\]\n]*\b0+/\d+[^\]\n]*\]", re.I)


@dataclass(frozen=True)
class Letter:
    """One patch in a file.

    `diff` has no colours and no CR at line ends, and its names are unchanged; it is empty if there
    is none.  `text` is the mail as it is in the file.  `cover`: a cover letter, [PATCH 0/n]; what
    looks like a diff in one (format-patch --interdiff) is part of its text.
    """

    text: bytes
    diff: bytes
    subject: str = ""
    author: str = ""
    date: str = ""
    message: str = ""
    cover: bool = False
    notes: tuple[str, ...] = ()
    tags: Tags = field(default_factory=Tags)


def read(data: bytes, name: str) -> tuple[Letter, ...]:
    """The patches of one file, in order; PatchError if they cannot be separated."""
    if reason := kinds.no_text(data):
        raise PatchError(f"{name}: {reason}")
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    if text.count(b"\r\n") == text.count(b"\n"):
        # The whole text was converted, including the header.
        text = text.replace(b"\r\n", b"\n")
    if not _is_mail(text):
        return (Letter(data, _from_first(diffs.plain(data))),)
    return tuple(_letter(mail, name) for mail in _split(text))


def _is_mail(text: bytes) -> bool:
    """Whether a text begins with a mail's header."""
    names: set[bytes] = set()
    begin = found.end() if (found := _FROM.match(text)) else 0
    for line in text[begin : begin + _MOST_HEADER_BYTES].splitlines():
        if not line.strip():
            break
        if line.startswith((b" ", b"\t")) and names:
            continue
        found = _FIELD.match(line)
        if not found:
            return False
        names.add(found[1].lower())
    return bool(names & _OF_MAILS)


def _split(text: bytes) -> Iterator[bytes]:
    if not text.startswith(b"From "):
        yield text
        return
    with tempfile.TemporaryDirectory(prefix="vmm-mails-") as folder:
        done = run_git(["mailsplit", "-b", "--keep-cr", f"-o{folder}"], Path(folder), text)
        mails = sorted(Path(folder).iterdir()) if not done.returncode else []
        yield from [mail.read_bytes() for mail in mails] if len(mails) > 1 else [text]


def _letter(mail: bytes, name: str) -> Letter:
    with tempfile.TemporaryDirectory(prefix="vmm-mails-") as place:
        folder = Path(place)
        done = run_git(["mailinfo", "-b", "--encoding=UTF-8", "message", "patch"], folder, mail)
        if done.returncode:
            why = done.stderr.decode(errors="replace").strip().splitlines()
            raise PatchError(f"{name}: git cannot read it as a mail: {why[-1] if why else '?'}")
        message = (folder / "message").read_bytes()
        body = (folder / "patch").read_bytes()
        subject = _subject(mail, folder)
        cover = bool(_COVER.search(subject))
    fields: dict[str, str] = {}
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        field, _, value = line.partition(": ")
        fields.setdefault(field, " ".join(value.split()))
    hidden, diff = _divide(diffs.plain(body), name)
    author, address = fields.get("Author", ""), fields.get("Email", "")
    notes = (
        ("a diff in its message is part of the message, so it is not applied",) if hidden else ()
    )
    return Letter(
        text=mail,
        diff=b"" if cover else diff,
        subject=fields.get("Subject", ""),
        author=f"{author} <{address}>" if address else author,
        date=fields.get("Date", ""),
        message=(message + hidden).decode("utf-8", "replace").strip(),
        cover=cover,
        notes=notes,
        tags=arrange.tags(subject.removeprefix("Subject:")),
    )


def _subject(mail: bytes, folder: Path) -> str:
    """The decoded Subject line of a mail, including tags."""
    done = run_git(["mailinfo", "-k", "--encoding=UTF-8", "whole", "rest"], folder, mail)
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return next((line for line in lines if line.startswith("Subject:")), "")


def _divide(body: bytes, name: str) -> tuple[bytes, bytes]:
    """Divide a mail into its message and its diff.

    git takes the first diff in a mail for the patch, although it may be part of the message, which
    ends with the `---` line.
    """
    lines = body.splitlines(keepends=True)
    found = diffs.sections(lines)
    inside = {at for it in found for at in range(it.first, it.end)}
    ends = [
        at
        for at, line in enumerate(lines)
        if line.rstrip() == b"---" and at not in inside and found and at < found[-1].first
    ]
    if not ends or found[0].first > ends[-1]:
        return b"", _from_first(body)
    before = lines[found[0].first : ends[-1]]
    if any(
        _INNER_FIELD.match(line)
        for at, line in enumerate(lines[: ends[-1]])
        if at not in inside and at > found[0].first
    ):
        raise PatchError(
            f"{name}: there is a diff before a From: or Subject: line and another one after it: "
            "two patches without a separator, or a patch in a message; put each into its own file"
        )
    return b"\n" + b"".join(before), _from_first(b"".join(lines[ends[-1] :]))


def _from_first(text: bytes) -> bytes:
    """The text from its first diff on; empty if there is none."""
    lines = text.splitlines(keepends=True)
    found = diffs.sections(lines)
    return b"".join(lines[found[0].first :]) if found else b""
