"""The page of tasks and the manual are what the tasks say, and the manual is clean."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import tasks
from harness.cli import docs
from harness.files import PROJECT


@pytest.mark.parametrize(
    ("name", "write"), [("tasks.md", docs.markdown), ("inv-vmm.1", docs.manual)]
)
def test_a_page_is_what_the_tasks_say(name: str, write: object) -> None:
    assert callable(write)
    assert (PROJECT / "docs" / name).read_text() == write(tasks.namespace), "run ./inv docs"


def test_every_task_has_a_line_of_help_and_every_option_too() -> None:
    for task in docs.tasks(tasks.namespace):
        assert task.help, task.name
        assert [option.flags for option in task.options if not option.help] == [], task.name


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_the_manual_is_clean(tmp_path: Path) -> None:
    page = tmp_path / "inv-vmm.1"
    page.write_text(docs.manual(tasks.namespace))
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(page)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("", 0)
