"""The image cache later: checks, removal, and records of other versions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from brought import (
    MIB,
    Preparer,
    bring,
    bring_disk,
    findings,
    make_disk,
    make_source,
    make_sysroot,
)
from brought import cache as cache

from harness.cli import image_commands
from harness.errors import CannotError, UsageError
from harness.files import checksum_sparse
from harness.guest import snapshot
from harness.guest.freebsd import Access
from harness.guest.keys import make_key
from harness.image import check, obtain, prepare, prune, store
from harness.image.model import ANNOUNCEMENT
from harness.image.obtain import Files


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 99}', "\0"])
def test_a_record_that_cannot_be_read(tmp_path: Path, cache: Path, text: str) -> None:
    bring_disk(tmp_path / "d")
    path = cache / "images/15.1/image.json"
    path.write_text(text)
    with pytest.raises(CannotError, match="cannot be used") as caught:
        store.find("15.1")
    assert str(path) in caught.value.message
    assert store.prepared() == []
    bring_disk(tmp_path / "d")


@pytest.mark.parametrize(("key", "value"), [("disk_bytes", "1"), ("host_key", None)])
def test_a_record_with_a_wrong_field(tmp_path: Path, cache: Path, key: str, value: object) -> None:
    bring_disk(tmp_path / "d")
    path = cache / "images/15.1/image.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CannotError, match=key):
        store.find("15.1")


def test_an_outdated_preparation_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_disk(tmp_path / "d")
    monkeypatch.setattr(prepare, "VERSION", 99)
    with pytest.raises(CannotError, match=f"--disk {tmp_path / 'd'}"):
        obtain.obtain("15.1")
    preparer = Preparer()
    assert bring_disk(tmp_path / "d", preparer).prepare_version == 99
    assert len(preparer.seen) == 1


def test_removed_but_for_what_is_the_users(tmp_path: Path, cache: Path) -> None:
    source = make_source(tmp_path / "s")
    bring(Files(make_disk(tmp_path / "d"), source))
    assert "15.1" in store.known()
    assert prune.size(cache / "images/15.1") >= MIB
    store.remove("15.1")
    assert not (cache / "images/15.1").exists()
    assert (source / "sys/sys/param.h").exists()
    assert (tmp_path / "d").exists()
    with pytest.raises(UsageError, match="there is nothing of it in"):
        store.remove("15.1")


def test_what_is_in_the_cache_is_looked_at_again(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UsageError, match="there is nothing of it in"):
        check.release("15.1")
    source, sysroot = make_source(tmp_path / "s"), make_sysroot(tmp_path / "r")
    record = bring(Files(make_disk(tmp_path / "d"), source, sysroot))
    assert record is not None
    make_key(record.access.private_key, "x")
    found = findings()
    assert all(ok for ok, _, _ in found.values()), found
    assert set(found) == {"prepared disk", "private key", "source", "sysroot"}
    record.access.private_key.chmod(0o644)
    assert findings()["private key"][2] == f"chmod 600 {record.access.private_key}"
    record.access.private_key.write_text("noise")
    assert "not a valid private key" in findings()["private key"][1]
    (source / "sys/sys/param.h").unlink()
    assert not findings()["source"][0]
    # One byte, with the size as before: nothing else would notice.
    data = bytearray(record.disk.read_bytes())
    data[MIB // 2] ^= 1
    record.disk.write_bytes(data)
    ok, evidence, remedy = findings()["prepared disk"]
    assert not ok
    assert record.disk_sha256[:16] in evidence
    assert remedy.startswith(f"rm {cache}/images/15.1/image.json, then ./inv image.import")
    assert store.find("15.1") == record
    (cache / "images/15.1/image.json").unlink()
    assert "prepared disk" not in findings()
    assert bring_disk(tmp_path / "d").disk_sha256 == record.disk_sha256


def test_snapshots_are_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = bring_disk(tmp_path / "d")
    make_key(record.access.private_key, "x")
    folder = record.disk.parent / "snapshots/abcdef012345"
    (folder / "state").mkdir(parents=True)
    (folder / "state/memory").write_bytes(b"as it was")
    files = {"memory": checksum_sparse(folder / "state/memory")}
    kept = snapshot.Snapshot(folder, "now", {"backend": "tcg"}, files)
    monkeypatch.setattr(snapshot, "kept", lambda disk: [kept] if disk == record.disk else [])
    assert image_commands.verify("15.1", True) == 0
    (folder / "state/memory").write_bytes(b"as it wos")
    assert image_commands.verify("", True) == 1
    said = capsys.readouterr().out
    (finding,) = [it for it in json.loads(said[said.rindex("\n[") :]) if not it["ok"]]
    assert (finding["what"], finding["remedy"]) == ("snapshot abcdef01", f"rm -r {folder}")


def test_old_small_guests_are_pruned(cache: Path) -> None:
    for number, name in enumerate(("a" * 32, "b" * 32, "c" * 32)):
        folder = cache / "vtxprobe" / name
        folder.mkdir(parents=True)
        (folder / "vtxprobe.img").write_bytes(b"x" * 5000)
        os.utime(folder, (number, number))
    (cache / "standin" / "apt").mkdir(parents=True)
    (cache / "standin" / ("d" * 16)).mkdir()
    assert prune.small_guests() >= 10_000
    assert {path.name for path in (cache / "vtxprobe").iterdir()} == {"c" * 32, "lock"}
    assert {path.name for path in (cache / "standin").iterdir()} == {"apt", "d" * 16, "lock"}


def test_a_record_of_before_the_access_was_one_value_is_read(tmp_path: Path, cache: Path) -> None:
    """Its file has the three fields one by one, as it had them from the first version on."""
    record = bring_disk(tmp_path / "d")
    path = cache / "images/15.1/image.json"
    data = json.loads(path.read_text())
    assert "access" not in data
    assert data["private_key"] == str(record.access.private_key.relative_to(path.parent))
    assert (data["host_key"], data["login_user"]) == (record.access.host_key, "root")
    # The first records had no user: it was root.
    del data["login_user"]
    path.write_text(json.dumps(data))
    assert store.find("15.1") == record
    assert record.access == Access(
        record.access.private_key, data["host_key"], "root", ANNOUNCEMENT
    )
    for name, wrong in (
        ("login_user", "-l"),
        ("host_key", "ssh-rsa AAAA"),
        ("private_key", "../k"),
    ):
        path.write_text(json.dumps({**data, name: wrong}))
        with pytest.raises(CannotError, match="remove it and import the image again"):
            store.find("15.1")
