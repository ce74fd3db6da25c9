"""The folders that builds are made in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.build import workdir
from harness.errors import PatchError


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
    """For example because root built there once."""
    (tmp_path / "work/0/root's").mkdir(parents=True)
    genuine = workdir.remove

    def refused(folder: Path) -> None:
        if folder.name != "0":
            genuine(folder)

    monkeypatch.setattr(workdir, "remove", refused)
    for _ in range(2):
        with workdir.claim(tmp_path) as mine:
            assert mine.folder == tmp_path / "work/1"


def test_what_is_deeper_than_python_goes_or_closed_to_its_owner_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    deep = 'd=$1; i=0; cd "$d"; while [ $i -lt 1500 ]; do mkdir d; cd d; i=$((i+1)); done'
    subprocess.run(["sh", "-c", deep, "sh", folder], check=True)
    (folder / "closed/inner").mkdir(parents=True)
    (folder / "closed").chmod(0)
    workdir.remove(folder)
    assert not folder.exists()


def test_removing_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/photo").touch()
    (tmp_path / "made").mkdir()
    (tmp_path / "made/link").symlink_to(tmp_path / "precious")
    (tmp_path / "whole").symlink_to(tmp_path / "precious")
    for name in ("made", "whole"):
        workdir.remove(tmp_path / name)
    assert (tmp_path / "precious/photo").exists()


@pytest.mark.parametrize("trick", ["link", "folder link", "fifo", "huge", "folder"])
def test_a_result_is_a_plain_file_in_its_place(tmp_path: Path, trick: str) -> None:
    """What a Makefile left: the harness would copy a user's file, or wait for ever."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/vmm.ko").write_text("the user's")
    made = tmp_path / "obj/sys"
    if trick == "folder link":
        made.parent.mkdir()
        made.symlink_to(tmp_path / "secret")
    else:
        made.mkdir(parents=True)
    if trick == "link":
        (made / "vmm.ko").symlink_to(tmp_path / "secret/vmm.ko")
    elif trick == "fifo":
        os.mkfifo(made / "vmm.ko")
    elif trick == "huge":
        (made / "vmm.ko").touch()
        os.truncate(made / "vmm.ko", 1 << 40)
    elif trick == "folder":
        (made / "vmm.ko").mkdir()
    with pytest.raises(PatchError, match=r"sys/vmm\.ko: the build made no plain file"):
        workdir.take(tmp_path / "obj", "sys/vmm.ko", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_result_is_copied_and_one_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "obj/sys").mkdir(parents=True)
    (tmp_path / "obj/sys/vmm.ko").write_text("module")
    assert workdir.take(tmp_path / "obj", "sys/vmm.ko", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "module"
    assert not workdir.take(tmp_path / "obj", "sys/none", tmp_path / "copy2")
    assert not workdir.take(tmp_path / "obj", "none/vmm.ko", tmp_path / "copy2")
