"""The image cache, from import to lookup, with a preparation that boots nothing."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import badserver
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
    pack,
    wrong,
)
from brought import cache as cache

from harness.errors import CannotError, GuestError, UsageError, WorkbenchError
from harness.image import fetch, manifest, obtain, prepare, prune, store
from harness.image.model import Imported, Prepared
from harness.image.obtain import Files, import_files
from harness.image.readings import Readings


def test_a_disk_is_prepared_once_and_found(tmp_path: Path, cache: Path) -> None:
    preparer = Preparer()
    record = bring_disk(tmp_path / "d", preparer)
    assert record == store.find("15.1")
    assert record.disk.read_bytes().endswith(b"prepared")
    assert record.disk.is_relative_to(cache / "images/15.1")
    assert record.origin == str(tmp_path / "d")
    assert (record.release, record.access.user, record.changes) == ("15.1", "root", ("a change",))
    assert (record.source, record.sysroot) == (None, None)
    assert [r.release for r in store.prepared()] == ["15.1"]
    again = bring_disk(tmp_path / "d", preparer)
    assert again == record
    assert len(preparer.seen) == 1


def test_a_disk_that_rotted_is_noticed_when_it_is_used(tmp_path: Path, cache: Path) -> None:
    record = bring_disk(tmp_path / "d")
    os.utime(record.disk)
    assert obtain.obtain("15.1") == record, "a newer time stamp alone is no damage"
    raised: list[str] = []
    obtain.obtain("15.1", live=raised.append)
    assert raised == [], "and the digest is taken once"
    record.disk.chmod(0o600)
    data = record.disk.read_bytes()
    record.disk.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(
        CannotError, match=r"disk\.raw: the prepared disk was changed .* --disk FILE"
    ):
        obtain.obtain("15.1")


def test_another_disk_takes_its_place_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    first = bring_disk(tmp_path / "d")
    second = bring(Files(disk=make_disk(tmp_path / "e", b"another")))
    assert second is not None
    assert second.disk_sha256 != first.disk_sha256
    assert not first.disk.exists()
    assert len(list((cache / "images/15.1").glob("prepared-*"))) == 1


@pytest.mark.parametrize("error", [GuestError("it broke"), KeyboardInterrupt()])
def test_a_failed_preparation_leaves_the_old_one(
    tmp_path: Path, cache: Path, error: WorkbenchError | KeyboardInterrupt
) -> None:
    record = bring_disk(tmp_path / "d")
    log = cache / "images/15.1/failed/boot/console.log"
    with pytest.raises(type(error)) as caught:
        bring(Files(disk=make_disk(tmp_path / "e", b"another")), Preparer(error))
    if isinstance(error, GuestError):
        assert str(caught.value) == f"it broke; see {log}"
    assert store.find("15.1") == record
    assert record.disk.is_file()
    assert log.read_text() == "login: "
    assert len(list((cache / "images/15.1").glob("prepared-*"))) == 1
    assert prune.release("15.1") > 0
    assert not (cache / "images/15.1/failed").exists()
    assert store.find("15.1") == record


def test_a_compressed_disk_is_unpacked_for_the_preparation_alone(
    tmp_path: Path, cache: Path
) -> None:
    packed = tmp_path / "disk.raw.xz"
    packed.write_bytes(lzma.compress(make_disk(tmp_path / "d").read_bytes()))
    preparer = Preparer()
    record = bring(Files(disk=packed), preparer)
    assert record is not None
    assert record.origin == str(packed)
    assert preparer.seen[0].disk.name == "disk.raw"
    assert not preparer.seen[0].disk.exists()
    assert bring(Files(disk=tmp_path / "d"), preparer) == record


def test_folders_are_referenced_where_they_are(tmp_path: Path) -> None:
    source, sysroot = make_source(tmp_path / "s"), make_sysroot(tmp_path / "r")
    record = bring(Files(make_disk(tmp_path / "d"), source, sysroot))
    assert record is not None
    assert (record.source, record.sysroot) == (source, sysroot)
    assert store.source("15.1") == source
    assert store.sysroot("15.1") == sysroot


def test_sets_are_unpacked_into_the_cache(tmp_path: Path, cache: Path) -> None:
    src = pack(tmp_path / "src.txz", make_source(tmp_path / "s"), "usr/src")
    base = pack(tmp_path / "base.txz", make_sysroot(tmp_path / "r"), ".")
    assert bring(Files(src=src, sysroot=base)) is None
    home = cache / "images/15.1"
    assert store.source("15.1") == home / "source/usr/src"
    assert store.sysroot("15.1") == home / "sysroot"
    assert (home / "sysroot/lib/libc.so.7").is_file()
    assert not (home / "sysroot/bin").exists()
    # The disk may come later, and the trees again without it.
    assert bring_disk(tmp_path / "d").source == home / "source/usr/src"
    other = make_source(tmp_path / "other")
    record = bring(Files(src=other))
    assert record is not None
    assert (record.source, record.sysroot) == (other, home / "sysroot")
    assert (home / "source").exists()
    prune.release("15.1")
    assert not (home / "source").exists()
    assert store.sysroot("15.1") == home / "sysroot"


def test_an_archive_with_one_folder_of_any_name(tmp_path: Path, cache: Path) -> None:
    src = pack(tmp_path / "main.tar.xz", make_source(tmp_path / "s"), "freebsd-src-main")
    bring(Files(src=src))
    assert store.source("15.1") == cache / "images/15.1/source/freebsd-src-main"


def test_what_is_refused(tmp_path: Path, cache: Path) -> None:
    disk = make_disk(tmp_path / "d")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "nothing to import" in wrong(Files(), cache)
    assert "No such file" in wrong(Files(disk=tmp_path / "absent"), cache)
    assert "no such file or folder" in wrong(Files(disk, tmp_path / "absent"), cache)
    assert "not a FreeBSD source tree (sys/sys/param.h" in wrong(Files(disk, empty), cache)
    assert "neither a folder nor an archive" in wrong(Files(disk, disk), cache)
    assert "not a FreeBSD sysroot (usr/include" in wrong(Files(disk, None, empty), cache)
    packed = pack(tmp_path / "x.txz", empty, "usr/src")
    assert "contains no FreeBSD source" in wrong(Files(disk, packed), cache)
    assert "not a FreeBSD sysroot" in wrong(Files(disk, None, packed), cache)
    assert not (cache / "images/15.1/source").exists()


def test_a_source_of_another_release(tmp_path: Path, cache: Path) -> None:
    source = make_source(tmp_path / "s", "14.0")
    message = wrong(Files(make_disk(tmp_path / "d"), source), cache)
    assert "it is the source of FreeBSD 14.0-RELEASE-p1, but --release says 15.1" in message
    packed = pack(tmp_path / "src.txz", source, "usr/src")
    assert f"{packed}: it is the source of" in wrong(Files(None, packed), cache)
    make_source(tmp_path / "c", "16.0")
    import_files("16.0-CURRENT", Files(src=tmp_path / "c"))
    assert store.source("16.0-CURRENT") == tmp_path / "c"


def test_a_source_that_does_not_say_what_it_is(tmp_path: Path, cache: Path) -> None:
    source = make_source(tmp_path / "s")
    (source / "sys/sys/param.h").write_text("")
    assert "cannot find its release (__FreeBSD_version in" in wrong(Files(None, source), cache)
    (source / "sys/conf/newvers.sh").unlink()
    assert "newvers.sh is not there" in wrong(Files(None, source), cache)


def test_nothing_here_and_no_network_make_one_line(cache: Path) -> None:
    with pytest.raises(CannotError) as caught:
        obtain.obtain("15.1")
    message = caught.value.message
    assert message.startswith(f"no FreeBSD 15.1 to boot: no prepared image in {cache}/images/15.1")
    assert re.search(r"cannot fetch http://127.0.0.1:1/.*: connection refused", message)
    assert message.endswith(
        "./inv image.import --release 15.1 --disk FILE --src DIR-or-src.txz "
        "--sysroot DIR-or-base.txz"
    )
    assert "\n" not in message
    with pytest.raises(CannotError, match="--offline was given"):
        obtain.obtain("15.1", offline=True)
    with pytest.raises(CannotError, match="there is no manifest for it"):
        obtain.obtain("17.0-CURRENT")


def test_what_is_here_is_not_fetched(tmp_path: Path) -> None:
    record = bring_disk(tmp_path / "d")
    assert obtain.obtain("15.1") == record


def test_missing_pieces_name_their_remedy(tmp_path: Path) -> None:
    for find in (store.find, store.source, store.sysroot):
        with pytest.raises(CannotError, match=r"\./inv image\.import --release 15\.1 "):
            find("15.1")
    source = make_source(tmp_path / "s")
    record = bring(Files(make_disk(tmp_path / "d"), source))
    assert record is not None
    source.rename(tmp_path / "moved")
    assert store.find("15.1").source is None
    with pytest.raises(CannotError, match=r"the source tree of FreeBSD 15\.1 is gone"):
        store.source("15.1")
    with record.disk.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(CannotError, match="is gone or was changed; import it again"):
        store.find("15.1")
    record.disk.unlink()
    with pytest.raises(CannotError, match="is gone or was changed"):
        obtain.obtain("15.1")
    assert store.prepared() == []


def test_zfs_is_refused_before_anything_is_done(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = manifest.find("15.1")
    assert known is not None
    zfs = replace(known, image_filesystem="zfs")
    monkeypatch.setattr(manifest, "find", lambda _release: zfs)
    with pytest.raises(UsageError, match="only images with UFS are prepared"):
        obtain.fetch_official("15.1")


def test_room_for_all_of_it_is_asked_before_the_first_byte(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=2 << 30))
    with pytest.raises(CannotError, match=r"fetching and preparing FreeBSD 15\.1 needs 11\.2 GiB"):
        obtain.fetch_official("15.1")


def test_bochs_prepares_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="images are prepared under kvm or tcg"):
        import_files("15.1", Files(disk=make_disk(tmp_path / "d")), backend="bochs")


def test_the_official_files_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the manifest's names, from a mirror of one's own."""
    known = manifest.find("15.1")
    assert known is not None
    bad, http = badserver.start()
    monkeypatch.setenv("HARNESS_MIRROR", bad.address + "mirror")
    try:
        image = lzma.compress(make_disk(tmp_path / "d").read_bytes())
        bad.publish("mirror/" + known.image.folder, known.image.file, image)
        listing = io.StringIO()
        for remote, tree, inside in (
            (known.source, make_source(tmp_path / "s"), "usr/src"),
            (known.base, make_sysroot(tmp_path / "r"), "."),
        ):
            content = pack(tmp_path / remote.file, tree, inside).read_bytes()
            bad.files[f"/mirror/{remote.folder}{remote.file}"] = content
            digest = hashlib.sha256(content).hexdigest()
            listing.write(f'{remote.file}\t{digest}\t1\tname\t"text"\ton\n')
        bad.files[f"/mirror/{known.base.folder}MANIFEST"] = listing.getvalue().encode()
        preparer = Preparer()
        monkeypatch.setattr(prepare, "prepare", preparer)
        said: list[str] = []
        record = obtain.obtain("15.1", backend="tcg", live=said.append)
    finally:
        http.shutdown()
        http.server_close()
    assert len(preparer.seen) == 1
    assert record.origin.startswith(bad.address)
    assert record.source is not None
    assert record.sysroot is not None
    assert any(line.startswith("fetching src.txz: ") for line in said)
    # Files in the cache are verified again; a corrupt one is reported with its remedy.
    image_note = fetch.notes(store.folder("15.1") / "downloads")[0]
    assert (image_note.algorithm, image_note.path.name) == ("sha512", known.image.file)
    found = findings()
    assert found[f"download {known.image.file}"][0]
    base = store.folder("15.1") / "downloads" / known.base.file
    good = base.read_bytes()
    base.write_bytes(good[:-1] + b"?")
    ok, _, remedy = findings()[f"download {known.base.file}"]
    assert (ok, remedy) == (False, f"rm {base}, then ./inv image.fetch --release 15.1")
    base.write_bytes(good)
    # All of it is here now: no server is needed any more, until it is pruned.
    assert obtain.fetch_official("15.1", offline=True).files.src is not None
    assert prune.release("15.1") > 0
    with pytest.raises(CannotError, match="--offline"):
        obtain.fetch_official("15.1", offline=True)
    assert store.find("15.1") == record


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("param", "said"),
    [
        ("#define __FreeBSD_version 1402000\n", r"this sysroot is of FreeBSD 14 \(1402000\)"),
        ("x", "does not say which FreeBSD it is of"),
    ],
)
def test_a_sysroot_of_another_major_release(
    tmp_path: Path, param: str, said: str, packed: bool
) -> None:
    tree = make_sysroot(tmp_path / "r")
    (tree / "usr/include/sys/param.h").write_text(param)
    given = pack(tmp_path / "base.txz", tree, ".") if packed else tree
    with pytest.raises(UsageError, match=said) as caught:
        bring(Files(sysroot=given))
    assert str(given) in caught.value.message
    assert store.trees("15.1").sysroot is None


