"""ccache before the compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from faketree import NUMBERED, diff, mail, make_series, make_tree

from harness import debian, source_tree
from harness.build import builder, ccache, linktree
from harness.build.sandbox import Sandbox
from harness.series import load
from harness.series.load import Series


def test_without_it_the_compiler_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    bare = Sandbox(None, tmp_path)
    assert ccache.find(tmp_path, "clang 19", ["a.h"], bare) == (ccache.NONE, bare)


def test_it_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCACHE_DISABLE", "1")
    bare = Sandbox(None, tmp_path)
    assert ccache.find(tmp_path, "clang 19", ["a.h"], bare) == (ccache.NONE, bare)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not shutil.which("ccache") or debian.clang_version() is None:
        pytest.skip("ccache or clang is not installed")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CCACHE_DISABLE", raising=False)
    return tmp_path / "cache"


def hits(cache: Path) -> int:
    """How many compilations came from ccache so far, for strangers' series too."""
    found = 0
    for folder in (cache / "ccache", *cache.glob("ccache-strangers/*")):
        said = subprocess.run(
            ["ccache", "--dir", folder, "--print-stats"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        found += int(dict(line.split("\t") for line in said.splitlines())["direct_cache_hit"])
    return found


def series_of(folder: Path, before: dict[str, str | None], after: dict[str, str | None]) -> Series:
    data = mail(diff(folder, before, after))
    return load.load_series(make_series(folder / "topic", {"1.patch": data}), "15.1")


def test_what_did_not_change_is_not_compiled_again(tmp_path: Path, cache: Path) -> None:
    """Another series, another folder's links, the same sources: the same bytes, from ccache."""
    tree = make_tree(tmp_path / "source")
    manual = "share/man/man4/vmm.4"
    series = series_of(tmp_path, {manual: NUMBERED}, {manual: f"{NUMBERED}more\n"})
    first = builder.build(tree, None, None, "15.1")
    before = hits(cache)
    second = builder.build(tree, None, series, "15.1")
    assert not second.cached
    assert hits(cache) == before + 1
    assert second.digests == first.digests
    assert "ccache" in second.log.read_text()


def test_a_new_header_that_comes_first_is_seen(tmp_path: Path, cache: Path) -> None:
    """The compiler would find it before the one it read last time, which is as it was."""
    tree = make_tree(tmp_path / "source")
    header = "sys/dev/vmm/dev/vmm/vmm.h"
    series = series_of(tmp_path, {header: None}, {header: "#define NUMBER 2\n"})
    stock = builder.build(tree, None, None, "15.1")
    patched = builder.build(tree, None, series, "15.1")
    assert patched.build_id != stock.build_id


def test_warnings_are_printed_again(tmp_path: Path, cache: Path) -> None:
    warns = {"sys/dev/vmm/vmm.h": "#define NUMBER 1); int never; (void)(2\n"}
    tree = make_tree(tmp_path / "source", warns)
    first = builder.build(tree, None, None, "15.1")
    shutil.rmtree(first.folder)
    before = hits(cache)
    again = builder.build(tree, None, None, "15.1")
    assert hits(cache) == before + 1
    assert (first.warnings, again.warnings) == (1, 1)


def test_a_damaged_cache_is_compiled_over(tmp_path: Path, cache: Path) -> None:
    tree = make_tree(tmp_path / "source")
    first = builder.build(tree, None, None, "15.1")
    shutil.rmtree(first.folder)
    kept = list((cache / "ccache").rglob("*[RM]"))
    assert len(kept) == 2
    before = hits(cache)
    for path in kept:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.chmod(0o600)
        path.write_bytes(data)
    again = builder.build(tree, None, None, "15.1")
    assert hits(cache) == before
    assert not again.cached
    assert again.digests == first.digests


def test_where_it_cannot_write_it_is_left_out(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fail for each file, and the patch would be blamed."""
    monkeypatch.setattr(os, "access", lambda *_arguments: False)
    bare = Sandbox(None, tmp_path)
    assert ccache.find(tmp_path, "clang 19", ["a.h"], bare) == (ccache.NONE, bare)


def test_a_header_that_a_series_takes_away_is_no_name(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "source", {"sys/dev/vmm/old.h": "x\n"})
    names = ("sys/dev/vmm/old.h", "sys/dev/vmm/new.inc")
    series = series_of(
        tmp_path, {names[0]: "x\n", names[1]: None}, {names[0]: None, names[1]: "y\n"}
    )
    before = linktree.names(tree, None, tree)
    linktree.plant(source_tree.identify(tree, "15.1"), series, tmp_path / "planted")
    after = linktree.names(tree, series, tmp_path / "planted")
    assert (before - after, after - before) == (frozenset({names[0]}), frozenset({names[1]}))
