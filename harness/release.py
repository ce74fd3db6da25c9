"""A FreeBSD release, or one build of a snapshot, as a value.

It is read from its text or from __FreeBSD_version, and compared, in this place only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from harness import defaults
from harness.errors import UsageError

_NUMBER = r"(?:0|[1-9][0-9]{0,2})"
_KIND = r"[A-Za-z0-9]{1,20}"
_BUILD = r"[0-9]{8}(?:-[0-9a-f]{7,40}-[0-9]{1,9})?"
TEXT = rf"{_NUMBER}\.{_NUMBER}(?:-{_KIND}(?:-{_BUILD})?)?"
"""A regular expression without groups for the text of a release, or of a build of a snapshot."""
EXAMPLES = f"{defaults.RELEASE} or 16.0-CURRENT"

_PARTS = re.compile(rf"({_NUMBER})(?:\.({_NUMBER}))?(?:-({_KIND})(?:-({_BUILD}))?)?")
_DEFINED = re.compile(r"^#define\s+__FreeBSD_version\s+(\d{6,8})\b", re.MULTILINE)
MAIN = "main"
"""The folder of a topic with the patches for FreeBSD's main, whichever number it has now."""
_PER_MAJOR = 100_000
_PER_MINOR = 1_000
# In chronological order; a release without a kind is a RELEASE.
_KINDS = ("CURRENT", "PRERELEASE", "ALPHA", "BETA", "RC", "RELEASE", "STABLE")


@dataclass(frozen=True)
class Release:
    """15.1, 16.0-CURRENT, or a whole branch, which has no `minor`.

    `kind` is the text after the numbers, or empty.  `build` names one build of a snapshot as its
    files are named, DATE-HASH-COUNT, or by its date alone; it is empty for anything else.
    `osversion` is its __FreeBSD_version, or 0 if unknown; it is not used in comparisons.
    """

    major: int
    minor: int | None = None
    kind: str = ""
    osversion: int = field(default=0, compare=False)
    build: str = ""

    def __str__(self) -> str:
        """The text that it was read from."""
        return f"{self.line}-{self.build}" if self.build else self.line

    @property
    def line(self) -> str:
        """Its text without the build: 16.0-CURRENT, for each build of it."""
        return f"{self.version}-{self.kind}" if self.kind else self.version

    @property
    def series_folders(self) -> tuple[str, ...]:
        """The names of a topic's folders that may have the patches for it, the closest first.

        A patch for a whole branch is in a folder named after its major version, or `main`.
        """
        main = (MAIN,) if self.kind == "CURRENT" else ()
        names = (str(self), self.line, self.version, self.branch, *main)
        return tuple(dict.fromkeys(names))

    @property
    def version(self) -> str:
        """Only its numbers: 16.0 for 16.0-CURRENT."""
        return self.branch if self.minor is None else f"{self.major}.{self.minor}"

    @property
    def branch(self) -> str:
        """Only its major number, as the name of a branch: 15 for 15.1."""
        return str(self.major)

    @property
    def order(self) -> tuple[int, int, int, int, int, int]:
        """A sort key, the oldest first: by version, then CURRENT, BETA1, BETA2, RC1, RELEASE.

        Builds of one snapshot are ordered by their date, and on one day by the number of commits.
        """
        word = self.kind.rstrip("0123456789").upper()
        number = self.kind[len(word) :]
        rank = _KINDS.index(word if word in _KINDS else "RELEASE")
        date, _, rest = self.build.partition("-")
        count = rest.rpartition("-")[2]
        return (
            self.major,
            self.minor or 0,
            rank,
            int(number or 0),
            int(date or 0),
            int(count or 0),
        )

    def __lt__(self, other: Release) -> bool:
        """Whether it is older."""
        return self.order < other.order

    def has(self, other: Release) -> bool:
        """Whether it includes the changes of `other`, by the numbers: 15.1 and 16.0-CURRENT have
        15.0.

        A branch counts as its first release.
        """
        return self.order[:2] >= other.order[:2]

    def distance(self, other: Release) -> int:
        """The number of minor releases between two releases of the same branch."""
        return abs((self.minor or 0) - (other.minor or 0))


def read(text: str) -> Release | None:
    """The release or branch that a text names; None if it names neither."""
    found = _PARTS.fullmatch(text)
    if found is None:
        return None
    major, minor, kind, build = found.groups()
    if build and minor is None:
        return None
    return Release(int(major), int(minor) if minor else None, kind or "", build=build or "")


def parse(text: str, more: str = "") -> Release:
    """The release that --release names; otherwise UsageError, with `more` after the reason.

    A branch by itself (15) is not a release.
    """
    found = read(text)
    if found is None or found.minor is None:
        raise UsageError(f"--release {text}: a release is written like {EXAMPLES}{more}")
    return found


def branch_of(text: str) -> str:
    """The branch of a release, from its text: 15 for 15.1; any other text is returned unchanged."""
    found = read(text)
    return found.branch if found else text


def of_osversion(osversion: int, kind: str = "") -> Release:
    """The release with this __FreeBSD_version: 15.1 for 1501000."""
    major, rest = divmod(osversion, _PER_MAJOR)
    return Release(major, rest // _PER_MINOR, kind, osversion)


def major_of(osversion: int) -> int:
    """The major number of a __FreeBSD_version: 15 for 1501000."""
    return osversion // _PER_MAJOR


def defined_osversion(header: str) -> int | None:
    """The __FreeBSD_version in the text of a sys/param.h; None if it defines none."""
    found = _DEFINED.search(header)
    return int(found[1]) if found else None
