"""Manifests: the one that is shipped, and every way to get one wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.image import manifest

SHIPPED = (manifest.FOLDER / "freebsd-15.1.toml").read_text()


def write(folder: Path, old: str = "", new: str = "", name: str = "freebsd-15.1.toml") -> Path:
    """The shipped manifest with one thing changed."""
    assert old in SHIPPED
    path = folder / name
    path.write_text(SHIPPED.replace(old, new, 1) if old else SHIPPED)
    return path


def test_what_is_shipped() -> None:
    for release in manifest.available():
        found = manifest.find(release)
        assert found is not None
        assert release in found.image.file
        assert str(found.major) == release.split(".")[0]


def test_names_as_freebsd_publishes_them() -> None:
    found = manifest.find("15.1")
    assert found is not None
    assert found.mirrors[0] + found.image.folder + found.image.file == (
        "https://download.freebsd.org/releases/CI-IMAGES/15.1-RELEASE/amd64/Latest/"
        "FreeBSD-15.1-RELEASE-amd64-BASIC-CI-ufs.raw.xz"
    )
    assert found.source.folder + found.source.file == "releases/amd64/15.1-RELEASE/src.txz"
    assert (found.login.user, found.login.password) == ("root", "")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('release = "15.1"', "", "release: is missing"),
        ('release = "15.1"', "release = 15.1", "release: must be a release like 15.1, not 15.1"),
        (
            'release = "15.1"',
            'release = "15.0"',
            "release: it is 15.0, but the file's name says 15.1",
        ),
        ("osversion = 1501000", 'osversion = "1501000"', "osversion: must be a number"),
        ("osversion = 1501000", "osversion = true", "osversion: must be a number"),
        ("osversion = 1501000", "osversion = 15", "osversion: must be from 1000000"),
        ("[login]", "[logon]", "login: is missing"),
        ('user = "root"', 'user = "ro ot"', "login.user: must be a user's name"),
        ('password = ""', "password = 0", "login.password: must be text"),
        ("https://download", "ftp://download", "mirrors: must be https:// or http://"),
        ('/FreeBSD/"]', '/FreeBSD"]', "mirrors: must be https:// or http:// and end in /"),
        (re.search(r"\[\"https.*", SHIPPED)[0], "[]", "mirrors: must name at least one"),  # type: ignore[index]
        ("room_bytes = 12", "room_bytes = -12", "room_bytes: must be from 0 to"),
        ("[login]", "notes = 'x'\n[login]", "notes: must be a list of lines, not 'x'"),
        ("[login]", "notes = ['a\\nb', 1]\n[login]", "notes: must be a list of lines of text"),
        ('also = "F', 'also = "../F', "image.also: must be a file's name"),
        ("about_bytes = 666_", "about_bytes = '666'#", "image.about_bytes: must be a number"),
        ("amd64/Latest/", "amd64/../Latest/", "image.folder: must be a path below the mirror"),
        ("amd64/Latest/", "amd64/Latest", "image.folder: must be a path below the mirror"),
        ("releases/CI-", "/releases/CI-", "image.folder: must be a path below the mirror"),
        ('file = "src.txz"', 'file = "../src.txz"', "source.file: must be a file's name"),
        ('format = "raw"', 'format = "vmdk"', "image.format: must be one of raw, qcow2"),
        ('filesystem = "ufs"', "", "image.filesystem: is missing"),
        ('# sha512 = ""', 'sha512 = "abc"', "image.sha512: must be 128 hexadecimal digits"),
        ("[base]", "[base]\nsha512 = 'x'", "base.sha512: there is no such key"),
        ("[login]", "mirror = 1\n[login]", "mirror: there is no such key"),
        ("[login]", "[login", "not TOML"),
    ],
)
def test_mistakes_name_file_key_and_reason(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = write(tmp_path, old, new)
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        manifest.find("15.1", tmp_path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_what_may_be_left_out(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "freebsd-15.1.toml"
    lines = path.read_text().splitlines()
    left = [line for line in lines if not line.startswith(("also", "about_bytes", "room_bytes"))]
    path.write_text("\n".join(left))
    found = manifest.read(path)
    assert found.image.names == (found.image.file,)
    assert (found.image.about_bytes, found.room_bytes, found.notes) == (0, 0, ())


def test_a_pin_may_be_empty_or_a_digest(tmp_path: Path) -> None:
    write(tmp_path, '# sha512 = ""', 'sha512 = ""')
    found = manifest.find("15.1", tmp_path)
    assert found is not None
    assert found.image.pin == ""
    write(tmp_path, '# sha512 = ""', f'sha512 = "{"ab" * 64}"')
    found = manifest.find("15.1", tmp_path)
    assert found is not None
    assert found.image.pin == "ab" * 64


def test_not_text_and_not_there(tmp_path: Path) -> None:
    (tmp_path / "freebsd-15.1.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not TOML"):
        manifest.find("15.1", tmp_path)
    assert manifest.find("14.3", tmp_path) is None


def test_newest_first(tmp_path: Path) -> None:
    for release in ("14.3", "15.1", "15.10", "15.0"):
        (tmp_path / f"freebsd-{release}.toml").touch()
    assert manifest.available(tmp_path) == ("15.10", "15.1", "15.0", "14.3")


@pytest.mark.parametrize("release", ["", "15", "../15.1", "15.1/..", "fifteen", "15.1\n", "-15.1"])
def test_what_is_no_release(release: str) -> None:
    with pytest.raises(UsageError, match="a release is written like"):
        manifest.check_release(release)
