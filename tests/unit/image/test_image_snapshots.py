"""A snapshot's builds, from a server on loopback that moves on to the next week."""

from __future__ import annotations

import hashlib
import lzma
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import badserver
import pytest
from badserver import BadServer, Handler
from brought import Preparer, make_disk, make_source, make_sysroot, pack

from harness import progress
from harness.cli import image_commands
from harness.errors import CannotError, UsageError
from harness.image import check, fetch, manifest, obtain, prepare, prune, snapshots, store
from harness.image.fetch import FetchError
from harness.image.model import Imported, Prepared
from harness.machine import Backend
from harness.run.options import Options
from harness.run.session import Session

LINE = "16.0-CURRENT"
KNOWN = manifest.find(LINE) or pytest.fail("there is no manifest")
SETS = f"/{KNOWN.source.folder}"
LATEST = f"/{KNOWN.image.folder}"
ARM = "FreeBSD-16.0-CURRENT-arm64-BASIC-CI-20260720-abcdef0-1-ufs.raw.xz"
NEWVERS = 'TYPE="FreeBSD"\nREVISION="16.0"\nBRANCH="CURRENT"\n'


@dataclass
class Week:
    """One build: its mark, and the contents of its files."""

    mark: str
    osversion: int = 1600004
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{LINE}-{self.mark}"

    def image(self, form: str = "FreeBSD-16.0-CURRENT-amd64-BASIC-CI-{}-ufs.raw.xz") -> str:
        return form.format(self.mark)

    def make(self, top: Path) -> Week:
        top.mkdir()
        source, sysroot = make_source(top / "s", "16.0"), make_sysroot(top / "r")
        (source / "sys/conf/newvers.sh").write_text(f"# {self.mark}\n{NEWVERS}")
        for header in (source / "sys/sys/param.h", sysroot / "usr/include/sys/param.h"):
            header.write_text(f"#define __FreeBSD_version {self.osversion}\n")
        self.files = {
            "image": lzma.compress(make_disk(top / "d", self.mark.encode()).read_bytes()),
            "src.txz": pack(top / "src.txz", source, "usr/src").read_bytes(),
            "base.txz": pack(top / "base.txz", sysroot, ".").read_bytes(),
        }
        return self


class Mirror:
    """FreeBSD's server: it publishes one build at a time, and the images of earlier days too."""

    def __init__(self, server: BadServer) -> None:
        self.server = server

    @property
    def files(self) -> dict[str, bytes]:
        return self.server.files

    def publish(self, week: Week, name: str = "") -> None:
        self.publish_image(week, name)
        self.publish_sets(week)

    def publish_image(self, week: Week, name: str = "") -> None:
        image = name or week.image()
        date = week.mark.partition("-")[0]
        content = week.files["image"]
        digest = hashlib.sha512(content).hexdigest()
        self.files[LATEST + KNOWN.image.file] = content
        self.files[LATEST.replace("Latest", date) + image] = content
        zfs = image.replace("ufs", "zfs").replace("BASIC", "OTHER")
        sums = f"SHA512 ({zfs}) = {'0' * 128}\nSHA512 ({image}) = {digest}\n"
        self.files[LATEST + KNOWN.image.checksums] = sums.encode()

    def publish_sets(self, week: Week) -> None:
        date, commit, _count = week.mark.split("-")
        self.files[SETS + "BUILDDATE"] = f"{date}\n".encode()
        self.files[SETS + "REVISION"] = f"{commit}\n".encode()
        lines = []
        for name in ("src.txz", "base.txz"):
            self.files[SETS + name] = week.files[name]
            lines.append(f'{name}\t{hashlib.sha256(week.files[name]).hexdigest()}\t1\tx\t"x"\ton\n')
        self.files[SETS + "MANIFEST"] = "".join(lines).encode()

    def once(self, path: str, then: Callable[[], None]) -> None:
        """Call `then` when a path is asked for the first time, before the answer."""

        def trick(request: Handler) -> None:
            del self.server.tricks[path]
            then()
            if path in self.files:
                request.honest()
            else:
                request.send_error(404)

        self.server.tricks[path] = trick


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    bad, http = badserver.start()
    monkeypatch.setenv("HARNESS_MIRROR", bad.address)
    monkeypatch.setattr(prepare, "prepare", Preparer16())
    yield Mirror(bad)
    bad.over.set()
    http.shutdown()
    http.server_close()


class Preparer16(Preparer):
    """The first boot of a build: its kernel says which it is."""

    def __init__(self, commit: str = "", osversion: int = 1600004) -> None:
        super().__init__()
        self.commit = commit
        self.osversion = osversion

    def __call__(
        self, imported: Imported, folder: Path, backend: Backend, live: store.Live
    ) -> Prepared:
        made = super().__call__(imported, folder, backend, live)
        commit = self.commit or imported.release.split("-")[3]
        return replace(
            made,
            osversion=self.osversion,
            uname=f"FreeBSD freebsd {LINE} FreeBSD {LINE} #0 main-n287654-{commit}: Mon Jul 20",
        )


