"""A series of patches: found, read, tried, exported.

`patches/TOPIC/RELEASE/series` names one patch a line, `#` begins a comment; an entry may be
`../common/NAME`, for a patch that fits every release of the topic.  Anybody's own patches do as
well: a folder of *.patch files (as `git format-patch` makes it), or single files.
"""

from __future__ import annotations

import email.parser
import email.policy
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from harness import files
from harness.errors import PatchError, UsageError
from harness.series import git
from harness.series.git import Drift

PATCHES = files.PROJECT / "patches"
DEFAULT_TOPIC = "meminfo"
COMMON = "common"
_SUFFIXES = (".patch", ".diff")
_TAG = re.compile(r"^\s*\[[^\]]*PATCH[^\]]*\]\s*", re.I)
_MBOX_FROM = re.compile(rb"\AFrom [0-9a-f]{7,64} .*\r?\n")
_SUBJECT = re.compile(rb"^Subject:[ \t]*(\[[^\]\n]*PATCH[^\]\n]*\][ \t]*)?", re.M | re.I)


@dataclass(frozen=True)
class Patch:
    """One patch as it was read; what is applied is `data`, not what the file says later."""

    path: Path
    subject: str
    author: str
    message: str
    touched: tuple[str, ...]
    digest: str
    data: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def common(self) -> bool:
        """Whether every release of the topic shares it."""
        return self.path.parent.name == COMMON


@dataclass(frozen=True)
class Series:
    """Patches in the order in which they apply, for one release."""

    topic: str
    release: str
    folder: Path
    patches: tuple[Patch, ...]

    @property
    def digest(self) -> str:
        """Changes when a patch's content or the order does; names do not matter."""
        return files.sha256_text(*(patch.digest for patch in self.patches))

    @property
    def touched(self) -> tuple[str, ...]:
        """Every path that some patch reads or writes, sorted, relative to the source tree."""
        return tuple(sorted({path for patch in self.patches for path in patch.touched}))


def topics(root: Path = PATCHES) -> tuple[str, ...]:
    """The topics under `root`: folders with at least one release in them."""
    if not root.is_dir():
        return ()
    return tuple(sorted(path.name for path in root.iterdir() if releases(path)))


def releases(topic: Path) -> tuple[str, ...]:
    """The releases a topic's folder has a series for."""
    if not topic.is_dir():
        return ()
    return tuple(sorted(path.parent.name for path in topic.glob("*/series")))


def load_series(where: Path | str | Sequence[Path], release: str) -> Series:
    """Read a series.

    `where` is a topic (its name or folder), a folder with a `series` file or with patches, a
    patch, or a list of such folders and patches, one on top of the other.  UsageError: no such
    thing, or none for `release`.  PatchError: a series naming a patch that is not there, or one
    that git cannot read.
    """
    if isinstance(where, Sequence) and not isinstance(where, str):
        paths: list[Path] = []
        for path in map(Path, where):
            if path.is_dir():
                paths += [patch.path for patch in load_series(path, release).patches]
            else:
                paths.append(path)
        return _series("given", release, paths[0].parent if paths else Path(), paths)
    given = Path(where)
    if isinstance(where, str) and not given.exists() and (PATCHES / where).is_dir():
        given = PATCHES / where
    if given.is_file() and given.name == "series":
        given = given.parent
    if given.is_file():
        return _series(given.stem, release, given.parent, [given])
    if not given.is_dir():
        known = ", ".join(topics()) or "none"
        raise UsageError(f"{given}: no such series; give a folder, a patch or a topic ({known})")
    if (given / "series").is_file():
        return _series(given.parent.name, release, given, _listed(given))
    # A patch for a whole branch stands in a folder named after its major version.
    for name in dict.fromkeys((release, release.split(".")[0])):
        if (given / name / "series").is_file():
            return _series(given.name, release, given / name, _listed(given / name))
    if has := releases(given):
        raise UsageError(
            f"{given.name}: no series for FreeBSD {release}, there is one for {', '.join(has)}"
        )
    found = sorted(path for path in given.iterdir() if path.suffix in _SUFFIXES)
    if not found:
        raise UsageError(f"{given}: neither a `series` file nor patches in it")
    return _series(given.name, release, given, found)


def _listed(folder: Path) -> list[Path]:
    listing = folder / "series"
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PatchError(f"{listing}: cannot be read as text: {error}") from error
    paths: list[Path] = []
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        at = f"{listing}:{number}"
        path = folder / entry
        if "\0" in entry or path.resolve().parent not in (
            folder.resolve(),
            (folder.parent / COMMON).resolve(),
        ):
            raise PatchError(f"{at}: {entry!r} is neither beside the series nor in ../{COMMON}")
        if not path.is_file():
            raise PatchError(f"{at}: names {entry}, which is not there")
        if path in paths:
            raise PatchError(f"{at}: names {entry} a second time")
        paths.append(path)
    return paths


def _series(topic: str, release: str, folder: Path, paths: Sequence[Path]) -> Series:
    return Series(topic, release, folder, tuple(read_patch(path) for path in paths))


