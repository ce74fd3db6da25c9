"""New keys on a prepared disk: found wherever they lie, and nothing else is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from harness.errors import CannotError
from harness.guest.keys import make_key
from harness.image import rekey

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen")


def make_host_key(host: Path) -> tuple[str, Path]:
    """As the guest makes its own: OpenSSH's form, with a comment.  Its public text and its file."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "root@freebsd", "-f", str(host)]
    subprocess.run(command, check=True)
    return " ".join(host.with_suffix(".pub").read_text().split()[:2]), host


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str, Path]:
    """The key let in, the host's own (both as public text), and the host's private file."""
    inside = " ".join(make_key(tmp_path / "inside", "vmm-workbench").split()[:2])
    return inside, *make_host_key(tmp_path / "host")


def make_disk(path: Path, inside: str, host: Path) -> Path:
    """A sparse file with the keys' files on it, one of them twice, as on a file system."""
    with path.open("wb") as stream:
        for at, data in (
            (4096, f"{inside} vmm-workbench\n".encode()),
            (1 << 20, host.read_bytes()),
            ((1 << 20) + 8192, host.with_suffix(".pub").read_bytes()),
            ((3 << 20) - 512, host.read_bytes()),
            ((3 << 20) + 4096, b"-----BEGIN OPENSSH PRIVATE KEY-----\nno key at all\n"),
        ):
            stream.seek(at)
            stream.write(data)
        stream.truncate(4 << 20)
    return path


def test_both_keys_are_new_and_the_rest_as_before(
    tmp_path: Path, keys: tuple[str, str, Path]
) -> None:
    inside, host_key, host = keys
    disk = make_disk(tmp_path / "disk", inside, host)
    before = disk.read_bytes()
    new = " ".join(make_key(tmp_path / "new", "vmm-workbench").split()[:2])
    assert rekey.public_key(tmp_path / "new") == new
    new_host = rekey.rekey(disk, inside, new, host_key)
    after = disk.read_bytes()
    assert len(after) == len(before)
    assert os.stat(disk).st_blocks * 512 < 1 << 20
    for gone in (inside, host_key, host.read_text()[40:200]):
        assert gone.encode() not in after
    assert f"{new} vmm-workbench\n".encode() in after
    assert f"{new_host} root@freebsd\n".encode() in after
    # What an sshd would read is a whole key file, of that host key, with its comment.
    for at in (1 << 20, (3 << 20) - 512):
        text = after[at : at + len(host.read_bytes())]
        private = serialization.load_ssh_private_key(text, None)
        (tmp_path / "read").write_bytes(text)
        (tmp_path / "read").chmod(0o600)
        said = subprocess.run(
            ["ssh-keygen", "-y", "-f", str(tmp_path / "read")], capture_output=True, text=True
        )
        assert said.stdout.strip() == f"{new_host} root@freebsd"
        assert private is not None
    same = sum(a == b for a, b in zip(before, after, strict=True))
    assert len(before) - same < 1000


def test_a_disk_of_other_keys_is_refused(tmp_path: Path, keys: tuple[str, str, Path]) -> None:
    inside, host_key, host = keys
    disk = make_disk(tmp_path / "disk", inside, host)
    stranger = " ".join(make_key(tmp_path / "stranger", "x").split()[:2])
    with pytest.raises(CannotError, match="the user key that it accepts was not found on it"):
        rekey.rekey(disk, stranger, inside, host_key)
    with pytest.raises(CannotError, match="its host key was not found on it"):
        rekey.rekey(disk, inside, stranger, stranger)
    (tmp_path / "none").write_text("no key")
    with pytest.raises(CannotError, match="it is not a valid private key"):
        rekey.public_key(tmp_path / "none")
