"""The key of a build contains the code that builds."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import debian, process
from harness.build import bmake, builder
from harness.files import PROJECT


def test_every_module_that_builds_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of build and series, and every base module that one of them imports."""
    read: set[Path] = set()
    original = Path.read_text

    def read_text(path: Path, *args: Any, **kwargs: Any) -> str:
        read.add(path)
        return original(path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", read_text)
        builder._own_code()
    harness = PROJECT / "harness"
    own = {path for name in ("build", "series") for path in (harness / name).glob("*.py")}
    assert {harness / "build/in_guest.py", harness / "series/load.py"} <= own <= read
    words = {
        word
        for path in own
        for found in re.findall(r"^\s*(?:from|import) +harness(.*)", path.read_text(), re.M)
        for word in re.findall(r"\w+", found)
    }
    base = {harness / f"{word}.py" for word in words}
    assert not {path for path in base if path.is_file()} - read


def test_a_compiler_is_asked_for_its_version_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run asks for it before each program; each question starts a compiler."""
    asked: list[str] = []

    def played(command: list[str]) -> SimpleNamespace:
        asked.append(command[0])
        return SimpleNamespace(stdout=f"{command[0]} version 19\nmore\n")

    programs = [tmp_path / name for name in ("clang-19", "ld.lld-19", "bmake")]
    for program in programs:
        program.write_text("")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(debian, "clang_version", lambda: 19)
    monkeypatch.setattr(process, "run", played)
    first = bmake.find_toolchain()
    assert first.identity == "clang-19 version 19; ld.lld-19 version 19"
    assert bmake.find_toolchain() == first
    assert asked == ["clang-19", "ld.lld-19"]
    # Another compiler of the same name is asked again.
    os.utime(programs[0], ns=(1, 1))
    bmake.find_toolchain()
    assert asked == ["clang-19", "ld.lld-19", "clang-19"]
