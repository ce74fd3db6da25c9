"""Checksum files: which forms are read, and which digest counts."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from badserver import BadServer
from fetched import CHECKSUMS, CONTENT, DIGEST, QUICK, REMOTE, get, refused
from fetched import server as server

from harness.image import fetch as fetching
from harness.image.fetch import DigestChanged, FetchError, fetch


def test_a_checksum_file_without_our_line(server: BadServer, tmp_path: Path) -> None:
    server.files[CHECKSUMS] = b"SHA512 (disk.raw.xz.old) = " + DIGEST.encode() + b"\n"
    assert "no digest for disk.raw.xz" in refused(server, tmp_path)
    message = refused(server, tmp_path, replace(REMOTE, also="other.xz"))
    assert "no digest for disk.raw.xz or other.xz" in message


def test_a_file_under_its_other_name(server: BadServer, tmp_path: Path) -> None:
    """The checksum file says which it is; here it has the same name either way."""
    server.files.clear()
    server.publish("rel/", "disk-ufs.raw.xz", CONTENT)
    got = get(server, tmp_path, replace(REMOTE, also="disk-ufs.raw.xz"))
    assert (got.path.name, got.digest) == ("disk.raw.xz", DIGEST)
    assert got.url == f"{server.address}rel/disk-ufs.raw.xz"


def test_a_checksum_file_without_end(server: BadServer, tmp_path: Path) -> None:
    server.files[CHECKSUMS] = b"x" * (5 << 20)
    assert "not a checksum file" in refused(server, tmp_path)


def test_the_pin_comes_before_what_is_published(server: BadServer, tmp_path: Path) -> None:
    pinned = replace(REMOTE, pin="a" * 128)
    assert "the manifest pins aaaaaaaaaaaaaaaa" in refused(server, tmp_path, pinned)
    assert get(server, tmp_path, replace(REMOTE, pin=DIGEST)).digest == DIGEST
    with pytest.raises(FetchError, match="not the one that the manifest pins"):
        get(server, tmp_path, pinned)


def test_another_digest_later_is_an_alarm(server: BadServer, tmp_path: Path) -> None:
    get(server, tmp_path).path.unlink()
    server.publish("rel/", "disk.raw.xz", CONTENT + b"and more")
    message = refused(server, tmp_path)
    assert f"an earlier fetch saw {DIGEST[:16]}" in message
    assert "disk.raw.xz.json" in message


def test_an_alarm_names_its_reason_and_no_other_mirror_ends_it(
    server: BadServer, tmp_path: Path
) -> None:
    first = get(server, tmp_path)
    first.path.unlink()
    assert first.at
    server.publish("lies/rel/", "disk.raw.xz", b"another file")
    mirrors = (f"{server.address}lies/", server.address)
    with pytest.raises(DigestChanged) as caught:
        fetch(REMOTE, mirrors, tmp_path, limits=QUICK)
    for said in (DIGEST, hashlib.sha512(b"another file").hexdigest(), first.url, first.at):
        assert said in caught.value.detail
    assert caught.value.exit_code == 3
    assert ("/rel/disk.raw.xz", "") not in server.asked[2:]
    # A user who has compared them removes the note, as the message says.
    (tmp_path / "disk.raw.xz.json").unlink()
    assert fetch(REMOTE, mirrors, tmp_path, limits=QUICK).path.read_bytes() == b"another file"


NAME = "disk.raw.xz"

FORMS = {
    "BSD": f"SHA512 ({NAME}) = {DIGEST}\n",
    "BSD in capitals": f"SHA512 ({NAME}) = {DIGEST.upper()}\n",
    "GNU": f"{DIGEST}  {NAME}\n",
    "GNU binary": f"{DIGEST} *{NAME}\n",
    "GNU escaped": f"\\{DIGEST}  {NAME}\n",
    "GNU tag": f"SHA512 ({NAME}) = {DIGEST}",
    "GNU folder": f"{DIGEST}  ./{NAME}\n",
    "openssl": f"SHA512({NAME})= {DIGEST}\n",
    "openssl 3": f"SHA2-512({NAME})= {DIGEST}\n",
    "BSD with -r": f"{DIGEST} {NAME}\n",
    "a tab": f"{DIGEST}\t{NAME}\n",
    "GNU with -z": f"{DIGEST}  {NAME}\0",
    "blanks around": f"  {DIGEST}  {NAME}  \n",
    "byte order mark": f"\ufeffSHA512 ({NAME}) = {DIGEST}\n",
    "gpg": f"{NAME}: {' '.join(DIGEST.upper()[at : at + 8] for at in range(0, 128, 8))}\n",
    "certutil": f"SHA512 hash of {NAME}:\n{DIGEST}\nCertUtil: -hashfile: it worked.\n",
    "signed": (
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nSHA512 ({NAME}) = {DIGEST}\n"
        "-----BEGIN PGP SIGNATURE-----\n\niQIz\n-----END PGP SIGNATURE-----\n"
    ),
    "bare, signed": (
        f"-----BEGIN PGP SIGNED MESSAGE-----\r\nHash: SHA512\r\n\r\n{DIGEST}\r\n"
        "-----BEGIN PGP SIGNATURE-----\r\n\r\niQIz\r\n-----END PGP SIGNATURE-----\r\n"
    ),
    "several algorithms": f"SHA256 ({NAME}) = {DIGEST[:64]}\nSHA512 ({NAME}) = {DIGEST}\n",
    "CRLF": f"SHA512 ({NAME}) = {DIGEST}\r\n",
    "bare": f"{DIGEST}\n",
    "among others": f"# sums\n{'0' * 128}  other\n\n{DIGEST}  {NAME}\n{'1' * 128} *{NAME}.sig\n",
    "twice the same": f"{DIGEST}  {NAME}\nSHA512 ({NAME}) = {DIGEST}\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_checksum_files_in_every_form(server: BadServer, tmp_path: Path, form: str) -> None:
    server.files[CHECKSUMS] = FORMS[form].encode()
    assert get(server, tmp_path).digest == DIGEST


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{DIGEST}  {NAME}\n{'0' * 128}  {NAME}\n", "two digests for"),
        (f"{DIGEST}  other/{NAME}\n", f"no digest for {NAME}, but for other/{NAME}"),
        (f"SHA512 (/r/{NAME}) = {DIGEST}\n", f"no digest for {NAME}, but for /r/{NAME}"),
        (f"{DIGEST[:64]}  {NAME}\n", "no digest for"),
        (f"SHA256 ({NAME}) = {DIGEST}\n", "no digest for"),
        (f"{DIGEST}\n{'0' * 128}\n", "no digest for"),
        (f"x SHA512 ({NAME}) = {DIGEST}\n", "no digest for"),
        ("SHA512 (" * 200_000, "no digest for"),
        ("\\" * 100_000 + f"  {NAME}", "no digest for"),
    ],
)
def test_what_is_no_digest_of_the_file(
    server: BadServer, tmp_path: Path, text: str, said: str
) -> None:
    server.files[CHECKSUMS] = text.encode()
    assert said in refused(server, tmp_path)


def test_escaped_names() -> None:
    text = f"\\{DIGEST}  a\\\\b\\nc\n"
    assert fetching.published_digest(text, "a\\b\nc", REMOTE) == DIGEST
    assert fetching.published_digest(text, "a\\\\b\\nc", REMOTE) is None
