"""A new topic is complete, loads as a series, and pytest can collect its checks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.series import load, scaffold


def test_a_new_topic_runs(tmp_path: Path) -> None:
    folder = scaffold.new("vcpu-stats", "14", tmp_path)
    series = load.load_series(folder, "14.3")
    assert (series.topic, series.patches, series.touched) == ("vcpu-stats", (), ())
    assert load.topics(tmp_path) == ("vcpu-stats",)
    assert folder.stat().st_mode & 0o777 == 0o755
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(folder / "tests")], capture_output=True, text=True, check=False
    )
    assert "test_vcpu_stats.py::test_a_vm_of_64_mib_comes_and_goes" in done.stdout, done.stdout
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "-q", str(folder)]
    assert subprocess.run(ruff, check=False).returncode == 0


@pytest.mark.parametrize(
    "name", ["", "Upper", "a/b", "..", "a b", "-a", "a-", "1a", "common", "x" * 41, "a\n", "ä"]
)
def test_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        scaffold.new(name, "15.1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    scaffold.new("mine", "15.1", tmp_path)
    with pytest.raises(UsageError, match="already exists"):
        scaffold.new("mine", "14", tmp_path)
    with pytest.raises(UsageError, match="a release like"):
        scaffold.new("other", "../x", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def suite(root: Path, name: str = "speed") -> Path:
    folder = root / name
    for place, text in {
        f"tests/test_{name}.py": f'"""{name}: how fast."""\n\nSOURCES = "patches/{name}"\n',
        "guest/loop.c": "/* speed of a loop */\n",
        "mutants/slow.patch": f"Subject: slow\nCaught-by: test_{name}.py::test_it[a]\n\n",
        "README.md": f"# {name}\n\n./inv verify --topic {name}\n./inv verify --topic {name}-2\n",
        "tests/__pycache__/x.pyc": "x",
    }.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text)
    (folder / "guest/blob").write_bytes(b"\xff\x00")
    return folder


def test_a_topic_of_checks_alone_is_no_series(tmp_path: Path) -> None:
    folder = suite(tmp_path)
    (tmp_path / "empty").mkdir()
    assert (load.topics(tmp_path), load.suites(tmp_path)) == ((), ("speed",))
    with pytest.raises(UsageError, match=r"speed: this topic has checks.*inv verify --topic speed"):
        load.load_series(folder, "15.1")


def test_a_topic_like_another(tmp_path: Path) -> None:
    suite(tmp_path)
    folder = scaffold.new("my-own", "", tmp_path, like="speed")
    assert load.suites(tmp_path) == ("my-own", "speed")
    files = {str(it.relative_to(folder)) for it in folder.rglob("*") if it.is_file()}
    assert files == {
        "tests/test_my_own.py", "guest/loop.c", "guest/blob", "mutants/slow.patch", "README.md",
    }  # fmt: skip
    assert (folder / "tests/test_my_own.py").read_text() == (
        '"""my-own: how fast."""\n\nSOURCES = "patches/my-own"\n'
    )
    assert "Caught-by: test_my_own.py::test_it[a]" in (folder / "mutants/slow.patch").read_text()
    assert (folder / "README.md").read_text().splitlines() == [
        "# my-own", "", "./inv verify --topic my-own", "./inv verify --topic speed-2",
    ]  # fmt: skip
    assert (folder / "guest/loop.c").read_text() == "/* speed of a loop */\n"
    assert (folder / "guest/blob").read_bytes() == b"\xff\x00"


def test_a_copy_may_begin_a_series(tmp_path: Path) -> None:
    suite(tmp_path)
    folder = scaffold.new("mine", "15.1", tmp_path, like="speed")
    assert load.load_series(folder, "15.1").patches == ()
    assert load.topics(tmp_path) == ("mine",)


def test_what_is_no_topic_is_not_copied(tmp_path: Path) -> None:
    suite(tmp_path)
    with pytest.raises(UsageError, match="--like nothing: no such topic; choose from speed"):
        scaffold.new("mine", "", tmp_path, like="nothing")
    assert load.suites(tmp_path) == ("speed",)


@pytest.mark.parametrize("name", load.suites())
def test_each_of_ours_can_be_copied_and_collected(tmp_path: Path, name: str) -> None:
    shutil.copytree(load.PATCHES / name, tmp_path / name)
    folder = scaffold.new("mine", "", tmp_path, like=name)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(folder / "tests")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "test_mine.py::" in done.stdout
    assert f"--topic {name}\n" not in (folder / "README.md").read_text()
