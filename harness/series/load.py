"""Finds and reads a series of patches in any supported form.

`patches/TOPIC/RELEASE/series` names one patch per line; `#` begins a comment; an entry may be
`../common/NAME`, for a patch that fits every release of the topic.  Users' own patches may be a
folder (made by `git format-patch` or quilt), single files, or mailboxes with several mails.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness import files
from harness import release as releases_known
from harness.errors import PatchError, UsageError
from harness.series import arrange, diffs, git, kinds, listing, mails
from harness.series.arrange import Tags
from harness.series.listing import COMMON, Entry, Listing

PATCHES = files.PROJECT / "patches"
TESTS = "tests"
"""The folder of a topic's checks."""
_DEEPEST = 32


@dataclass(frozen=True)
class Patch:
    """One patch as it was read; `diff` is applied, even if the file changes later.

    `data` is the text in its file; `part` its number there, counted from 1, or 0 if the file is a
    single patch.  `diff` has the usual form, with a/ and b/ before paths.  `reverse`: the series
    reverts it.  `plain`: `diff` is the end of `data`, so the file can be written again.
    """

    path: Path
    subject: str
    author: str
    message: str
    touched: tuple[str, ...]
    digest: str
    data: bytes = field(repr=False)
    diff: bytes = field(default=b"", repr=False)
    date: str = ""
    part: int = 0
    reverse: bool = False
    plain: bool = True
    notes: tuple[str, ...] = ()
    tags: Tags = field(default_factory=Tags)

    @property
    def name(self) -> str:
        """The file's name, and the number of the patch in it."""
        return f"{self.path.name}#{self.part}" if self.part else self.path.name

    @property
    def common(self) -> bool:
        """Whether all releases of the topic share it."""
        return self.path.parent.name == COMMON


@dataclass
class Place:
    """The context in which the patches of a series are read, one after the other.

    `tree` is the source tree, if there is one.  `made` are the paths in the patches so far, because
    a patch may change a file that an earlier one adds.  `prefixes` are the removed parts of names
    that matched the tree.  `listed` are the patches that a `series` file names.
    """

    tree: Path | None = None
    made: set[str] = field(default_factory=set)
    prefixes: set[bytes] = field(default_factory=set)
    listed: set[Path] = field(default_factory=set)

    def level(self, found: Sequence[diffs.Section]) -> int | None:
        """The number of leading parts to remove from the names of a diff; None if the diff fits
        nowhere.
        """
        tops: frozenset[str] = diffs.TOP_NAMES
        with contextlib.suppress(OSError):
            tops |= set(os.listdir(self.tree)) if self.tree else set()
        tops |= {path.partition("/")[0] for path in self.made}
        exists = self._exists if self.tree else None
        level = diffs.fitting_level(found, tops, exists, frozenset(self.prefixes))
        if exists and level is not None:
            for old in {it.old for it in found if it.old is not None}:
                if exists(git.text_of(diffs.strip(old, level))):
                    self.prefixes.add(diffs.prefix(old, level))
        return level

    def _exists(self, path: str) -> bool:
        return path in self.made or (self.tree is not None and os.path.isfile(self.tree / path))


@dataclass(frozen=True)
class Series:
    """Patches in the order in which they apply, for one release.

    `notes` describe what is in the folder or files but not part of the series.
    """

    topic: str
    release: str
    folder: Path
    patches: tuple[Patch, ...]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """A digest of the patches' contents and order; names do not matter."""
        return files.sha256_text(*(patch.digest for patch in self.patches))

    @property
    def touched(self) -> tuple[str, ...]:
        """Every path that a patch reads or writes, sorted, relative to the source tree."""
        return tuple(sorted({path for patch in self.patches for path in patch.touched}))


def topics(root: Path = PATCHES) -> tuple[str, ...]:
    """The topics under `root` that have patches: folders with at least one release in them."""
    if not root.is_dir():
        return ()
    return tuple(sorted(path.name for path in root.iterdir() if releases(path)))


def suites(root: Path = PATCHES) -> tuple[str, ...]:
    """The topics under `root` that have only checks, without patches."""
    if not root.is_dir():
        return ()
    return tuple(sorted(path.name for path in root.iterdir() if is_suite(path)))


