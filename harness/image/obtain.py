"""Makes a prepared release in the cache, from an imported disk or from FreeBSD's servers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import host
from harness.errors import CannotError, UsageError, WorkbenchError
from harness.files import human_bytes, require_room, sha256_file
from harness.image import disk as disks
from harness.image import fetch, manifest, prepare, store, trees
from harness.image.model import ImageRecord, Imported, Login, Prepared
from harness.image.store import Live, Trees
from harness.machine.models import BOCHS_RUNS, Backend

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
    with store.lock(release), _raw(brought.disk, home, live) as disk:
        # The disk is examined before an archive is unpacked, which takes minutes.
        looked_at = disks.examine(disk) if disk else None
        source = trees.source(brought.src, release, home / "source", live) if brought.src else None
        sysroot = (
            trees.sysroot(brought.sysroot, release, home / "sysroot", live)
            if brought.sysroot
            else None
        )
        store.set_trees(release, Trees(source, sysroot))
        if looked_at is None or brought.disk is None:
            return store.find(release) if store.has_record(release) else None
        if not store.has_record(release):
            # This comes before the digest, which takes minutes for a large disk.
            require_room(home, looked_at.size_bytes, f"preparing {looked_at.path.name}")
        known = manifest.find(release)
        imported = Imported(
            release=release,
            disk=looked_at.path,
            disk_format=looked_at.format,
            disk_bytes=looked_at.size_bytes,
            disk_sha256=_digest(looked_at.path, live),
            origin=brought.origin or str(brought.disk.absolute()),
            login=known.login if known else Login(),
            source=source,
            sysroot=sysroot,
        )
        present = _present(imported)
        if present is not None:
            return present
        run = partial(_prepare, preparer or prepare.prepare, backend=chosen, live=live)
        return store.add(imported, run, prepare.VERSION, live)


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


def fetch_official(
    release: str, *, offline: bool = False, live: Live = lambda _line: None
) -> Files:
    """The release's published files, verified in the cache: image, source, base.

    Raises UsageError for a release without a manifest, fetch.FetchError if a file cannot be
    fetched.
    """
    known = manifest.find(release)
    if known is None:
        raise _unknown(release)
    if known.image_filesystem == "zfs":
        raise UsageError(f"images/freebsd-{release}.toml: image.filesystem: {disks.ZFS_REFUSED}")
    folder = store.folder(release) / "downloads"
    remotes = (known.image, known.source, known.base)
    if not offline and not all((folder / remote.file).exists() for remote in remotes):
        # Check this before the first byte, not when the disk is full an hour later.
        folder.mkdir(parents=True, exist_ok=True)
        require_room(folder, known.room_bytes, f"fetching and preparing FreeBSD {release}")

    def get(remote: manifest.RemoteFile) -> fetch.Fetched:
        def progress(done: int, total: int | None) -> None:
            of = f" of {human_bytes(total)}" if total else ""
            live(f"fetching {remote.file}: {human_bytes(done)}{of}")

        return fetch.fetch(
            remote, fetch.mirrors(known.mirrors), folder, offline=offline, progress=progress
        )

    image, source, base = map(get, remotes)
    return Files(disk=image.path, src=source.path, sysroot=base.path, origin=image.url)


def obtain(
    release: str,
    *,
    backend: str = "auto",
    offline: bool = False,
    live: Live = lambda _line: None,
) -> ImageRecord:
    """The prepared release: the one in the cache, or the official one, fetched and prepared.

    If neither is possible, CannotError's line says what is missing, where it was looked for, why it
    could not be fetched, and the remedy.
    """
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
        brought = fetch_official(release, offline=offline, live=live)
    except WorkbenchError as error:
        own = f"import your own: {store.import_line(release)}"
        raise CannotError(
            f"no FreeBSD {release} to boot: no prepared image in "
            f"{store.folder(release)}, and the "
            "official one cannot be fetched: "
            f"{error.message if own in error.message else f'{error.message}; {own}'}",
            detail=error.detail,
        ) from missing
    made = import_files(release, brought, backend=_for_preparing(backend), live=live)
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
    return preparer(imported, folder, backend, live)


def _digest(path: Path, live: Live) -> str:
    size = max(1, path.stat().st_size)
    return sha256_file(path, lambda done: live(f"digest of {path.name}: {100 * done // size} %"))


def _present(imported: Imported) -> ImageRecord | None:
    """The record, if exactly this disk was already prepared in exactly this way."""
    try:
        record = store.find(imported.release)
    except CannotError:
        return None
    same = (record.origin_sha256, record.prepare_version) == (
        imported.disk_sha256,
        prepare.VERSION,
    )
    return record if same else None


@contextmanager
def _raw(given: Path | None, home: Path, live: Live) -> Iterator[Path | None]:
    """The disk itself; one compressed with xz is unpacked for the duration of the block."""
    if given is None or not disks.is_xz(given):
        yield given
        return
    scratch = home / ".unpacked"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        target = scratch / given.name.removesuffix(".xz")
        disks.decompress(given, target, live)
        yield target
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
