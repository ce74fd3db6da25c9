"""docs/troubleshooting.md quotes messages: each still stands in the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from harness.files import PROJECT

PAGE = PROJECT / "docs" / "troubleshooting.md"
QUOTED = re.findall(r"^### `(.+)`$", PAGE.read_text(), re.MULTILINE)


def said(path: Path) -> list[str]:
    """Every text in a module, with … for what is put into it."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = (it.value if isinstance(it, ast.Constant) else "…" for it in node.values)
            texts.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text for path in sorted((PROJECT / "harness").rglob("*.py")) for text in said(path)]


def test_there_are_quotations() -> None:
    assert len(QUOTED) > 30
    assert len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("quoted", QUOTED)
def test_each_message_still_stands(quoted: str, texts: list[str]) -> None:
    """Its parts may come from several texts: an error's first half, and the reason put into it."""
    parts = [part for part in re.split("…", quoted) if len(part.strip(" :;(),.")) > 3]
    assert parts
    missing = [part for part in parts if not any(part.strip(" ;:") in text for text in texts)]
    assert not missing, f"{missing} of {quoted!r}: no text in harness/ says that any more"
