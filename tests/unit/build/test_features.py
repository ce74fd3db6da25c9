"""A topic's build options are read from its folder and are part of the build's key."""

from __future__ import annotations

from pathlib import Path

import pytest
from faketree import make_tree

from harness import debian
from harness.build import builder, features
from harness.build.features import Features
from harness.errors import UsageError
from harness.series.load import PATCHES


def test_the_topic_snapshot_asks_for_its_option() -> None:
    found = features.read(PATCHES / "snapshot")
    assert found.kernel_options == ("BHYVE_SNAPSHOT",)
    assert found.make == (("MK_BHYVE_SNAPSHOT", "yes"),)
    assert found.programs == ("bhyve", "bhyvectl")


def test_most_topics_ask_for_nothing(tmp_path: Path) -> None:
    assert features.read(tmp_path) == Features()
    assert Features().identity == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kernel_options = 'X'", "kernel_options must be a list of names"),
        (
            "programs = ['rm']",
            "programs: rm: unknown program; choose from bhyve, bhyvectl, bhyveload",
        ),
        ("libraries = ['../x']", "'../x' is not a library's name"),
        ("make = { CC = 'yes' }", "make must be a table"),
        ("make = { MK_X = 'a b' }", "make must be a table"),
        ("make = 'MK_X'", "make must be a table"),
        ("colour = 1", "colour: unknown key; the keys are kernel_options"),
        ("=", "cannot be read"),
    ],
)
def test_what_cannot_be_asked_for_is_named(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / features.FILE).write_text(text)
    with pytest.raises(UsageError, match=rf"build\.toml: .*{why}"):
        features.read(tmp_path)


@pytest.mark.skipif(debian.clang_version() is None, reason="clang and lld are not installed")
def test_what_is_asked_for_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    tree = make_tree(tmp_path / "src")
    plain = builder.build(tree, None, None, "15.1")
    other = builder.build(
        tree, None, None, "15.1", wanted=Features(make=(("MK_BHYVE_SNAPSHOT", "yes"),))
    )
    assert plain.key != other.key
    assert "MK_BHYVE_SNAPSHOT=yes" in other.log.read_text()
    with pytest.raises(UsageError, match="kernel option 'NONSENSE'"):
        builder.build(tree, None, None, "15.1", wanted=Features(kernel_options=("NONSENSE",)))
    programs = builder.build(tree, None, None, "15.1", wanted=Features(programs=("bhyve",)))
    assert dict(programs.not_built)["bhyve"].startswith("no sysroot")
