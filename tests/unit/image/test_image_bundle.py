"""A prepared release as one file: packed here, taken in there, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import test_image_rekey as disks
from brought import make_disk, make_source, make_sysroot

from harness.errors import CannotError, UsageError
from harness.guest.keys import make_key
from harness.image import bundle, check, fetch, prepare, rekey, store
from harness.image.model import Imported, Prepared
from harness.image.obtain import Files, import_files
from harness.machine import Backend


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bundle.Bundle]:
    """A bundle of a release prepared in a cache of its own, and the key that stays there."""
    top = tmp_path_factory.mktemp("packed")
    host_key, host = disks.make_host_key(top / "host")

    def preparer(
        _imported: Imported, folder: Path, _backend: Backend, _live: store.Live
    ) -> Prepared:
        public = make_key(folder / "id_ed25519", "vmm-workbench").rsplit(" ", 1)[0]
        disks.make_disk(folder / "disk.raw", public, host)
        (folder / "console-password").write_text("secret\n")
        return Prepared(
            folder / "disk.raw", folder / "id_ed25519", host_key, 1501000, "FreeBSD 15.1", ("a",),
            ("ident GENERIC-DEBUG", "options INVARIANTS"),
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(top / "here"))
        source, sysroot = make_source(top / "s"), make_sysroot(top / "r")
        (source / ".git").mkdir()
        (source / ".git" / "config").write_text("private")
        brought = Files(make_disk(top / "d"), source, sysroot)
        record = import_files("15.1", brought, backend="tcg", preparer=preparer)
        assert record is not None
        downloads = store.folder("15.1") / "downloads"
        fetch.write_note(fetch.Fetched(downloads / "x.xz", "https://x/", "ab" * 64, "then"))
        return record.access.private_key, bundle.write("15.1", top / "b.tar")


@pytest.fixture
def packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: tuple[Path, bundle.Bundle]
) -> tuple[Path, bundle.Bundle]:
    """The same, before another cache, an empty one."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "there"))
    return made


def member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def test_from_one_cache_to_another(tmp_path: Path, packed: tuple[Path, bundle.Bundle]) -> None:
    old_key, made = packed
    assert made.path.stat().st_mode & 0o777 == 0o600
    assert made.sha256 == hashlib.sha256(made.path.read_bytes()).hexdigest()
    record = bundle.take_in(made.path)
    assert record == store.find("15.1")
    home = tmp_path / "there/images/15.1"
    assert store.source("15.1") == home / "source/usr/src"
    assert (home / "source/usr/src/sys/sys/param.h").is_file()
    assert (home / "sysroot/usr/include/sys/param.h").is_file()
    assert (record.disk.parent / "console-password").read_text() == "secret\n"
    assert all(found.ok for found in check.release("15.1"))
    # Keys of its own, which the disk knows; those of the other machine open nothing here.
    disk = record.disk.read_bytes()
    assert rekey.public_key(record.access.private_key).encode() in disk
    assert rekey.public_key(old_key).encode() not in disk
    assert record.access.host_key.encode() in disk
    assert record.changes[:-1] == ("a",)
    assert "new ones, written when b.tar was imported" in record.changes[-1]
    assert fetch.pin_of(home / "downloads/x.xz") is not None
    assert {path.name for path in home.iterdir() if path.name.startswith(".")} == set()
    # A second time it takes the first one's place.
    again = bundle.take_in(made.path, "15.1")
    assert again.access.host_key != record.access.host_key
    assert not record.disk.exists()


def test_nothing_secret_or_private_travels(packed: tuple[Path, bundle.Bundle]) -> None:
    key, made = packed
    with tarfile.open(made.path) as tar:
        assert tuple(tar.getnames()) == made.members
        assert all((it.uid, it.uname) == (0, "root") for it in tar)
        texts = [
            lzma.decompress(member(tar, it)) if it.endswith("xz") else member(tar, it)
            for it in made.members
        ]
    secret = key.read_bytes()[60:200]
    assert not any(secret in text or b".git" in text for text in texts)


