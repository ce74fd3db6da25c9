"""Several mails as one series: order, answers, repeats, versions; and forms that are no patch."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from faketree import NUMBERED, diff, make_tree

from harness.errors import PatchError, UsageError
from harness.series import arrange, load, staging
from harness.series.load import Series

MANUAL = "share/man/man4/vmm.4"
STEPS = ["line 20\n", "one\n", "two\n", "three\n"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "src")


def text(step: int) -> str:
    return NUMBERED.replace("line 20\n", STEPS[step])


def mail(tmp_path: Path, step: int, tag: str, subject: str = "") -> bytes:
    """The patch that makes text(step) of text(step - 1), with `tag` before its subject."""
    data = diff(tmp_path, {MANUAL: text(step - 1)}, {MANUAL: text(step)})
    head = (
        "From 1111111111111111111111111111111111111111 Mon Sep 17 00:00:00 2001\n"
        "From: A Hacker <a@example.org>\nDate: Mon, 1 Jan 2024 00:00:00 +0000\n"
        f"Subject: {tag} {subject or f'vmm: step {step}'}\n\nWhy.\n---\n"
    )
    return head.encode() + data + b"-- \n2.40\n\n"


def result(where: Path, tree: Path) -> tuple[Series, str]:
    series = load.load_series(where, "15.1", tree)
    with staging.staged(series, tree) as (folder, _):
        return series, (folder / MANUAL).read_text()


@pytest.mark.parametrize("folder", [False, True])
def test_mails_are_taken_in_the_order_of_their_subjects(
    tmp_path: Path, tree: Path, folder: bool
) -> None:
    mails = {step: mail(tmp_path, step, f"[PATCH v2 {step}/3]") for step in (2, 3, 1)}
    where = tmp_path / "given"
    if folder:
        where.mkdir()
        for name, each in zip("abc", mails.values(), strict=True):
            (where / f"{name}.patch").write_bytes(each)
    else:
        where.write_bytes(b"".join(mails.values()))
    series, made = result(where, tree)
    assert made == text(3)
    assert [it.subject for it in series.patches] == [f"vmm: step {n}" for n in (1, 2, 3)]
    assert any("in the order of their subjects (1, 2, 3)" in it for it in series.notes)


def test_an_answer_with_a_diff_is_named_and_not_applied(tmp_path: Path, tree: Path) -> None:
    answer = mail(tmp_path, 1, "Re: [PATCH 1/2]", "vmm: better so")
    where = tmp_path / "x.mbox"
    where.write_bytes(
        mail(tmp_path, 1, "[PATCH 1/2]")
        + answer.replace(b"+one", b"+ONE")
        + mail(tmp_path, 2, "[PATCH 2/2]")
    )
    series, made = result(where, tree)
    assert made == text(2)
    assert any(it.startswith("x.mbox#2: an answer, whose diff") for it in series.notes)
    # Alone it is what was given.
    where.write_bytes(answer)
    assert result(where, tree)[1] == text(1)


def test_a_mail_that_came_twice_is_applied_once(tmp_path: Path, tree: Path) -> None:
    where = tmp_path / "x.mbox"
    first = mail(tmp_path, 1, "[PATCH 1/2]")
    where.write_bytes(first + first + mail(tmp_path, 2, "[PATCH 2/2]"))
    series, made = result(where, tree)
    assert made == text(2)
    assert "x.mbox#2: the same patch as x.mbox#1" in series.notes


def test_what_is_lacking_is_named(tmp_path: Path, tree: Path) -> None:
    """A mailbox may have been cut off, and a half of a series is not the series."""
    where = tmp_path / "x.mbox"
    where.write_bytes(mail(tmp_path, 1, "[PATCH 1/3]") + mail(tmp_path, 2, "[PATCH 3/3]"))
    assert "by their subjects there are 3 patches; absent: 2" in result(where, tree)[0].notes
    where.write_bytes(mail(tmp_path, 1, "[PATCH v2 1/2]"))
    absent = "by their subjects there are 2 patches of version 2; absent: 2"
    assert absent in result(where, tree)[0].notes
    # Each file alone lacks the other, both together lack nothing.
    other = tmp_path / "y.mbox"
    other.write_bytes(mail(tmp_path, 2, "[PATCH v2 2/2]"))
    assert not load.load_series([where, other], "15.1", tree).notes
    # A list of patches means exactly those.
    (tmp_path / "series").write_text("x.mbox\n")
    assert absent not in load.load_series(tmp_path, "15.1", tree).notes


def test_several_versions_are_refused(tmp_path: Path, tree: Path) -> None:
    where = tmp_path / "x.mbox"
    where.write_bytes(
        mail(tmp_path, 1, "[PATCH]", "vmm: x") + mail(tmp_path, 2, "[PATCH v2]", "vmm: x")
    )
    with pytest.raises(PatchError, match=r"several versions \(v1, v2\); leave those of one"):
        load.load_series(where, "15.1", tree)
    # Two series in a folder may be of different versions each.
    where.write_bytes(
        mail(tmp_path, 1, "[PATCH]", "vmm: x") + mail(tmp_path, 2, "[PATCH v2]", "vmm: y")
    )
    assert result(where, tree)[1] == text(2)


@pytest.mark.parametrize(
    ("subject", "found"),
    [
        ("[PATCH v3 02/11] vmm: x", arrange.Tags(2, 11, 3)),
        ("[RFC PATCH net-next] x", arrange.Tags(version=1)),
        ("[2/3] x", arrange.Tags(2, 3, 1)),
        ("Re: [PATCH 1/2] x", arrange.Tags(1, 2, 1, reply=True)),
        ("AW: [PATCH V2] x", arrange.Tags(version=2, reply=True)),
        ("vmm: handle 1/2 of it [v2]", arrange.Tags(version=2)),
        ("vmm: Return: x", arrange.Tags()),
        ("", arrange.Tags()),
    ],
)
def test_tags(subject: str, found: arrange.Tags) -> None:
    assert arrange.tags(subject) == found


HEAD = f"--- a/{MANUAL}\n+++ b/{MANUAL}\n"
NO_NEWLINE = "\\ No newline at end of file\n"


@pytest.mark.parametrize(
    ("hunk", "said"),
    [
        # Too few lines by its header: what is behind would be left out.
        (
            "@@ -19,3 +19,3 @@\n line 19\n-line 20\n+x\n line 21\n-line 22\n",
            r"more lines .*\(line 8\)",
        ),
        ("@@ -19,3 +19,3 @@\n line 19\n-line 20\n+x\n line 21\n+y\n", "more lines than its header"),
        # git would find the beginning of a line there, and join the next one to it.
        (f"@@ -19,3 +19,3 @@\n line 19\n-line 20\n+x\n line 21\n{NO_NEWLINE}", "without a newline"),
    ],
)
def test_hunks_that_would_do_something_else(
    tmp_path: Path, tree: Path, hunk: str, said: str
) -> None:
    where = tmp_path / "x.patch"
    where.write_text(HEAD + hunk)
    with pytest.raises(PatchError, match=said):
        result(where, tree)


def test_a_file_without_a_last_newline_is_patched(tmp_path: Path, tree: Path) -> None:
    (tree / "sys/e.c").write_text("a\nb\nc")
    where = tmp_path / "x.patch"
    where.write_text(f"--- a/sys/e.c\n+++ b/sys/e.c\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n{NO_NEWLINE}")
    series = load.load_series(where, "15.1", tree)
    with staging.staged(series, tree) as (folder, _):
        assert (folder / "sys/e.c").read_text() == "a\nB\nc"
    where.write_text("--- a/sys/e.c\n+++ b/sys/e.c\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n")
    with pytest.raises(
        PatchError, match="line 3 ends the file without a newline, and in the patch"
    ):
        result(where, tree)
    assert not staging.is_applied(series, tree)
    (tree / "sys/e.c").write_text("a\nB\nc")
    assert staging.is_applied(series, tree)


def test_a_file_that_is_changed_twice_in_one_patch(tmp_path: Path, tree: Path) -> None:
    """The second part finds what the first one made: here, a file without its last newline."""
    (tree / "sys/e.c").write_text("a\nb\n")
    where = tmp_path / "x.patch"
    head = "--- a/sys/e.c\n+++ b/sys/e.c\n"
    where.write_text(
        f"{head}@@ -1,2 +1,2 @@\n a\n-b\n+c\n{NO_NEWLINE}"
        f"{head}@@ -1,2 +1,2 @@\n-a\n+A\n c\n{NO_NEWLINE}"
    )
    series = load.load_series(where, "15.1", tree)
    with staging.staged(series, tree) as (folder, _):
        assert (folder / "sys/e.c").read_text() == "A\nc"


def test_a_mail_signature_is_no_line_of_the_hunk(tmp_path: Path, tree: Path) -> None:
    where = tmp_path / "x.patch"
    body = diff(tmp_path, {MANUAL: text(0)}, {MANUAL: text(1)})
    for end in (b"-- \n2.40\n", b"--\n2.40\n", b"-----------\nsome list\n", b"Regards\n- me\n"):
        where.write_bytes(body + end)
        assert result(where, tree)[1] == text(1)


def reason(tmp_path: Path, data: bytes) -> str:
    where = tmp_path / "x.patch"
    where.write_bytes(data)
    with pytest.raises(PatchError) as refused:
        load.load_series(where, "15.1")
    return refused.value.message


def test_forms_that_are_no_patch_have_their_reasons(tmp_path: Path) -> None:
    body = diff(tmp_path, {MANUAL: text(0)}, {MANUAL: text(1)})
    cases = {
        base64.b64encode(body): "base64 -d",
        base64.encodebytes(body): "base64 -d",
        json.dumps({"patch": body.decode()}).encode(): "it is JSON",
        b"*** Begin Patch\n*** Update File: sys/x.c\n@@\n-a\n+b\n*** End Patch\n": "apply_patch",
        b"<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n": "search and replace",
        HEAD.encode() + b"@@ ... @@\n-a\n+b\n": "@@ without numbers",
        b"==== //depot/x.c#1 - /home/x.c ====\n@@ -1 +1 @@\n-a\n+b\n": "Perforce",
        b"The following changes since commit 0123abc:\n\n  x\n": "request to pull",
        b" sys/x.c | 2 +-\n 1 file changed, 1 insertion(+), 1 deletion(-)\n": "without --stat",
        b"M\tsys/x.c\n": "git diff -p",
        b":100644 100644 0123abc 4567def M\tsys/x.c\n": "git diff -p",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0x" * 500: "a mail of Outlook",
        b"x.patch".ljust(257, b"\0") + b"ustar\0" + bytes(250) + body: "tar -xf",
        b"{\\rtf1 " + body: "RTF",
        b"--- /dev/null\n+++ /dev/null\n@@ -0,0 +1 @@\n+x\n": "no file on either side",
        body.replace(MANUAL.encode(), MANUAL.replace("/", "\\").encode())
        .replace(b"a/", b"a\\")
        .replace(b"b/", b"b\\"): "divided by",
    }
    for data, said in cases.items():
        assert said in reason(tmp_path, data), data[:60]


def test_what_a_folder_holds_beside_patches(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    (folder / "inner").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"folders in it are not looked into: name .*inner itself"):
        load.load_series(folder, "15.1")
    (folder / "1.patch").write_bytes(diff(tmp_path, {MANUAL: text(0)}, {MANUAL: text(1)}))
    (folder / "._1.patch").write_bytes(b"\0\5\x16\7macOS")
    series = load.load_series(folder, "15.1")
    assert len(series.patches) == 1
    assert "._1.patch" in series.notes[0]
    (folder / "2.patch").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"2\.patch: a link that leads nowhere; repair it or"):
        load.load_series(folder, "15.1")


def test_a_removal_without_its_lines(tmp_path: Path, tree: Path) -> None:
    where = tmp_path / "x.patch"
    where.write_text(
        f"diff --git a/{MANUAL} b/{MANUAL}\ndeleted file mode 100644\nindex 1234567..0000000\n"
    )
    with pytest.raises(PatchError, match="make it without --irreversible-delete"):
        result(where, tree)
