"""The folders that builds are made in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.build import workdir


def test_the_first_is_used_again_and_two_have_one_each(tmp_path: Path) -> None:
    for _ in range(2):
        with workdir.claim(tmp_path) as first:
            assert first.folder == tmp_path / "work/0"
            (first.folder / "left").touch()
            with workdir.claim(tmp_path) as second:
                assert second.folder == tmp_path / "work/1"
                assert not list(second.folder.iterdir())
    assert not list((tmp_path / "work").iterdir())


def test_what_killed_builds_left_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    long_ago = 1_000_000_000
    for name in ("work/7/src", ".0123.old", ".4567.new"):
        (tmp_path / name).mkdir(parents=True)
    os.utime(tmp_path / ".0123.old", (long_ago, long_ago))
    with workdir.claim(tmp_path) as mine:
        os.utime(mine.folder, (long_ago, long_ago))
        workdir.sweep(tmp_path)
        assert mine.folder.exists()
    assert {path.name for path in tmp_path.iterdir()} == {".4567.new", "locks", "work"}
    assert not (tmp_path / "work/7").exists()


def test_a_compiler_that_outlives_its_build_keeps_the_folder(tmp_path: Path) -> None:
    with workdir.claim(tmp_path) as killed:
        compiler = subprocess.Popen(["sleep", "60"], pass_fds=[killed.lock_fd])
    try:
        with workdir.claim(tmp_path) as next_one:
            assert next_one.folder == tmp_path / "work/1"
    finally:
        compiler.kill()
        compiler.wait()
    with workdir.claim(tmp_path) as again:
        assert again.folder == tmp_path / "work/0"


def test_what_cannot_be_removed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """root built there once, say."""
    (tmp_path / "work/0/root's").mkdir(parents=True)
    genuine = shutil.rmtree

    def refused(path: Path, **options: Any) -> None:
        if path.name != "0":
            genuine(path, **options)

    monkeypatch.setattr(shutil, "rmtree", refused)
    for _ in range(2):
        with workdir.claim(tmp_path) as mine:
            assert mine.folder == tmp_path / "work/1"
