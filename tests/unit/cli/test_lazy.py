"""`./inv --list` and completion are quick: what is heavy is imported inside the tasks."""

from __future__ import annotations

import json
import subprocess
import sys

from harness.bench import NAMES
from harness.bench.run import BENCHES
from harness.files import PROJECT

HEAVY = (
    "paramiko",
    "pytest",
    "requests",
    "jinja2",
    "elftools",
    "unidiff",
    "pexpect",
    "psutil",
    "rich",
    "filelock",
)


def test_the_tasks_alone_import_nothing_heavy() -> None:
    code = f"import json, sys, tasks; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == []


def test_every_bench_is_named() -> None:
    assert tuple(BENCHES) == NAMES
