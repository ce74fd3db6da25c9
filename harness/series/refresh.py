"""Writes the edits of a tree back into the series.

Usage: `patch.apply TREE`, edit there, `patch.refresh TREE --pristine SRC`.  The edited
tree is compared with the pristine one, file by file, no git needed.  An edit goes into the last
patch of the series that touches the file, so no other patch changes; its message stays.  Files that
no patch touches are reported; with `into` they are added to that patch.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unidiff.patch import PatchSet

from harness import files, source_tree
from harness.errors import CannotError, PatchError, UsageError
from harness.series import apply, git, staging
from harness.series.load import Patch, Series

_CONTEXT_LINES = 3
_IGNORED = re.compile(
    r"(.*~|.*\.(o|orig|rej|swp|ko|a|so(\.\d+)?|pyc|depend)|\.depend.*|\.git|\.svn|tags|cscope\..*"
    rf"|__pycache__|{re.escape(git.JOURNAL_FOLDER)})\Z"
)
_TAIL = re.compile(rb"^-- \r?\n\d[^\n]*\n+\Z", re.M)


@dataclass(frozen=True)
class Refreshed:
    """The results of a refresh: rewritten patches, and files that were left out."""

    changed: tuple[str, ...]
    unclaimed: tuple[str, ...]
    shared: tuple[str, ...]


def refresh(series: Series, pristine: Path, edited: Path, *, into: str = "") -> Refreshed:
    """Write the edits made in `edited` back into the series' patches.

    Returns the names of the patches that were rewritten, the edited files that no patch touches
    (added to the patch `into` if it is given), and those rewritten patches that other releases
    share.  Raises PatchError if the series does not apply to `pristine`.
    """
    for tree in (pristine, edited):
        source_tree.require(tree)
    if pristine.resolve() == edited.resolve():
        raise UsageError("patch.refresh needs two trees: the edited one, and --pristine")
    apply.require_complete(edited)
    if not series.patches:
        raise UsageError(
            f"the series {series.topic} is empty; make its first patch with git format-patch"
        )
    unclaimed = tuple(sorted(_changed_elsewhere(pristine, edited, set(series.touched))))
    target = _named(series, into) if into else None
    with tempfile.TemporaryDirectory(prefix="vmm-refresh-") as name:
        work = Path(name)
        states = _states(series, pristine, work, unclaimed)
        last = {path: patch for patch in series.patches for path in patch.touched}
        rewritten: dict[Patch, list[str]] = {}
        for path, patch in last.items():
            if not _same(states[-1] / path, edited / path):
                rewritten.setdefault(patch, []).append(path)
        if target:
            rewritten.setdefault(target, []).extend(unclaimed)
        for patch in rewritten:
            if not patch.plain:
                raise UsageError(
                    f"{patch.name}: it cannot be written again in its present form (one "
                    f"of several "
                    "mails, encoded, p0, or reverted with -R); make it a separate file with "
                    "git format-patch"
                )
        written = {
            patch: _rewrite(patch, states[series.patches.index(patch)], states, paths, edited, work)
            for patch, paths in rewritten.items()
            if paths
        }
    for patch, data in written.items():
        files.write_atomic(patch.path, data)
    names = tuple(patch.name for patch in series.patches if patch in written)
    shared = tuple(patch.name for patch in written if patch.common)
    return Refreshed(names, () if target else unclaimed, shared)


def _named(series: Series, name: str) -> Patch:
    found = [patch for patch in series.patches if name in (patch.name, patch.path.stem)]
    found = found or [patch for patch in series.patches if patch.name.startswith(name)]
    if len(found) != 1:
        raise UsageError(f"--into {name}: the series has no patch of that name, or several")
    return found[0]


def _states(series: Series, pristine: Path, work: Path, more: tuple[str, ...]) -> tuple[Path, ...]:
    """The touched files before the series and after each patch, each in its own folder."""
    states = [work / "0"]
    staging.copy_touched((*series.touched, *more), pristine, states[0])
    for number, patch in enumerate(series.patches, 1):
        states.append(work / str(number))
        shutil.copytree(states[-2], states[-1])
        staging.apply_patch(states[-1], patch)
    return tuple(states)


def _split_mail(data: bytes) -> tuple[bytes, bytes]:
    """A patch's header with its message, and the rest from the `---` line or the diff on."""
    found = re.search(rb"^(?:---[ \t]*\r?\n|diff --git |--- |Index: )", data, re.M)
    return (data[: found.start()], data[found.start() :]) if found else (data, b"")


