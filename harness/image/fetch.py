"""Fetches published files: resumes interrupted downloads, verifies them, stores only complete ones.

The mirror's checksum file determines the digest; it is recorded at the first fetch, and a different
one later is an alarm, not an update.  No step waits longer than its limit, so that a machine
without a network gets an error within seconds.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import requests

from harness import checked
from harness.errors import CannotError, UsageError
from harness.files import human_bytes, locked, require_room, sync, write_atomic
from harness.image import checksums, network
from harness.image.manifest import RemoteFile
from harness.image.network import Broken, Limits, NothingMore, patiently
from harness.limits import LEAST_FREE_BYTES

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the total, which is None if it is not known."""

LIMITS = Limits()
_CHECKSUM_LIMIT_BYTES = 4 << 20
_MOST_BREAKS = 3
_MOST_BYTES = 16 << 30
_LOOK_BYTES = 64 << 20


class FetchError(CannotError):
    """A file could not be fetched; `url` is the last address tried, `reason` why that failed."""

    def __init__(self, url: str, reason: str, *, detail: str = "") -> None:
        super().__init__(f"cannot fetch {url}: {reason}", detail=detail)
        self.url = url
        self.reason = reason


class DigestChanged(FetchError):
    """A mirror publishes a digest that is not the pinned one; other mirrors are not tried then.

    `detail` has both digests with their times, and the remedy.
    """


@dataclass(frozen=True)
class Fetched:
    """A verified file in the cache, the address it came from and its digest in hex.

    `at` is the time of the fetch: UTC, ISO 8601, empty if it was not recorded.
    """

    path: Path
    url: str
    digest: str
    at: str = ""

    @property
    def algorithm(self) -> str:
        """The digest's algorithm by hashlib's name; its length determines it."""
        return "sha256" if len(self.digest) == 64 else "sha512"


@dataclass(frozen=True)
class _Note:
    url: checked.Url
    digest: checked.Digest
    at: checked.Line = ""


def mirrors(manifest_mirrors: Sequence[str]) -> tuple[str, ...]:
    """Only $HARNESS_MIRROR if it is set, otherwise the manifest's mirrors.

    The mirror must have FreeBSD's own layout.  Raises UsageError if it is not an http address.
    """
    own = os.environ.get("HARNESS_MIRROR", "")
    if not own:
        return tuple(manifest_mirrors)
    if not re.fullmatch(r"https?://[^\s/]+(?:/\S*)?", own):
        raise UsageError(f"HARNESS_MIRROR={own}: must be an http:// or https:// address")
    return (own.rstrip("/") + "/",)


