"""Known differences between releases of FreeBSD, as the checks of vmm.ko and bhyve show them.

The checks say what the newest release does.  `differences.toml` names the cases that fail on stock
FreeBSD of an older release, with the reason.  Such a case runs there all the same: if it fails, it
does not apply on that release; if it passes, for instance because a series brings the change, it
counts as a check like every other.  Only a case that would leave the guest unusable is not run
there (`harms`).
"""

from __future__ import annotations

import fnmatch
import functools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import release as releases
from harness.errors import UsageError

LIST = Path(__file__).parent / "differences.toml"
_KEYS = {"before": str, "cases": list, "reason": str}
_OPTIONAL = {"harms": bool}


@dataclass(frozen=True)
class Difference:
    """Cases (patterns of names) that fail on every release before `before`, and the reason.

    `harms` says that the guest cannot be used any more after them.
    """

    before: str
    cases: tuple[str, ...]
    reason: str
    harms: bool = False

    def concerns(self, release: str, case: str) -> bool:
        """Whether the case fails on stock FreeBSD of this release."""
        first = releases.read(self.before)
        assert first is not None
        return not releases.parse(release).has(first) and any(
            fnmatch.fnmatchcase(case, it) for it in self.cases
        )


@functools.cache
def read(path: Path = LIST) -> tuple[Difference, ...]:
    """The known differences; UsageError naming the file and the entry that cannot be used."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: it cannot be read: {error}") from error
    return tuple(_entry(path, it) for it in data.get("difference", []))


def _entry(path: Path, entry: Mapping[str, Any]) -> Difference:
    good = (
        isinstance(entry, dict)
        and _KEYS.keys() <= entry.keys() <= (_KEYS | _OPTIONAL).keys()
        and all(
            isinstance(entry[it], kind) for it, kind in (_KEYS | _OPTIONAL).items() if it in entry
        )
        and all(isinstance(it, str) for it in entry["cases"])
        and releases.read(entry["before"]) is not None
        and entry["reason"]
    )
    if not good:
        raise UsageError(
            f"{path}: {entry!r} must have `before` (a release), `cases` (a list of names) and "
            "`reason`"
        )
    return Difference(
        entry["before"], tuple(entry["cases"]), entry["reason"], entry.get("harms", False)
    )


def reason(release: str, case: str, known: tuple[Difference, ...] | None = None) -> str:
    """Why a case that failed does not apply on a release; empty if it applies there."""
    for difference in read() if known is None else known:
        if difference.concerns(release, case):
            return f"{difference.reason} (before FreeBSD {difference.before})"
    return ""


def harmful(
    release: str, cases: Iterable[str], known: tuple[Difference, ...] | None = None
) -> tuple[str, ...]:
    """Those of the cases that must not run on a release."""
    those = [it for it in (read() if known is None else known) if it.harms]
    return tuple(case for case in cases if any(it.concerns(release, case) for it in those))
