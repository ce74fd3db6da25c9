"""What of a patch a run can say anything of: which of its files a part that was built is made from.

Checks that hold prove nothing of a file that nothing was built from, nor of a module that is the
same bytes as stock's.  Both are said, so that a verdict is about the patch that was given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.build.builder import Build
from harness.build.linktree import COMPONENTS, PROGRAMS
from harness.errors import CannotError
from harness.series.load import Series

_SOURCE = re.compile(r".*\.[chSm]\Z")
_MANUAL = re.compile(r".*\.[1-9](\.in)?\Z|.*/README[^/]*\Z|.*\.md\Z")
# What every build reads beside its own folder: make's rules, the kernel's options, the release.
_ALWAYS = re.compile(
    r"(share/mk/.*\.mk|sys/conf/(kmod|kern\..*|options.*|newvers\.sh|.*\.mk).*"
    r"|sys/amd64/conf/(GENERIC|DEFAULTS)|sys/modules/Makefile\.inc|(lib|usr\.sbin)/Makefile\.inc"
    r"|sys/sys/param\.h)\Z"
)
_OWN_CHECKS = "tests/sys/vmm/"
"""FreeBSD's own checks of vmm: they are run as the series leaves them."""

_NAMED = 6


def untested(series: Series, built: Build) -> tuple[str, ...]:
    """The files of a series that nothing was built from, sorted."""
    folders = {name: f"{folder}/" for name, folder in {**COMPONENTS, **PROGRAMS}.items()}
    left_out = {name for name, _ in built.not_built}
    programs = {path.name for path in built.programs}
    missing = tuple(
        folder
        for name, folder in folders.items()
        if name in left_out or (name in PROGRAMS and name not in programs)
    )
    made = tuple(folder for folder in folders.values() if folder not in missing)
    unread = set(built.unread)

    def is_tested(path: str) -> bool:
        if path.startswith(_OWN_CHECKS):
            return built.library is not None
        if path.startswith(missing):
            return False
        if _SOURCE.match(path):
            return path not in unread
        if _MANUAL.match(path):
            return False
        return bool(_ALWAYS.match(path)) or path.startswith(made)

    return tuple(path for path in series.touched if not is_tested(path))


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
    missed = untested(series, built)
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
