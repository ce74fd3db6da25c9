"""A snapshot in a bundle: used where it fits, left out with a note or refused where not."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_image_bundle import change, edit_index
from test_image_bundle import made as made
from test_image_bundle import packed as packed

from harness.deadline import Deadline
from harness.errors import CannotError, UsageError
from harness.guest import snapshot
from harness.image import bundle, rekey, store
from harness.machine import Backend, Drive, Spec, bochs_state

SETTINGS = "log: bochs.log\n"


class Saving:
    """A machine that saves two files, of an emulator whose version can be set."""

    version = "3.0"

    def __init__(self, backend: Backend, spec: Spec) -> None:
        self.backend = backend.name
        self.vendor = backend.vendor
        self.spec = spec
        self.traits = SimpleNamespace(saves=True)

    def depends_on(self) -> dict[str, str]:
        return {"Bochs": self.version, "processor's maker": self.vendor}

    def save(self, folder: Path, _deadline: Deadline) -> None:
        (folder / "memory.image").write_bytes(b"\1" * 5000 + bytes(1 << 20))
        (folder / "config").write_text(SETTINGS)

    def require_own_state(self, folder: Path) -> None:
        bochs_state.require_own(folder, SETTINGS)


@pytest.fixture(autouse=True)
def machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.machine.make", Saving)


@pytest.fixture
def with_snapshot(tmp_path: Path, packed: tuple[Path, bundle.Bundle]) -> Path:
    """A bundle with a snapshot, before another cache, which has the same image without one."""
    record = bundle.take_in(packed[1].path)
    spec = Spec(tmp_path, Drive(record.disk), memory_bytes=4 << 20, cpus=1)
    saved: Any = Saving(Backend("bochs", "amd"), spec)
    about = snapshot.facts(saved, record.disk_sha256)
    snapshot.save(saved, about, Deadline.after(10))
    out = tmp_path / "with.tar"
    written = bundle.write("15.1", out, snapshot=True)
    assert written.members[-2:] == ("id_ed25519", "snapshot.txz")
    return out


@pytest.fixture
def notes() -> list[str]:
    return []


def test_a_snapshot_that_fits_comes_with_its_keys_and_disk(
    tmp_path: Path, with_snapshot: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.find("15.1")
    key = before.access.private_key.read_bytes()
    moment = before.disk.stat().st_mtime_ns
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "a third"))
    record = bundle.take_in(with_snapshot, snapshot=True, note=notes.append)
    assert notes == ["its snapshot will be resumed, with the keys of the bundle"]
    assert record.access.private_key.read_bytes() == key
    assert record.access.private_key.stat().st_mode & 0o777 == 0o600
    assert record.access.host_key == before.access.host_key
    assert record.disk_sha256 == before.disk_sha256
    assert record.disk.stat().st_mtime_ns == moment
    # It is found by the facts of this place, as one that was saved here.
    spec = Spec(tmp_path, Drive(record.disk), memory_bytes=4 << 20, cpus=1)
    here: Any = Saving(Backend("bochs", "amd"), spec)
    found = snapshot.find(record.disk, snapshot.facts(here, record.disk_sha256))
    assert isinstance(found, snapshot.Snapshot)
    found.verify(again=True)
    assert (found.state / "memory.image").stat().st_size == (1 << 20) + 5000
    other: Any = Saving(Backend("bochs", "intel"), spec)
    assert isinstance(snapshot.find(record.disk, snapshot.facts(other, record.disk_sha256)), str)


def test_where_it_does_not_fit_it_is_left_out_and_there_are_new_keys(
    with_snapshot: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = store.find("15.1").access
    public = rekey.public_key(old.private_key)
    monkeypatch.setattr(Saving, "version", "2.7")
    record = bundle.take_in(with_snapshot, snapshot=True, note=notes.append)
    assert notes == ["its snapshot is not used: it is of another Bochs"]
    assert record.access.host_key != old.host_key
    assert rekey.public_key(record.access.private_key) != public
    assert public.encode() not in record.disk.read_bytes()
    assert snapshot.kept(record.disk) == []


def test_a_machine_without_the_emulator(
    with_snapshot: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def depends_on(_self: Saving) -> dict[str, str]:
        raise CannotError("there is no Bochs")

    monkeypatch.setattr(Saving, "depends_on", depends_on)
    bundle.take_in(with_snapshot, snapshot=True, note=notes.append)
    assert notes == ["its snapshot is not used: there is no Bochs"]


def test_it_is_used_only_if_that_is_asked_for(with_snapshot: Path, notes: list[str]) -> None:
    old = store.find("15.1").access.host_key
    record = bundle.take_in(with_snapshot, note=notes.append)
    assert notes == ["it has a snapshot, which was not imported; --snapshot imports it, too"]
    assert record.access.host_key != old
    assert snapshot.kept(record.disk) == []


def test_a_bundle_without_one(packed: tuple[Path, bundle.Bundle], notes: list[str]) -> None:
    record = bundle.take_in(packed[1].path, snapshot=True, note=notes.append)
    assert notes == ["there is no snapshot in it"]
    with pytest.raises(CannotError, match=r"no snapshot of FreeBSD 15\.1 can be bundled: there is"):
        bundle.write("15.1", record.disk.parent / "x.tar", snapshot=True)
    assert not (record.disk.parent / "x.tar").exists()


def repack(edit: Callable[[dict[str, bytes | str]], None]) -> Callable[[str, bytes], bytes]:
    """Change the files of the snapshot, with a bundle that is right about their digests."""

    def change_member(name: str, data: bytes) -> bytes:
        if name != "snapshot.txz":
            return data
        files: dict[str, bytes | str] = {}
        with tarfile.open(fileobj=io.BytesIO(lzma.decompress(data))) as tar:
            for it in tar:
                files[it.name] = tar.extractfile(it).read()  # type: ignore[union-attr]
        edit(files)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                if isinstance(content, str):
                    info.type, info.linkname = tarfile.SYMTYPE, content
                    tar.addfile(info)
                else:
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return lzma.compress(out.getvalue())

    return change_member


def manifest(**more: Any) -> Callable[[dict[str, bytes | str]], None]:
    """Change keys of snapshot.json; a dict changes keys below."""

    def edit(files: dict[str, bytes | str]) -> None:
        data = json.loads(files["snapshot.json"])
        for name, value in more.items():
            data[name] = {**data[name], **value} if isinstance(value, dict) else value
        files["snapshot.json"] = json.dumps(data).encode()

    return edit


def add(name: str, content: bytes | str) -> Callable[[dict[str, bytes | str]], None]:
    return lambda files: files.update({name: content})


def drop(name: str) -> Callable[[dict[str, bytes | str]], None]:
    def edit(files: dict[str, bytes | str]) -> None:
        del files[name]

    return edit


def many(files: dict[str, bytes | str]) -> None:
    files.update({f"state/{n}": b"" for n in range(300)})


def right_digests(path: Path, edit: Callable[[str, bytes], bytes]) -> Path:
    """Like change, but bundle.json has the changed member's size and digest."""
    import hashlib

    once = change(path, edit)
    with tarfile.open(once) as tar:
        state = tar.extractfile("snapshot.txz").read()  # type: ignore[union-attr]
        index = json.loads(tar.extractfile("bundle.json").read())  # type: ignore[union-attr]
    part = {"size_bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    members = {**index["members"], "snapshot.txz": part}
    twice = once.rename(once.with_name("once.tar"))
    return change(twice, edit_index(members=members))


HOSTILE: list[tuple[Callable[[dict[str, bytes | str]], None], str]] = [
    # Settings that would let the emulator write to a file of the user's.
    (add("state/config", b"log: /home/me/.profile\n"), "these are not the settings of this"),
    (add("state/config", "/etc/passwd"), "is not a plain file|refused"),
    (add("state/more", "memory.image"), "is not a plain file"),
    (add("../outside", b"x"), "refused"),
    (add("/outside", b"x"), "refused"),
    (add("other", b"x"), r"it is not a snapshot of \./inv image\.bundle"),
    (add("state/unlisted", b"x"), "it is not the file that was saved"),
    (add("state/memory.image", b"forged"), "its checksum is not the one that was saved"),
    (drop("snapshot.json"), "it is not a snapshot of"),
    (drop("state/config"), "these are not the settings"),
    (add("snapshot.json", b"[]"), "cannot be used"),
    (add("snapshot.json", b'{"facts": {"backend": 7}}'), "cannot be used"),
    (manifest(made_at="two\nlines"), "cannot be used"),
    (manifest(facts={"disk": "x"}), "does not name its disk"),
    (manifest(facts={"disk": "/x 5 99999999999999999999999999"}), "does not name its disk"),
    (manifest(facts={"memory": "much"}), "does not describe a machine"),
    (manifest(facts={"backend": "vmware"}), "does not describe a machine"),
    (many, "more than 200 files"),
]


@pytest.mark.parametrize(("edit", "said"), HOSTILE)
def test_a_hostile_snapshot_is_refused_and_leaves_the_good_image(
    with_snapshot: Path, edit: Callable[[dict[str, bytes | str]], None], said: str
) -> None:
    good = store.find("15.1")
    before = sorted(it for it in store.folder("15.1").rglob("*") if it.name != "lock")
    path = right_digests(with_snapshot, repack(edit))
    with pytest.raises(CannotError, match=said) as caught:
        bundle.take_in(path, snapshot=True)
    assert "\n" not in caught.value.message
    assert store.find("15.1") == good
    assert sorted(it for it in store.folder("15.1").rglob("*") if it.name != "lock") == before


def test_another_key_is_refused(with_snapshot: Path) -> None:
    good = store.find("15.1")
    with tarfile.open(with_snapshot) as tar:
        index = json.loads(tar.extractfile("bundle.json").read())  # type: ignore[union-attr]
    # The same length, so that only the key is wrong.
    other = index["public_key"][:-4] + "AAAA"
    with pytest.raises(CannotError, match="it is not the key of this image"):
        bundle.take_in(change(with_snapshot, edit_index(public_key=other)), snapshot=True)
    assert store.find("15.1") == good


def test_a_snapshot_without_its_key_is_no_bundle(with_snapshot: Path) -> None:
    with tarfile.open(with_snapshot) as tar:
        index = json.loads(tar.extractfile("bundle.json").read())  # type: ignore[union-attr]
    members = {name: it for name, it in index["members"].items() if name != "id_ed25519"}
    with pytest.raises(CannotError, match="it lacks a member, or has an extra one"):
        bundle.take_in(change(with_snapshot, edit_index(members=members)), snapshot=True)


def test_a_snapshot_of_another_disk_is_left_out(with_snapshot: Path, notes: list[str]) -> None:
    path = right_digests(with_snapshot, repack(manifest(facts={"image": "0" * 64})))
    bundle.take_in(path, snapshot=True, note=notes.append)
    assert notes == ["its snapshot is not used: it is of another image"]


def test_the_option_belongs_to_a_bundle() -> None:
    from harness.cli.image import image_import

    with pytest.raises(UsageError, match="--snapshot belongs to --bundle"):
        image_import.body.__wrapped__(None, release="15.1", snapshot=True)