def change(path: Path, edit: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of the bundle in which each member is what `edit` makes of it."""
    out = path.with_name("changed.tar")
    with tarfile.open(path) as tar, tarfile.open(out, "w") as new:
        for member in tar:
            data = edit(member.name, tar.extractfile(member).read())  # type: ignore[union-attr]
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return out


def edit_index(**more: object) -> Callable[[str, bytes], bytes]:
    def edit(name: str, data: bytes) -> bytes:
        return json.dumps({**json.loads(data), **more}).encode() if name == "bundle.json" else data

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda name, data: data if name != "src.txz" else data[:-1], "does not match bundle.json"),
        (lambda name, data: data if name != "src.txz" else b"?" + data[1:], "src.txz is damaged"),
        (lambda name, data: data if name != "base.txz" else None, "truncated: base.txz missing"),
        (edit_index(format=9), "its format is 9"),
        (edit_index(record={}), "missing required field"),
        (edit_index(members={"disk.raw.xz": {}}), "missing required field"),
        (edit_index(public_key="ssh-rsa x"), "public_key"),
    ],
)
def test_what_is_damaged_leaves_nothing(
    tmp_path: Path,
    packed: tuple[Path, bundle.Bundle],
    edit: Callable[[str, bytes], bytes | None],
    said: str,
) -> None:
    path = change(packed[1].path, edit)
    with pytest.raises(CannotError, match=said) as caught:
        bundle.take_in(path)
    assert str(path) in caught.value.message
    assert not store.has_record("15.1")
    home = tmp_path / "there/images/15.1"
    assert not home.exists() or {path.name for path in home.iterdir()} <= {"lock"}


def edit_record(**more: object) -> Callable[[str, bytes], bytes]:
    def edit(name: str, data: bytes) -> bytes:
        if name != "bundle.json":
            return data
        index = json.loads(data)
        return json.dumps({**index, "record": {**index["record"], **more}}).encode()

    return edit


PIN = {"name": "x.xz", "url": "https://x/", "digest": "ab" * 64, "at": "then"}
FORGED: list[tuple[Callable[[str, bytes], bytes], str]] = [
    (edit_record(osversion="x"), "osversion"),
    (edit_record(osversion=True), "osversion"),
    (edit_record(osversion=10**40), "osversion"),
    (edit_record(disk_bytes="x"), "disk_bytes"),
    (edit_record(disk_bytes=1 << 60), "disk_bytes"),
    (edit_record(disk_bytes=-1), "disk_bytes"),
    (edit_record(changes=5), "changes"),
    (edit_record(changes=["x", 5]), "changes"),
    (edit_record(changes=["two\nlines"]), "changes"),
    (edit_record(kernel=["two\nlines"]), "kernel"),
    (edit_record(release="../../x"), "release"),
    (edit_record(release=15.1), "release"),
    (edit_record(uname="\x1b[31mX\x07"), "uname"),
    (edit_record(origin="X\n::error::x"), "origin"),
    (edit_record(origin_format="vmdk"), "origin_format"),
    (edit_record(prepared_at=None), "prepared_at"),
    (edit_record(disk_sha256="../../../etc/passwd"), "disk_sha256"),
    (edit_record(host_key="ssh-ed25519 "), "host_key"),
    (edit_record(host_key="ssh-ed25519 AAAA"), "host_key"),
    (edit_record(login_user="-oProxyCommand=touch /tmp/PWNED #"), "login_user"),
    (edit_record(login_user="root@elsewhere"), "login_user"),
    (edit_record(login_user="-l"), "login_user"),
    (edit_record(login_user=""), "login_user"),
    (edit_index(public_key="ssh-ed25519 A"), "public_key"),
    (edit_index(pins=5), "pins"),
    (edit_index(pins=[{"name": "a"}]), "pins"),
    (edit_index(pins=[{**PIN, "name": "../../../x"}]), "pins"),
    (edit_index(pins=[{**PIN, "url": "x"}]), "pins"),
    (edit_index(pins=[{**PIN, "digest": "0"}]), "pins"),
    (edit_index(pins=[PIN] * 1000), "pins"),
    (edit_index(members={"disk.raw.xz": {"size_bytes": -1, "sha256": "0" * 64}}), "size_bytes"),
    (lambda n, d: d if n != "bundle.json" else b"[" * 100_000, "bundle.json cannot be used"),
    (lambda n, d: d if n != "bundle.json" else b'{"a":' * 50_000, "bundle.json cannot be used"),
    (lambda n, d: d if n != "bundle.json" else b"null", "Expected"),
    (lambda n, d: d if n != "bundle.json" else b"", "truncated"),
]


@pytest.mark.parametrize(("edit", "said"), FORGED)
def test_a_forged_bundle_leaves_the_good_image(
    packed: tuple[Path, bundle.Bundle], edit: Callable[[str, bytes], bytes], said: str
) -> None:
    """Every value of a wrong kind is one line, before anything that is there is touched."""
    good = bundle.take_in(packed[1].path)
    before = sorted(it for it in store.folder("15.1").rglob("*") if it.name != "lock")
    with pytest.raises(CannotError, match=said) as caught:
        bundle.take_in(change(packed[1].path, edit))
    assert "\n" not in caught.value.message
    assert caught.value.message.isprintable()
    assert store.find("15.1") == good
    assert sorted(it for it in store.folder("15.1").rglob("*") if it.name != "lock") == before


def test_what_goes_wrong_late_leaves_the_good_image_and_its_trees(
    packed: tuple[Path, bundle.Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys on the disk are not those of the bundle: found when all else is unpacked."""
    good = bundle.take_in(packed[1].path)
    mark = store.source("15.1") / "mine"
    mark.touch()
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
    with pytest.raises(CannotError, match="was not found on it"):
        bundle.take_in(change(packed[1].path, edit_index(public_key=other)))
    assert store.find("15.1") == good
    assert mark.exists()
    # A record that could not be read back does not take the good one's place either.
    monkeypatch.setattr(bundle, "_CHANGE", "two\nlines {} {}")
    with pytest.raises(CannotError, match="could not be read back"):
        bundle.take_in(packed[1].path)
    assert store.find("15.1") == good
    assert mark.exists()


def test_a_disk_longer_than_the_bundle_says(
    packed: tuple[Path, bundle.Bundle],
) -> None:
    with pytest.raises(CannotError, match="it unpacks to more than"):
        bundle.take_in(change(packed[1].path, edit_record(disk_bytes=1000)))


def test_what_is_no_bundle(tmp_path: Path, packed: tuple[Path, bundle.Bundle]) -> None:
    path = packed[1].path
    with pytest.raises(UsageError, match=r"it contains FreeBSD 15\.1, but --release says 15\.0"):
        bundle.take_in(path, "15.0")
    cut = tmp_path / "cut.tar"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CannotError, match="damaged or truncated"):
        bundle.take_in(cut)
    with pytest.raises(CannotError, match="No such file"):
        bundle.take_in(tmp_path / "absent")
    with tarfile.open(cut, "w") as tar:
        tar.add(path, "b.tar")
    with pytest.raises(UsageError, match=r"it is not a bundle of \./inv image\.bundle"):
        bundle.take_in(cut)


def test_of_another_preparation(
    packed: tuple[Path, bundle.Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "VERSION", 99)
    with pytest.raises(CannotError, match="prepared by another version of the workbench"):
        bundle.take_in(packed[1].path)


def test_a_disk_that_rotted_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: tuple[Path, bundle.Bundle]
) -> None:
    record = bundle.take_in(packed[1].path)
    record.disk.chmod(0o600)
    with record.disk.open("r+b") as stream:
        stream.write(b"rot")
    with pytest.raises(CannotError, match="it was changed since it was prepared"):
        bundle.write("15.1", tmp_path / "c.tar")
    assert not (tmp_path / "c.tar").exists()
