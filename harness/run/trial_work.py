"""Distributes variants over the guests of a run: which guest tries which, and who shares one.

Most variants are tried in one guest, where the first check that fails ends the trial.  A variant
that must pass all checks takes longer than many of the others together, so all guests share its
checks.  This module knows nothing about machines or pytest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.build.builder import Build
from harness.errors import GuestError, WorkbenchError
from harness.run import distribution
from harness.run.distribution import Group

if TYPE_CHECKING:
    from harness.run.trials import Baseline, Trial, Variant

Planned = tuple[str, str, str]
"""A check: the key of its group, its node id, and its name as FILE::NAME."""


@dataclass(frozen=True)
class Task:
    """A variant to try.

    `build` returns it, or None if it cannot be tried and the caller knows that.  With `shared` all
    guests take part, and with `held` no check should fail.
    """

    name: str
    build: Callable[[], Variant | None]
    shared: bool = False


@dataclass(frozen=True)
class Work:
    """A variant for a guest.

    Without a `baseline` it is correct code, whose results are the baseline.  If it is `shared`, the
    guest asks for groups of checks until none are left.  `stock` is what it is compared with.
    """

    name: str
    variant: Variant
    baseline: Baseline | None
    shared: bool
    stock: Build | None = None


@dataclass
class _Shared:
    """A shared task: the groups that are left, and who has taken which."""

    task: Task
    todo: list[Group] | None
    taken: dict[int, list[Group]] = field(default_factory=dict)
    parts: list[Baseline | Trial] = field(default_factory=list)
    began_s: float = 0.0


def plan_groups(
    planned: Sequence[Planned], known_s: Mapping[str, float], only: Mapping[str, float] | None
) -> list[Group]:
    """The groups of checks, the longest first; `only` has the seconds of those that may run."""
    if only is not None:
        known_s = {
            distribution.short(node): only[name] for _, node, name in planned if name in only
        }
        planned = [it for it in planned if it[2] in only]
    return distribution.groups([(key, node) for key, node, _ in planned], known_s)


class Board:
    """Hands out tasks to guests, known by their numbers; safe to use from several threads.

    If a guest ends early, others get its task, and of a shared task everything that it had taken,
    because its results are lost.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        baseline: Baseline | None,
        took: Callable[[int, str, Baseline | Trial], None],
        merge: Callable[[Sequence[Baseline | Trial], float], Baseline | Trial],
        *,
        planned: Sequence[Planned] | None = None,
        known_s: Mapping[str, float] | None = None,
        stop_early: bool = True,
        stock: Build | None = None,
    ) -> None:
        """`took` gets the guest's number, the variant's name and the result, perhaps in a thread.

        `merge` makes one result of the parts of a shared task, and gets its seconds.  `planned` are
        the checks of shared tasks; without them the first guest says which there are (`offer`).
        With `stop_early` the first check that fails ends a shared task.
        """
        self._baseline = baseline
        self._took = took
        self._merge = merge
        self._known_s = known_s or {}
        self._stop_early = stop_early
        self._stock = stock
        self.planned = planned
        self._singles = [task for task in tasks if not task.shared]
        self._shared = [_Shared(task, self._groups()) for task in tasks if task.shared]
        self._held: dict[int, Task | _Shared] = {}
        self._error: WorkbenchError | None = None
        self._changed = threading.Condition()

    def _groups(self) -> list[Group] | None:
        if self.planned is None:
            return None
        only = self._baseline.seconds if self._baseline is not None else None
        return plan_groups(self.planned, self._known_s, only)

    def next(self, guest: int) -> Work | None:
        """The next task of a guest; None when none is left and none can come back.

        Raises the error of a build, or the one that was given to `fail`.
        """
        while (held := self._take(guest)) is not None:
            task = held.task if isinstance(held, _Shared) else held
            try:
                variant = task.build()
            except WorkbenchError as error:
                self.fail(error)
                raise
            if variant is not None:
                return Work(task.name, variant, self._baseline, task.shared, self._stock)
            with self._changed:
                del self._held[guest]
                if isinstance(held, _Shared):
                    self._shared = [it for it in self._shared if it is not held]
                self._changed.notify_all()
        return None

    def _take(self, guest: int) -> Task | _Shared | None:
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if self._singles:
                    self._held[guest] = self._singles.pop(0)
                    return self._held[guest]
                for shared in self._shared:
                    if shared.todo is None or shared.todo:
                        self._held[guest] = shared
                        shared.taken[guest] = []
                        shared.began_s = shared.began_s or time.monotonic()
                        return shared
                if not self._held:
                    return None
                self._changed.wait()

    def offer(self, planned: Sequence[Planned]) -> None:
        """Say which checks there are; has no effect if that is known."""
        with self._changed:
            if self.planned is None:
                self.planned = planned
                for shared in self._shared:
                    shared.todo = self._groups()
                self._changed.notify_all()

    def group(self, guest: int) -> tuple[str, ...]:
        """The node ids of the next checks of a guest's shared task; empty if none are left."""
        with self._changed:
            shared = self._held[guest]
            assert isinstance(shared, _Shared)
            while shared.todo is None and self._error is None:
                self._changed.wait()
            if not shared.todo or self._error is not None:
                return ()
            shared.taken[guest].append(shared.todo.pop(0))
            return shared.taken[guest][-1].names

    def done(self, guest: int, result: Baseline | Trial) -> None:
        """A guest has finished its task, or its part of a shared one."""
        with self._changed:
            held = self._held.pop(guest)
            if isinstance(held, _Shared):
                held.parts.append(result)
                held.taken.pop(guest)
                if self._stop_early and bool(getattr(result, "caught", None)):
                    held.todo = []
            self._changed.notify_all()
        if isinstance(held, _Shared):
            self._conclude(guest, held)
        else:
            self._took(guest, held.name, result)

    def _conclude(self, guest: int, shared: _Shared) -> None:
        """Report the result of a shared task if all of its parts are there."""
        with self._changed:
            open_still = shared.todo or shared.taken or not shared.parts
            if open_still or not any(it is shared for it in self._shared):
                return
            self._shared = [it for it in self._shared if it is not shared]
            result = self._merge(shared.parts, time.monotonic() - shared.began_s)
            self._changed.notify_all()
        self._took(guest, shared.task.name, result)

    def gone(self, guest: int) -> None:
        """A guest has ended, for whatever reason; the others get its task."""
        with self._changed:
            held = self._held.pop(guest, None)
            if isinstance(held, _Shared):
                held.todo = [*held.taken.pop(guest), *(held.todo or [])]
            elif held is not None:
                self._singles.insert(0, held)
            self._changed.notify_all()
        if isinstance(held, _Shared):
            self._conclude(guest, held)

    def fail(self, error: WorkbenchError) -> None:
        """End the run: all guests that ask for a task get this error."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    @property
    def left(self) -> tuple[str, ...]:
        """The names of the tasks without a result."""
        with self._changed:
            return tuple(
                [task.name for task in self._singles] + [it.task.name for it in self._shared]
            )


def require_none_left(board: Board) -> None:
    """Raise GuestError if tasks have no result."""
    if board.left:
        names = ", ".join(board.left)
        raise GuestError(f"without a result, because their guests ended: {names}")