def is_suite(topic: Path) -> bool:
    """Whether a topic's folder has checks but no patches; then they run on any module."""
    return (topic / TESTS).is_dir() and not releases(topic)


def releases(topic: Path) -> tuple[str, ...]:
    """The releases for which a topic's folder has a series."""
    if not topic.is_dir():
        return ()
    return tuple(sorted(path.parent.name for path in topic.glob(f"*/{listing.SERIES}")))


def chosen(series: Sequence[Path], topic: str) -> Path | str | Sequence[Path]:
    """What is read where both can be named, for `load_series`: the series given, else the topic."""
    if not series:
        return topic
    return series[0] if len(series) == 1 else series


def load_series(
    where: Path | str | Sequence[Path], release: str, tree: Path | None = None
) -> Series:
    """Read a series.

    `where` is a topic (its name or folder), a folder with a `series` file or with patches, a patch,
    a mailbox, or a list of such folders and files, applied in order.  `tree`, if there is one,
    determines the leading parts to remove from the names in a patch.  Raises UsageError if there is
    no such series, or none for `release`; PatchError if a patch is missing, or git cannot read it.
    """
    place = Place(tree)
    series = _load(where, release, place)
    # What a file says that lists patches is meant; a mailbox may have been cut off.
    absent = arrange.lacking(it for it in series.patches if it.path not in place.listed)
    return replace(series, notes=(*series.notes, *absent))


def _load(where: Path | str | Sequence[Path], release: str, place: Place) -> Series:
    if isinstance(where, Sequence) and not isinstance(where, str):
        parts = [_load(path, release, place) for path in where]
        folder = parts[0].folder if parts else Path()
        patches = tuple(patch for part in parts for patch in part.patches)
        notes = tuple(note for part in parts for note in part.notes)
        return Series("given", release, folder, patches, notes)
    given = Path(where)
    if isinstance(where, str) and not given.exists() and (PATCHES / where).is_dir():
        given = PATCHES / where
    if given.is_file() and given.name == listing.SERIES:
        given = given.parent
    if given.is_file():
        return _series(given.stem, release, given.parent, Listing((Entry(given),)), place)
    if not given.is_dir():
        known = ", ".join((*topics(), *suites())) or "none"
        raise UsageError(f"{given}: no such series; give a folder, a patch or a topic ({known})")
    if (given / listing.SERIES).is_file():
        topic = given.absolute().parent.name
        return _series(topic, release, given, listing.from_file(given / listing.SERIES), place)
    if is_suite(given):
        raise UsageError(
            f"{given.name}: this topic has checks but no patches; run them with `./inv "
            f"verify --topic "
            f"{given.name}` on the stock module, with --series PATCHES on yours"
        )
    wanted = releases_known.read(release)
    for name in wanted.series_folders if wanted else (release,):
        if (given / name / listing.SERIES).is_file():
            found = listing.from_file(given / name / listing.SERIES)
            return _series(given.absolute().name, release, given / name, found, place)
    if has := releases(given):
        place_for = wanted.series_folders[-1] if wanted and wanted.build else release
        raise UsageError(
            f"{given.name}: no series for FreeBSD {release}, only for {', '.join(has)}; "
            f"put one for {place_for} into {given / place_for}/, its patches named in a file "
            "`series`"
        )
    return _series(given.absolute().name, release, given, listing.from_folder(given), place)


def _series(topic: str, release: str, folder: Path, found: Listing, where: Place) -> Series:
    patches: list[Patch] = []
    notes = list(found.notes)
    if found.from_file:
        where.listed.update(entry.path for entry in found.entries)
    for entry in found.entries:
        read, more = read_patches(entry, where)
        patches += read
        notes += more
        notes += [f"{patch.name}: {note}" for patch in read for note in patch.notes]
    if found.by_name:
        patches, more = arrange.arranged(patches, str(folder))
        notes += more
    if found.entries and not patches:
        raise PatchError(
            f"{folder / found.entries[0].path.name}: there is no patch in it ({notes[0]})"
        )
    return Series(topic, release, folder, tuple(patches), tuple(notes))


