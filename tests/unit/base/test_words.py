"""The project's texts avoid private words: each of them has a common one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.files import PROJECT

# Each word, and what to write instead.
INSTEAD = {
    r"mend(s|ed|ing|er)?": "fix, remedy",
    r"anew": "again",
    r"farms?": "linked tree",
    r"teeth": "mutants, wrong variants",
    r"ledgers?": "accounting",
    r"jury|footing": "trials, baseline",
    r"workshop": "work folder",
    r"fingertips": "the thing itself",
    r"(is|are|was|were|be|been|as|when|if) told|told (to|by|that)": "asked, reported",
    r"c[oa]me of (it|them|this|that|each)|what came of": "result",
    r"at hand": "current",
    r"logged no fear": "accounting",
    r"(that|which) (is|are) (?-i:none)": "that does not exist",
    r"there (is|are) none of": "does not exist",
    r"g[ia]ve up the ghost": "end",
    r"in vain": "without effect",
    r"kept guests?": "guest that stays",
    r"for want of": "without",
    r"hence|thus|henceforth|thereof|wherein": "so, therefore",
    r"his|him|himself": "their",
    r"of old": "of earlier versions",
    r"beholden|forsooth|betimes|ere": "a common word",
}
WORDS = re.compile(rf"(?<![\w./-])({'|'.join(INSTEAD)})(?![\w=-])", re.IGNORECASE)
# JSON keys and aliases that users' programs may use stay as they are.
STABLE_NAMES = re.compile(
    r"""["'`]?(mend|teeth)["'`](?=[:\],)]|\s*$)|key of the remedy is `mend`"""
)
KINDS = ("*.py", "*.c", "*.h", "*.S", "*.sh", "*.md", "*.toml", "*.txt", "*.yml", "*.yaml", "*.j2")
ALONE = ("inv", ".ci/run", "images/nested/init", "images/nested/kvmhost_init")
# Here FreeBSD or another project chose the words.
NOT_OURS = ("tests/unit/data/", "requirements.lock")


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *KINDS, *ALONE, "*.patch"],
        cwd=PROJECT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this is not a checkout of git")
    return [
        PROJECT / name
        for name in listed.stdout.decode().split("\0")
        if name and not name.startswith(NOT_OURS) and PROJECT / name != Path(__file__)
    ]


def ours(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """The lines of a file that we wrote; in a patch, its subject and what it adds."""
    for number, line in enumerate(text.splitlines(), 1):
        if path.suffix != ".patch":
            yield number, line
        elif re.match(r"Subject:|\+(?!\+\+ )", line):
            yield number, line[1:] if line.startswith("+") else line


def words_of(line: str) -> str:
    """A line without the stable names, and with the words of a test's name separated."""
    name = re.match(r"\s*def (test_\w+)", line)
    return f"{STABLE_NAMES.sub('', line)} {name[1].replace('_', ' ') if name else ''}"


def found(path: Path, text: str) -> list[str]:
    return [
        f"{number}: {match[0]}: {line.strip()}"
        for number, line in ours(path, text)
        for match in WORDS.finditer(words_of(line))
    ]


def test_no_file_uses_a_private_word() -> None:
    files = [path for path in tracked() if path.is_file()]
    assert len(files) > 400
    wrong = [
        f"{path.relative_to(PROJECT)}:{line}"
        for path in files
        for line in found(path, path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert wrong == []


def test_no_file_has_the_marks_of_an_unfinished_merge() -> None:
    marks = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)
    files = [path for path in tracked() if path.is_file()]
    assert [p for p in files if marks.search(p.read_text(encoding="utf-8", errors="replace"))] == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.py", "# It is mended anew, as it was told to.", ["mended", "anew", "was told"]),
        ("a.c", "/* The test at hand; an id that is none. */", ["at hand", "that is none"]),
        ("a.md", "Whoever wrote his patch", ["his"]),
        ("a.py", "def test_a_guest_begins_anew():", ["anew"]),
        ("a.patch", "Subject: teeth\n-thus\n+farm\n thus\n+++ b/thus.c", ["teeth", "farm"]),
        ("a.py", 'data["mend"] = told; ledger_driver.c; recommended; this', []),
    ],
)
def test_the_words_are_found(name: str, text: str, words: list[str]) -> None:
    assert [line.split(": ")[1] for line in found(Path(name), text)] == words
