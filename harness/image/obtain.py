"""Makes a prepared release in the cache, from an imported disk or from FreeBSD's servers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import host, source_tree
from harness import release as releases
from harness import sysroot as sysroots
from harness.errors import CannotError, UsageError, WorkbenchError
from harness.files import human_bytes, require_room
from harness.image import disk as disks
from harness.image import fetch, manifest, prepare, snapshots, store, trees
from harness.image.model import ImageRecord, Imported, Login, Prepared
from harness.image.readings import Readings
from harness.image.store import Live, Trees
from harness.machine.models import BOCHS_RUNS, Backend
from harness.release import Release

# A kernel's own version, as newvers.sh writes it: main-n287654-0123456789ab.
_KERNEL = re.compile(r"-n[0-9]+-([0-9a-f]{7,40})\b")

Preparer = Callable[[Imported, Path, Backend, Live], Prepared]


@dataclass(frozen=True)
class Files:
    """The files to import for a release.  `origin` says where the disk came from, if not its
    path.
    """

    disk: Path | None = None
    src: Path | None = None
    sysroot: Path | None = None
    origin: str = ""


def import_files(
    release: str,
    brought: Files,
    *,
    backend: str = "auto",
    live: Live = lambda _line: None,
    preparer: Preparer | None = None,
) -> ImageRecord | None:
    """Import files, and prepare the disk unless exactly this disk was prepared before.

    Everything is checked before anything is changed.  Returns the record, or None while the release
    has trees but no disk.  Tests replace the first boot by `preparer`.  Raises UsageError for wrong
    files, CannotError and GuestError from the preparation.
    """
    manifest.check_release(release)
    if brought.disk is None and brought.src is None and brought.sysroot is None:
        raise UsageError(f"nothing to import; run {store.import_line(release)}")
    chosen = _preparing_backend(backend) if brought.disk else Backend("tcg")
    home = store.folder(release)
    with store.lock(release):
        readings = Readings(home)
        done = _done_before(release, brought.disk, readings)
        with _raw(None if done else brought.disk, home, readings, live) as disk:
            # The disk is examined before an archive is unpacked, which takes minutes.
            looked_at = disks.examine(disk) if disk else None

            def digest(archive: Path) -> str:
                return readings.digest(archive, live)

            source, sysroot = (
                unpack(given, release, home / name, live, digest) if given else None
                for unpack, given, name in (
                    (trees.source, brought.src, "source"),
                    (trees.sysroot, brought.sysroot, "sysroot"),
                )
            )
            _require_one_build(release, source, sysroot)
            store.set_trees(release, Trees(source, sysroot))
            if looked_at is None or brought.disk is None:
                return store.find(release) if store.has_record(release) else None
            if not store.has_record(release):
                # This comes before the digest, which takes seconds for a large disk.
                require_room(home, looked_at.size_bytes, f"preparing {looked_at.path.name}")
            known = manifest.find(release)
            imported = Imported(
                release=release,
                disk=looked_at.path,
                disk_format=looked_at.format,
                disk_bytes=looked_at.size_bytes,
                disk_sha256=readings.plain(brought.disk) or readings.digest(looked_at.path, live),
                origin=brought.origin or str(brought.disk.absolute()),
                login=known.login if known else Login(),
                source=source,
                sysroot=sysroot,
            )
            if _present(release, imported.disk_sha256) is not None:
                return store.find(release)
            run = partial(_prepare, preparer or prepare.prepare, backend=chosen, live=live)
            return store.add(imported, run, prepare.VERSION, live)


def _done_before(release: str, disk: Path | None, readings: Readings) -> bool:
    """Whether exactly this disk was prepared before, without reading it for that."""
    if disk is None or not store.has_record(release):
        return False
    try:
        plain = readings.plain(disk) or readings.known(disk)
    except OSError:
        return False  # the disk's examination says why
    return bool(plain) and _present(release, plain) is not None


def require_known(release: str) -> None:
    """Raise UsageError, with the remedy, for a release that can neither be fetched nor booted.

    A release with a manifest can be fetched; an imported one can be booted.
    """
    manifest.check_release(release)
    if manifest.find(release) is None and not store.has_record(release):
        raise _unknown(release)


def _unknown(release: str) -> UsageError:
    return UsageError(
        f"--release {release}: there is no manifest for it (only for "
        f"{', '.join(manifest.available())}) and nothing was imported; import your own: "
        f"{store.import_line(release)}"
    )


@dataclass(frozen=True)
class Official:
    """The published files of a release, verified in the cache.

    `release` is the build's own name if it is a snapshot.
    """

    release: str
    files: Files


def fetch_official(
    release: str,
    *,
    offline: bool = False,
    newest: bool = False,
    live: Live = lambda _line: None,
) -> Official:
    """The release's published files, verified in the cache: image, source, base.

    Of a snapshot the newest build in the cache is used, or the named one; it is fetched if there is
    none, or if the `newest` published one is asked for.  Raises UsageError for a release without a
    manifest, fetch.FetchError if a file cannot be fetched.
    """
    known = manifest.find(release)
    if known is None:
        raise _unknown(release)
    if known.image_filesystem == "zfs":
        raise UsageError(
            f"images/freebsd-{known.release}.toml: image.filesystem: {disks.ZFS_REFUSED}"
        )

    def reporter(name: str) -> fetch.Progress:
        def progress(done: int, total: int | None) -> None:
            of = f" of {human_bytes(total)}" if total else ""
            live(f"fetching {name}: {human_bytes(done)}{of}")

        return progress

    if known.is_snapshot:
        return _fetch_build(known, release, offline, newest, reporter)
    folder = _downloads(release)
    remotes = (known.image, known.source, known.base)
    if not offline and not all((folder / remote.file).exists() for remote in remotes):
        _require_room(known, folder)

    def get(remote: manifest.RemoteFile) -> fetch.Fetched:
        return fetch.fetch(
            remote,
            fetch.mirrors(known.mirrors),
            folder,
            offline=offline,
            progress=reporter(remote.file),
        )

    return _official(release, *map(get, remotes))


def _fetch_build(
    known: manifest.Manifest,
    asked: str,
    offline: bool,
    newest: bool,
    reporter: snapshots.Reporter,
) -> Official:
    """The files of one build of a snapshot."""
    wanted = releases.parse(asked)
    if newest and wanted.build:
        raise UsageError(
            f"--release {asked}: --refresh takes the newest build; leave out the build's name"
        )
    if not newest and (here := _build_here(known, wanted)) is not None:
        return _official(str(here.release), here.image, here.source, here.base)
    mirrors = fetch.mirrors(known.mirrors)
    if offline:
        raise fetch.FetchError(
            mirrors[0] + known.image.folder,
            f"--offline was given and no build of {asked} is complete in the cache",
        )

    def folder_of(release: Release) -> Path:
        folder = _downloads(str(release))
        if snapshots.stored(known, release, folder) is None:
            _require_room(known, folder)
        return folder

    found = snapshots.get(
        known, mirrors, folder_of, wanted=wanted if wanted.build else None, reporter=reporter
    )
    return _official(str(found.release), found.image, found.source, found.base)


def _build_here(known: manifest.Manifest, wanted: Release) -> snapshots.Files | None:
    """The newest build that was fetched completely before, and that `wanted` means."""
    names = [it for name in store.cached() if (it := releases.read(name)) and it.build]
    for release in sorted(names, reverse=True):
        if snapshots.means(wanted, release):
            found = snapshots.stored(known, release, _downloads(str(release)))
            if found is not None:
                return found
    return None


def _downloads(release: str) -> Path:
    return store.folder(release) / "downloads"


def _require_room(known: manifest.Manifest, folder: Path) -> None:
    """Check this before the first byte, not when the disk is full an hour later."""
    folder.mkdir(parents=True, exist_ok=True)
    require_room(folder, known.room_bytes, f"fetching and preparing FreeBSD {known.release}")


def _official(
    release: str, image: fetch.Fetched, source: fetch.Fetched, base: fetch.Fetched
) -> Official:
    readings = Readings(store.folder(release))
    for fetched in (image, source, base):
        # It was computed to verify the file; unpacking asks for it again.
        if fetched.algorithm == "sha256" and readings.known(fetched.path) != fetched.digest:
            readings.learn(fetched.path, fetched.digest)
    return Official(
        release, Files(disk=image.path, src=source.path, sysroot=base.path, origin=image.url)
    )


def obtain(
    release: str,
    *,
    backend: str = "auto",
    offline: bool = False,
    live: Live = lambda _line: None,
) -> ImageRecord:
    """The prepared release: the one in the cache, or the official one, fetched and prepared.

    The name of a snapshot means its newest build in the cache.  If neither is possible,
    CannotError's line says what is missing, where it was looked for, why it could not be fetched,
    and the remedy.
    """
    asked, release = release, store.resolve(release)
    missing: CannotError | None = None
    try:
        record = store.find(release)
    except CannotError as error:
        if store.has_record(release):
            raise  # there is a record, but something is wrong with it
        missing = error
    else:
        if record.prepare_version == prepare.VERSION:
            store.require_untouched(record, live)
            return record
        if "://" not in record.origin:
            raise CannotError(
                f"FreeBSD {release} was prepared by another version of the workbench; import it "
                f"again: ./inv image.import --release {release} --disk {record.origin}"
            )
    try:
        try:
            brought = fetch_official(release, offline=offline, live=live)
        except snapshots.OtherBuild:
            if releases.parse(asked).build:
                raise
            # No build was named, and the one that must be prepared again is not published now.
            brought = fetch_official(asked, newest=True, live=live)
    except WorkbenchError as error:
        own = f"import your own: {store.import_line(release)}"
        raise CannotError(
            f"no FreeBSD {release} to boot: no prepared image in "
            f"{store.folder(release)}, and the "
            "official one cannot be fetched: "
            f"{error.message if own in error.message else f'{error.message}; {own}'}",
            detail=error.detail,
        ) from missing
    made = import_files(brought.release, brought.files, backend=_for_preparing(backend), live=live)
    assert made is not None
    return made


def _for_preparing(backend: str) -> str:
    """The backend that prepares; Bochs only runs images, so TCG prepares them for it."""
    return "auto" if backend in BOCHS_RUNS else backend


def _preparing_backend(asked: str) -> Backend:
    """kvm if it works, otherwise tcg; a backend that was named is not replaced."""
    if asked == "tcg":
        return Backend("tcg")
    if asked in BOCHS_RUNS:
        raise UsageError(
            f"--backend {asked}: images are prepared under kvm or tcg; name one of these"
        )
    decision = host.decide(host.gather(), "kvm")
    if asked == "kvm":
        return decision.require()
    return decision.backend or Backend("tcg")


def _prepare(
    preparer: Preparer, imported: Imported, folder: Path, *, backend: Backend, live: Live
) -> Prepared:
    made = preparer(imported, folder, backend, live)
    _require_kernel(imported, made)
    return made


def _require_one_build(release: str, source: Path | None, sysroot: Path | None) -> None:
    """Raise UsageError if source and sysroot of a build of a snapshot are of two versions.

    Main's version is raised for each change that matters to modules.
    """
    if not source or not sysroot or not releases.parse(release).build:
        return
    found = source_tree.read(source).osversion, sysroots.osversion(sysroot)
    if found[0] != found[1]:
        raise UsageError(
            f"{source}: it is FreeBSD {found[0]}, but {sysroot} is {found[1]}: they are of two "
            "builds; import both of one build"
        )


def _require_kernel(imported: Imported, made: Prepared) -> None:
    """Raise CannotError if the kernel that booted says that it is of another build."""
    build = releases.parse(imported.release).build
    said = _KERNEL.search(made.uname)
    if "-" not in build or said is None:
        return
    commit = build.split("-")[1]
    length = min(len(commit), len(said[1]))
    if commit[:length] != said[1][:length]:
        raise CannotError(
            f"{imported.disk.name}: its kernel is of commit {said[1]}, but it was published as "
            f"build {build}; fetch again: ./inv image.fetch --release {imported.release}"
        )
    found = source_tree.read(imported.source).osversion if imported.source else made.osversion
    if found != made.osversion:
        raise CannotError(
            f"{imported.source}: it is FreeBSD {found}, but the image's kernel is "
            f"{made.osversion}: they are of two builds; import both of one build"
        )


def _present(release: str, disk_sha256: str) -> ImageRecord | None:
    """The record, if exactly this disk was already prepared in exactly this way."""
    try:
        record = store.find(release)
    except CannotError:
        return None
    same = (record.origin_sha256, record.prepare_version) == (disk_sha256, prepare.VERSION)
    return record if same else None


@contextmanager
def _raw(given: Path | None, home: Path, readings: Readings, live: Live) -> Iterator[Path | None]:
    """The disk itself; one compressed with xz is unpacked for the duration of the block."""
    if given is None or not disks.is_xz(given):
        yield given
        return
    scratch = home / ".unpacked"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        target = scratch / given.name.removesuffix(".xz")
        readings.learn_plain(given, disks.decompress(given, target, live))
        yield target
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
