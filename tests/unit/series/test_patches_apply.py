"""Applying to a user's tree: all or nothing, also when the process is killed halfway."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faketree import NUMBERED, content, diff, make_tree, snapshot

from harness import files
from harness.errors import CannotError, PatchError, UsageError
from harness.series import apply, load
from harness.series.git import JOURNAL_FOLDER
from harness.series.load import Series

MANUAL = "share/man/man4/vmm.4"
ADDED = "usr.sbin/vmmls/deep/vmmls.c"
REMOVED = "sys/old.c"

# Applies a series and dies, or kills its guard first, after the given number of files.
DIE = """
import os, signal, sys
from pathlib import Path
from harness.series import apply, load
tree, series, after, how = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
moved = 0
def between():
    global moved
    moved += 1
    if moved < after:
        return
    if how == "both":
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    if how == "raise":
        raise RuntimeError("in between")
    if how == "term":
        os.kill(os.getpid(), signal.SIGTERM)
        return
    os.kill(os.getpid(), signal.SIGKILL)
apply.apply(load.load_series(series, "15.1"), tree, between=between)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "a tree", {REMOVED: "old\n", "sys/run.sh": "#!/bin/sh\n"})


@pytest.fixture
def series(tmp_path: Path) -> Series:
    """Three patches: an edit and an added file, the edit edited, a removed file."""
    once = NUMBERED.replace("line 20\n", "line XX\n")
    twice = NUMBERED.replace("line 20\n", "line YY\n")
    folder = tmp_path / "series"
    folder.mkdir()
    steps: tuple[tuple[dict[str, str | None], dict[str, str | None]], ...] = (
        ({MANUAL: NUMBERED}, {MANUAL: once, ADDED: "new\n"}),
        ({MANUAL: once}, {MANUAL: twice}),
        ({REMOVED: "old\n"}, {REMOVED: None}),
    )
    for number, (before, after) in enumerate(steps, 1):
        (folder / f"{number}.patch").write_bytes(diff(tmp_path, before, after))
    return load.load_series(folder, "15.1")


def is_applied(tree: Path) -> bool:
    return (
        "line YY\n" in (tree / MANUAL).read_text()
        and (tree / ADDED).read_text() == "new\n"
        and not (tree / REMOVED).exists()
        and not apply.journal_folder(tree).exists()
    )


def test_a_series_is_applied_whole(tree: Path, series: Series) -> None:
    (tree / MANUAL).chmod(0o640)
    applied = apply.apply(series, tree)
    assert applied.changed == (MANUAL, REMOVED, ADDED)
    assert is_applied(tree)
    assert (tree / MANUAL).stat().st_mode & 0o777 == 0o640
    with pytest.raises(PatchError, match="already applied"):
        apply.apply(series, tree)
    assert is_applied(tree)


def test_the_last_patch_failing_leaves_the_tree_untouched(tree: Path, series: Series) -> None:
    (tree / REMOVED).write_text("somebody changed it\n")
    before = snapshot(tree)
    with pytest.raises(PatchError, match=r"^3\.patch does not apply"):
        apply.apply(series, tree)
    assert snapshot(tree) == before


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "x"), KeyboardInterrupt()]
)
def test_a_failure_between_two_files_puts_everything_back(
    tree: Path, series: Series, after: int, error: BaseException
) -> None:
    before = content(tree)
    moved = []

    def between() -> None:
        moved.append(1)
        if len(moved) == after:
            raise error

    with pytest.raises((UsageError, KeyboardInterrupt)):
        apply.apply(series, tree, between=between)
    assert content(tree) == before


def die(tree: Path, series: Series, after: int, how: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", DIE, str(tree), str(series.folder), str(after), how],
        cwd=files.PROJECT,
        stderr=subprocess.DEVNULL,
        check=False,
    ).returncode


@pytest.mark.parametrize("after", [1, 2, 3])
def test_killed_between_two_files_the_guard_puts_everything_back(
    tree: Path, series: Series, after: int
) -> None:
    before = content(tree)
    assert die(tree, series, after, "kill") == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while apply.journal_folder(tree).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert content(tree) == before


def test_when_the_guard_dies_too_the_next_one_puts_it_back(tree: Path, series: Series) -> None:
    before = content(tree)
    assert die(tree, series, 2, "both") == -signal.SIGKILL
    assert content(tree) != before
    with pytest.raises(UsageError, match=r"an earlier .* was interrupted there"):
        apply.require_complete(tree)
    assert apply.recover(tree)
    assert content(tree) == before
    assert die(tree, series, 2, "both") == -signal.SIGKILL
    apply.apply(series, tree)
    assert is_applied(tree)


def test_a_signal_that_can_wait_waits_until_the_tree_is_whole(tree: Path, series: Series) -> None:
    assert die(tree, series, 1, "term") == -signal.SIGTERM
    assert is_applied(tree)


def test_cut_off_before_the_first_file_moved_there_is_only_rubbish(
    tree: Path, series: Series
) -> None:
    before = content(tree)
    (apply.journal_folder(tree) / "old").mkdir(parents=True)
    assert not apply.recover(tree)
    assert not apply.journal_folder(tree).exists()
    assert content(tree) == before


