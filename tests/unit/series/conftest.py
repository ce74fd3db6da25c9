"""A small source tree, and a change to it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from faketree import NUMBERED, diff, make_tree
from forms import EDITED, MANUAL, SOURCE, git


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "src")


@pytest.fixture
def edit(tmp_path: Path) -> bytes:
    """A diff that changes one line of the manual and adds a header."""
    return diff(tmp_path, {MANUAL: NUMBERED}, {MANUAL: EDITED, "sys/dev/vmm/new.h": "x\n"})


@pytest.fixture
def repo(tmp_path: Path, tree: Path) -> Path:
    """The tree as a repository with two commits on top of it."""
    fork = tmp_path / "fork"
    subprocess.run(["cp", "-r", str(tree), str(fork)], check=True)
    git(fork, "init", "-q")
    git(fork, "add", "-A")
    git(fork, "commit", "-qm", "base")
    (fork / MANUAL).write_text(EDITED)
    git(fork, "commit", "-qam", "vmm.4: Fix a wörd\n\nIt was wrong.")
    (fork / SOURCE).write_text("#define NUMBER 2\n")
    git(fork, "commit", "-qam", "vmm: Count on\n\nFrom here on it is 2.")
    return fork
