"""One clock for every wait.

A stage makes one `Deadline` and passes it to every wait, so that ten waits in a row share one
limit.  `scaled` stretches a limit written for native speed to a backend's speed: each backend has
one factor, instead of a tuned time limit in each call.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Deadline:
    """A point on the monotonic clock; `limit_s` is its distance from the time it was made."""

    limit_s: float
    at_s: float

    @classmethod
    def after(cls, limit_s: float) -> Deadline:
        """A deadline `limit_s` seconds from now."""
        return cls(limit_s, time.monotonic() + limit_s)

    @classmethod
    def scaled(cls, native_s: float, scale: float) -> Deadline:
        """A deadline for work that takes at most `native_s` seconds on real hardware."""
        return cls.after(native_s * scale)

    @property
    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at_s - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether the time has run out."""
        return self.remaining_s == 0.0

    def at_most(self, limit_s: float) -> Deadline:
        """The earlier of this deadline and one `limit_s` seconds from now."""
        other = Deadline.after(limit_s)
        return other if other.at_s < self.at_s else self
