"""Distributes checks over several guests: which guest runs which checks, and in which order.

Checks are distributed in groups, so that those that share a fixture stay together; the group that
took longest the last time goes first.  Nothing here knows guests or pytest.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness import files

UNKNOWN_S = 5.0
"""What a check is taken to need that has not run before."""

# How much a new time counts against those before it.
_WEIGHT = 0.5


@dataclass(frozen=True)
class Group:
    """Checks that run in one guest, one after the other; their names are pytest's node ids."""

    names: tuple[str, ...]
    seconds: float


def short(nodeid: str) -> str:
    """A check's name as reports have it: pytest's node id without the folders."""
    return nodeid.rpartition("/")[2]


def groups(items: Iterable[tuple[str, str]], known_s: Mapping[str, float]) -> list[Group]:
    """Groups of (key, node id) pairs of one key, the longest first; order is kept within a group.

    `known_s` are seconds by the checks' short names.
    """
    found: dict[str, list[str]] = {}
    for key, name in items:
        found.setdefault(key, []).append(name)
    made = [
        Group(tuple(names), sum(known_s.get(short(name), UNKNOWN_S) for name in names))
        for names in found.values()
    ]
    # sorted() is stable: what is equally long stays in the order of the files.
    return sorted(made, key=lambda group: -group.seconds)


class Distributor:
    """Hands groups out to workers, known by their numbers; safe to ask from several threads."""

    def __init__(self, todo: Sequence[Group]) -> None:
        self._todo = list(todo)
        self._held: dict[int, list[str]] = {}
        self._changed = threading.Condition()

    def next(self, worker: int) -> tuple[str, ...]:
        """The next group for a worker; empty when there is nothing left and nothing can come back.

        While others still run theirs, this waits: what a worker that dies had not begun comes back.
        """
        with self._changed:
            self._held.pop(worker, None)
            self._changed.notify_all()
            while not self._todo:
                if not self._held:
                    return ()
                self._changed.wait()
            names = self._todo.pop(0).names
            self._held[worker] = list(names)
            return names

    def begun(self, worker: int, name: str) -> None:
        """A worker has begun a check: it does not come back when that worker dies."""
        with self._changed, contextlib.suppress(KeyError, ValueError):
            self._held[worker].remove(name)

    def gone(self, worker: int) -> None:
        """A worker has ended, well or not; the others get what it had not begun."""
        with self._changed:
            if left := self._held.pop(worker, []):
                self._todo.insert(0, Group(tuple(left), 0.0))
            self._changed.notify_all()


def known_times(backend: str) -> dict[str, float]:
    """Seconds of each check in a backend, as noted after earlier runs; empty where none were."""
    try:
        found = json.loads((files.cache_dir() / "check-times.json").read_text(encoding="utf-8"))
        times = found[backend]
        return {str(name): float(took_s) for name, took_s in times.items() if 0 <= took_s < 86400}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        # They only order the checks; without them the order is that of the files.
        return {}


def note_times(backend: str, took_s: Mapping[str, float]) -> None:
    """Note how long checks took, for the next run to deal by."""
    path = files.cache_dir() / "check-times.json"
    with files.locked(path.with_suffix(".lock"), "noting how long checks took"):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            data = {}
        if not isinstance(data, dict):
            data = {}
        before = known_times(backend)
        now = {
            name: round(before.get(name, new) * (1 - _WEIGHT) + new * _WEIGHT, 3)
            for name, new in took_s.items()
        }
        files.write_atomic(path, json.dumps({**data, backend: {**before, **now}}) + "\n")
