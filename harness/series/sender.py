"""The sender of a patch: a person's name and address, which replace the project's placeholder."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.errors import UsageError

_SENDER = re.compile(r"([^<>\n@\"]*[^<>\n@\"\s])\s*<([^<>\s@]+@[^<>\s@]+\.[^<>\s@.]+)>\Z")
# Addresses where nobody reads mail: reserved names (RFC 2606), and hosts without a domain.
_NOBODY = re.compile(r"@(.*\.)?(example|invalid|noreply\..*)\Z", re.I)
_FROM = re.compile(rb"^From:.*(\n[ \t].*)*", re.M)
_ADDRESS = re.compile(r"<([^<>]*)>")
_SIGN_OFF = re.compile(r"^Signed-off-by:\s*(.*)\n?", re.M | re.I)
_END = b"\n---\n"


@dataclass(frozen=True)
class Sender:
    """The person who sends patches, and whether they sign them off."""

    name: str
    address: str
    signs_off: bool

    @property
    def mailbox(self) -> str:
        """Name and address, as in mail headers and sign-offs."""
        return f"{self.name} <{self.address}>"


def parse(author: str, signs_off: bool) -> Sender | None:
    """The sender of `--author "Name <mail>"`; None without one.

    Raises UsageError for a missing name or address, an address that nobody reads, or a sign-off
    without an author.
    """
    if not author:
        if signs_off:
            raise UsageError('--signoff needs a name; add --author "Name <mail>"')
        return None
    found = _SENDER.match(author.strip())
    if found is None:
        raise UsageError(f'--author {author!r}: give it as "Name <mail@host>"')
    if is_placeholder(author):
        raise UsageError(f"--author {author!r}: nobody reads mail there; give your own address")
    return Sender(found[1], found[2], signs_off)


def is_placeholder(author: str) -> bool:
    """Whether `author` ("Name <mail>") has an address at which nobody reads mail."""
    found = _ADDRESS.search(author)
    return found is not None and _NOBODY.search(found[1]) is not None


def put(data: bytes, author: str, sender: Sender) -> bytes:
    """The mail `data`, adapted to `sender`.

    A placeholder as author is replaced by the sender; any other author stays.  A placeholder's
    sign-off is removed, and the sender's is added if the sender signs off.
    """
    head, blank, rest = data.partition(b"\n\n")
    if is_placeholder(author):
        head = _FROM.sub(b"From: " + _escaped(sender.mailbox), head, count=1)
    body, end, diff = rest.partition(_END)
    text = body.decode("utf-8", "surrogateescape")
    text = _SIGN_OFF.sub(lambda it: "" if is_placeholder(it[1]) else it[0], text).rstrip()
    signed = [it.strip().lower() for it in _SIGN_OFF.findall(text)]
    if sender.signs_off and sender.mailbox.lower() not in signed:
        text += f"{'' if signed and text.endswith(_last(text)) else chr(10)}\nSigned-off-by: "
        text += sender.mailbox
    return head + blank + text.encode("utf-8", "surrogateescape") + end + diff


def _escaped(mailbox: str) -> bytes:
    return mailbox.encode("utf-8").replace(b"\\", b"\\\\")


def _last(text: str) -> str:
    """The last line, if it is a sign-off; otherwise a text that nothing ends with."""
    line = text.rsplit("\n", 1)[-1]
    return line if _SIGN_OFF.match(line) else "\0"