def read_patch(path: Path) -> Patch:
    """Read one patch.  UsageError: no such file; PatchError: not a patch that git can read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    with tempfile.TemporaryDirectory(prefix="vmm-patch-") as empty:
        touched = git.touched_paths(data, path.name, Path(empty))
    if not touched:
        raise PatchError(f"{path.name}: there is no diff in it")
    subject, author, message = _mail(data)
    return Patch(
        path=path,
        subject=subject or path.stem,
        author=author,
        message=message,
        touched=touched,
        digest=hashlib.sha256(data).hexdigest(),
        data=data,
    )


def split_mail(data: bytes) -> tuple[bytes, bytes]:
    """A patch's header with its message, and the rest from the `---` line or the diff on."""
    found = re.search(rb"^(?:---[ \t]*\r?\n|diff --git |--- |Index: )", data, re.M)
    return (data[: found.start()], data[found.start() :]) if found else (data, b"")


def _mail(data: bytes) -> tuple[str, str, str]:
    head, _ = split_mail(_MBOX_FROM.sub(b"", data))
    if not re.match(rb"[A-Za-z-]+:", head):
        return "", "", ""
    mail = email.parser.BytesParser(policy=email.policy.default).parsebytes(head)
    subject = _TAG.sub("", " ".join(str(mail.get("Subject", "")).split()))
    body = mail.get_payload(decode=True)
    message = body.decode("utf-8", "replace").strip() if isinstance(body, bytes) else ""
    return subject, " ".join(str(mail.get("From", "")).split()), message


@contextmanager
def staged(series: Series, tree: Path) -> Iterator[tuple[Path, tuple[Drift, ...]]]:
    """The touched files of `tree`, copied to a folder of their own, with the series applied there.

    The tree is only read.  Yields the folder and the hunks that moved; raises PatchError for the
    first patch that does not apply.
    """
    with tempfile.TemporaryDirectory(prefix="vmm-stage-") as name:
        folder = Path(name) / "tree"
        copy_touched(series.touched, tree, folder)
        yield folder, apply_staged(series, tree, folder)


def copy_touched(touched: Sequence[str], tree: Path, folder: Path) -> None:
    """Copy those of the `touched` files that `tree` has into `folder`, content and mode."""
    require_tree(tree)
    folder.mkdir(parents=True, exist_ok=True)
    for path in touched:
        source, target = tree / path, folder / path
        if source.is_dir():
            raise PatchError(f"{path}: the series has a file of that name, the tree a folder")
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(source, target)
            except OSError as error:
                raise UsageError(f"{source}: cannot be read: {error.strerror}") from error
            target.chmod(0o755 if source.stat().st_mode & 0o111 else 0o644)


def apply_staged(series: Series, tree: Path, folder: Path) -> tuple[Drift, ...]:
    """Apply the series to the copies in `folder`; says so if `tree` has it applied already."""
    drift: list[Drift] = []
    for patch in series.patches:
        try:
            drift += git.apply_in(folder, patch.data, patch.name)
        except PatchError as error:
            if is_applied(series, tree):
                raise PatchError(
                    f"the series {series.topic} is already applied in {tree}", detail=error.detail
                ) from error
            raise
    for path in series.touched:
        # git makes none from a patch that touched_paths let pass; nothing may rest on that alone.
        if any(
            (folder / it).is_symlink() for it in (PurePosixPath(path), *PurePosixPath(path).parents)
        ):
            raise PatchError(f"{path}: the series makes a symbolic link of it")
    return tuple(drift)


def is_applied(series: Series, tree: Path) -> bool:
    """Whether `tree` holds the series already: it can be taken back, last patch first."""
    if not series.patches:
        return False
    with tempfile.TemporaryDirectory(prefix="vmm-stage-") as name:
        folder = Path(name) / "tree"
        copy_touched(series.touched, tree, folder)
        try:
            for patch in reversed(series.patches):
                git.apply_in(folder, patch.data, patch.name, reverse=True)
        except PatchError:
            return False
    return True


def require_tree(tree: Path) -> None:
    """UsageError unless `tree` is a FreeBSD source tree: sys/conf/newvers.sh is there."""
    if not tree.is_dir():
        raise UsageError(f"{tree}: no such folder; name a FreeBSD source tree")
    if not (tree / "sys/conf/newvers.sh").is_file():
        raise UsageError(f"{tree}: not a FreeBSD source tree (sys/conf/newvers.sh is not there)")


def export(series: Series, target: Path) -> None:
    """Write the series to `target` as one mbox for `git am`, numbered [PATCH n/m].

    PatchError for a patch without author and subject: `git am` would refuse it.
    """
    parts = []
    total = len(series.patches)
    for number, patch in enumerate(series.patches, 1):
        if not patch.author or not _SUBJECT.search(patch.data):
            raise PatchError(
                f"{patch.name}: it has no From: and Subject: lines, so git am cannot take it; "
                "make it with git format-patch"
            )
        data = _MBOX_FROM.sub(b"", patch.data)
        tag = f"{number}/{total}" if total > 1 else ""
        data = _SUBJECT.sub(f"Subject: {f'[PATCH {tag}'.strip()}] ".encode(), data, count=1)
        parts.append(b"From %s Mon Sep 17 00:00:00 2001\n" % (b"0" * 40) + data.rstrip() + b"\n\n")
    if not parts:
        raise PatchError(f"the series {series.topic} for {series.release} is empty")
    files.write_atomic(target, b"".join(parts))
