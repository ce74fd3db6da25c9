"""Finds the files of a patch that a run can test: those from which a part was built.

Passing checks prove nothing about a file from which nothing was built, or about a module that is
identical to stock's.  Both are reported, so that a verdict is really about the patch.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.build.builder import Build
from harness.errors import CannotError
from harness.series.load import Series

_NAMED = 6


def untested(built: Build) -> tuple[str, ...]:
    """The files of a build's series that nothing was built from, sorted."""
    return tuple(path for path, _ in built.untested)


def same_as_stock(built: Build, stock: Build) -> tuple[str, ...]:
    """The names of the built files that are identical to those without the series."""
    there = dict(stock.digests)
    return tuple(name for name, digest in built.digests if there.get(name) == digest)


def require_difference(series: Series, built: Build, stock: Build | None) -> None:
    """Raise CannotError if the checks would say nothing about the series.

    With `stock`, that is the case if all built files are the same as without the series; without
    `stock`, if nothing was built from any of the series' files.
    """
    alike = stock is not None and len(same_as_stock(built, stock)) == len(built.digests)
    missed = untested(built)
    if not alike and (stock is not None or len(missed) < len(series.touched)):
        return
    why = (
        f"nothing is built from its files ({few(missed)})"
        if len(missed) == len(series.touched)
        else "the built files are the same as without it, byte for byte"
    )
    raise CannotError(
        f"the series {series.topic} cannot be tested: {why}, so the checks would test stock FreeBSD"
    )


def few(paths: Sequence[str]) -> str:
    """Some of the paths, and the number of the others."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more
