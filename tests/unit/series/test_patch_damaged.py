"""Texts that only resemble patches: each is read safely, or refused with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from faketree import diff, mail
from forms import applied, git, write
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.errors import PatchError, WorkbenchError
from harness.series import diffs, load, mailbox, mails

HIDDEN = (
    "diff --git a/share/mk/sys.mk b/share/mk/sys.mk\n--- a/share/mk/sys.mk\n"
    "+++ b/share/mk/sys.mk\n@@ -1 +1,2 @@\n CC?=cc\n+X!=touch /tmp/pwned\n"
)


@pytest.mark.parametrize("before", ["It was wrong.", "It was wrong.\n---\n x | 2 +-\n"])
def test_a_diff_in_a_commit_message_is_not_applied(
    tmp_path: Path, tree: Path, repo: Path, before: str
) -> None:
    """git am would apply it, and no page of the commit shows it as a change."""
    (repo / "share/mk/x.mk").write_text("x\n")
    git(repo, "add", "-A")
    message = f"vmm: Add x\n\n{before}\n\n{HIDDEN}\nSigned-off-by: A Hacker <a@example.org>\n"
    git(repo, "commit", "-q", "--cleanup=verbatim", "-m", message)
    names = git(repo, "diff", "--name-only", "HEAD^", "HEAD").decode().split()
    box = write(tmp_path, git(repo, "format-patch", "--stdout", "HEAD^"))
    series = load.load_series(box, "15.1")
    assert list(series.touched) == names
    assert series.notes == (
        "p.patch: a diff in its message is part of the message, so it is not applied",
    )
    assert applied(box, tree) == {"share/mk/x.mk": "x\n"}
    out = tmp_path / "out.mbox"
    mailbox.export(series, out)
    assert applied(out, tree) == {"share/mk/x.mk": "x\n"}


def test_patches_that_nothing_divides_are_refused(tmp_path: Path, edit: bytes) -> None:
    one, two = (
        mail(edit).partition(b"\n")[2],
        mail(diff(tmp_path, {}, {"sys/b": "x\n"})).partition(b"\n")[2],
    )
    with pytest.raises(PatchError, match=r"two patches without a separator, .* its own file"):
        load.load_series(write(tmp_path, one + two), "15.1")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            b"diff --git a/x.bin b/x.bin\nindex 111..222 100644\n"
            b"Binary files a/x.bin and b/x.bin differ\n",
            r"binary file but does not contain its data .*git diff --binary",
        ),
        (
            b"Index: sys/x\n===\nCannot display: file marked as a binary type.\n",
            "binary file but does not contain its data",
        ),
        (
            b"diff --cc sys/x\nindex 1,2..3\n--- a/sys/x\n+++ b/sys/x\n@@@ -1,1 -1,1 +1,1 @@@\n",
            "a combined diff of a merge",
        ),
        (
            b"*** sys/x.orig\n--- sys/x\n***************\n*** 1 ****\n! a\n--- 1 ----\n! b\n",
            r"a context diff; make a unified one \(diff -u\)",
        ),
        ("diff --git a/x b/x\n".encode("utf-16"), r"UTF-16 text, .*git diff --output=FILE"),
        (b"From: a\nSubject: x\n\nno diff here\n", "there is no diff in it"),
    ],
)
def test_what_git_would_pass_over_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    for text in (data, mail(data)) if data.startswith(b"d") else (data,):
        with pytest.raises(PatchError, match=rf"^p\.patch: .*{reason}"):
            load.load_series(write(tmp_path, text), "15.1")


FIELDS = st.lists(
    st.sampled_from(
        ["=?utf-8?q?", "?=", "=?", "b?", "=?utf-7?b?+", "<", ">", "@", '"', "\\", "(", ")", ",",
         ";", ":", "a", " ", "\t", "é", "\udc80", "=?us-ascii?Q?=0A=0D?=", "[", "]", "[PATCH]",
         "%s", "\r", "\0", "=?x?q?a?=", "group:", "<a@b>", "@b"]
    ),
    max_size=9,
).map("".join)  # fmt: skip

MORE = st.sampled_from(
    ["", "Content-Type: multipart/mixed; boundary=x\n", "Content-Transfer-Encoding: base64\n",
     "Content-Type: text/plain; charset={}\n", "Content-Transfer-Encoding: {}\n", "Date: {}\n",
     "Content-Type: multipart/{}\n", "MIME-Version: {}\n", "{}\n", "{}: x\n"]
)  # fmt: skip

BODY = b"\n\nwhy\n\n---\ndiff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"


@settings(deadline=None, max_examples=150)
@given(FIELDS, FIELDS, MORE, FIELDS)
def test_no_header_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, author: str, subject: str, more: str, value: str
) -> None:
    head = f"From: {author}\nSubject: {subject}\n{more.format(value)}"
    path = tmp_path_factory.getbasetemp() / "fuzz.patch"
    path.write_bytes(head.encode("utf-8", "surrogateescape") + BODY)
    try:
        (patch,) = load.load_series(path, "15.1").patches
    except WorkbenchError:
        return
    assert patch.touched == ("x",)
    patch.author.encode()
    patch.subject.encode()
    patch.message.encode()


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.sampled_from(
            [b"From: a <a@b>\n", b"Subject: [PATCH 1/2] x\n", b"\n", b"---\n",
             b"diff --git a/x b/x\n",
             b"--- a/x\n", b"+++ b/x\n", b"@@ -1 +1 @@\n", b"@@ -1,2 +1,3 @@\n", b"-a\n", b"+b\n",
             b" c\n", b"\\ No newline at end of file\n", b"rename from x\n", b"index 1..2\n",
             b"From 1234567 Mon Sep 17 00:00:00 2001\n", b"\x1b[32m+b\x1b[m\n", b"\r\n",
             b"Index: x\n", b'diff --git "a/\\', b"GIT binary patch\n", b"new file mode 100644\n",
             b"\xff\0", b"-- \n"]
        ),
        max_size=30,
    ).map(b"".join)
)  # fmt: skip
@example(b'diff --git "a/\\From: a <a@b>\nnew file mode 100644\n+++ b/x\n')
def test_no_text_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.patch"
    path.write_bytes(text)
    try:
        series = load.load_series(path, "15.1")
    except WorkbenchError:
        return
    # What is applied is what the walker saw: nothing is applied that it took for text.
    for patch in series.patches:
        named = {
            diffs.strip(name, 1).decode("utf-8", "surrogateescape")
            for section in diffs.sections(patch.diff.splitlines(keepends=True))
            for name in (section.old, section.new)
            if name
        }
        assert set(patch.touched) <= named


def test_a_mail_is_distinguished_from_a_diff() -> None:
    body = b"--- sys/x\n+++ sys/x\n@@ -1 +1 @@\n-a\n+b\n"
    for text in (b"Index: sys/x\n===\n" + body, body, b"# HG changeset patch\n# User x\n" + body):
        assert mails.read(text, "x")[0].author == ""
