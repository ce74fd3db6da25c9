"""Records the digests of a release's files, so that no unchanged file is read twice.

A disk of 3 GiB takes seconds to read, its .xz file a minute to unpack, a source archive several.
None of this is repeated after a failed or cancelled import, or when the same files are imported
again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import checked
from harness.files import sha256_file, write_atomic

_NAME = "readings.json"
_KEEP = 16


@dataclass(frozen=True)
class _Reading:
    """A file as it was, its digest, and that of its contents if it was unpacked."""

    identity: tuple[int, ...]
    sha256: str = ""
    plain_sha256: str = ""


class Readings:
    """The digests of files in a release's folder `home`; they are SHA-256 in hex."""

    def __init__(self, home: Path) -> None:
        self._path = home / _NAME

    def digest(self, path: Path, live: Callable[[str], None]) -> str:
        """The file's digest; it is read only if it has changed since the last time."""
        # Taken before the file is read, so that a change during the reading is noticed next time.
        now = _identity(path)
        known = self._known(path, now)
        if known.sha256:
            return known.sha256
        size = max(1, path.stat().st_size)
        found = sha256_file(
            path, lambda done: live(f"digest of {path.name}: {100 * done // size} %")
        )
        self._note(path, _Reading(now, found, known.plain_sha256))
        return found

    def known(self, path: Path) -> str:
        """Its digest if it is known, or an empty text; the file is not read."""
        return self._known(path, _identity(path)).sha256

    def learn(self, path: Path, sha256: str) -> None:
        """Record a digest that was just verified elsewhere."""
        now = _identity(path)
        self._note(path, _Reading(now, sha256, self._known(path, now).plain_sha256))

    def plain(self, packed: Path) -> str:
        """The digest of a compressed file's contents; empty if it is not known."""
        return self._known(packed, _identity(packed)).plain_sha256

    def learn_plain(self, packed: Path, plain_sha256: str) -> None:
        """Record the digest of the contents, which was computed while the file was unpacked."""
        now = _identity(packed)
        self._note(packed, _Reading(now, self._known(packed, now).sha256, plain_sha256))

    def _known(self, path: Path, now: tuple[int, ...]) -> _Reading:
        found = self._all().get(str(path.absolute()))
        return found if found and found.identity == now else _Reading(now)

    def _all(self) -> dict[str, _Reading]:
        try:
            return checked.convert(dict[str, _Reading], checked.table(self._path.read_bytes()))
        except (OSError, ValueError):
            return {}

    def _note(self, path: Path, reading: _Reading) -> None:
        kept = self._all()
        kept.pop(str(path.absolute()), None)
        kept[str(path.absolute())] = reading
        newest = dict(list(kept.items())[-_KEEP:])
        text = json.dumps({name: asdict(each) for name, each in newest.items()}, indent=2)
        write_atomic(self._path, text + "\n")


def _identity(path: Path) -> tuple[int, ...]:
    """Numbers that change if the file is written to; its change time cannot be set back."""
    about = path.stat()
    return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
