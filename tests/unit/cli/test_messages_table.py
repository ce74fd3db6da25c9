"""docs/troubleshooting.md has a row or a section for each message that names a remedy, no other."""

from __future__ import annotations

import re

import pytest
from test_remedies import Text, _texts

from harness.files import PROJECT

PAGE = (PROJECT / "docs/troubleshooting.md").read_text()
# The sections of the page, each about one message.
QUOTED = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
TABLE = PAGE.partition("## Every kind of message that names a remedy\n")[2].partition("\n## ")[0]
_VERBS = (
    "add|allow|ask|bring|call|check|choose|clone|commit|copy|correct|create|decode|end|fetch|free|get|give|"
    "import|install|leave|let|log in|look|make|name|open|pipe|put|remove|repair|run|save|set|"
    "start|take|try|turn on|unpack|unset|use|wait|write"
)
# A remedy follows the reason after a semicolon, or is a text of its own that is put there.
_FOLLOWS = re.compile(rf"; (?:then |if [^,;]+, )?(?:{_VERBS})\b")
_ALONE = re.compile(rf"(?:^|: |, or )(?:{_VERBS})\b(?!:| must| succeeded| ended)")


def rows() -> list[list[str]]:
    """The first cell of each row: what its messages have in common."""
    cells = [line.split(" | ")[0] for line in TABLE.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", cell) for cell in cells]


def pattern(quoted: str) -> re.Pattern[str]:
    # The blank at either end belongs to the neighbouring words.
    return re.compile(".*?".join(re.escape(part) for part in quoted.split("…")), re.S)


def names_a_remedy(it: Text) -> bool:
    """Whether a text of the source is a message, or the reason in one, and says what to do."""
    text = it.text
    # A command alone is put into a message; the words around it are looked at there.
    if " " not in text.strip() or "\n" in text.strip() or text.startswith(("./inv ", "inv ")):
        return False
    # Of the tasks' own files the help texts are no messages.
    if not it.message and it.where.startswith("harness/cli/"):
        return False
    if _FOLLOWS.search(text) or "; ./inv " in text:
        return True
    return it.message and bool(_ALONE.search(text) or "./inv " in text)


MESSAGES = [it for it in _texts() if names_a_remedy(it)]
ROWS = rows()


def test_there_is_something_to_compare() -> None:
    assert len(MESSAGES) > 200
    assert len(ROWS) > 60


def test_each_message_with_a_remedy_is_on_the_page() -> None:
    known = [pattern(it) for it in (*QUOTED, *(each for row in ROWS for each in row))]
    lost = [
        f"{it.where}: {it.text}" for it in MESSAGES if not any(p.search(it.text) for p in known)
    ]
    assert not lost, "docs/troubleshooting.md lacks:\n" + "\n".join(lost)


ALL = [it.text for it in _texts() if " " in it.text]


@pytest.mark.parametrize("quoted", [it for row in ROWS for it in row])
def test_each_row_stands_for_a_message(quoted: str) -> None:
    assert any(pattern(quoted).search(text) for text in ALL), f"no message says {quoted!r} any more"


def test_each_row_says_what_it_means_and_what_to_do() -> None:
    for line in TABLE.splitlines():
        if line.startswith("| `"):
            cells = line.strip("|").split(" | ")
            assert len(cells) == 3, line
            assert all(cell.strip().endswith(".") for cell in cells[1:]), line
