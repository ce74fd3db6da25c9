"""A topic is laid out whole, loads as a series, and its checks are ones that pytest takes."""

from __future__ import annotations

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
    with pytest.raises(UsageError, match="is there already"):
        scaffold.new("mine", "14", tmp_path)
    with pytest.raises(UsageError, match="a release like"):
        scaffold.new("other", "../x", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
