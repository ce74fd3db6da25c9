"""What of a patch a run can say anything of: which of its files a part that was built is made from.

Checks that hold prove nothing of a file that nothing was built from, nor of a module that is the
same bytes as stock's.  Both are said, so that a verdict is about the patch that was given.
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
    """The names of what was built that is the same bytes without the series."""
    there = dict(stock.digests)
    return tuple(name for name, digest in built.digests if there.get(name) == digest)


def require_difference(series: Series, built: Build, stock: Build | None) -> None:
    """CannotError when checks on what was built would say nothing of the series.

    With `stock`, when all that was built is the same as without the series; without, when nothing
    that was built is made from any of its files.
    """
    alike = stock is not None and len(same_as_stock(built, stock)) == len(built.digests)
    missed = untested(built)
    if not alike and (stock is not None or len(missed) < len(series.touched)):
        return
    why = (
        f"no part that is built here is made from its files ({few(missed)})"
        if len(missed) == len(series.touched)
        else "all that is built of it is the same as without it, byte for byte"
    )
    raise CannotError(
        f"the series {series.topic} cannot be tested: {why}, so the checks would test stock FreeBSD"
    )


def few(paths: Sequence[str]) -> str:
    """Some paths in a few words."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more
