"""The page of tasks and the manual are what the tasks say, and the manual is clean."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tasks
from harness.cli import docs
from harness.cli.develop import STYLE
from harness.files import PROJECT

PAGES = [
    *sorted(PROJECT.glob("*.md")),
    *sorted(it for it in (PROJECT / "docs").glob("*.md") if it.name != "tasks.md"),
    *sorted((PROJECT / "patches").rglob("*.md")),
    *sorted((PROJECT / "images").rglob("*.md")),
]
"""The pages that people write; docs/tasks.md is made from the tasks."""


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
        ["mandoc", "-T", "lint", str(page)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        there = (page.parent / name) if name else page
        if not there.exists() or (heading and heading not in headings(there)):
            wrong.append(target)
    assert not wrong


def test_every_check_that_a_page_names_exists() -> None:
    files = [it for top in ("tests", "patches") for it in (PROJECT / top).rglob("test_*.py")]
    known = {it.stem for it in files}
    for it in files:
        known |= set(re.findall(r"def (test_\w+)", it.read_text()))
    named = {
        name
        for page in PAGES
        for quoted in re.findall(r"`([^`\n]+)`", page.read_text())
        for name in re.findall(r"(?<![\w.])test_[\w*]+", quoted)
    }
    assert len(named) > 50
    assert [name for name in sorted(named) if not fnmatch.filter(known, name)] == []


def test_every_module_has_a_layer_and_a_line() -> None:
    """import-linter does not miss a package, and the architecture's page does not either."""
    parts = {
        f"harness.{path.stem}"
        for path in (PROJECT / "harness").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()
    }
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = {name for row in contracts["contracts"][0]["layers"] for name in row.split(" | ")}
    assert parts == layers
    page = (PROJECT / "docs" / "architecture.md").read_text()
    assert parts == set(re.findall(r"`(harness\.[a-z_]+)`", page)) & parts


def headings(page: Path) -> set[str]:
    """The names by which a page's headings are linked to, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_for_the_command_that_is_typed(shell: str) -> None:
    command = [sys.executable, "-m", "harness.cli.program", "--print-completion-script", shell]
    script = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    assert "inv --complete" in script or "inv ${=collection_arg} --complete" in script
    assert "program.py" not in script


def test_a_started_option_is_completed_as_it_was_typed() -> None:
    """The launcher is called as ./inv, too; and no option may be `--`, which ends the options."""
    for typed in ("inv", "./inv"):
        command = [sys.executable, "-m", "harness.cli.program", "--complete", "--", typed]
        done = subprocess.run(
            [*command, "verify", "--"], cwd=PROJECT, check=True, capture_output=True, text=True
        )
        words = done.stdout.split()
        assert "--stock" in words
        assert "--" not in words
    for task in docs.tasks(tasks.namespace):
        assert [it.flags for it in task.options if "--" in it.flags.split(", ")] == [], task.name


def test_pre_commit_runs_what_lint_runs() -> None:
    """The same four tools; only the formatter writes where `./inv lint` compares."""
    text = (PROJECT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"entry: \.venv/bin/([^,]+),", text)
    hooks = {entry.removeprefix("python -m ") for entry in entries}
    lint = {
        name: " ".join(word for word in words if word not in ("-m", "--check", "."))
        for name, words in STYLE.items()
    }
    assert "lint_imports_command" in lint.pop("layers")
    assert hooks == {*lint.values(), "lint-imports"}
