"""The files that FreeBSD publishes for a release or a snapshot: reads and checks
`images/freebsd-RELEASE.toml`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from harness import defaults
from harness import release as releases
from harness.errors import UsageError
from harness.files import PROJECT
from harness.image.model import DiskFormat, Login
from harness.release import major_of

FOLDER = PROJECT / "images"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
_RELEASE = re.compile(releases.TEXT)
_HEX = {"sha256": 64, "sha512": 128}

Algorithm = Literal["sha256", "sha512"]
Kind = Literal["release", "snapshot"]


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its path below a mirror, and the sources of its digest.

    `checksums` is the file in the same folder that has its digest, computed by `algorithm`; `pin`
    is a digest in the manifest itself, or empty.  `also` is another name that it may be published
    under; the checksum file decides which.  `about_bytes` is its approximate size, or 0.
    """

    folder: str
    file: str
    checksums: str
    algorithm: Algorithm
    pin: str = ""
    also: str = ""
    about_bytes: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The possible names, the most likely one first."""
        return (self.file, self.also) if self.also else (self.file,)


@dataclass(frozen=True)
class Manifest:
    """A release's published files; `osversion` is its `__FreeBSD_version`.

    `kind` is `snapshot` for a branch of which new builds replace the published one: then `image` is
    its newest build's, under the name without the build, and nothing is pinned.  `room_bytes` is
    the room in the cache for fetching, unpacking and preparing it; `notes` are lines of information
    about the release.
    """

    release: str
    osversion: int
    mirrors: tuple[str, ...]
    room_bytes: int
    notes: tuple[str, ...]
    login: Login
    image: RemoteFile
    image_format: DiskFormat
    image_filesystem: str
    source: RemoteFile
    base: RemoteFile
    kind: Kind = "release"

    @property
    def is_snapshot(self) -> bool:
        """Whether the published build is replaced from time to time."""
        return self.kind == "snapshot"

    @property
    def major(self) -> int:
        """15 for 15.1."""
        return major_of(self.osversion)


def check_release(release: str) -> str:
    """Returns `release` if it has the form of one; otherwise UsageError, since it names folders."""
    releases.parse(release, f"; manifests are here for {', '.join(available()) or 'none'}")
    return release


def available(folder: Path = FOLDER) -> tuple[str, ...]:
    """The releases and snapshots that have a manifest, newest first."""
    names = (path.stem.removeprefix("freebsd-") for path in folder.glob("freebsd-*.toml"))
    found = [release for name in names if (release := releases.read(name))]
    return tuple(map(str, sorted(found, key=lambda it: it.order, reverse=True)))


def published_releases(folder: Path = FOLDER) -> tuple[str, ...]:
    """The releases that have a manifest, newest first, without snapshots.

    It is what is meant where no release was named: a release is the same next week.
    """
    return tuple(it for it in available(folder) if not is_snapshot(it, folder))


def is_snapshot(release: str, folder: Path = FOLDER) -> bool:
    """Whether this is a snapshot, or a build of one; False where there is no usable manifest."""
    try:
        found = find(release, folder)
    except UsageError:
        return False
    return found is not None and found.is_snapshot


def find(release: str, folder: Path = FOLDER) -> Manifest | None:
    """The release's manifest, or None if it has none; UsageError if it is invalid.

    All builds of a snapshot have the same one.
    """
    check_release(release)
    line = releases.parse(release).line
    path = folder / f"freebsd-{line}.toml"
    if not path.exists():
        return None
    manifest = read(path)
    if manifest.release != line:
        raise UsageError(
            f"{path}: release: it is {manifest.release}, but the file's name says {line}"
        )
    return manifest if line == release or manifest.is_snapshot else None


def read(path: Path) -> Manifest:
    """Read and check one manifest; UsageError naming the file, the key and the reason."""
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    top = _Table(path, "", data)
    login = top.table("login")
    image = top.table("image")
    manifest = Manifest(
        release=top.text("release", _RELEASE, f"a release like {defaults.RELEASE}"),
        osversion=top.number("osversion", 1_000_000, 9_999_999),
        mirrors=top.addresses("mirrors"),
        room_bytes=top.number("room_bytes", 0, 1 << 50, default=0),
        notes=top.lines("notes"),
        login=Login(login.text("user", _NAME, "a user's name"), login.text("password")),
        image=_remote(image, "sha512"),
        image_format=image.choice("format", "raw", "qcow2"),
        image_filesystem=image.choice("filesystem", "ufs", "zfs"),
        source=_remote(top.table("source"), "sha256"),
        base=_remote(top.table("base"), "sha256"),
        kind=top.choice("kind", *get_args(Kind), default="release"),
    )
    top.done()
    tables = {"image": manifest.image, "source": manifest.source, "base": manifest.base}
    for name, remote in tables.items():
        if manifest.is_snapshot and remote.pin:
            raise UsageError(
                f"{path}: {name}.{remote.algorithm}: a snapshot has no digest that stays; each "
                "build's digests are recorded when it is fetched"
            )
    if manifest.is_snapshot and manifest.base.folder != manifest.source.folder:
        raise UsageError(
            f"{path}: base.folder: a snapshot's base is beside its source: "
            f"{manifest.source.folder!r}"
        )
    return manifest


def _remote(table: _Table, algorithm: Algorithm) -> RemoteFile:
    return RemoteFile(
        folder=table.folder("folder"),
        file=table.text("file", _NAME, "a file's name"),
        checksums=table.text("checksums", _NAME, "a file's name"),
        algorithm=algorithm,
        pin=table.digest(algorithm),
        also=table.text("also", _NAME, "a file's name", default=""),
        about_bytes=table.number("about_bytes", 1, 1 << 50, default=0),
    )


class _Table:
    """A table of the manifest, whose keys are read one by one, so that unknown keys are noticed."""

    def __init__(self, path: Path, name: str, data: Mapping[str, Any]) -> None:
        self._path = path
        self._name = name
        self._rest = dict(data)
        self._inner: list[_Table] = []

    def _wrong(self, key: str, reason: str) -> UsageError:
        full = f"{self._name}.{key}" if self._name else key
        return UsageError(f"{self._path}: {full}: {reason}")

    def _take(self, key: str, kind: type, what: str) -> Any:
        if key not in self._rest:
            raise self._wrong(key, "is missing")
        value = self._rest.pop(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._wrong(key, f"must be {what}, not {value!r}")
        return value

    def table(self, key: str) -> _Table:
        inner = _Table(self._path, key, self._take(key, dict, "a table"))
        self._inner.append(inner)
        return inner

    def text(
        self,
        key: str,
        shape: re.Pattern[str] | None = None,
        what: str = "text",
        default: str | None = None,
    ) -> str:
        if default is not None and key not in self._rest:
            return default
        value: str = self._take(key, str, what)
        if shape and not shape.fullmatch(value):
            raise self._wrong(key, f"must be {what}, not {value!r}")
        return value

    def number(self, key: str, least: int, most: int, default: int | None = None) -> int:
        if default is not None and key not in self._rest:
            return default
        value: int = self._take(key, int, "a number")
        if not least <= value <= most:
            raise self._wrong(key, f"must be from {least} to {most}, not {value}")
        return value

    def choice(self, key: str, *allowed: Any, default: Any = None) -> Any:
        if default is not None and key not in self._rest:
            return default
        value = self._take(key, str, f"one of {', '.join(allowed)}")
        if value not in allowed:
            raise self._wrong(key, f"must be one of {', '.join(allowed)}, not {value!r}")
        return value

    def addresses(self, key: str) -> tuple[str, ...]:
        values = self._take(key, list, "a list of addresses")
        for value in values:
            if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s/]+(?:/\S*)?/", value):
                raise self._wrong(key, f"must be https:// or http:// and end in /, not {value!r}")
        if not values:
            raise self._wrong(key, "must name at least one address")
        return tuple(values)

    def lines(self, key: str) -> tuple[str, ...]:
        if key not in self._rest:
            return ()
        values = self._take(key, list, "a list of lines")
        for value in values:
            if not isinstance(value, str) or not value.isprintable() or not value:
                raise self._wrong(key, f"must be a list of lines of text, not {value!r}")
        return tuple(values)

    def folder(self, key: str) -> str:
        value = self.text(key)
        parts = value.removesuffix("/").split("/")
        if not value.endswith("/") or not all(_NAME.fullmatch(part) for part in parts):
            raise self._wrong(key, f"must be a path below the mirror ending in /, not {value!r}")
        return value

    def digest(self, algorithm: Algorithm) -> str:
        if self._rest.get(algorithm, "") == "":
            self._rest.pop(algorithm, None)
            return ""
        shape = re.compile(rf"[0-9a-f]{{{_HEX[algorithm]}}}")
        return self.text(algorithm, shape, f"{_HEX[algorithm]} hexadecimal digits")

    def done(self) -> None:
        """Raise UsageError for keys that were not read; most likely they are misspelt."""
        for table in (self, *self._inner):
            for key in table._rest:
                raise table._wrong(key, "there is no such key")
