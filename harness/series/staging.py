"""Applies a series to copies, so that the user's tree is only read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from harness import source_tree
from harness.errors import PatchError, UsageError
from harness.series import git
from harness.series.git import Drift
from harness.series.load import Patch, Series


@contextmanager
def staged(series: Series, tree: Path) -> Iterator[tuple[Path, tuple[Drift, ...]]]:
    """Copy the touched files of `tree` to a separate folder, and apply the series there.

    The tree is only read.  Yields the folder and the hunks that moved; raises PatchError for the
    first patch that does not apply.
    """
    with tempfile.TemporaryDirectory(prefix="vmm-stage-") as name:
        folder = Path(name) / "tree"
        copy_touched(series.touched, tree, folder)
        yield folder, apply_staged(series, tree, folder)


def copy_touched(touched: Sequence[str], tree: Path, folder: Path) -> None:
    """Copy the `touched` files that exist in `tree` to `folder`, with contents and mode."""
    source_tree.require(tree)
    folder.mkdir(parents=True, exist_ok=True)
    for path in touched:
        source, target = tree / path, folder / path
        if source.is_dir():
            raise PatchError(f"{path}: in the series this is a file, but in the tree a folder")
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(source, target)
            except OSError as error:
                raise UsageError(f"{source}: cannot be read: {error.strerror}") from error
            target.chmod(0o755 if source.stat().st_mode & 0o111 else 0o644)


def apply_staged(series: Series, tree: Path, folder: Path) -> tuple[Drift, ...]:
    """Apply the series to the copies in `folder`; the error says if `tree` already has it
    applied.
    """
    drift: list[Drift] = []
    try:
        for patch in series.patches:
            drift += apply_patch(folder, patch)
    except PatchError as error:
        if is_applied(series, tree):
            raise _already(series, tree, error.detail) from error
        raise
    if drift and is_applied(series, tree, exactly=True):
        # In repetitive text the patch might fit a second time in another place.
        raise _already(series, tree)
    for path in series.touched:
        # touched_paths already refuses such patches; this is a second line of defence.
        if any(
            (folder / it).is_symlink() for it in (PurePosixPath(path), *PurePosixPath(path).parents)
        ):
            raise PatchError(f"{path}: the series turns it into a symbolic link")
    return tuple(drift)


def _already(series: Series, tree: Path, detail: str = "") -> PatchError:
    return PatchError(f"the series {series.topic} is already applied in {tree}", detail=detail)


def is_applied(series: Series, tree: Path, *, exactly: bool = False) -> bool:
    """Whether `tree` already has the series: it can be reverted, last patch first.

    `exactly` allows no moved hunk.
    """
    if not series.patches:
        return False
    with tempfile.TemporaryDirectory(prefix="vmm-stage-") as name:
        folder = Path(name) / "tree"
        copy_touched(series.touched, tree, folder)
        try:
            for patch in reversed(series.patches):
                if apply_patch(folder, patch, reverse=True) and exactly:
                    return False
        except PatchError:
            return False
    return True


def apply_patch(
    folder: Path, patch: Patch, *, reverse: bool = False, only: str = ""
) -> tuple[Drift, ...]:
    """Apply one patch to the files in `folder` with its options in the series; all or nothing."""
    return git.apply_in(folder, patch.diff, patch.name, reverse=reverse != patch.reverse, only=only)
