"""The user key for a guest: made with the image, read at each connection."""

from __future__ import annotations

from pathlib import Path

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from paramiko.pkey import UnknownKeyType

from harness.errors import CannotError


def make_key(path: Path, comment: str) -> str:
    """Write a new Ed25519 private key to `path` (mode 0600); returns its line for
    authorized_keys.
    """
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(private)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return f"{public.decode()} {comment}"


def load(path: Path) -> paramiko.PKey:
    """The private key in a file; CannotError with the remedy if it cannot be read."""
    try:
        return paramiko.PKey.from_path(path)
    except OSError as error:
        raise CannotError(
            f"{path}: the image's private key cannot be read: {error.strerror}; import "
            f"the image again"
        ) from error
    except (paramiko.SSHException, UnknownKeyType, ValueError) as error:
        raise CannotError(
            f"{path}: this is not a private key ({error}); import the image again"
        ) from error


def fingerprint(key: paramiko.PKey) -> str:
    """The key's type and fingerprint, as ssh-keygen -l prints it."""
    return str(key.get_name()) + " " + str(key.fingerprint)