def test_room_is_asked_for_before_a_digest_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse disk of a TiB costs nothing to make, and hours to read."""
    path = make_disk(tmp_path / "d")
    with path.open("r+b") as stream:
        stream.truncate(1 << 40)
    monkeypatch.setattr(Readings, "digest", lambda *_args: pytest.fail("it was read"))
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=1 << 30))
    with pytest.raises(CannotError, match=r"preparing d needs 1024\.0 GiB"):
        bring(Files(disk=path))


class Counting:
    """Counts the bytes that this process reads and writes by system calls."""

    def __init__(self) -> None:
        self.read_bytes = self.written_bytes = 0

    def __enter__(self) -> Counting:
        self._before = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        read, written = self._now()
        self.read_bytes, self.written_bytes = read - self._before[0], written - self._before[1]

    @staticmethod
    def _now() -> tuple[int, int]:
        said = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(said["rchar"]), int(said["wchar"])


BIG = 12 * MIB

_SLACK = 4 * MIB


def big_disk(path: Path) -> Path:
    """A disk of BIG bytes."""
    path.write_bytes(make_disk(path).read_bytes()[:512] + os.urandom(BIG - 512))
    return path


def big_source(tmp_path: Path) -> Path:
    """An archive of a source tree with one file of BIG bytes, not compressed."""
    tree = make_source(tmp_path / "tree" / "usr" / "src")
    (tree / "large").write_bytes(os.urandom(BIG))
    with tarfile.open(tmp_path / "src.tar", "w") as tar:
        tar.add(tree.parents[1], ".")
    return tmp_path / "src.tar"


def linked(imported: Imported, folder: Path, *_: object) -> Prepared:
    """A preparation that reads nothing of the disk."""
    (folder / "disk.raw").write_bytes(b"small")
    (folder / "id_ed25519").write_text("secret")
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
    disk, private = folder / "disk.raw", folder / "id_ed25519"
    return Prepared(disk, private, key, 1501000, imported.release, ("a change",))


def test_each_file_is_read_once_and_written_once(tmp_path: Path, cache: Path) -> None:
    disk, src = big_disk(tmp_path / "disk.raw"), big_source(tmp_path)
    files = Files(disk=disk, src=src)
    with Counting() as first:
        import_files("15.1", files, backend="tcg", preparer=linked)
    # The disk is read for its digest; the archive to unpack it, and for its digest.
    assert 3 * BIG <= first.read_bytes < 3 * BIG + _SLACK
    assert BIG <= first.written_bytes < BIG + _SLACK
    with Counting() as again:
        import_files("15.1", files, backend="tcg", preparer=linked)
    assert again.read_bytes + again.written_bytes < _SLACK


def test_what_a_cancelled_import_had_read_is_not_read_again(tmp_path: Path, cache: Path) -> None:
    disk, src = big_disk(tmp_path / "disk.raw"), big_source(tmp_path)
    files = Files(disk=disk, src=src)
    with pytest.raises(KeyboardInterrupt):
        import_files("15.1", files, backend="tcg", preparer=Preparer(KeyboardInterrupt()))
    home = cache / "images" / "15.1"
    assert sorted(path.name for path in home.iterdir()) == [
        "failed", "lock", "readings.json", "source", "trees.json"
    ]  # fmt: skip
    assert sum(path.stat().st_size for path in (home / "failed").rglob("*.*")) < MIB
    with Counting() as again:
        import_files("15.1", files, backend="tcg", preparer=linked)
    assert again.read_bytes + again.written_bytes < _SLACK


def test_a_compressed_disk_is_unpacked_once(tmp_path: Path, cache: Path) -> None:
    packed = tmp_path / "disk.raw.xz"
    # No zeros, which would become holes.
    head = make_disk(tmp_path / "disk.raw").read_bytes()[:512]
    plain = (head + bytes(range(1, 256)) * (BIG // 255 + 1))[:BIG]
    packed.write_bytes(lzma.compress(plain, preset=0))
    size = packed.stat().st_size
    with Counting() as first:
        record = import_files("15.1", Files(disk=packed), backend="tcg", preparer=linked)
    assert record is not None
    assert record.origin_sha256 == hashlib.sha256(plain).hexdigest()
    # Its digest is computed while it is unpacked, so what was unpacked is not read.
    assert first.read_bytes < size + _SLACK
    assert first.written_bytes < BIG + _SLACK
    with Counting() as again:
        assert import_files("15.1", Files(disk=packed), backend="tcg", preparer=linked) == record
    assert again.read_bytes + again.written_bytes < _SLACK


def test_a_changed_file_is_read_again(tmp_path: Path, cache: Path) -> None:
    disk, preparer = make_disk(tmp_path / "disk.raw"), Preparer()
    first = import_files("15.1", Files(disk=disk), backend="tcg", preparer=preparer)
    about = disk.stat()
    disk.write_bytes(disk.read_bytes()[:-1] + b"x")
    # Its time can be set back, but not that of the change.
    os.utime(disk, ns=(about.st_atime_ns, about.st_mtime_ns))
    second = import_files("15.1", Files(disk=disk), backend="tcg", preparer=preparer)
    assert first is not None
    assert second is not None
    assert first.origin_sha256 != second.origin_sha256
    assert len(preparer.seen) == 2


def test_another_archive_is_unpacked(tmp_path: Path, cache: Path) -> None:
    tree = make_source(tmp_path / "tree" / "usr" / "src")
    src = pack(tmp_path / "src.txz", tmp_path / "tree", ".")
    import_files("15.1", Files(src=src))
    (tree / "new").write_text("x")
    pack(src, tmp_path / "tree", ".")
    import_files("15.1", Files(src=src))
    assert (store.source("15.1") / "new").exists()
    # A folder that lost its note is replaced as well.
    home = cache / "images" / "15.1" / "source"
    (home / ".unpacked-from").unlink()
    (store.source("15.1") / "new").unlink()
    import_files("15.1", Files(src=src))
    assert (store.source("15.1") / "new").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"/x": {"identity": "y"}}', '{"/x": 1}'])
def test_notes_that_cannot_be_read_are_made_again(tmp_path: Path, cache: Path, text: str) -> None:
    disk, preparer = make_disk(tmp_path / "disk.raw"), Preparer()
    import_files("15.1", Files(disk=disk), backend="tcg", preparer=preparer)
    (cache / "images" / "15.1" / "readings.json").write_text(text)
    assert import_files("15.1", Files(disk=disk), backend="tcg", preparer=preparer)
    assert len(preparer.seen) == 1
