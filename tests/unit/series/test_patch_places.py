"""Patches that nearly fit, are cut off, or are none: each is refused with its own reason."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from faketree import NUMBERED, diff, mail, make_tree

from harness.errors import PatchError, UsageError
from harness.series import load, staging

PATH = "sys/dev/vmm/rep.c"
REPEATED = "".join(f"f{n}()\n{{\n\tx();\n\treturn (0);\n}}\n\n" for n in range(10))
EDITED = REPEATED.replace("f5()\n{\n\tx();\n", "f5()\n{\n\tx();\n\tnew();\n")
MANUAL = "share/man/man4/vmm.4"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "src", {PATH: REPEATED})


def put(tmp_path: Path, data: bytes, name: str = "p.patch") -> Path:
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def applied(where: Path, tree: Path, path: str = PATH) -> str:
    with staging.staged(load.load_series(where, "15.1", tree), tree) as (folder, _):
        return (folder / path).read_text()


def narrow(data: bytes) -> bytes:
    """The hunk of EDITED with one line of context, as git diff -U1 makes it."""
    head = data.partition(b"@@ ")[0]
    return head + b"@@ -33,2 +33,3 @@\n \tx();\n+\tnew();\n \treturn (0);\n"


def test_a_hunk_that_fits_in_many_places_is_refused_in_another_version(
    tmp_path: Path, tree: Path
) -> None:
    whole = diff(tmp_path, {PATH: REPEATED}, {PATH: EDITED})
    path = put(tmp_path, narrow(whole))
    assert applied(path, tree) == EDITED
    # Its lines stand at the same numbers, in another function.
    (tree / PATH).write_text("/* head */\n" * 6 + REPEATED)
    with pytest.raises(PatchError, match=r"another version of .*rep\.c, and its hunk 1 fits .* 10"):
        applied(path, tree)
    assert applied(put(tmp_path, whole), tree) == "/* head */\n" * 6 + EDITED


def test_a_series_that_fits_a_second_time_is_applied_already(tmp_path: Path, tree: Path) -> None:
    whole = diff(tmp_path, {PATH: REPEATED}, {PATH: EDITED})
    (tree / PATH).write_text(EDITED)
    with pytest.raises(PatchError, match="is already applied in"):
        applied(put(tmp_path, whole), tree)


def test_a_patch_that_is_cut_off_is_refused(tmp_path: Path, tree: Path) -> None:
    """Except between two hunks or files, where nothing shows it."""
    before = {PATH: REPEATED, MANUAL: NUMBERED}
    whole = diff(tmp_path, before, {PATH: EDITED, MANUAL: NUMBERED.replace("line 20", "x")})
    begin = whole.index(b"diff --git", 10)
    for length in (begin + 8, begin + 40, whole.index(b"index", begin) + 9, len(whole) - 30):
        with pytest.raises(PatchError, match=r"p\.patch: .*(broken at|cut off)"):
            load.load_series(put(tmp_path, whole[:length]), "15.1", tree)
    assert applied(put(tmp_path, whole.rstrip(b"\n")), tree) == EDITED


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(b"x", mtime=0), r"compressed \(gzip\); unpack it first: gzip -dc"),
        (b"BZh9", "compressed .bzip2"),
        (b"\xfd7zXZ\0", "compressed .xz"),
        (b"PK\x03\x04" + bytes(90), "a zip archive"),
        (b"<!DOCTYPE html>\n<html></html>\n", "a web page"),
        ("diff --git a/x b/x\n".encode("utf-16-le"), "UTF-16 text"),
        (b"", "it is empty"),
        (b"12c12\n< a\n---\n> b\n", r"a diff without context; .*\(diff -u\)"),
        (b"> diff --git a/sys/x b/sys/x\n> +++ b/sys/x\n", "begins with a mark"),
        (b"    diff --git a/sys/x b/sys/x\n", "is indented"),
        (b"Submodule contrib/x 1234567..89abcde:\n  > a commit\n", "changes a submodule"),
        (b"Property changes on: sys\n___\nAdded: svn:ignore\n", "Subversion's properties"),
        (
            b"diff --git a/sys/x b/sys/x\n--- a/sys/x\n+++ b/sys/x\n@@ -1,2 +1,2 @@\na\n"
            b"[-b-]{+c+}\n",
            "a diff of words; make it without --word-diff",
        ),
    ],
)
def test_what_is_no_patch_has_its_own_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(PatchError, match=reason):
        load.load_series(put(tmp_path, data), "15.1")


def test_a_compressed_patch_in_a_folder_is_not_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    put(folder, gzip.compress(b"x"), "1.patch.gz")
    put(folder, diff(tmp_path, {}, {"sys/x": "x\n"}), "2.patch")
    with pytest.raises(PatchError, match=r"1\.patch\.gz: it is compressed"):
        load.load_series(folder, "15.1")


def test_a_cover_letter_is_none_with_a_diff_in_it(tmp_path: Path, tree: Path) -> None:
    """git format-patch --cover-letter --interdiff writes one."""
    edit = diff(tmp_path, {PATH: REPEATED}, {PATH: EDITED})
    letter = mail(edit).replace(b"[PATCH]", b"[PATCH v2 0/1]")
    patch = mail(edit).replace(b"[PATCH]", b"[PATCH v2 1/1]")
    assert applied(put(tmp_path, letter + patch), tree) == EDITED
    with pytest.raises(PatchError, match=r"no patch in it .*a cover letter"):
        load.load_series(put(tmp_path, letter), "15.1")


def test_a_series_without_patches_is_not_tested(tmp_path: Path) -> None:
    put(tmp_path, b"# none yet\n", "series")
    with pytest.raises(UsageError, match="it names no patch yet"):
        load.require_patches(load.load_series(tmp_path, "15.1"))


def test_a_prefix_that_the_tree_proved_holds_for_new_files_too(tmp_path: Path, tree: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    steps = (
        diff(tmp_path, {PATH: REPEATED}, {PATH: EDITED}),
        diff(tmp_path, {}, {"sys/new.h": "a\n"}),
        diff(tmp_path, {"sys/new.h": "a\n"}, {"sys/new.h": "b\n"}),
    )
    for number, step in enumerate(steps):
        data = step.replace(b" a/", b" a/src/").replace(b" b/", b" b/src/")
        put(folder, data, f"{number}.patch")
    assert applied(folder, tree, "sys/new.h") == "b\n"


def test_files_that_only_one_tree_has_are_named(tmp_path: Path, tree: Path) -> None:
    data = diff(tmp_path, {PATH: REPEATED}, {PATH: EDITED}) + b"Only in src/sys: new.c\n"
    (note,) = load.load_series(put(tmp_path, data), "15.1", tree).notes
    assert "only in one of the two trees, so not in the patch: src/sys/new.c (diff -N" in note