def fetch(
    remote: RemoteFile,
    mirrors: Sequence[str],
    folder: Path,
    *,
    offline: bool = False,
    progress: Progress = lambda _done, _total: None,
    limits: Limits = LIMITS,
) -> Fetched:
    """The verified file in `folder`, fetched unless it is already there.

    The mirrors are tried in turn.  The part before an interruption stays as `FILE.partial` and is
    continued, also by a later run; a second run at the same time waits for the first.  Raises
    FetchError, whose line names the address and the reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / remote.file
    with locked(folder / f"{remote.file}.lock", f"fetching {remote.file}"):
        noted = pin_of(target)
        if noted is not None and target.exists():
            if remote.pin not in ("", noted.digest):
                raise FetchError(
                    noted.url,
                    f"the file in the cache is not the one that the manifest pins "
                    f"({noted.digest[:16]}…, not {remote.pin[:16]}…); remove {target}",
                )
            return noted
        if offline:
            url = urljoin(mirrors[0], remote.folder + remote.file)
            raise FetchError(url, "--offline was given and it is not in the cache")
        failures: list[FetchError] = []
        for mirror in mirrors:
            try:
                return _from_mirror(remote, mirror, target, noted, progress, limits)
            except DigestChanged:
                raise
            except FetchError as error:
                failures.append(error)
        last = failures[-1]
        others = "\n".join(error.message for error in failures[:-1])
        raise FetchError(last.url, last.reason, detail=others)


def notes(folder: Path) -> list[Fetched]:
    """The records of all files that were ever fetched into `folder`."""
    targets = (note.with_suffix("") for note in sorted(folder.glob("*.json")))
    return [found for target in targets if (found := pin_of(target)) is not None]


def pin_of(target: Path) -> Fetched | None:
    """The record of the first fetch of `target`, or None; the record stays if the file is
    removed.
    """
    try:
        note = checked.decode(_Note, _note(target).read_bytes())
        return Fetched(target, note.url, note.digest, note.at)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CannotError(f"{_note(target)}: cannot be read ({error}); remove it") from error


def _note(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _from_mirror(
    remote: RemoteFile,
    mirror: str,
    target: Path,
    noted: Fetched | None,
    progress: Progress,
    limits: Limits,
) -> Fetched:
    base = urljoin(mirror, remote.folder)
    with requests.Session() as session:
        text = read_text(session, base + remote.checksums, limits)
    try:
        found = next(
            ((name, it) for name in remote.names if (it := published_digest(text, name, remote))),
            None,
        )
    except ValueError as error:
        raise FetchError(base + remote.checksums, str(error)) from error
    if found is None:
        raise FetchError(
            base + remote.checksums, f"it has no digest for {' or '.join(remote.names)}"
        )
    url, published = base + found[0], found[1]
    _compare(remote, url, target, published, noted)
    return _verified(url, target, published, remote, progress, limits)


def fetch_listed(
    remote: RemoteFile,
    urls: Sequence[str],
    folder: Path,
    *,
    progress: Progress = lambda _done, _total: None,
    limits: Limits = LIMITS,
) -> Fetched:
    """The file in `folder` whose digest is `remote.pin`, fetched unless it is already there.

    Unlike `fetch` it does not ask what is published now: the caller has read that.  The addresses
    are tried in turn.  Raises FetchError, whose line names the last address and the reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / remote.file
    with locked(folder / f"{remote.file}.lock", f"fetching {remote.file}"):
        noted = pin_of(target)
        if noted is not None and target.exists() and noted.digest == remote.pin:
            return noted
        failures: list[FetchError] = []
        for url in urls:
            try:
                return _verified(url, target, remote.pin, remote, progress, limits)
            except FetchError as error:
                failures.append(error)
        others = "\n".join(error.message for error in failures[:-1])
        raise FetchError(failures[-1].url, failures[-1].reason, detail=others)


def _verified(
    url: str,
    target: Path,
    published: str,
    remote: RemoteFile,
    progress: Progress,
    limits: Limits,
) -> Fetched:
    """Download a file, verify it, and record it as `target`."""
    partial = target.with_name(f"{target.name}.partial")
    with named(url), requests.Session() as session:
        _download(session, url, partial, published, progress, _most_bytes(remote), limits)
    digest = _digest(partial, remote.algorithm)
    if digest != published:
        partial.unlink()
        raise FetchError(
            url, f"checksum differs: {remote.checksums} says {published[:16]}…, got {digest[:16]}…"
        )
    sync(partial)
    # Remove the note first: a file without a note is just fetched again.
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_note(Fetched(target, url, digest, at))
    partial.replace(target)
    sync(target.parent)
    return Fetched(target, url, digest, at)


def read_text(session: requests.Session, url: str, limits: Limits = LIMITS) -> str:
    """A checksum file or another short text; FetchError if it cannot be read."""
    with named(url):
        return network.read_text(session, url, limits, most_bytes=_CHECKSUM_LIMIT_BYTES)


def write_note(fetched: Fetched) -> None:
    """Pin a file: later fetches must get the same."""
    note = {"url": fetched.url, "digest": fetched.digest, "at": fetched.at}
    write_atomic(_note(fetched.path), json.dumps(note) + "\n")


