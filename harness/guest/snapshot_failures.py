"""Records of failures to save or resume snapshots, so that later runs do not repeat them.

    FOLDER/snapshots/KEY.failed.json    what failed, why, when, and how often in a row

KEY is the digest of everything that a snapshot depends on: with another emulator, other settings or
another image there is no record, so the runs try again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import checked
from harness.files import write_atomic

_SUFFIX = ".failed.json"
# A single failure to resume may be caused by a busy machine.
_RESUMES_TRIED = 2


@dataclass(frozen=True)
class Failure:
    """A failed action (`what` is "saving" or "resuming"), `times` in a row, last at `at`."""

    what: checked.Line
    why: str
    at: checked.Line
    times: checked.Count = 1

    @property
    def settled(self) -> bool:
        """Whether it failed so often that it is not tried again."""
        return self.what == "saving" or self.times >= _RESUMES_TRIED

    def __str__(self) -> str:
        return (
            f"{self.what} a snapshot did not work ({self.why}; {self.at}) and nothing has changed "
            "since; ./inv image.prune forgets that"
        )


def of(home: Path, key: str) -> Failure | None:
    """The record for this key, or None (also if it cannot be read)."""
    with contextlib.suppress(OSError, ValueError):
        return checked.decode(Failure, _file(home, key).read_bytes())
    return None


def note(home: Path, key: str, what: str, why: str) -> None:
    """Record a failure; does nothing if the file cannot be written."""
    before = of(home, key)
    times = before.times + 1 if before and before.what == what else 1
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
        write_atomic(_file(home, key), json.dumps(asdict(Failure(what, why, at, times))) + "\n")


def forget(home: Path, key: str) -> None:
    """Remove the record after a success."""
    with contextlib.suppress(OSError):
        _file(home, key).unlink(missing_ok=True)


def forget_all(home: Path) -> None:
    """Remove all records, so that everything is tried again."""
    for path in home.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()


def _file(home: Path, key: str) -> Path:
    return home / f"{key}{_SUFFIX}"