@pytest.fixture
def first(tmp_path: Path) -> Week:
    return Week("20260720-abcdef012345-287654").make(tmp_path / "first")


@pytest.fixture
def second(tmp_path: Path) -> Week:
    return Week("20260727-0fedcba98765-287801").make(tmp_path / "second")


def fetch_it(release: str = LINE, *, refresh: bool = False, offline: bool = False) -> str:
    """`image.fetch`; returns the build that the snapshot's name means afterwards."""
    assert image_commands.fetch_release(release, "tcg", offline, False, refresh) == 0
    return store.resolve(LINE)


def refused(release: str = LINE, *, refresh: bool = False, offline: bool = False) -> str:
    """The one line with which `image.fetch` fails."""
    with pytest.raises(CannotError) as caught:
        image_commands.fetch_release(release, "tcg", offline, False, refresh)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_one_build_all_the_way(mirror: Mirror, first: Week) -> None:
    mirror.publish(first)
    assert fetch_it() == first.name
    record = store.find(first.name)
    assert record.release == first.name
    assert record.origin.endswith(f"/20260720/{first.image()}")
    assert record.system == f"FreeBSD {LINE}, build {first.mark}"
    assert record.source is not None
    assert first.mark in (record.source / "sys/conf/newvers.sh").read_text()
    # Nothing more is asked, neither by the build's name, its day nor the snapshot's own name.
    asked = len(mirror.server.asked)
    for name in (LINE, f"{LINE}-20260720", first.name):
        assert obtain.obtain(name, backend="tcg") == record
        assert fetch_it(name) == first.name
    assert len(mirror.server.asked) == asked
    # The key of the stand-in for a preparation is none.
    found = {it.what: it.ok for it in check.release(first.name) if it.what != "private key"}
    assert len(found) == 6
    assert all(found.values())


@pytest.mark.parametrize(
    "form",
    [
        "FreeBSD-16.0-CURRENT-amd64-{}-BASIC-CI-ufs.raw.xz",
        "FreeBSD-16.0-CURRENT-amd64-BASIC-CI-ufs-{}.raw.xz",
        "FreeBSD-16.0-CURRENT-amd64-BASIC-CI-{}.raw.xz",
    ],
)
def test_the_build_may_stand_anywhere_in_the_name(mirror: Mirror, first: Week, form: str) -> None:
    mirror.publish(first, first.image(form))
    assert fetch_it() == first.name


def test_the_next_week_is_no_alarm(mirror: Mirror, first: Week, second: Week) -> None:
    mirror.publish(first)
    fetch_it()
    mirror.publish(second)
    # What is here is used until a newer one is asked for.
    assert fetch_it() == first.name
    assert fetch_it(refresh=True) == second.name
    assert {it.release for it in store.prepared()} == {first.name, second.name}
    assert obtain.obtain(LINE, backend="tcg").release == second.name
    assert obtain.obtain(f"{LINE}-20260720", backend="tcg").release == first.name
    # Each build has its own pins.
    for week in (first, second):
        notes = fetch.notes(store.folder(week.name) / "downloads")
        assert {it.digest for it in notes} == {
            hashlib.sha512(week.files["image"]).hexdigest(),
            hashlib.sha256(week.files["src.txz"]).hexdigest(),
            hashlib.sha256(week.files["base.txz"]).hexdigest(),
        }
    # A second time there is nothing newer, and nothing is prepared again.
    prepared = store.find(second.name).prepared_at
    assert fetch_it(refresh=True) == second.name
    assert store.find(second.name).prepared_at == prepared


def test_the_list_shows_each_build(
    mirror: Mirror, first: Week, second: Week, monkeypatch: pytest.MonkeyPatch
) -> None:
    for week in (first, second):
        mirror.publish(week)
        fetch_it(refresh=True)
    shown: list[list[dict[str, str]]] = []
    monkeypatch.setattr(progress, "print_json", shown.append)
    image_commands.show_list(True)
    rows = {row["release"]: row for row in shown[0]}
    assert rows[first.name]["prepared"] == store.find(first.name).prepared_at
    assert rows[second.name]["source"] == "yes"
    assert rows[LINE]["official"] == "the newest build"
    assert rows[LINE]["disk"] == rows[second.name]["disk"]