def _compare(
    remote: RemoteFile, url: str, target: Path, published: str, noted: Fetched | None
) -> None:
    """Raise DigestChanged unless the published digest is the one that was pinned."""
    for pinned, whose, remedy in (
        (remote.pin, "the manifest pins", "try another mirror (HARNESS_MIRROR)"),
        (
            noted.digest if noted else "",
            "an earlier fetch saw",
            f"if the new digest is right, remove {_note(target)}",
        ),
    ):
        if pinned in ("", published):
            continue
        first = ""
        if noted and pinned == noted.digest:
            first = f"first fetched from: {noted.url}{' at ' + noted.at if noted.at else ''}\n"
        raise DigestChanged(
            url,
            f"its published digest is {published[:16]}…, but {whose} {pinned[:16]}…: "
            f"the file was "
            f"replaced or the mirror lies; {remedy}",
            detail=f"pinned {remote.algorithm}: {pinned}\n{first}published now:  {published}\n"
            "A release's files do not change once published.  Compare both with the signed "
            "checksums in FreeBSD's release announcement before anything is removed.",
        )


@contextmanager
def named(url: str) -> Iterator[None]:
    """Turn a failure in the block into an error that names `url`."""
    try:
        yield
    except Broken as error:
        raise FetchError(url, str(error)) from error


def published_digest(text: str, file: str, remote: RemoteFile) -> str | None:
    """The digest of `file` in a checksum file, in lower case, or None.

    ValueError when two lines differ, or when the name stands there in another folder alone.
    """
    found = checksums.digests(text, remote.algorithm)
    here = {digest for name, digest in found if name in ("", file)}
    if len(here) > 1:
        raise ValueError(f"it has two digests for {file}")
    elsewhere = sorted(name for name, _ in found if name.endswith(f"/{file}"))
    if elsewhere and not here:
        raise ValueError(f"it has no digest for {file}, but for {elsewhere[0]}")
    return here.pop() if here else None


def _download(
    session: requests.Session,
    url: str,
    partial: Path,
    published: str,
    progress: Progress,
    most: int,
    limits: Limits,
) -> None:
    """Continue `partial` at its end.  It must be part of the same published file."""
    owner = partial.with_name(f"{partial.name}.of")
    if not owner.exists() or owner.read_text() != published:
        partial.unlink(missing_ok=True)
        write_atomic(owner, published)
    breaks = 0
    while True:
        have = partial.stat().st_size if partial.exists() else 0
        try:
            patiently(lambda: _download_rest(session, url, partial, progress, most, limits), limits)
        except NothingMore as error:
            if error.total_bytes == have:
                break  # an earlier run got all of it, but ended before it verified it
            partial.unlink()
        except Broken as error:
            # Try again only if this attempt got some data.
            grew = partial.exists() and partial.stat().st_size > have
            breaks += 1
            if not (error.midway and grew and breaks <= _MOST_BREAKS):
                raise
        else:
            break
    owner.unlink()


def _most_bytes(remote: RemoteFile) -> int:
    """The largest accepted length: twice the manifest's approximate size, if it names one."""
    return 2 * remote.about_bytes if remote.about_bytes else _MOST_BYTES


def _download_rest(
    session: requests.Session,
    url: str,
    partial: Path,
    progress: Progress,
    most: int,
    limits: Limits,
) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    with network.get(session, url, limits, start=have) as response:
        if response.start == 0 and have:
            have = 0  # the server cannot resume in the middle
        total = response.total_bytes
        if total is not None and total > most:
            raise Broken(
                f"the server announces {human_bytes(total)}, but at most "
                f"{human_bytes(most)} are accepted"
            )
        require_room(partial.parent, max(0, (total or 0) - have), f"fetching {partial.stem}")
        with partial.open("r+b" if have else "wb") as stream:
            stream.seek(have)
            stream.truncate()
            progress(have, total)
            for chunk in response.chunks():
                if have + len(chunk) > (most if total is None else total):
                    stream.close()
                    partial.unlink()
                    raise Broken(f"it does not end after {human_bytes(have)}; nothing was stored")
                if total is None and have % _LOOK_BYTES < len(chunk):
                    # The length is unknown, so leave some room on the disk.
                    require_room(
                        partial.parent, LEAST_FREE_BYTES, f"fetching more of {partial.stem}"
                    )
                try:
                    stream.write(chunk)
                except OSError as error:
                    raise Broken(f"cannot write {partial}: {error.strerror}") from error
                have += len(chunk)
                progress(have, total)
    if total is not None and have < total:
        raise Broken(
            f"the connection broke after {human_bytes(have)} of {human_bytes(total)}", midway=True
        )


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()
