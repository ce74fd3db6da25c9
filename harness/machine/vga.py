"""Reads the text screen of a PC from its graphics card's memory."""

from __future__ import annotations

COLUMNS, LINES = 80, 25
BYTES = 2 * COLUMNS * LINES
"""The size of the screen's memory: a character and its colours for each position."""

# If the screen shows graphics, the memory is not text: most of it cannot be printed.
_MOSTLY = 0.9


def lines(memory: bytes) -> list[str]:
    """The screen's lines up to the last that is not empty; none if it does not show text."""
    characters = memory[:BYTES:2]
    # Line-drawing characters are not letters, but a text may contain some.
    plain = sum(0x20 <= byte < 0x7F or byte == 0 for byte in characters)
    if len(memory) < BYTES or plain < _MOSTLY * len(characters):
        return []
    text = characters.replace(b"\0", b" ").decode("cp437")
    rows = [text[at : at + COLUMNS].rstrip() for at in range(0, len(text), COLUMNS)]
    while rows and not rows[-1]:
        rows.pop()
    return rows