def require_patches(series: Series) -> Series:
    """Returns the series; UsageError if it has no patch."""
    if not series.patches:
        raise UsageError(
            f"{series.folder / listing.SERIES}: it names no patch yet; put one into its "
            f"folder and name "
            "it there (git format-patch makes them)"
        )
    return series


def read_patch(path: Path) -> Patch:
    """Read a file with one patch; PatchError if it has several, or none that git can read."""
    patches, _ = read_patches(Entry(path))
    if len(patches) != 1:
        raise PatchError(f"{path.name}: it must be one patch, but it contains {len(patches)}")
    return patches[0]


def read_patches(entry: Entry, where: Place | None = None) -> tuple[list[Patch], list[str]]:
    """The patches of one file, and notes on its other parts.

    `where` is the context of the series.
    Raises UsageError if there is no such file, PatchError if it has no patch that git can read.
    """
    path = entry.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    letters = mails.read(data, path.name)
    several = len(letters) > 1
    patches: list[Patch] = []
    notes: list[str] = []
    where = where or Place()
    for number, letter in enumerate(letters, 1):
        name = f"{path.name}#{number}" if several else path.name
        lines = diffs.plain(letter.text).splitlines(keepends=True)
        if reason := "" if letter.cover else kinds.refused(lines):
            raise PatchError(f"{name}: {reason}")
        if reason := kinds.cut_off(letter.diff):
            raise PatchError(f"{name}: {reason}")
        if letter.diff:
            letter = replace(letter, notes=(*letter.notes, *kinds.passed_over(lines)))
            patches.append(_patch(letter, entry, number if several else 0, name, where))
        elif letter.cover:
            notes.append(f"{name}: a cover letter, not a patch")
        elif several:
            notes.append(f"{name}: a mail without a diff: {letter.subject}")
        else:
            raise PatchError(f"{name}: {kinds.no_diff(diffs.plain(letter.text))}")
    if several and not patches:
        raise PatchError(f"{path.name}: there is no diff in its {len(letters)} mails")
    if several:
        patches, more = arrange.arranged(patches, path.name)
        notes += more
    return patches, notes


def _patch(letter: mails.Letter, entry: Entry, part: int, name: str, where: Place) -> Patch:
    diff = _usual(letter.diff, entry.level, name, where)
    try:
        touched = git.touched_paths(diff, name)
    except PatchError as error:
        if reason := kinds.broken(letter.text):
            raise PatchError(f"{name}: {reason}", detail=error.message) from error
        raise
    where.made |= set(touched)
    plain = not part and not entry.reverse and letter.text.endswith(diff) and not letter.notes
    return Patch(
        path=entry.path,
        subject=letter.subject or entry.path.stem,
        author=letter.author,
        message=letter.message,
        touched=touched,
        # Faults that depend on the tree and the series file, not just on this file.
        digest=hashlib.sha256(
            letter.text if plain else b"%d\0%s\0%s" % (entry.reverse, diff, letter.text)
        ).hexdigest(),
        data=letter.text,
        diff=diff,
        date=letter.date,
        part=part,
        reverse=entry.reverse,
        plain=plain,
        notes=letter.notes,
        tags=letter.tags,
    )


def _usual(diff: bytes, level: int | None, name: str, where: Place) -> bytes:
    """The diff with its paths as a/PATH and b/PATH."""
    lines = diff.splitlines(keepends=True)
    found = diffs.sections(lines)
    if level is None:
        level = where.level(found)
    if level is None:
        names = sorted({it for section in found for it in (section.old, section.new) if it})
        if names and b"\\" in names[0] and b"/" not in names[0]:
            raise PatchError(
                f"{name}: the parts of its paths are divided by \\ ({git.text_of(names[0])}); make "
                "it with git diff, which writes /"
            )
        raise PatchError(
            f"{name}: its paths ({git.text_of(names[0])}) are not in a FreeBSD source "
            f"tree, "
            "however many leading parts are removed; make the diff at the top of the tree, or name "
            "the patch in a `series` file with its -pN"
        )
    if level > _DEEPEST or any(
        it is not None and not diffs.strip(it, level)
        for section in found
        for it in (section.old, section.new)
    ):
        raise PatchError(f"{name}: -p{level} removes all of a path in it")
    if level == 1 and diffs.is_usual(lines, found):
        return diff
    return diffs.with_usual_paths(lines, found, level)