@pytest.mark.parametrize("lost", ["src.txz", "base.txz", "image"])
def test_a_file_that_disappears_is_fetched_from_the_new_listing(
    mirror: Mirror, first: Week, second: Week, lost: str
) -> None:
    mirror.publish(first)
    image = LATEST.replace("Latest", "20260720") + first.image()

    def move_on() -> None:
        del mirror.files[image]
        mirror.publish(second)

    mirror.once(image if lost == "image" else SETS + lost, move_on)
    assert fetch_it() == second.name
    assert {it.release for it in store.prepared()} == {second.name}
    # The files of the first build cannot be used, nor can its pins.
    assert prune.release(first.name) > 0
    assert not store.folder(first.name).exists()
    assert store.find(second.name).release == second.name


@pytest.mark.parametrize("path", ["BUILDDATE", "REVISION", "MANIFEST"])
def test_a_mirror_that_moves_on_while_it_is_read(
    mirror: Mirror, first: Week, second: Week, path: str
) -> None:
    mirror.publish(first)
    mirror.once(SETS + path, lambda: mirror.publish(second))
    assert fetch_it() == second.name
    assert store.cached() == [second.name]


@pytest.mark.parametrize("path", ["BUILDDATE", "REVISION", "MANIFEST"])
def test_a_mirror_that_is_half_updated(
    mirror: Mirror, first: Week, second: Week, path: str
) -> None:
    """The image is of the first week and the sets are of the second: neither is fetched."""
    mirror.publish(first)
    mirror.once(SETS + path, lambda: mirror.publish_sets(second))
    message = refused()
    assert "its source and base are of build 20260727-0fedcba98765" in message
    assert "the image is of 20260720-abcdef012345: the mirror is being updated" in message
    assert store.cached() == []


def test_a_file_that_is_not_there_at_all(mirror: Mirror, first: Week) -> None:
    mirror.publish(first)
    del mirror.files[SETS + "src.txz"]
    message = refused()
    assert "src.txz: HTTP 404" in message
    assert f"bring your own: ./inv image.import --release {LINE} --disk" in message


def test_a_file_that_is_not_what_the_listing_says(mirror: Mirror, first: Week) -> None:
    mirror.publish(first)
    mirror.files[SETS + "base.txz"] = b"of another week"
    assert "checksum differs: MANIFEST says" in refused()


def test_a_mirror_that_never_stands_still(mirror: Mirror, tmp_path: Path) -> None:
    weeks = [
        Week(f"2026072{day}-abcdef01234{day}-28765{day}").make(tmp_path / str(day))
        for day in range(6)
    ]

    def move_on() -> None:
        mirror.publish(weeks.pop(0))
        del mirror.files[SETS + "src.txz"]
        mirror.once(SETS + "src.txz", move_on)

    move_on()
    assert "it published another build 3 times while files were fetched" in refused()


def test_no_source_and_base_beside_it(mirror: Mirror, first: Week) -> None:
    mirror.publish_image(first)
    message = refused()
    assert "/snapshots/amd64/16.0-CURRENT/BUILDDATE: HTTP 404" in message
    assert "bring your own: ./inv image.import" in message


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ("\n", "it lists no build of FreeBSD-16.0-CURRENT-amd64-BASIC-CI-ufs.raw.xz or "),
        (f"SHA512 ({KNOWN.image.file}) = {'0' * 128}\n", "it lists no build of"),
        (f"SHA512 ({ARM}) = {'0' * 128}\n", "it lists no build of"),
    ],
)
def test_a_listing_without_a_build(mirror: Mirror, first: Week, sums: str, message: str) -> None:
    mirror.publish(first)
    mirror.files[LATEST + KNOWN.image.checksums] = sums.encode()
    assert message in refused()


def test_a_mark_that_names_no_build(mirror: Mirror, first: Week) -> None:
    mirror.publish(first)
    mirror.files[SETS + "REVISION"] = b"<html>gone</html>"
    assert "REVISION: it does not name a build: '<html>gone</html>'" in refused()


def test_a_build_that_is_not_published_any_more(mirror: Mirror, first: Week, second: Week) -> None:
    mirror.publish(second)
    for name in (first.name, f"{LINE}-20260720"):
        message = refused(name)
        assert f"it publishes build {second.mark} now, and no longer" in message
        assert f"use --release {second.name}" in message
    assert fetch_it(second.name) == second.name


def test_the_newest_of_several_in_one_listing(mirror: Mirror, first: Week, second: Week) -> None:
    mirror.publish(first)
    older = mirror.files[LATEST + KNOWN.image.checksums]
    mirror.publish(second)
    mirror.files[LATEST + KNOWN.image.checksums] += older
    assert fetch_it() == second.name


