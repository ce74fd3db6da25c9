"""Checks the rules of style(9) that concern single lines, only on added lines."""

from __future__ import annotations

import re
from collections.abc import Iterator

from unidiff.patch import PatchedFile

_COLUMNS = 80
_TAB = 8
_STRING = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'")
_COMMENT = re.compile(r"/\*.*?\*/")
_KEYWORD = re.compile(r"\b(if|for|while|switch|return)\(")
_RETURN = re.compile(r"\breturn\s+(?!\()[^;\s]")
_SIZEOF = re.compile(r"\bsizeof\s*(?!\s*\()\S")
_BRACE = re.compile(r"\)\{|\belse\{|\bdo\{|\}else\b")
# Tabs, then at most four blanks of continuation; a comment's star has one more blank.
_INDENT = re.compile(r"\t* {0,4}(?=\S)|\t* ?\*")
_C_FILE = re.compile(r".*\.[chSs]\Z")


def check_file(changed: PatchedFile) -> Iterator[tuple[int, str]]:
    """(line in the new file, fault) for each added line that breaks a rule."""
    is_c = bool(_C_FILE.match(changed.path))
    for hunk in changed:
        in_comment = False
        for item in hunk:
            if item.is_removed or item.target_line_no is None:
                continue
            line = str(item.value).rstrip("\n").rstrip("\r")
            code, in_comment = _code(line, in_comment)
            if not item.is_added:
                continue
            if line != line.rstrip():
                yield item.target_line_no, "blanks at the end of the line"
            if is_c:
                for text in check_line(line, code):
                    yield item.target_line_no, text


def check_line(line: str, code: str) -> Iterator[str]:
    """The faults of one line of C; `code` is the line without comments and strings."""
    width = len(line.expandtabs(_TAB))
    if width > _COLUMNS:
        yield f"{width} columns wide, more than {_COLUMNS}"
    if re.match(r"\t* +\t", line):
        yield "a tab after blanks"
    elif line.strip() and not _INDENT.match(line):
        yield "indented with blanks where a tab belongs"
    if "//" in code:
        yield "a // comment; style(9) has /* */"
    if found := _KEYWORD.search(code):
        yield f"no blank after {found[1]}"
    if _RETURN.search(code):
        yield "return without parentheses: return (x);"
    if _SIZEOF.search(code):
        yield "sizeof without parentheses"
    if _BRACE.search(code):
        yield "no blank next to a brace"


def _code(line: str, in_comment: bool) -> tuple[str, bool]:
    """The line without strings and comments, and whether a comment continues after it."""
    if in_comment:
        _, ended, line = line.partition("*/")
        if not ended:
            return "", True
    elif re.match(r"\s*\*(\s|/|\Z)", line):
        # A hunk that begins inside a comment.
        _, ended, line = line.partition("*/")
        return (line, False) if ended else ("", False)
    # Remove comments first, because their apostrophes would look like strings; but not a /* inside
    # a string.
    line = _STRING.sub(lambda it: '""' if "/*" in it[0] or "//" in it[0] else it[0], line)
    line = _STRING.sub('""', _COMMENT.sub(" ", line))
    code, opened, _ = line.partition("/*")
    return code, bool(opened)
