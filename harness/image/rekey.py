"""New keys for a prepared disk, without booting it.

Many machines may import the same bundle; each gets its own keys.  A new key's text is as long as
the old one, and UFS has no checksums of data, so the new text is written over the old one.  Copies
in unused blocks are replaced too.
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
    """The public key of a private key file, as `ssh-ed25519 AAAA…`; CannotError if it is
    invalid.
    """
    try:
        key = serialization.load_ssh_private_key(private.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise CannotError(f"{private}: it is not a valid private key ({error})") from error
    return _public_text(key.public_key())


def rekey(disk: Path, old_public: str, new_public: str, old_host: str) -> str:
    """Replace the accepted user key and the host key; returns the new host key's public text.

    Public keys are given as `ssh-ed25519 AAAA…`.  Raises CannotError if an old key is not on the
    disk: then the keys belong to another disk, or the disk stores them in another way.
    """
    host = ed25519.Ed25519PrivateKey.generate()
    new_host = _public_text(host.public_key())
    handle = os.open(disk, os.O_RDWR)
    try:
        with mmap.mmap(handle, 0) as view:
            ranges = list(_data(handle))
            _replace(disk, view, ranges, "the user key that it accepts", old_public, new_public)
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
        raise CannotError(f"{disk}: {what} was not found on it; nothing was imported")
    for at in places:
        view[at : at + len(new)] = new.encode()


def _replace_host_key(
    disk: Path,
    view: mmap.mmap,
    ranges: list[tuple[int, int]],
    old_public: str,
    new: ed25519.Ed25519PrivateKey,
) -> None:
    """Replace the private key in every file that contains it, without other changes to the file."""
    replaced = 0
    for at in list(_found(view, ranges, _BEGIN)):
        start, end = at + len(_BEGIN), view.find(_END, at, at + _LONGEST_BYTES)
        text = _with_key(view[start:end], old_public, new) if end > start else None
        if text is not None:
            view[start:end] = text
            replaced += 1
    if not replaced:
        raise CannotError(f"{disk}: its host key was not found on it; nothing was imported")


def _with_key(text: bytes, old_public: str, new: ed25519.Ed25519PrivateKey) -> bytes | None:
    """A private key file's base64 lines with `new` instead of the old key; None if it is another.

    The file contains the old public key three times, the last time after the secret part.
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
