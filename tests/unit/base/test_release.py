"""A release is read in one place, and the default is written in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from harness import defaults, source_tree, sysroot
from harness import release as releases
from harness.errors import UsageError
from harness.files import PROJECT
from harness.release import Release


@pytest.mark.parametrize(
    ("text", "value", "version"),
    [
        ("15.1", Release(15, 1), "15.1"),
        ("16.0-CURRENT", Release(16, 0, "CURRENT"), "16.0"),
        ("14", Release(14), "14"),
        ("14.2-RC1", Release(14, 2, "RC1"), "14.2"),
        ("16.0-CURRENT-20260720", Release(16, 0, "CURRENT", build="20260720"), "16.0"),
        (
            "16.0-CURRENT-20260720-abcdef012345-287654",
            Release(16, 0, "CURRENT", build="20260720-abcdef012345-287654"),
            "16.0",
        ),
    ],
)
def test_a_text_and_its_value(text: str, value: Release, version: str) -> None:
    found = releases.read(text)
    assert found == value
    assert str(found) == text
    assert found is not None
    assert (found.version, found.branch) == (version, version[:2])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "15.",
        "15.1.2",
        "015.1",
        "x",
        "15.1-",
        "15.1-a/b",
        "15.1\n",
        "15.٣",
        "../15.1",
        "16-CURRENT-20260720",
        "16.0-20260720-abcdef0-1",
        "16.0-CURRENT-2026",
        "16.0-CURRENT-20260720-x",
    ],
)
def test_what_is_no_release(text: str) -> None:
    assert releases.read(text) is None
    with pytest.raises(UsageError, match=r"is written like 15\.1 or 16\.0-CURRENT"):
        releases.parse(text)


def test_a_branch_alone_can_not_be_booted() -> None:
    with pytest.raises(UsageError, match="--release 15: a release is written like"):
        releases.parse("15")


def test_the_order() -> None:
    texts = ["14.2", "14.10", "15.0-CURRENT", "15.0-ALPHA1", "15.0-BETA1", "15.0-BETA2", "15.0-RC1"]
    texts += ["15.0", "15.0-STABLE", "15.1"]
    values = [releases.parse(text) for text in texts]
    assert sorted([values[-1], *values[:-1]]) == values
    assert values[-1].has(values[2])
    assert values[2].has(releases.parse("15.0"))
    assert not values[1].has(values[2])


def test_builds_of_a_snapshot() -> None:
    texts = ["15.0", "16.0-CURRENT", "16.0-CURRENT-20260720-f000000-287654"]
    texts += ["16.0-CURRENT-20260720-a000000-1287654", "16.0-CURRENT-20260727-0000000-1"]
    values = [releases.parse(text) for text in texts]
    assert sorted([values[-1], *values[:-1]]) == values
    assert {it.line for it in values[1:]} == {"16.0-CURRENT"}
    assert values[-1].series_folders == (
        texts[-1], "16.0-CURRENT", "16.0", "16", "main",
    )  # fmt: skip
    assert values[0].series_folders == ("15.0", "15")
    # A kernel of one's own, or a stable branch, has the patches of its version.
    assert releases.parse("15.1-DEBUG").series_folders == ("15.1-DEBUG", "15.1", "15")


def test_versions_of_the_kernel() -> None:
    assert releases.of_osversion(1501000) == Release(15, 1)
    assert releases.of_osversion(1600004, "CURRENT") == Release(16, 0, "CURRENT")
    assert releases.major_of(1402504) == 14
    header = "/* __FreeBSD_version 1 */\n#define __FreeBSD_version 1501000\t/* y */\n"
    assert releases.defined_osversion(header) == 1501000
    assert releases.defined_osversion("x") is None


def test_a_tree_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "sys/conf").mkdir(parents=True)
    (tmp_path / "sys/sys").mkdir()
    (tmp_path / source_tree.NEWVERS).write_text('REVISION="16.0"\nBRANCH="CURRENT"\n')
    (tmp_path / source_tree.PARAM).write_text("#define __FreeBSD_version 1600004\n")
    tree = source_tree.read(tmp_path)
    assert tree.release == Release(16, 0, "CURRENT")
    assert (tree.osversion, str(tree), tree.in_git) == (1600004, "16.0-CURRENT", False)
    (tmp_path / ".git").mkdir()
    assert tree.in_git


def test_a_sysroot_is_checked_in_one_way(tmp_path: Path) -> None:
    for mark in ("usr/include/sys/param.h", "usr/lib/crt1.o", "usr/lib/libc.so"):
        with pytest.raises(UsageError, match=rf"not a FreeBSD sysroot \({mark}"):
            sysroot.require(tmp_path)
        (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / mark).touch()
    assert sysroot.require(tmp_path) == tmp_path
    with pytest.raises(UsageError, match=r"given: .*does not say which FreeBSD it is of"):
        sysroot.require(tmp_path, 15, Path("given"))
    (tmp_path / "usr/include/sys/param.h").write_text("#define __FreeBSD_version 1402000\n")
    with pytest.raises(UsageError, match=r"is of FreeBSD 14 \(1402000\), but FreeBSD 15 is needed"):
        sysroot.require(tmp_path, 15)


def _texts(path: Path) -> list[str]:
    """Every piece of text in the code of a file, docstrings left out."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    said = {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, documented)
        for statement in node.body
        if isinstance(statement, ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
    ]


def test_the_default_release_is_written_once() -> None:
    places = {
        str(path.relative_to(PROJECT))
        for path in (PROJECT / "harness").rglob("*.py")
        if any(defaults.RELEASE in text for text in _texts(path))
    }
    assert places == {"harness/defaults.py"}


def test_trees_are_read_in_one_place() -> None:
    """By the file that names a release, and by the number that says which FreeBSD it is."""
    readers = {
        str(path.relative_to(PROJECT))
        for path in (PROJECT / "harness").rglob("*.py")
        if any("REVISION=" in text or "__FreeBSD_version\\s" in text for text in _texts(path))
    }
    assert readers == {"harness/source_tree.py", "harness/release.py"}
