"""What a wheel installs says in one line that it is not enough."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.files import PROJECT


@pytest.mark.parametrize("command", [("-c", "import tasks"), ("-m", "harness.cli.program", "-l")])
def test_without_a_checkout_one_line_says_so(tmp_path: Path, command: tuple[str, ...]) -> None:
    shutil.copytree(
        PROJECT / "harness", tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(PROJECT / "tasks.py", tmp_path)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"error: {tmp_path} is not a checkout of vmm-workbench ")
    assert done.stderr.endswith("clone the repository and work there\n")
    assert done.stderr.count("\n") == 1
