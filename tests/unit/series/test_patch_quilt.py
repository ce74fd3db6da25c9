"""Folders of patches: a series file as quilt reads it, and files that are not patches."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from faketree import diff
from forms import SOURCE, WHOLE, applied, stripped

from harness.errors import PatchError, UsageError
from harness.series import load, mailbox, staging


class TestQuilt:
    """A series file as quilt reads it."""

    def series(self, tmp_path: Path, text: str, **files: bytes) -> Path:
        folder = tmp_path / "patches"
        folder.mkdir(exist_ok=True)
        for name, data in files.items():
            (folder / f"{name}.patch").parent.mkdir(exist_ok=True)
            (folder / f"{name}.patch").write_bytes(data)
        (folder / "series").write_text(text)
        return folder

    def test_options_and_comments(self, tmp_path: Path, tree: Path, edit: bytes) -> None:
        back = diff(tmp_path, {SOURCE: "#define NUMBER 2\n"}, {SOURCE: "#define NUMBER 1\n"})
        deep = stripped(diff(tmp_path, {}, {"sys/deep.h": "x\n"}), "1/2/", "1/2/")
        folder = self.series(
            tmp_path,
            "# head\nzero.patch -p0 # as svn makes it\n\n  back.patch -R\ndeep.patch\t-p 2\t#x\n",
            zero=stripped(edit),
            back=back,
            deep=deep,
        )
        series = load.load_series(folder, "15.1")
        assert series.notes == ()
        assert [patch.reverse for patch in series.patches] == [False, True, False]
        assert applied(folder, tree) == {
            **WHOLE, SOURCE: "#define NUMBER 2\n", "sys/deep.h": "x\n"
        }  # fmt: skip
        assert not staging.is_applied(series, tree)
        with staging.staged(series, tree) as (done, _):
            for path in ("sys/conf", "sys/sys"):
                subprocess.run(["cp", "-r", str(tree / path), str(done / "sys")], check=True)
            assert staging.is_applied(series, done)
        with pytest.raises(PatchError, match=r"back\.patch: the series reverts it \(-R\)"):
            mailbox.export(load.Series("x", "15.1", folder, (series.patches[1],)), tmp_path / "out")

    def test_the_digest_knows_what_the_options_do(self, tmp_path: Path, edit: bytes) -> None:
        digests = set()
        for options in ("", " -R", " -p2"):
            folder = self.series(tmp_path, f"x.patch{options}\n", x=edit)
            digests.add(load.load_series(folder, "15.1").digest)
        assert len(digests) == 3

    def test_patches_in_folders_and_with_blanks(
        self, tmp_path: Path, tree: Path, edit: bytes
    ) -> None:
        folder = self.series(tmp_path, "sub/x.patch\n")
        (folder / "sub").mkdir()
        (folder / "sub/x.patch").write_bytes(edit)
        assert applied(folder, tree) == WHOLE
        (folder / "a b.patch").write_bytes(edit)
        (folder / "series").write_text("a b.patch\n")
        assert applied(folder, tree) == WHOLE

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (
                "x.patch -F3",
                r"series:1: the option -F3 of x\.patch is unknown; only -pN and -R are",
            ),
            ("x.patch -p9", r"x\.patch: -p9 removes all of a path in it"),
            ("sub/../../x.patch", "neither in the folder of the series"),
        ],
    )
    def test_what_is_not_known_is_refused(
        self, tmp_path: Path, edit: bytes, line: str, reason: str
    ) -> None:
        folder = self.series(tmp_path, f"{line}\n", x=edit)
        with pytest.raises(PatchError, match=reason):
            load.load_series(folder, "15.1")

    def test_what_is_not_in_the_list_is_named(self, tmp_path: Path, edit: bytes) -> None:
        folder = self.series(tmp_path, "x.patch\n#y.patch\n", x=edit, y=edit)
        (note,) = load.load_series(folder, "15.1").notes
        assert note == f"{folder}: not part of the series: y.patch (not in its series file)"


def test_every_file_of_a_folder_is_taken_or_named(tmp_path: Path, edit: bytes) -> None:
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    for name in ("10-c.diff", "9-b.PATCH", "1-a.mbox", "notes.txt", ".hidden.patch.swp", "0001-x"):
        (folder / name).write_bytes(edit)
    series = load.load_series(folder, "15.1")
    assert [patch.name for patch in series.patches] == ["1-a.mbox", "9-b.PATCH", "10-c.diff"]
    assert series.notes == (
        f"{folder}: not part of the series: .hidden.patch.swp, notes.txt, sub, 0001-x "
        "(no patches, by their names)",
    )
    for path in ("1-a.mbox", "9-b.PATCH", "10-c.diff"):
        (folder / path).unlink()
    with pytest.raises(UsageError, match=r"nor patches .* in it; it holds \.hidden"):
        load.load_series(folder, "15.1")
    assert load.load_series([folder / "notes.txt"], "15.1").notes == ()
