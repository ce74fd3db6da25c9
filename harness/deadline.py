"""One clock for every wait.

A `Deadline` is made once for a stage and handed down, so that ten waits in a row share one
limit.  `scaled` stretches a limit written for native speed to a backend's pace: one number per
backend, kept with the backend, instead of time limits tuned call by call.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Deadline:
    """A point on the monotonic clock; `limit_s` is how far away it was when made."""

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
        """Whether the time is over."""
        return self.remaining_s == 0.0

    def at_most(self, limit_s: float) -> Deadline:
        """The sooner of this deadline and one `limit_s` seconds from now."""
        other = Deadline.after(limit_s)
        return other if other.at_s < self.at_s else self
