"""Applies a series to a user's tree: completely or not at all, even if it is interrupted.

The series is first applied to copies.  The tree's old files and a journal are saved in the cache,
outside the tree: a journal inside a tree may be part of a download, so it is never read.  Then the
new files are written next to the old ones and renamed, which takes only a moment.  Three mechanisms
prevent an incomplete series:

- signals are delayed until the renaming is finished, if possible;
- a guard, a separate process, restores everything immediately if this one ends (for instance by
SIGKILL);
- if both end (power failure), the journal still exists, and the next patch.apply restores
everything.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from harness import files, source_tree
from harness.beneath import Beneath
from harness.errors import CannotError, PatchError, UsageError
from harness.series import git, staging
from harness.series.git import JOURNAL_FOLDER
from harness.series.load import Series

_JOURNAL = "journal.json"
_OLD = "old"
_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Applied:
    """The changes to a tree."""

    changed: tuple[str, ...]
    drift: tuple[git.Drift, ...]


@dataclass(frozen=True)
class _Journal:
    """The changes that an apply makes in `tree`; paths are relative to it.

    `old/N` next to the journal is the old content of the Nth of `changed`; it does not exist if the
    series adds the file.  `laid` are the temporary names of the new files.  `folders` are made for
    new files, parents first.
    """

    tree: str
    changed: tuple[str, ...]
    laid: tuple[str, ...]
    folders: tuple[str, ...]


def journal_folder(tree: Path) -> Path:
    """The folder in the cache of the journal of an apply to `tree`."""
    return files.cache_dir() / "applies" / files.sha256_text(str(tree.resolve()))[:32]


def require_complete(tree: Path) -> None:
    """Raise UsageError if an earlier apply to `tree` was interrupted and is not yet undone."""
    if (tree / JOURNAL_FOLDER).is_symlink() or (tree / JOURNAL_FOLDER).exists():
        raise UsageError(
            f"{tree}: {JOURNAL_FOLDER} is in it, left by an interrupted old version of "
            f"this program, "
            "or part of a download; get the tree again, or remove that folder if the tree is "
            "as you want it"
        )
    if journal_folder(tree).exists():
        raise UsageError(
            f"{tree}: an earlier patch.apply was interrupted there; "
            f"run ./inv patch.apply {shlex.quote(str(tree))} again with the --series or --topic "
            "that it had: it restores the tree first"
        )


def apply(series: Series, tree: Path, *, between: Callable[[], None] = lambda: None) -> Applied:
    """Apply the series to `tree`, in place; all or nothing.

    `between` is called after each renamed file, for tests.  Raises PatchError if a patch does not
    apply, UsageError if the tree cannot be written to.
    """
    source_tree.require(tree)
    tree = tree.resolve()
    if not os.access(tree, os.W_OK):
        raise UsageError(f"{tree}: cannot be written to")
    with files.locked(_lock_path(tree), f"patch.apply {tree}"):
        recover(tree)
        require_complete(tree)
        for path in series.touched:
            _refuse_links(tree, path)
        with staging.staged(series, tree) as (patched, drift):
            changed = tuple(path for path in series.touched if _differs(tree, patched, path))
            if changed:
                _exchange(tree, patched, changed, between)
    return Applied(changed, drift)


def _lock_path(tree: Path) -> Path:
    # The lock is outside the tree, so that no file of ours stays there.
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
    """Replace all old files by the new ones, or none."""
    folder = journal_folder(tree)
    try:
        journal = _save(tree, changed, folder)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UsageError(f"{error.filename}: cannot be written: {error.strerror}") from error
    with _guard(tree, folder), _signals_held():
        try:
            with Beneath(tree) as top:
                _lay(top, patched, journal)
                for laid, path in zip(journal.laid, changed, strict=True):
                    if (patched / path).is_file():
                        top.replace(laid, path)
                    else:
                        top.remove(path)
                    between()
                top.sync()
            # From here on the tree has the new files; only leftovers must still be removed.
            (folder / _JOURNAL).rename(folder / "done")
        except OSError as error:
            recover(tree, folder)
            raise UsageError(f"{error.filename}: cannot be written: {error.strerror}") from error
        except BaseException:
            recover(tree, folder)
            raise
        shutil.rmtree(folder)


def _save(tree: Path, changed: tuple[str, ...], folder: Path) -> _Journal:
    """Save the old files and the journal."""
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700)
    (folder / _OLD).mkdir(mode=0o700)
    with Beneath(tree) as top:
        for number, path in enumerate(changed):
            if (found := top.read(path)) is not None:
                _save_old(folder / _OLD / str(number), *found)
    made = {
        str(above)
        for path in changed
        for above in PurePosixPath(path).parents
        if not (tree / above).exists()
    }
    token = secrets.token_hex(8)
    journal = _Journal(
        str(tree),
        changed,
        tuple(
            str(PurePosixPath(path).with_name(f".vmm-workbench-{token}-{number}"))
            for number, path in enumerate(changed)
        ),
        tuple(sorted(made)),
    )
    files.sync(folder / _OLD)
    files.write_atomic(folder / _JOURNAL, json.dumps(asdict(journal)))
    return journal


def _save_old(copy: Path, data: bytes, state: os.stat_result) -> None:
    copy.write_bytes(data)
    if os.geteuid() == 0:
        os.chown(copy, state.st_uid, state.st_gid)
    copy.chmod(stat.S_IMODE(state.st_mode))
    os.utime(copy, ns=(state.st_atime_ns, state.st_mtime_ns))
    files.sync(copy)


def _lay(top: Beneath, patched: Path, journal: _Journal) -> None:
    """Write the new files, under temporary names, into their folders."""
    for path in journal.folders:
        top.make_folder(path)
    for laid, path in zip(journal.laid, journal.changed, strict=True):
        new = patched / path
        if not new.is_file():
            continue
        found = top.read(path)
        mode = stat.S_IMODE(found[1].st_mode) & 0o777 if found else 0o644
        executable = bool(new.stat().st_mode & 0o100)
        owner = _owner(found[1]) if found else None
        top.write(laid, new.read_bytes(), mode | 0o111 if executable else mode & ~0o111, owner)


def _owner(state: os.stat_result) -> tuple[int, int] | None:
    return (state.st_uid, state.st_gid) if os.geteuid() == 0 else None


def recover(tree: Path, folder: Path | None = None) -> bool:
    """Restore a tree after an incomplete apply.  Returns whether there was anything to do.

    `folder` is the journal's, if the caller knows it.  Raises CannotError if the journal was not
    written by this user's own patch.apply, or if the tree was changed so that it cannot be
    restored.
    """
    folder = folder or journal_folder(tree)
    if not folder.is_symlink() and not folder.exists():
        return False
    _require_own(folder)
    try:
        journal = _load(folder / _JOURNAL, tree)
    except FileNotFoundError:
        # Interrupted before the first file was renamed, or after the last.
        shutil.rmtree(folder, ignore_errors=True)
        return False
    try:
        with Beneath(tree) as top:
            for number, (laid, path) in enumerate(zip(journal.laid, journal.changed, strict=True)):
                top.remove(laid)
                _put_back(top, folder / _OLD / str(number), laid, path)
            for made in reversed(journal.folders):
                top.remove_folder(made)
            top.sync()
    except OSError as error:
        raise CannotError(
            f"{error.filename}: cannot be restored to its state before patch.apply: "
            f"{error.strerror}; "
            f"the old files are in {folder / _OLD}"
        ) from error
    shutil.rmtree(folder)
    return True


def _put_back(top: Beneath, old: Path, laid: str, path: str) -> None:
    if not old.is_file():
        top.remove(path)
        return
    data, state = old.read_bytes(), old.stat()
    mode = stat.S_IMODE(state.st_mode)
    there = top.read(path)
    if there and there[0] == data and stat.S_IMODE(there[1].st_mode) == mode:
        return
    top.write(laid, data, mode, _owner(state))
    top.set_time(laid, state)
    top.replace(laid, path)


def _require_own(folder: Path) -> None:
    state = folder.lstat()
    mine = stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid()
    if not mine or state.st_mode & 0o022:
        raise CannotError(
            f"{folder}: other users can write to this folder, so the journal in it is "
            f"not "
            "trusted; look at it, and remove it or set HARNESS_CACHE to a folder of your own"
        )


def _load(file: Path, tree: Path) -> _Journal:
    try:
        data = json.loads(file.read_text())
        journal = _Journal(
            str(data["tree"]),
            *(tuple(str(it) for it in data[name]) for name in ("changed", "laid", "folders")),
        )
        paths = (*journal.changed, *journal.laid, *journal.folders)
        bad = [path for path in paths if git.refusal(path)]
    except (ValueError, KeyError, TypeError) as error:
        raise _no_journal(file, tree, repr(error)) from error
    if bad:
        raise _no_journal(file, tree, f"it names {bad[0]!r}")
    if journal.tree != str(tree) or len(journal.laid) != len(journal.changed):
        raise _no_journal(file, tree, "it is of another tree")
    return journal


def _no_journal(file: Path, tree: Path, reason: str) -> CannotError:
    return CannotError(
        f"{file}: this is not a journal of patch.apply for {tree} ({reason}); look at "
        f"{file.parent}, and "
        "remove it"
    )


@contextmanager
def _signals_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _guard(tree: Path, folder: Path) -> Iterator[None]:
    """A process that restores `tree` if this process ends inside the block."""
    # Not by process.run: the guard must outlive this process.
    guard = subprocess.Popen(
        [sys.executable, "-m", __name__, str(tree), str(folder)],
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


def _watch(tree: Path, folder: Path) -> None:
    for number in _HELD:
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.write("watching\n")
    sys.stdout.flush()
    if sys.stdin.readline() != "over\n":
        recover(tree, folder)


if __name__ == "__main__":
    _watch(Path(sys.argv[1]), Path(sys.argv[2]))
