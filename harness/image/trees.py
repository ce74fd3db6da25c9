"""The trees that belong to a release: its source, and a sysroot to build userland against.

Each is either a folder of the user's, which is used in place and never written to, or a
distribution set (src.txz, base.txz), which is unpacked into the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness import source_tree
from harness import sysroot as sysroots
from harness.errors import UsageError
from harness.files import atomic_dir
from harness.image import unpack
from harness.release import parse
from harness.source_tree import PARAM

Digest = Callable[[Path], str]
"""The digest of an archive."""

# In a folder that was unpacked: the digest of its archive.
_FROM = ".unpacked-from"
_ARCHIVES = (".txz", ".tar.xz", ".tgz", ".tar.gz", ".tar")


def source(
    given: Path,
    release: str,
    folder: Path,
    live: Callable[[str], None],
    digest: Digest | None = None,
) -> Path:
    """The source tree in `given`, a folder or an archive; an archive is unpacked as `folder`.

    With `digest` it is not unpacked again if `folder` was unpacked from the same archive. Raises
    UsageError if it is not a FreeBSD source tree, or that of another release.
    """
    if not _is_archive(given):
        root = _source_root(given)
        if root is None:
            raise UsageError(f"{given}: it is not a FreeBSD source tree ({PARAM} is not in it)")
        check_release(root, release)
        return root.absolute()
    if _is_from(given, folder, digest):
        root = _source_root(folder)
        if root is not None:
            check_release(root, release, given)
            return root
    with atomic_dir(folder) as temporary:
        unpack.unpack(given, temporary, live)
        root = _source_root(temporary)
        if root is None:
            raise UsageError(f"{given}: it contains no FreeBSD source ({PARAM} is not in it)")
        check_release(root, release, given)
        below = root.relative_to(temporary)
        _note(given, temporary, digest)
    return folder / below


def sysroot(
    given: Path,
    release: str,
    folder: Path,
    live: Callable[[str], None],
    digest: Digest | None = None,
) -> Path:
    """The sysroot in `given`, a folder or an archive, of which headers and libraries are unpacked.

    With `digest` it is not unpacked again if `folder` was unpacked from the same archive. Raises
    UsageError if it has no FreeBSD headers and libraries, or those of another major release.
    """
    major = parse(release).major
    if not _is_archive(given):
        return sysroots.require(given, major)
    if _is_from(given, folder, digest):
        return sysroots.require(folder, major, given)
    with atomic_dir(folder) as temporary:
        unpack.unpack(given, temporary, live, only=sysroots.PARTS)
        sysroots.require(temporary, major, given)
        _note(given, temporary, digest)
    return folder


def _is_from(archive: Path, folder: Path, digest: Digest | None) -> bool:
    """Whether `folder` was unpacked from just this archive."""
    if digest is None:
        return False
    try:
        return (folder / _FROM).read_text() == digest(archive)
    except (OSError, ValueError):
        return False


def _note(archive: Path, folder: Path, digest: Digest | None) -> None:
    if digest is not None:
        # An archive may have a member of this name, a link even.
        (folder / _FROM).unlink(missing_ok=True)
        (folder / _FROM).write_text(digest(archive))


def check_release(root: Path, release: str, given: Path | None = None) -> None:
    """Raise UsageError unless the tree is of that release (15.1 for 15.1-RELEASE-p1)."""
    found = source_tree.read(root)
    if found.revision != parse(release).version:
        raise UsageError(
            f"{given or root}: it is the source of FreeBSD {found}, but --release says {release}; "
            "a module built from it would not fit the guest"
        )


def _is_archive(given: Path) -> bool:
    if given.is_dir():
        return False
    if not given.exists():
        raise UsageError(f"{given}: no such file or folder")
    if not given.name.endswith(_ARCHIVES):
        raise UsageError(f"{given}: it is neither a folder nor an archive ({', '.join(_ARCHIVES)})")
    return True


def _source_root(folder: Path) -> Path | None:
    """The tree's top: the folder itself, usr/src in a distribution set, or an archive's one top."""
    candidates = [folder, folder / "usr/src"]
    inner = [path for path in folder.iterdir() if path.is_dir()]
    if len(inner) == 1:
        candidates.append(inner[0])
    return next((path for path in candidates if (path / PARAM).is_file()), None)
