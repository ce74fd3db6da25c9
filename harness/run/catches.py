"""Which check caught a variant in the last run, and how long that took: `inv mutation` begins so.

    HARNESS_CACHE/last-catches.json

This only changes the order of checks and variants, so a file that cannot be used is no error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from harness import checked, files
from harness.errors import WorkbenchError
from harness.run.trials import Trial, Variant

_FILE = "last-catches.json"
# The assumed seconds of a variant that was not tried before.
_UNKNOWN_S = 10.0
_MOST = 10_000


@dataclasses.dataclass(frozen=True)
class _Catch:
    """A variant's first check that failed, or nothing, and the seconds of its trial."""

    check: str
    seconds: float


class Last:
    """The catches of the last run in a backend, of the variants in one folder."""

    def __init__(self, backend: str, folder: Path) -> None:
        self._prefix = f"{backend} {folder.parent.name}/{folder.name}/"
        self._new: dict[str, _Catch] = {}
        self._lock = threading.Lock()
        self._known = _read()

    def _of(self, name: str) -> _Catch | None:
        return self._known.get(self._prefix + name)

    def longest_first(self, names: Iterable[str]) -> list[str]:
        """The names, with those whose trial took longest first."""

        def seconds(name: str) -> float:
            known = self._of(name)
            return known.seconds if known else _UNKNOWN_S

        return sorted(names, key=lambda name: -seconds(name))

    def wrapped(
        self, name: str, build: Callable[[], Variant | None]
    ) -> Callable[[], Variant | None]:
        """`build`, whose variant has the check that caught it first among its related ones."""
        known = self._of(name)

        def built() -> Variant | None:
            variant = build()
            if variant is None or not known or not known.check:
                return variant
            return dataclasses.replace(variant, related=(known.check, *variant.related))

        return built

    def note(self, name: str, trial: Trial) -> None:
        """Record a result of this run; may be called by several threads."""
        check = next((it for it in trial.caught if "::" in it), "")
        with self._lock:
            self._new[self._prefix + name] = _Catch(check, round(trial.seconds, 1))

    def save(self) -> None:
        """Write what was noted; a file that cannot be written is not worth an error."""
        if not self._new:
            return
        path = files.cache_dir() / _FILE
        with (
            contextlib.suppress(OSError, WorkbenchError),
            files.locked(path.with_suffix(".lock"), "noting what caught the variants"),
        ):
            both = {**_read(), **self._new}
            data = {name: dataclasses.asdict(catch) for name, catch in both.items()}
            files.write_atomic(path, json.dumps(dict(list(data.items())[-_MOST:])) + "\n")


def _read() -> dict[str, _Catch]:
    try:
        data = checked.table((files.cache_dir() / _FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    found = {}
    for name, value in data.items():
        with contextlib.suppress(ValueError):
            found[name] = checked.convert(_Catch, value)
    return found