def _same(one: Path, other: Path) -> bool:
    if one.is_file() != other.is_file():
        return False
    if not one.is_file():
        return True
    modes = (one.stat().st_mode ^ other.stat().st_mode) & 0o100
    return not modes and filecmp.cmp(one, other, shallow=False)


def _changed_elsewhere(pristine: Path, edited: Path, touched: set[str]) -> Iterator[str]:
    """Files that differ between the trees and that no patch touches."""
    seen = set()
    for path, file in _files(edited, ""):
        seen.add(path)
        if path in touched:
            continue
        old = pristine / path
        if not old.is_file():
            yield path
            continue
        new_state, old_state = file.stat(), old.stat()
        # Equal times and sizes count as equal, because reading every file of two trees takes
        # minutes.
        if (new_state.st_size, new_state.st_mtime_ns) == (old_state.st_size, old_state.st_mtime_ns):
            continue
        if not filecmp.cmp(file, old, shallow=False):
            yield path
    for path, _ in _files(pristine, ""):
        if path not in seen and path not in touched:
            yield path


def _files(top: Path, below: str) -> Iterator[tuple[str, Path]]:
    with os.scandir(top / below) as entries:
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if _IGNORED.match(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(top, path)
            elif entry.is_file():
                yield path, Path(entry.path)


def _rewrite(
    patch: Patch,
    before: Path,
    states: tuple[Path, ...],
    paths: list[str],
    edited: Path,
    work: Path,
) -> bytes:
    """The rewritten patch: its header, and the difference from `before` to its new result."""
    after = states[states.index(before) + 1]
    repository = work / f"diff-{patch.digest[:12]}"
    repository.mkdir()
    involved = dict.fromkeys((*patch.touched, *paths))
    _git(repository, "init", "-q")
    for path in involved:
        _put(before / path, repository / path)
    _git(repository, "add", "-A", "-f")
    for path in involved:
        _put((edited if path in paths else after) / path, repository / path)
    tree = _git(repository, "write-tree").decode().strip()
    _git(repository, "add", "-A", "-f")
    options = ["--cached", "-M", "--no-ext-diff", "--no-color"]
    diff = _git(repository, "diff", *options, f"-U{_context(patch)}", tree)
    if not diff:
        raise PatchError(f"{patch.name}: nothing is left of it; take it out of the series file")
    head, old = _split_mail(patch.data)
    if not head:
        return diff
    stat = _git(repository, "diff", *options, "--stat=72", "--summary", tree)
    tail = _TAIL.search(old)
    return head + b"---\n" + stat + b"\n" + diff + (tail[0] if tail else b"")


def _context(patch: Patch) -> int:
    """The patch's number of context lines; a patch in common/ may have fewer than usual."""
    most = 0
    for changed in PatchSet(git.text_of(patch.diff)):
        for hunk in changed:
            kinds = [item.is_context for item in hunk]
            for side in (kinds, kinds[::-1]):
                most = max(most, side.index(False) if False in side else 0)
    return most or _CONTEXT_LINES


def _put(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)


def _git(repository: Path, *arguments: str) -> bytes:
    done = git.run_git(["-c", "core.autocrlf=false", *arguments], repository)
    if done.returncode:
        raise CannotError(f"git {arguments[0]} failed: {done.stderr.decode(errors='replace')}")
    return done.stdout
