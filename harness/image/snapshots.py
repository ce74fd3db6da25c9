"""The published builds of a snapshot: finds the newest, and fetches all files of one build.

FreeBSD publishes a new build of a branch about every week.  The checksum file beside the newest
image lists it as FreeBSD-16.0-CURRENT-amd64-BASIC-CI-20260720-0123456789ab-287654-ufs.raw.xz, with
the build's date, commit and number of commits; the image itself is there under its name without
these.  The distribution sets have no build in their names.  The files BUILDDATE and REVISION beside
them name their build, and only those of the newest build are published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urljoin

import requests

from harness import release as releases
from harness.image import checksums, fetch
from harness.image.fetch import LIMITS, Fetched, FetchError
from harness.image.manifest import Manifest, RemoteFile
from harness.image.network import Limits
from harness.release import Release

DATE = "BUILDDATE"
COMMIT = "REVISION"
"""The files beside the distribution sets that name their build."""

_DATE = re.compile(r"[0-9]{8}")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_NAMED = re.compile(r"-([0-9]{8}-[0-9a-f]{7,40}-[0-9]{1,9})(?=[-.])")
# How often a mirror's listing is read: it may change while its files are fetched.
_LOOKS = 3


@dataclass(frozen=True)
class Listing:
    """One build as a mirror publishes it: each file with its digest from the listing."""

    release: Release
    image: RemoteFile
    image_urls: tuple[str, ...]
    source: RemoteFile
    base: RemoteFile
    sets: str
    """The address of the folder of source and base."""


@dataclass(frozen=True)
class Files:
    """The files of one build, verified in the cache."""

    release: Release
    image: Fetched
    source: Fetched
    base: Fetched


Reporter = Callable[[str], fetch.Progress]
"""Makes the progress function for a file of that name."""


class Moving(FetchError):
    """A mirror is being updated: its image and its sets are of two builds."""


class OtherBuild(FetchError):
    """A mirror publishes another build than the one asked for."""


def look(manifest: Manifest, mirror: str, limits: Limits = LIMITS) -> Listing:
    """The build that a mirror publishes now.

    Raises FetchError if its listing cannot be read, Moving if image and sets are of two builds.
    """
    image = manifest.image
    folder = urljoin(mirror, image.folder)
    sets = urljoin(mirror, manifest.source.folder)
    with requests.Session() as session:
        sums = fetch.read_text(session, folder + image.checksums, limits)
        found = _newest(sums, manifest)
        if found is None:
            raise FetchError(
                folder + image.checksums,
                f"it lists no build of {' or '.join(image.names)} (a name with DATE-COMMIT-COUNT "
                "in it)",
            )
        release, name, plain, digest = found
        # The sets are of this build only if both marks say so before and after the digests are
        # read: the mirror may be changing at this moment.
        _require_same(session, sets, release, limits)
        text = fetch.read_text(session, sets + manifest.source.checksums, limits)
        _require_same(session, sets, release, limits)
    date = release.build.partition("-")[0]
    beside = urljoin(folder, f"../{date}/")
    return Listing(
        release=release,
        image=replace(image, file=name, also="", pin=digest),
        # The folder of that day still has the build when Latest changes.
        image_urls=(beside + name, folder + name, folder + plain),
        source=_of_set(manifest.source, text, sets),
        base=_of_set(manifest.base, text, sets),
        sets=sets,
    )


def get(
    manifest: Manifest,
    mirrors: Sequence[str],
    folder_of: Callable[[Release], Path],
    *,
    wanted: Release | None = None,
    reporter: Reporter = lambda _name: lambda _done, _total: None,
    limits: Limits = LIMITS,
) -> Files:
    """Fetch image, source and base of one build: the newest, or the build `wanted`.

    The mirrors are tried in turn.  If a file has disappeared or was replaced since the listing was
    read, the listing is read again.  `folder_of` says where the files of a build go.  Raises
    FetchError; OtherBuild if a mirror publishes another build than the wanted one.
    """
    failures: list[FetchError] = []
    for mirror in mirrors:
        try:
            return _from_mirror(manifest, mirror, folder_of, wanted, reporter, limits)
        except FetchError as error:
            failures.append(error)
    last = next((it for it in failures if isinstance(it, OtherBuild)), failures[-1])
    last.detail = "\n".join(it.message for it in failures if it is not last)
    raise last


def means(wanted: Release, found: Release) -> bool:
    """Whether a build is the wanted one, which may be named by its date alone, or not at all."""
    named = not wanted.build or f"{found.build}-".startswith(f"{wanted.build}-")
    return wanted.line == found.line and named


def stored(manifest: Manifest, release: Release, folder: Path) -> Files | None:
    """The files of a build that were fetched before, or None if one is missing."""
    there = {note.path.name: note for note in fetch.notes(folder) if note.path.exists()}
    found = _newest_of(there, manifest)
    image = there[found[1]] if found and found[0] == release else None
    source, base = there.get(manifest.source.file), there.get(manifest.base.file)
    return Files(release, image, source, base) if image and source and base else None


def _from_mirror(
    manifest: Manifest,
    mirror: str,
    folder_of: Callable[[Release], Path],
    wanted: Release | None,
    reporter: Reporter,
    limits: Limits,
) -> Files:
    before: Listing | None = None
    failed: FetchError | None = None
    for _ in range(_LOOKS):
        try:
            listing = look(manifest, mirror, limits)
        except Moving as error:
            # It may have changed while it was read; the second time it is just incomplete.
            if isinstance(failed, Moving):
                raise
            failed, before = error, None
            continue
        if wanted is not None and not means(wanted, listing.release):
            raise OtherBuild(
                urljoin(mirror, manifest.image.folder),
                f"it publishes build {listing.release.build} now, and no longer {wanted.build}; "
                f"use --release {listing.release}",
            )
        if failed is not None and listing == before:
            break
        before = listing
        try:
            return _fetch(listing, folder_of(listing.release), reporter, limits)
        except FetchError as error:
            failed = error
    else:
        raise FetchError(
            listing.sets, f"it published another build {_LOOKS} times while files were fetched"
        ) from failed
    raise failed


def _fetch(listing: Listing, folder: Path, reporter: Reporter, limits: Limits) -> Files:
    def one(remote: RemoteFile, urls: Sequence[str]) -> Fetched:
        return fetch.fetch_listed(
            remote, urls, folder, progress=reporter(remote.file), limits=limits
        )

    # The sets first: they are replaced by the next build, but the image stays in its own folder.
    source = one(listing.source, (listing.sets + listing.source.file,))
    base = one(listing.base, (listing.sets + listing.base.file,))
    return Files(listing.release, one(listing.image, listing.image_urls), source, base)


def _newest(sums: str, manifest: Manifest) -> tuple[Release, str, str, str] | None:
    """The newest build in a checksum file: it, its name, the name without it, and the digest."""
    listed = dict(checksums.digests(sums, manifest.image.algorithm))
    found = _newest_of(listed, manifest)
    return (*found, listed[found[1]]) if found else None


def _newest_of(names: Iterable[str], manifest: Manifest) -> tuple[Release, str, str] | None:
    builds = []
    for name in names:
        for marked in _NAMED.finditer(name):
            plain = name[: marked.start()] + name[marked.end() :]
            release = releases.read(f"{manifest.release}-{marked[1]}")
            if plain in manifest.image.names and release is not None:
                # Of two names the manifest's first one is preferred.
                rank = -manifest.image.names.index(plain)
                builds.append((release.order, rank, release, name, plain))
    if not builds:
        return None
    _order, _rank, release, name, plain = max(builds, key=lambda it: it[:2])
    return release, name, plain


def _require_same(session: requests.Session, sets: str, release: Release, limits: Limits) -> None:
    """Raise FetchError unless the sets are of this build."""
    date, commit, _count = release.build.split("-")
    said = []
    for name, shape in ((DATE, _DATE), (COMMIT, _COMMIT)):
        text = fetch.read_text(session, sets + name, limits).strip()
        if not shape.fullmatch(text):
            raise FetchError(sets + name, f"it does not name a build: {text[:60]!r}")
        said.append(text)
    # The two may be abbreviated to different lengths.
    length = min(len(commit), len(said[1]))
    if said[0] != date or said[1][:length] != commit[:length]:
        raise Moving(
            sets,
            f"its source and base are of build {'-'.join(said)}, but the image is of {date}-"
            f"{commit}: the mirror is being updated; try again in some hours, or another mirror "
            "(HARNESS_MIRROR)",
        )


def _of_set(remote: RemoteFile, manifest_text: str, sets: str) -> RemoteFile:
    try:
        digest = fetch.published_digest(manifest_text, remote.file, remote)
    except ValueError as error:
        raise FetchError(sets + remote.checksums, str(error)) from error
    if digest is None:
        raise FetchError(sets + remote.checksums, f"it has no digest for {remote.file}")
    return replace(remote, pin=digest)
