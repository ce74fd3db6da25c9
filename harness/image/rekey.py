"""New keys for a prepared disk, without booting it.

A bundle makes one prepared image known to many; each machine that takes it in gets keys of its
own.  A key's text is as long as the one it replaces, and UFS keeps no checksums of data, so the new
text is written where the old one lies.  Copies in blocks that are no longer used are replaced too.
"""

from __future__ import annotations

import base64
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from harness.errors import CannotError

_BEGIN, _END = b"-----BEGIN OPENSSH PRIVATE KEY-----\n", b"-----END OPENSSH PRIVATE KEY-----\n"
_MAGIC = b"openssh-key-v1\0"
_LONGEST_BYTES = 4096
_KEY_BYTES = 32


def public_key(private: Path) -> str:
    """The public half of a private key file, as `ssh-ed25519 AAAA…`; CannotError if it is none."""
    try:
        key = serialization.load_ssh_private_key(private.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise CannotError(f"{private}: no private key that can be read ({error})") from error
    return _public_text(key.public_key())


def rekey(disk: Path, old_public: str, new_public: str, old_host: str) -> str:
    """Replace the key that is let in, and the host's own; the new host key's public text.

    Public keys are given as `ssh-ed25519 AAAA…`.  CannotError when one of the old ones is not on
    the disk: then it is not the disk that those keys belong to, or not one that can be treated so.
    """
    host = ed25519.Ed25519PrivateKey.generate()
    new_host = _public_text(host.public_key())
    handle = os.open(disk, os.O_RDWR)
    try:
        with mmap.mmap(handle, 0) as view:
            ranges = list(_data(handle))
            _replace(disk, view, ranges, "the key it lets in", old_public, new_public)
            _replace_host_key(disk, view, ranges, old_host, host)
            _replace(disk, view, ranges, "its host key", old_host, new_host)
            view.flush()
        os.fsync(handle)
    finally:
        os.close(handle)
    return new_host


def _public_text(key: object) -> str:
    assert isinstance(key, ed25519.Ed25519PublicKey)
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_bytes(encoding, form).decode()


def _data(handle: int) -> Iterator[tuple[int, int]]:
    """The parts of a sparse file that were written."""
    end = os.fstat(handle).st_size
    at = 0
    while at < end:
        try:
            start = os.lseek(handle, at, os.SEEK_DATA)
        except OSError:
            return  # a hole up to the end
        at = os.lseek(handle, start, os.SEEK_HOLE)
        yield start, at


def _found(view: mmap.mmap, ranges: list[tuple[int, int]], text: bytes) -> Iterator[int]:
    for start, end in ranges:
        at = view.find(text, start, end)
        while at >= 0:
            yield at
            at = view.find(text, at + 1, end)


def _replace(
    disk: Path, view: mmap.mmap, ranges: list[tuple[int, int]], what: str, old: str, new: str
) -> None:
    assert len(old) == len(new)
    places = list(_found(view, ranges, old.encode()))
    if not places:
        raise CannotError(f"{disk}: {what} is not on it as it should be; nothing was taken in")
    for at in places:
        view[at : at + len(new)] = new.encode()


def _replace_host_key(
    disk: Path,
    view: mmap.mmap,
    ranges: list[tuple[int, int]],
    old_public: str,
    new: ed25519.Ed25519PrivateKey,
) -> None:
    """Replace the private half in every file of it; what else such a file holds stays."""
    replaced = 0
    for at in list(_found(view, ranges, _BEGIN)):
        start, end = at + len(_BEGIN), view.find(_END, at, at + _LONGEST_BYTES)
        text = _with_key(view[start:end], old_public, new) if end > start else None
        if text is not None:
            view[start:end] = text
            replaced += 1
    if not replaced:
        raise CannotError(
            f"{disk}: its host key is not on it as it should be; nothing was taken in"
        )


def _with_key(text: bytes, old_public: str, new: ed25519.Ed25519PrivateKey) -> bytes | None:
    """A private key file's base64 lines with `new` in place of the old key; None if it is another.

    The old key's public half stands there three times, the last time behind the secret half.
    """
    old = base64.b64decode(old_public.split()[1])[-_KEY_BYTES:]
    try:
        plain = base64.b64decode(text)
    except ValueError:
        return None
    last = plain.rfind(old)
    if not plain.startswith(_MAGIC) or last < _KEY_BYTES:
        return None
    plain = plain[: last - _KEY_BYTES] + new.private_bytes_raw() + plain[last:]
    lines = base64.b64encode(plain.replace(old, new.public_key().public_bytes_raw()))
    width = text.index(b"\n")
    return b"".join(lines[i : i + width] + b"\n" for i in range(0, len(lines), width))