def test_a_second_mirror_is_asked(
    mirror: Mirror, first: Week, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.publish(first)
    address = mirror.server.address
    monkeypatch.setattr(fetch, "mirrors", lambda _known: (f"{address}absent/", address))
    assert fetch_it() == first.name


def test_offline(mirror: Mirror, first: Week) -> None:
    mirror.publish(first)
    assert "no build of 16.0-CURRENT is complete in the cache" in refused(offline=True)
    assert image_commands.fetch_release(LINE, "tcg", False, True) == 0
    mirror.files.clear()
    assert fetch_it(offline=True) == first.name
    with pytest.raises(UsageError, match="--refresh looks for a newer build"):
        fetch_it(refresh=True, offline=True)


def test_a_kernel_of_another_build(
    mirror: Mirror, first: Week, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.publish(first)
    monkeypatch.setattr(prepare, "prepare", Preparer16("0123456789ab"))
    with pytest.raises(CannotError, match=r"its kernel is of commit 0123456789ab, but it was"):
        fetch_it()
    monkeypatch.setattr(prepare, "prepare", Preparer16(osversion=1600005))
    with pytest.raises(CannotError, match="but the image's kernel is 1600005"):
        fetch_it()
    assert store.prepared() == []
    # newvers.sh may abbreviate the commit less or more than the name of the image.
    monkeypatch.setattr(prepare, "prepare", Preparer16("abcdef0123456789"))
    assert fetch_it() == first.name


def test_source_and_base_of_two_versions(mirror: Mirror, first: Week, tmp_path: Path) -> None:
    other = Week(first.mark, osversion=1600005).make(tmp_path / "other")
    first.files["base.txz"] = other.files["base.txz"]
    mirror.publish(first)
    with pytest.raises(UsageError, match=r"it is FreeBSD 1600004, but .* is 1600005: they are of"):
        fetch_it()


def test_what_a_name_means(mirror: Mirror, first: Week, second: Week, tmp_path: Path) -> None:
    assert store.resolve(LINE) == LINE
    assert store.resolve("15.1") == "15.1"
    for week in (first, second):
        mirror.publish(week)
        fetch_it(refresh=True)
    # A run uses the same build from its beginning to its end.
    session = Session(Options(release=LINE, backend="tcg"), tmp_path / "run")
    assert session.options.release == second.name
    assert (
        Session(Options(release=f"{LINE}-20260720"), tmp_path / "r").options.release == first.name
    )
    with pytest.raises(UsageError, match=re.escape(f"./inv image.rm --release {second.name}")):
        image_commands.remove(LINE)
    image_commands.remove(second.name)
    assert store.resolve(LINE) == first.name
    # What was imported by hand under exactly this name comes first.
    source = make_source(tmp_path / "own", "16.0")
    obtain.import_files(LINE, obtain.Files(src=source))
    assert store.resolve(LINE) == LINE


def test_two_builds_of_one_day(mirror: Mirror, first: Week, tmp_path: Path) -> None:
    later = Week("20260720-bbbbbb012345-287660").make(tmp_path / "later")
    for week in (first, later):
        mirror.publish(week)
        fetch_it(refresh=True)
    assert store.resolve(LINE) == later.name
    with pytest.raises(
        UsageError, match=f"several builds of that day; use {first.name}, {later.name}"
    ):
        store.resolve(f"{LINE}-20260720")


def test_a_build_that_was_prepared_by_another_version(
    mirror: Mirror, first: Week, second: Week, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.publish(first)
    fetch_it()
    monkeypatch.setattr(prepare, "VERSION", prepare.VERSION + 1)
    # Its files are still here.
    assert obtain.obtain(LINE, backend="tcg").release == first.name
    monkeypatch.setattr(prepare, "VERSION", prepare.VERSION + 1)
    prune.release(first.name)
    mirror.publish(second)
    with pytest.raises(CannotError, match="and no longer 20260720"):
        obtain.obtain(first.name, backend="tcg")
    assert obtain.obtain(LINE, backend="tcg").release == second.name


def test_a_release_is_not_refreshed(mirror: Mirror) -> None:
    with pytest.raises(UsageError, match=r"FreeBSD 15\.1 does not change; it is for snapshots"):
        fetch_it("15.1", refresh=True)
    with pytest.raises(UsageError, match="--refresh takes the newest build; leave out"):
        fetch_it(f"{LINE}-20260720", refresh=True)
    assert "15.1" in manifest.published_releases()
    assert LINE not in manifest.published_releases()
    assert manifest.find("15.1-RELEASE-20260720-abcdef0-1") is None


def test_looking_alone_fetches_nothing(mirror: Mirror, first: Week) -> None:
    mirror.publish(first)
    listing = snapshots.look(KNOWN, mirror.server.address)
    assert str(listing.release) == first.name
    assert listing.source.pin == hashlib.sha256(first.files["src.txz"]).hexdigest()
    assert store.cached() == []
    mirror.files[SETS + "MANIFEST"] = b"kernel.txz\t" + b"0" * 64 + b"\t1\n"
    with pytest.raises(FetchError, match=r"MANIFEST: it has no digest for src\.txz"):
        snapshots.look(KNOWN, mirror.server.address)
