"""Applying a series to a user's tree: the whole series or nothing, whatever happens in between.

The series is first applied to copies.  Then the new files are laid beside the tree's own, a journal
is written, and the files change places by rename, which takes a moment.  Three things keep that
moment from leaving half a series behind:

- signals that can wait, wait until it is over;
- a guard, a process of its own, sees this one die (SIGKILL, say) and puts everything back at once;
- if both die (power), the journal is still there: whoever comes next puts everything back.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from . import files, gitapply, patches
from .errors import PatchError, UsageError
from .patches import Series

JOURNAL_FOLDER = ".vmm-workbench-apply"
_JOURNAL = "journal.json"
_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Applied:
    """What was done to a tree."""

    changed: tuple[str, ...]
    drift: tuple[gitapply.Drift, ...]


def require_whole(tree: Path) -> None:
    """UsageError when an earlier apply was cut off in `tree` and nobody has put it back yet."""
    if (tree / JOURNAL_FOLDER).exists():
        raise UsageError(
            f"{tree}: an earlier patch.apply was cut off there; "
            f"run ./inv patch.apply {tree} again, which puts the tree back first"
        )


def apply(series: Series, tree: Path, *, between: Callable[[], None] = lambda: None) -> Applied:
    """Apply the series to `tree`, in place; all or nothing.

    `between` is called after each file that moved (tests look, fail or die there).  Raises
    PatchError when a patch does not apply, UsageError when the tree cannot be written to.
    """
    patches.require_tree(tree)
    tree = tree.resolve()
    if not os.access(tree, os.W_OK):
        raise UsageError(f"{tree}: cannot be written to")
    with files.locked(_lock_path(tree), f"patch.apply {tree}"):
        recover(tree)
        for path in series.touched:
            _refuse_links(tree, path)
        with patches.staged(series, tree) as (patched, drift):
            changed = tuple(path for path in series.touched if _differs(tree, patched, path))
            if changed:
                _exchange(tree, patched, changed, between)
    return Applied(changed, drift)


def _lock_path(tree: Path) -> Path:
    # Not in the tree: nothing of ours stays there.
    return files.cache_dir() / "locks" / f"tree-{files.sha256_text(str(tree))[:16]}"


def _refuse_links(tree: Path, path: str) -> None:
    parts = PurePosixPath(path)
    for above in (parts, *list(parts.parents)[:-1]):
        if (tree / above).is_symlink():
            raise PatchError(
                f"{path}: {above} is a symbolic link in {tree}, and what it points to may belong "
                "to another tree; apply to a tree of real files"
            )
        if (tree / above).exists() and not os.access(tree / above, os.W_OK):
            raise UsageError(f"{tree / above}: cannot be written to")


def _differs(tree: Path, patched: Path, path: str) -> bool:
    old, new = tree / path, patched / path
    if old.is_file() != new.is_file():
        return True
    return old.is_file() and (
        old.read_bytes() != new.read_bytes()
        or (old.stat().st_mode ^ new.stat().st_mode) & 0o100 != 0
    )


def _exchange(
    tree: Path, patched: Path, changed: tuple[str, ...], between: Callable[[], None]
) -> None:
    """Put the new files in place of the old ones, or leave all the old ones."""
    folder = tree / JOURNAL_FOLDER
    try:
        _prepare(tree, patched, changed, folder)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UsageError(f"{error.filename}: cannot be written: {error.strerror}") from error
    with _guard(tree), _signals_held():
        try:
            for path in changed:
                _move(folder / "new" / path, tree / path)
                between()
            files.sync(tree)
            # From here on the new files are the tree's; only rubbish is left to remove.
            (folder / _JOURNAL).rename(folder / "done")
        except OSError as error:
            recover(tree)
            raise UsageError(f"{error.filename}: cannot be written: {error.strerror}") from error
        except BaseException:
            recover(tree)
            raise
        shutil.rmtree(folder)


def _prepare(tree: Path, patched: Path, changed: tuple[str, ...], folder: Path) -> None:
    folder.mkdir(mode=0o700)
    made = []
    for path in changed:
        old, new = tree / path, patched / path
        for side in ("old", "new"):
            (folder / side / path).parent.mkdir(parents=True, exist_ok=True)
        if old.is_file():
            shutil.copy2(old, folder / "old" / path)
            _own_as(old, folder / "old" / path)
            files.sync(folder / "old" / path)
        if new.is_file():
            shutil.copyfile(new, folder / "new" / path)
            mode = old.stat().st_mode & 0o777 if old.is_file() else 0o644
            executable = bool(new.stat().st_mode & 0o100)
            (folder / "new" / path).chmod(mode | 0o111 if executable else mode & ~0o111)
            if old.is_file():
                _own_as(old, folder / "new" / path)
            files.sync(folder / "new" / path)
        missing = [str(up) for up in PurePosixPath(path).parents if not (tree / up).exists()]
        made += [up for up in missing if up not in made]
    journal = {"changed": changed, "folders": sorted(made, reverse=True)}
    files.write_atomic(folder / _JOURNAL, json.dumps(journal))
    files.sync(tree)


def _own_as(old: Path, new: Path) -> None:
    state = old.stat()
    if os.geteuid() == 0:
        os.chown(new, state.st_uid, state.st_gid)


def _move(new: Path, target: Path) -> None:
    if new.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        new.replace(target)
    else:
        target.unlink()


def recover(tree: Path) -> bool:
    """Put a tree back that an apply left half done.  Returns whether there was anything to do."""
    folder = tree / JOURNAL_FOLDER
    if not folder.is_dir():
        return False
    try:
        journal = json.loads((folder / _JOURNAL).read_text())
    except FileNotFoundError:
        # Cut off before the first file moved, or after the last.
        shutil.rmtree(folder, ignore_errors=True)
        return False
    for path in journal["changed"]:
        old = folder / "old" / path
        if old.is_file():
            copy = (tree / path).with_name(f".{Path(path).name}.vmm-workbench")
            shutil.copy2(old, copy)
            _own_as(old, copy)
            copy.replace(tree / path)
        else:
            (tree / path).unlink(missing_ok=True)
    for made in journal["folders"]:
        if (tree / made).is_dir() and not any((tree / made).iterdir()):
            (tree / made).rmdir()
    files.sync(tree)
    shutil.rmtree(folder)
    return True


@contextmanager
def _signals_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _guard(tree: Path) -> Iterator[None]:
    """A process that puts `tree` back if this one ends inside the block without saying so."""
    guard = subprocess.Popen(
        [sys.executable, "-m", __name__, str(tree)],
        cwd=files.PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Ctrl-C and a closed terminal reach the whole group; the guard must outlive both.
        start_new_session=True,
    )
    assert guard.stdin
    assert guard.stdout
    try:
        guard.stdout.readline()
        yield
    finally:
        try:
            guard.stdin.write(b"over\n")
            guard.stdin.close()
        except BrokenPipeError:
            pass
        guard.wait()
        guard.stdout.close()


def _watch(tree: Path) -> None:
    for number in _HELD:
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.write("watching\n")
    sys.stdout.flush()
    if sys.stdin.readline() != "over\n":
        recover(tree)


if __name__ == "__main__":
    _watch(Path(sys.argv[1]))
