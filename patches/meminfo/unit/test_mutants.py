"""The mutants: well formed, and each applies to what the series makes, one after the other."""

from __future__ import annotations

import ast
import dataclasses
import os
import subprocess
from pathlib import Path

import pytest
import series_source as source

from harness.errors import PatchError, UsageError
from harness.files import PROJECT
from harness.run import mutants
from harness.series import load

CHECK_FILES = [
    *(PROJECT / "tests" / "guest").glob("test_*.py"),
    *(PROJECT / "patches" / "meminfo" / "tests").glob("test_*.py"),
]
ALL = mutants.load()
BASE = load.load_series("meminfo", "15.1")
PATCHED = [mutant for mutant in ALL if mutant.patch is not None]
by_name = pytest.mark.parametrize("mutant", PATCHED, ids=lambda mutant: mutant.name)


def checks() -> set[str]:
    """Every check there is, as FILE::FUNCTION."""
    found = set()
    for path in CHECK_FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                found.add(f"{path.name}::{node.name}")
    return found


def test_there_are_enough_and_one_is_right() -> None:
    assert len([mutant for mutant in ALL if mutant.expect == "caught"]) >= 15
    assert len([mutant for mutant in PATCHED if mutant.expect == "held"]) >= 1
    assert [mutant.name for mutant in ALL][:2] == ["series", "right-refactoring"]
    assert mutants.STOCK in ALL


@by_name
def test_a_mutant_names_checks_that_there_are(mutant: mutants.Mutant) -> None:
    assert set(mutant.caught_by) <= checks()


@by_name
def test_a_mutant_applies_to_what_the_series_makes(mutant: mutants.Mutant, tmp_path: Path) -> None:
    """Whole where the series adds the file; where FreeBSD wrote it, by the lines of the series."""
    assert mutant.patch is not None
    top = source.tree("15.1")
    whole = {path for patch in source.patches("15.1") for path in source.added_files(patch)}
    ours = [path for path in mutant.patch.touched if path in whole]
    for path in ours:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((top / path).read_bytes())
    if ours:
        done = subprocess.run(
            ["git", "apply", *(f"--include={path}" for path in ours), str(mutant.patch.path)],
            cwd=tmp_path,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert any((tmp_path / path).read_bytes() != (top / path).read_bytes() for path in ours)
    added = {
        line[1:]
        for patch in source.patches("15.1")
        for line in patch.read_text().splitlines()
        if line.startswith("+")
    }
    for path in set(mutant.patch.touched) - set(ours):
        hunks = source.hunks(mutant.patch.path, path).splitlines()
        taken = {line[1:] for line in hunks if line.startswith("-") and line[:4] != "--- "}
        given = {line[1:] for line in hunks if line.startswith("+")}
        assert taken - given <= added, "a mutant changes what the series wrote, nothing else"


@by_name
def test_a_mutant_is_built_on_the_series(mutant: mutants.Mutant) -> None:
    made = mutant.series(BASE)
    assert made is not None
    assert made.patches == (*BASE.patches, mutant.patch)
    assert made.digest != BASE.digest


def test_stock_is_no_series_and_the_series_is_itself() -> None:
    assert mutants.STOCK.series(BASE) is None
    assert mutants.SERIES.series(BASE) is BASE


def test_some_can_be_chosen() -> None:
    assert [it.name for it in mutants.load(only=["stock", "series"])] == ["series", "stock"]
    with pytest.raises(UsageError, match=r"--only nonsense: .* choose from series, .*stock"):
        mutants.load(only=["nonsense"])


DIFF = "\ndiff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("Caught-by: test_x.py::test_y\n", "no Subject"),
        ("Subject: wrong\n", "Caught-by"),
        ("Subject: right\nExpect: held\nCaught-by: test_x.py::test_y\n", "Caught-by"),
        ("Subject: wrong\nExpect: eaten\nCaught-by: test_x.py::test_y\n", "caught or held"),
    ],
)
def test_a_bad_header_is_named(tmp_path: Path, head: str, reason: str) -> None:
    (tmp_path / "bad.patch").write_text(head + DIFF)
    with pytest.raises(PatchError, match=rf"bad\.patch: .*{reason}"):
        mutants.load(tmp_path)


def test_a_mutant_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ALL[0].name = "other"  # type: ignore[misc]
