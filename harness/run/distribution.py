"""Distributes checks over several guests: which guest runs which checks, and in which order.

Checks are distributed in groups, so that checks that share a fixture stay together; the group that
took longest in earlier runs goes first.  This module knows nothing about guests or pytest.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness import files

UNKNOWN_S = 5.0
"""The assumed seconds of a check that has not run before."""

# The weight of a new time compared with the earlier ones.
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
    """Group (key, node id) pairs by key, the longest group first; a group keeps its order.

    `known_s` are seconds by the checks' short names.
    """
    found: dict[str, list[str]] = {}
    for key, name in items:
        found.setdefault(key, []).append(name)
    made = [
        Group(tuple(names), sum(known_s.get(short(name), UNKNOWN_S) for name in names))
        for names in found.values()
    ]
    # sorted() is stable: groups of equal length stay in the order of the files.
    return sorted(made, key=lambda group: -group.seconds)


class Distributor:
    """Hands groups out to workers, known by their numbers; safe to ask from several threads."""

    def __init__(self, todo: Sequence[Group]) -> None:
        self._todo = list(todo)
        self._held: dict[int, list[str]] = {}
        self._changed = threading.Condition()

    def next(self, worker: int) -> tuple[str, ...]:
        """The next group for a worker; empty when no group is left and none can come back.

        While other workers still run checks this waits, because the checks that a worker has not
        begun come back if the worker ends.
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

    @property
    def left(self) -> bool:
        """Whether there is a group that no worker has taken."""
        with self._changed:
            return bool(self._todo)

    def begun(self, worker: int, name: str) -> None:
        """A worker has begun a check: the check does not come back if that worker ends."""
        with self._changed, contextlib.suppress(KeyError, ValueError):
            self._held[worker].remove(name)

    def gone(self, worker: int) -> None:
        """A worker has ended, for whatever reason; the others get the checks that it had not
        begun.
        """
        with self._changed:
            if left := self._held.pop(worker, []):
                self._todo.insert(0, Group(tuple(left), 0.0))
            self._changed.notify_all()


def known_times(backend: str) -> dict[str, float]:
    """The recorded seconds of each check in a backend; empty if there are none."""
    try:
        found = json.loads((files.cache_dir() / "check-times.json").read_text(encoding="utf-8"))
        times = found[backend]
        return {str(name): float(took_s) for name, took_s in times.items() if 0 <= took_s < 86400}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        # The times only determine the order; without them it is that of the files.
        return {}


def note_times(backend: str, took_s: Mapping[str, float]) -> None:
    """Record how long checks took, for the order of the next run."""
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
