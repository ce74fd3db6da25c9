"""Writes a series as one mailbox for git am."""

from __future__ import annotations

import re
from pathlib import Path

from harness import files
from harness.errors import PatchError
from harness.series import sender as senders
from harness.series.load import Patch, Series
from harness.series.sender import Sender

_MBOX_FROM = re.compile(rb"\AFrom [0-9a-f]{7,64} .*\r?\n")
_SUBJECT = re.compile(rb"^Subject:[ \t]*(\[[^\]\n]*PATCH[^\]\n]*\][ \t]*)?", re.M | re.I)
# Lines that git am would take for the end of a message, a diff, or a header.
_MISTAKEN = re.compile(
    rb"^(---|\+\+\+ |@@ |diff -|Index: |GIT binary|From |>+From |(?:From|Subject|Date):|-- >8)",
    re.M,
)


def export(series: Series, target: Path, sender: Sender | None = None) -> None:
    """Write the series to `target` as one mbox for `git am`, numbered [PATCH n/m].

    `sender` replaces placeholders.  Raises PatchError for a patch without author and subject, which
    `git am` would refuse; for one whose author is a placeholder if there is no sender; and for one
    that the series reverts.
    """
    parts = []
    total = len(series.patches)
    for number, patch in enumerate(series.patches, 1):
        if patch.reverse:
            raise PatchError(
                f"{patch.name}: the series reverts it (-R), which git am cannot do; "
                f"make a patch with "
                "the reverse change"
            )
        if not patch.author or not _SUBJECT.search(patch.data):
            raise PatchError(
                f"{patch.name}: it has no From: and Subject: lines, so git am cannot take it; "
                "make it with git format-patch"
            )
        if sender is None and senders.is_placeholder(patch.author):
            raise PatchError(
                f"{patch.name}: its author, {patch.author}, is a placeholder; name the sender: "
                '--author "Name <mail>" --signoff'
            )
        data = _MBOX_FROM.sub(b"", patch.data) if patch.plain else _written(patch)
        if sender is not None:
            data = senders.put(data, patch.author, sender)
        tag = f"{number}/{total}" if total > 1 else ""
        data = _SUBJECT.sub(f"Subject: {f'[PATCH {tag}'.strip()}] ".encode(), data, count=1)
        parts.append(b"From %s Mon Sep 17 00:00:00 2001\n" % (b"0" * 40) + data.rstrip() + b"\n\n")
    if not parts:
        raise PatchError(f"the series {series.topic} for {series.release} is empty")
    files.write_atomic(target, b"".join(parts))


def _written(patch: Patch) -> bytes:
    """A patch in another form, written as a mail."""
    date = f"Date: {patch.date}\n" if patch.date else ""
    head = (
        f"From: {patch.author}\n{date}Subject: {patch.subject}\n"
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\n"
        "Content-Transfer-Encoding: 8bit\n\n"
    )
    message = escaped(patch.message.encode("utf-8", "replace"))
    return head.encode("utf-8", "replace") + message + b"\n---\n\n" + patch.diff


def escaped(message: bytes) -> bytes:
    """A message with a blank inserted before lines that look like part of a mail or a diff."""
    return _MISTAKEN.sub(rb" \1", message)
