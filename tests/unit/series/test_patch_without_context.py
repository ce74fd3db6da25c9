"""Patches without context lines (`git diff -U0`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from faketree import NUMBERED, diff
from forms import MANUAL, applied, git, write

from harness.errors import PatchError
from harness.series import load, staging


class TestWithoutContext:
    """git diff -U0: nothing but the line number shows where lines belong."""

    def made(self, tmp_path: Path, after: str, *, index: bool = True) -> Path:
        diff(tmp_path, {MANUAL: NUMBERED}, {MANUAL: NUMBERED})
        place = tmp_path / "repository"
        git(place, "commit", "-qm", "base")
        (place / MANUAL).write_text(after)
        data = git(place, "diff", "-U0")
        if not index:
            data = b"".join(
                line for line in data.splitlines(keepends=True) if not line.startswith(b"index ")
            )
        return write(tmp_path, data)

    @pytest.mark.parametrize("index", [True, False])
    @pytest.mark.parametrize(
        "after",
        [
            NUMBERED.replace("line 20\n", "line 20\nnew\n"),
            NUMBERED.replace("line 20\n", "line 20\nnew\n").replace("line 30\n", "other\nmore\n"),
            NUMBERED.replace("line 1\n", "line 1\nnew\n"),
            "new\n" + NUMBERED,
            NUMBERED + "new\n",
            NUMBERED.replace("line 20\n", ""),
            NUMBERED.replace("line 40\n", "").replace("line 1\n", "x\n"),
        ],
    )
    def test_lines_go_where_they_say(
        self, tmp_path: Path, tree: Path, after: str, index: bool
    ) -> None:
        path = self.made(tmp_path, after, index=index)
        if after.startswith("new") and not index:
            # It looks like the first lines of a file that is not there.
            with pytest.raises(PatchError, match="the lines it expects are not there"):
                applied(path, tree)
            return
        assert applied(path, tree) == {MANUAL: after}
        (tree / MANUAL).write_text(after)
        assert staging.is_applied(load.load_series(path, "15.1"), tree)

    def test_another_version_of_the_file_is_refused(self, tmp_path: Path, tree: Path) -> None:
        (tree / MANUAL).write_text("first\n" + NUMBERED)
        path = self.made(tmp_path, NUMBERED.replace("line 20\n", "line 20\nnew\n"))
        with pytest.raises(
            PatchError, match=r"made without context .* from another version of .*4 "
        ):
            applied(path, tree)

    @pytest.mark.parametrize("index", [True, False])
    def test_lines_that_have_moved_are_refused(
        self, tmp_path: Path, tree: Path, index: bool
    ) -> None:
        (tree / MANUAL).write_text("first\n" + NUMBERED)
        path = self.made(tmp_path, NUMBERED.replace("line 20\n", "line XX\n"), index=index)
        with pytest.raises(PatchError, match=r"hunk 1 of .*vmm\.4 fits only \+1 lines away"):
            applied(path, tree)
