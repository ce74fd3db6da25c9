"""The key of a build contains the code that builds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from harness.build import builder
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