def test_links_are_not_followed_into_another_tree(
    tmp_path: Path, tree: Path, series: Series
) -> None:
    other = tmp_path / "elsewhere.4"
    (tree / MANUAL).rename(other)
    (tree / MANUAL).symlink_to(other)
    before, outside = snapshot(tree), other.read_bytes()
    with pytest.raises(PatchError, match=r"vmm\.4 is a symbolic link"):
        apply.apply(series, tree)
    assert (snapshot(tree), other.read_bytes()) == (before, outside)
    (tree / MANUAL).unlink()
    other.rename(tree / MANUAL)
    (tree / "share").rename(tmp_path / "share")
    (tree / "share").symlink_to(tmp_path / "share")
    with pytest.raises(PatchError, match="share is a symbolic link"):
        apply.apply(series, tree)


def test_a_tree_that_cannot_be_written_to_is_reported_first(
    tree: Path, series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(tree)
    for locked in (tree, tree / "share/man/man4"):
        monkeypatch.setattr(
            os, "access", lambda path, _mode, locked=locked: Path(path) != locked.resolve()
        )
        with pytest.raises(UsageError, match="cannot be written to"):
            apply.apply(series, tree)
    assert snapshot(tree) == before


def test_hard_links_to_other_trees_are_broken_not_written_through(
    tmp_path: Path, tree: Path, series: Series
) -> None:
    os.link(tree / MANUAL, tmp_path / "twin")
    apply.apply(series, tree)
    assert (tmp_path / "twin").read_text() == NUMBERED


def test_an_empty_series_changes_nothing(tmp_path: Path, tree: Path) -> None:
    before = snapshot(tree)
    empty = Series("none", "15.1", tmp_path, ())
    assert apply.apply(empty, tree).changed == ()
    assert snapshot(tree) == before


# What attackers try: a journal of their own, and links under the files that are put back.

FORGED = '{"tree": "%s", "changed": ["../.bashrc", "../precious"], "laid": ["../x", "../y"], \
"folders": []}'


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The user's own files beside the tree, as they must stay."""
    (tmp_path / ".bashrc").write_text("the user's own\n")
    (tmp_path / "precious").write_text("precious\n")
    return {name: (tmp_path / name).read_text() for name in (".bashrc", "precious")}


def untouched(tmp_path: Path, home: dict[str, str]) -> bool:
    return all((tmp_path / name).read_text() == text for name, text in home.items())


@pytest.mark.parametrize("name", [JOURNAL_FOLDER, ".VMM-Workbench-Apply"])
@pytest.mark.parametrize("below", ["", "sys/"])
def test_a_patch_may_not_name_a_journal(
    tmp_path: Path, tree: Path, home: dict[str, str], name: str, below: str
) -> None:
    folder = f"{below}{name}"
    added: dict[str, str | None] = {
        f"{folder}/.bashrc": "echo pwned\n",
        f"{folder}/done/x": "x\n",
        f"{folder}/journal.json": '{"changed": ["../.bashrc", "../precious"], "folders": []}\n',
    }
    (tmp_path / "p.patch").write_bytes(diff(tmp_path, {}, added))
    with pytest.raises(PatchError, match=r"not a path inside the tree: \.vmm-workbench-apply is"):
        apply.apply(load.load_series(tmp_path / "p.patch", "15.1"), tree)
    assert untouched(tmp_path, home)


def test_a_journal_that_came_with_the_tree_is_not_read(
    tmp_path: Path, tree: Path, series: Series, home: dict[str, str]
) -> None:
    forged = tree / JOURNAL_FOLDER
    (forged / "old").mkdir(parents=True)
    (forged / ".bashrc").write_text("echo pwned\n")
    (forged / "journal.json").write_text(FORGED % tree)
    before = content(tree)
    for attempt in (apply.require_complete, lambda it: apply.apply(series, it)):
        with pytest.raises(UsageError, match="get the tree again, or remove that folder"):
            attempt(tree)
    assert not apply.recover(tree)
    assert (content(tree), untouched(tmp_path, home)) == (before, True)
    for path in sorted(forged.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    forged.rmdir()
    forged.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="remove that folder"):
        apply.apply(series, tree)


def test_a_journal_that_others_could_have_written_is_not_trusted(
    tmp_path: Path, tree: Path, series: Series, home: dict[str, str]
) -> None:
    folder = apply.journal_folder(tree)
    folder.mkdir(parents=True)
    (folder / "journal.json").write_text(FORGED % tree)
    folder.chmod(0o777)
    with pytest.raises(CannotError, match="other users can write to this folder"):
        apply.apply(series, tree)
    folder.chmod(0o700)
    with pytest.raises(CannotError, match=r"not a journal of patch\.apply .*names '\.\./\.bashrc'"):
        apply.apply(series, tree)
    for text in ("{}", "[]", "{", '{"tree": "/", "changed": [], "laid": [], "folders": []}'):
        (folder / "journal.json").write_text(text)
        with pytest.raises(CannotError, match="not a journal"):
            apply.recover(tree)
    assert untouched(tmp_path, home)


def test_nothing_is_put_back_through_a_link(
    tmp_path: Path, tree: Path, series: Series, home: dict[str, str]
) -> None:
    """The tree's owner may be another one, and changes it between the fall and the recovery."""
    assert die(tree, series, 3, "both") == -signal.SIGKILL
    deep = tree / "share/man/man4"
    deep.rename(tmp_path / "aside")
    (tmp_path / "vmm.4").write_text("the user's manual\n")
    deep.symlink_to(tmp_path)
    with pytest.raises(CannotError, match=r"cannot be restored .*the old files are in"):
        apply.apply(series, tree)
    assert (tmp_path / "vmm.4").read_text() == "the user's manual\n"
    assert untouched(tmp_path, home)
    deep.unlink()
    (tmp_path / "aside").rename(deep)
    apply.apply(series, tree)
    assert is_applied(tree)
