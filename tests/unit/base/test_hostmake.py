"""The project's own sources are made wherever checkout and cache lie."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from harness import hostmake
from harness.errors import CannotError

ODD_NAMES = (
    "with blank",
    'quo"te',
    "colon:x",
    "per%cent",
    "and&",
    "semi;x",
    "a$HOME",
    "new\nline",
    "a\\b",
)


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_any_path_will_do(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / name
    source.mkdir()
    (source / "Makefile").write_text("all:\n\tcp $(CURDIR)/in $(O)/out; echo $(WORD)\n")
    (source / "in").write_text("made")
    # A TMPDIR that make cannot take is passed over.
    monkeypatch.setenv("TMPDIR", str(source))
    monkeypatch.setattr(tempfile, "tempdir", None)
    said = hostmake.make(source, "WORD=said", result="out", target=source / "result")
    assert (said, (source / "result").read_text()) == ("said\n", "made")


def test_a_failure_shows_the_compiler_s_lines(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("all:\n\t@echo wrong >&2; exit 1\n")
    with pytest.raises(CannotError, match=f"building {tmp_path} failed") as caught:
        hostmake.make(tmp_path)
    assert "wrong" in caught.value.detail


@pytest.mark.parametrize("compiler", [True, False])
def test_setup_is_the_remedy_only_where_the_compiler_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: bool
) -> None:
    if not compiler:
        (tmp_path / "bin").mkdir()
        for tool in ("make", "sh"):
            found = shutil.which(tool)
            assert found
            (tmp_path / "bin" / tool).symlink_to(found)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "Makefile").write_text("all:\n\tcc -c $(CURDIR)/a.c -o $(O)/a.o\n")
    (tmp_path / "source" / "a.c").write_text("int x = y;\n")
    with pytest.raises(CannotError, match=r"building .* failed: ") as caught:
        hostmake.make(tmp_path / "source")
    assert ("./inv setup" in caught.value.message) is not compiler
    assert ("error: " in caught.value.message) is compiler
