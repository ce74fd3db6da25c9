"""The result of a bench as data: samples by name, and ratios between their medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Live = Callable[[str], None]


@dataclass(frozen=True)
class Samples:
    """The measurements under one name: `values` in `unit`, in the order they were taken."""

    name: str
    values: tuple[float, ...]
    unit: str = "s"

    @property
    def median(self) -> float:
        """The middle of the values."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Ratio:
    """Two medians compared: `meaning` explains `value`, and `wanted` is its goal.

    `held` is None if there is no goal.
    """

    meaning: str
    value: float
    wanted: str = ""
    held: bool | None = None


@dataclass(frozen=True)
class Result:
    """The result of one bench; `notes` are for people.  The report says where it ran."""

    name: str
    title: str
    subject: str
    samples: tuple[Samples, ...]
    ratios: tuple[Ratio, ...] = ()
    notes: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """The result for JSON, with the medians."""
        data = asdict(self)
        for plain, samples in zip(data["samples"], self.samples, strict=True):
            plain["median"] = samples.median
        return data


@dataclass
class Measurements:
    """Collects samples during a bench."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Add a value under a name."""
        self.values.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """The median of the values under a name."""
        return statistics.median(self.values[name])

    def samples(self, units: Mapping[str, str] | None = None) -> tuple[Samples, ...]:
        """All samples; the unit is seconds unless `units` names another."""
        units = units or {}
        return tuple(
            Samples(name, tuple(values), units.get(name, "s"))
            for name, values in self.values.items()
        )


def at_least(meaning: str, value: float, wanted: float) -> Ratio:
    """A ratio that should be at least `wanted`."""
    return Ratio(meaning, value, f">= {wanted:g}", value >= wanted)


def at_most(meaning: str, value: float, wanted: float) -> Ratio:
    """A ratio that should be at most `wanted`."""
    return Ratio(meaning, value, f"<= {wanted:g}", value <= wanted)
