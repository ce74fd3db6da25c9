"""Files that appear whole or not at all, also when the power goes; locks, digests, room."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness import files
from harness.errors import CannotError
from harness.files import PROJECT


class Stop(Exception):
    pass


def stop(path: Path) -> None:
    path.write_text("half")
    raise Stop


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with files.atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    with pytest.raises(Stop), files.atomic_path(target) as temporary:
        stop(temporary)
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["target"]


def test_write_atomic(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "text", "é", mode=0o600)
    files.write_atomic(tmp_path / "bytes", b"\xff")
    assert (tmp_path / "text").read_bytes() == "é".encode()
    assert stat.S_IMODE((tmp_path / "text").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "bytes").stat().st_mode) == 0o644


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for content in ("first", "second"):
        with files.atomic_dir(target) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / content).write_text(content)
            (temporary / "dangling").symlink_to("nowhere")
        assert names(target / "sub") == [content]
    with pytest.raises(Stop), files.atomic_dir(target) as temporary:
        stop(temporary / "half")
    assert names(target / "sub") == ["second"]
    assert names(tmp_path) == ["target"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    replace = Path.replace

    def fails(self: Path, to: Path) -> Path:
        if to == target and self.name != "was":
            raise OSError(5, "Input/output error")
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="Input/output"), files.atomic_dir(target) as temporary:
        (temporary / "new").touch()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["target"]


def test_what_appears_was_synced_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power cut would leave a name with nothing behind it."""
    synced: list[tuple[str, bool]] = []
    sync = files.sync
    target = tmp_path / "target"

    def watch(path: Path) -> None:
        synced.append((path.name, target.exists()))
        sync(path)

    monkeypatch.setattr(files, "sync", watch)
    with files.atomic_dir(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("x")
    assert ("file", False) in synced
    assert ("sub", False) in synced
    assert synced[-1] == (tmp_path.name, True)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_leaves_the_old_or_nothing(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom harness import files\n"
        f"make = files.atomic_{'path' if kind == 'file' else 'dir'}\n"
        "with make(Path(sys.argv[1])) as temporary:\n"
        f" (temporary{'' if kind == 'file' else ' / chr(120)'}).write_text('half')\n"
        " print('writing', flush=True)\n time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE, cwd=PROJECT
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        child.send_signal(signal.SIGKILL)
    assert not target.exists()
    # The temporary file it left behind is hidden and disturbs nobody.
    assert all(name.startswith(".target.") for name in names(tmp_path))
    if kind == "file":
        files.write_atomic(target, "whole")
        assert target.read_text() == "whole"
    else:
        with files.atomic_dir(target):
            pass
        assert target.is_dir()


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / "lock"
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with files.locked(lock, "testing"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5


def test_a_lock_that_is_held_too_long_is_reported(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with (
        files.locked(lock, "first"),
        pytest.raises(CannotError, match=rf"second: another run has held {lock} for 0 s; wait"),
        files.locked(lock, "second", timeout_s=0.1),
    ):
        pass
    with (
        files.locked(lock, "first"),
        pytest.raises(CannotError, match=rf"second: another run holds {lock}; wait"),
        files.locked(lock, "second", timeout_s=0),
    ):
        pass
    with files.locked(lock, "third", timeout_s=0.1):
        pass


def test_a_lock_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(CannotError, match=r"testing: cannot lock .*HARNESS_CACHE"),
        files.locked(tmp_path / "file" / "lock", "testing"),
    ):
        pass


def test_a_killed_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom harness import files\n"
        "with files.locked(Path(sys.argv[1]), 'x'):\n print('held', flush=True)\n time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "lock")],
        stdout=subprocess.PIPE,
        cwd=PROJECT,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        child.kill()
    with files.locked(tmp_path / "lock", "next", timeout_s=2):
        pass


def test_room(tmp_path: Path) -> None:
    files.require_room(tmp_path, 1, "a byte")
    with pytest.raises(CannotError, match=r"all needs 1048576\.0 GiB in .* free; .*HARNESS_CACHE"):
        files.require_room(tmp_path, 1 << 50, "all")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 40, "5120.0 GiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert files.human_bytes(count) == text


def test_digests(tmp_path: Path) -> None:
    assert files.sha256_text("ab", "c") != files.sha256_text("a", "bc")
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    done: list[int] = []
    digest = files.sha256_file(path, done.append)
    raised = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert digest == raised.split()[0]
    assert done[-1] == 3_000_000


def test_folders_are_private_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, folder in (
        ("HARNESS_CACHE", files.cache_dir),
        ("HARNESS_RUNS", files.runs_dir),
    ):
        monkeypatch.setenv(variable, str(tmp_path / "a" / variable))
        assert stat.S_IMODE(folder().stat().st_mode) == 0o700
        (tmp_path / "file").touch()
        monkeypatch.setenv(variable, str(tmp_path / "file" / "x"))
        with pytest.raises(CannotError, match=rf"file/x: .*; set {variable}"):
            folder()
    assert os.environ["HARNESS_RUNS"]


def test_a_sparse_checksum_is_of_the_contents_not_of_the_holes(tmp_path: Path) -> None:
    part = 3 * files._CHUNK_BYTES
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    dense.write_bytes(bytes(part + 5000) + b"end")
    with sparse.open("wb") as stream:
        stream.seek(part + 5000)
        stream.write(b"end")
    known = files.checksum_sparse(dense)
    assert files.checksum_sparse(sparse) == known
    for at, data in ((0, b"x"), (part - 1, b"x"), (part, b"x"), (part + 5002, b"\0")):
        with sparse.open("r+b") as stream:
            stream.seek(at)
            was = stream.read(1)
            stream.seek(at)
            stream.write(data)
            stream.flush()
            assert files.checksum_sparse(sparse) != known, at
            stream.seek(at)
            stream.write(was)
    assert files.checksum_sparse(sparse) == known
    os.truncate(sparse, part + 5004)
    assert files.checksum_sparse(sparse) != known
    sparse.write_bytes(b"")
    assert files.checksum_sparse(sparse) != known


@pytest.mark.parametrize("variable", ["HARNESS_CACHE", "HARNESS_RUNS"])
def test_a_folder_that_others_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Later runs trust these files: a source tree recorded there is compiled, a record holds a
    command.
    """
    ask = files.cache_dir if variable == "HARNESS_CACHE" else files.runs_dir
    folder = tmp_path / "open"
    monkeypatch.setenv(variable, str(folder))
    folder.mkdir()
    for mode in (0o777, 0o1777, 0o775, 0o722):
        folder.chmod(mode)
        with pytest.raises(CannotError, match="others may write there") as caught:
            ask()
        assert f"chmod go-w {folder}" in caught.value.message
    # One that is empty becomes private, one in use keeps its mode: what is in it is private.
    folder.chmod(0o755)
    assert ask() == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    (folder / "x").touch()
    assert ask() == folder
    assert folder.stat().st_mode & 0o777 == 0o755


def test_another_users_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor our own folder through another user's symlink, which that user could redirect."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "theirs"))
    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CannotError, match=r"it belongs to user .*; set HARNESS_CACHE to a folder"):
        files.cache_dir()
    if os.getuid() == 0:
        monkeypatch.undo()
        (tmp_path / "ours").mkdir()
        (tmp_path / "link").symlink_to("ours")
        os.chown(tmp_path / "link", 65534, 65534, follow_symlinks=False)
        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "link"))
        with pytest.raises(CannotError, match="it belongs to user"):
            files.cache_dir()


def test_what_is_made_is_private_whatever_the_umask(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.umask(0); sys.argv = ['inv', '--version']\n"
        "from harness.cli import program\n"
        "try: program.main()\nexcept SystemExit: pass\n"
        "os.mkdir(sys.stdin.readline())\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], input=str(tmp_path / "made"), text=True, check=True
    )
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("there", [True, False])
def test_many_files_are_synced_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """Syncing file by file would take minutes; it is the fallback where the kernel has no
    syncfs.
    """
    synced: list[Path] = []
    whole: list[Path] = []
    monkeypatch.setattr(files, "sync", synced.append)
    real = files._sync_file_system

    def sync_all(folder: Path) -> bool:
        whole.append(folder)
        return real(folder) and there

    monkeypatch.setattr(files, "_sync_file_system", sync_all)
    for count in (5, 50):
        with files.atomic_dir(tmp_path / str(count)) as folder:
            for number in range(count):
                (folder / f"d{number}").mkdir()
                (folder / f"d{number}" / "f").write_text("x")
        assert len(list((tmp_path / str(count)).rglob("f"))) == count
        each = sum(path.name == "f" for path in synced)
        assert each == (count if count == 5 or not there else 0)
        synced.clear()
    assert len(whole) == 1
