"""The forms in which people have patches: each is read as what its author meant, or refused."""

from __future__ import annotations

import base64
import quopri
import subprocess
from pathlib import Path

import pytest
from faketree import NUMBERED, diff, mail
from forms import EDITED, MANUAL, SOURCE, WHOLE, applied, git, stripped, write

from harness.errors import PatchError
from harness.series import load, mailbox, staging

BOTH = {MANUAL: EDITED, SOURCE: "#define NUMBER 2\n"}


def test_a_cover_letter_is_not_a_patch(tmp_path: Path, tree: Path, repo: Path) -> None:
    out = tmp_path / "out"
    git(repo, "format-patch", "-q", "--cover-letter", "-o", str(out), "HEAD~2")
    series = load.load_series(out, "15.1")
    assert [patch.subject for patch in series.patches] == ["vmm.4: Fix a wörd", "vmm: Count on"]
    assert series.notes == ("0000-cover-letter.patch: a cover letter, not a patch",)
    assert applied(out, tree) == BOTH


@pytest.mark.parametrize("cover", [(), ("--cover-letter",)])
def test_one_file_with_several_mails_is_several_patches(
    tmp_path: Path, tree: Path, repo: Path, cover: tuple[str, ...]
) -> None:
    box = write(tmp_path, git(repo, "format-patch", "--stdout", *cover, "HEAD~2"), "pr.patch")
    series = load.load_series(box, "15.1")
    first = 1 + len(cover)
    assert [patch.name for patch in series.patches] == [
        f"pr.patch#{first}",
        f"pr.patch#{first + 1}",
    ]
    assert series.patches[1].message == "From here on it is 2."
    assert applied(box, tree) == BOTH
    out = tmp_path / "again.mbox"
    mailbox.export(series, out)
    assert applied(out, tree) == BOTH
    if cover:
        assert series.notes == ("pr.patch#1: a cover letter, not a patch",)


def test_a_thread_of_a_list_is_its_patches(tmp_path: Path, tree: Path, edit: bytes) -> None:
    stamp = b"From hacker@example.org Mon Nov 23 08:00:00 2026\n"
    answer = (
        stamp + b"From: B <b@example.org>\nSubject: Re: [PATCH] vmm: Change a thing\n\n"
        b"> --- a/sys/x\n> +++ b/sys/x\n> @@ -1 +1 @@\n> -a\n> +b\n\nLooks good.\n"
    )
    one = mail(edit).partition(b"\n")[2]
    box = write(tmp_path, stamp + one + answer, "thread.mbox")
    assert applied(box, tree) == WHOLE
    assert load.load_series(box, "15.1").notes == (
        "thread.mbox#2: a mail without a diff: vmm: Change a thing",
    )
    with pytest.raises(PatchError, match=r"answers\.mbox: there is no diff in its 2 mails"):
        load.load_series(write(tmp_path, answer + answer, "answers.mbox"), "15.1")


def encoded(edit: bytes, how: str) -> bytes:
    head = (
        b"From: =?utf-8?q?J=C3=B6rg?= <j@example.org>\nSubject: [PATCH v2] vmm: =?utf-8?B?w4Q=?=\n"
    )
    body = b"W\xc3\xb6rds, with = and a very long line" + b" and more" * 20 + b".\n---\n" + edit
    plain = b"MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
    if how == "quoted-printable":
        body = quopri.encodestring(body)
        return head + plain + b"Content-Transfer-Encoding: quoted-printable\n\n" + body
    if how == "base64":
        body = base64.encodebytes(body)
        return head + plain + b"Content-Transfer-Encoding: base64\n\n" + body
    if how == "base64 with CRLF":
        body = base64.encodebytes(body.replace(b"\n", b"\r\n"))
        return head + plain + b"Content-Transfer-Encoding: base64\n\n" + body
    if how == "crlf":
        return (head + plain + b"\n" + body).replace(b"\n", b"\r\n")
    kind = b"inline" if "inline" in how else b"attachment"
    return (
        head + b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="==b"\n\n'
        b"--==b\nContent-Type: text/plain; charset=utf-8\n\nW\xc3\xb6rds.\n\n--==b\n"
        b'Content-Type: text/x-patch; name="0001-x.patch"\nContent-Transfer-Encoding: base64\n'
        b"Content-Disposition: " + kind + b'; filename="0001-x.patch"\n\n'
        + base64.encodebytes(edit) + b"--==b--\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    "how",
    ["quoted-printable", "base64", "base64 with CRLF", "crlf", "attachment", "inline attachment"],
)
def test_mails_are_decoded(tmp_path: Path, tree: Path, edit: bytes, how: str) -> None:
    path = write(tmp_path, encoded(edit, how), "mail.eml")
    (patch,) = load.load_series(path, "15.1").patches
    assert (patch.author, patch.subject) == ("Jörg <j@example.org>", "vmm: Ä")
    assert patch.message.startswith("Wörds")
    assert applied(path, tree) == WHOLE
    out = tmp_path / "out.mbox"
    mailbox.export(load.load_series(path, "15.1"), out)
    again = load.load_series(out, "15.1")
    assert (again.patches[0].author, again.patches[0].subject) == (patch.author, patch.subject)
    assert applied(out, tree) == WHOLE
    made = tmp_path / "made"
    subprocess.run(["cp", "-r", str(tree), str(made)], check=True)
    git(made, "init", "-q")
    git(made, "add", "-A")
    git(made, "commit", "-qm", "base")
    git(made, "am", "-q", str(out))
    assert (made / MANUAL).read_text() == EDITED


def svn(edit: bytes) -> bytes:
    """The same as Subversion writes it."""
    lines = []
    for line in stripped(edit).splitlines(keepends=True):
        if line.startswith(b"diff --git "):
            name = line.split()[-1]
            lines += [b"Index: " + name + b"\n", b"=" * 67 + b"\n"]
        elif line.startswith(b"--- /dev/null"):
            lines.append(b"--- " + name + b"\t(nonexistent)\n")
        elif line.startswith((b"--- ", b"+++ ")):
            kind = b"(revision 1)" if line.startswith(b"-") else b"(working copy)"
            lines.append(line.rstrip() + b"\t" + kind + b"\n")
        elif not line.startswith((b"index ", b"new file")):
            lines.append(line)
    return b"".join(lines)


def advisory(edit: bytes) -> bytes:
    """The same as FreeBSD's security officer writes it."""
    lines = []
    for line in svn(edit).splitlines(keepends=True):
        if line.startswith(b"--- ") and b"nonexistent" not in line:
            lines.append(line.partition(b"\t")[0] + b".orig\n")
        elif line.startswith(b"+++ "):
            lines.append(line.partition(b"\t")[0] + b"\n")
        elif not line.startswith((b"Index", b"=====")):
            lines.append(line)
    return b"".join(lines)


FORMS = {
    "no prefix": stripped,
    "mnemonic": lambda edit: stripped(edit, "i/", "w/"),
    "own prefixes": lambda edit: stripped(edit, "old/", "new/"),
    "diff -r": lambda edit: stripped(edit, "src.orig/", "src/"),
    "absolute": lambda edit: stripped(edit, "/usr/src.orig/", "/usr/src/"),
    "from .": lambda edit: stripped(edit, "./", "./"),
    "svn": svn,
    "advisory": advisory,
    "coloured": None,
    "crlf": lambda edit: edit.replace(b"\n", b"\r\n"),
    "byte order mark": lambda edit: b"\xef\xbb\xbf" + edit,
}


@pytest.mark.parametrize("known", [False, True], ids=["no tree", "tree"])
@pytest.mark.parametrize("form", FORMS)
def test_bare_diffs_in_every_form(
    tmp_path: Path, tree: Path, edit: bytes, form: str, known: bool
) -> None:
    make = FORMS[form]
    data = make(edit) if make else coloured(tmp_path)
    assert applied(write(tmp_path, data), tree, known=known) == WHOLE
    (patch,) = load.load_series(tmp_path / "p.patch", "15.1", tree if known else None).patches
    assert patch.touched == (MANUAL, "sys/dev/vmm/new.h")


def coloured(tmp_path: Path) -> bytes:
    """What `git diff --color=always` prints; the repository is still where `edit` was made."""
    data = git(tmp_path / "repository", "diff", "--cached", "--color=always", "-M", "HEAD")
    assert b"\x1b[" in data
    return data


@pytest.fixture(autouse=True)
def _commit(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The first state of `edit`'s repository as a commit, to be compared with."""
    if "form" in request.fixturenames and request.getfixturevalue("form") == "coloured":
        request.getfixturevalue("edit")
        place = tmp_path / "repository"
        (place / MANUAL).write_text(NUMBERED)
        (place / "sys/dev/vmm/new.h").rename(tmp_path / "new.h")
        git(place, "add", "-A")
        git(place, "commit", "-qm", "base")
        (place / MANUAL).write_text(EDITED)
        (tmp_path / "new.h").rename(place / "sys/dev/vmm/new.h")
        git(place, "add", "-A")


@pytest.mark.parametrize("name", ["a b.h", "ümlaut.h", 'quo"te.h', "tab\there.h"])
@pytest.mark.parametrize("prefixes", [("", ""), ("x/y/", "x/z/")])
def test_odd_names_and_renames_in_other_forms(
    tmp_path: Path, tree: Path, name: str, prefixes: tuple[str, str]
) -> None:
    """Text that looks like a name in the lines of a hunk stays as it is."""
    text = NUMBERED + "-- a/x b/x\n++ b/x\ndiff --git a/x b/x\n"
    path, other = f"sys/dev/vmm/{name}", f"sys/dev/vmm/other {name}"
    (tree / path).write_text(text)
    place = tmp_path / "repository"
    diff(tmp_path, {path: text}, {path: None, other: text.replace("line 3\n", "")})
    git(place, "read-tree", "--empty")
    (place / path).write_text(text)
    (place / other).unlink()
    git(place, "add", "-A")
    git(place, "commit", "-qm", "base")
    (place / path).rename(place / other)
    (place / other).write_text(text.replace("line 3\n", "").replace("-- a/x", "-- a/y"))
    git(place, "add", "-A")
    how = [f"--src-prefix={prefixes[0]}", f"--dst-prefix={prefixes[1]}"]
    data = git(place, "diff", "--cached", "-M", *how, "HEAD")
    assert b"rename from" in data
    assert applied(write(tmp_path, data), tree) == {
        other: text.replace("line 3\n", "").replace("-- a/x", "-- a/y")
    }


def test_the_tree_decides_where_several_levels_fit(tmp_path: Path, tree: Path) -> None:
    """lib/sys/x.h is sys/x.h of a tree that stands in lib, unless there is a lib/sys."""
    for folder in ("sys", "lib/sys"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    (tree / "sys/x.h").write_text("a\n")
    data = b"--- lib/sys/x.h\n+++ lib/sys/x.h\n@@ -1 +1 @@\n-a\n+b\n"
    assert applied(write(tmp_path, data), tree, known=True) == {"sys/x.h": "b\n"}
    (tree / "lib/sys/x.h").write_text("a\n")
    assert applied(write(tmp_path, data), tree, known=True) == {"lib/sys/x.h": "b\n"}


def test_a_new_folder_at_the_top_is_not_mistaken_for_a_prefix(tmp_path: Path, tree: Path) -> None:
    data = diff(tmp_path, {}, {"newtop/sys/x.h": "a\n"})
    assert applied(write(tmp_path, data), tree, known=True) == {"newtop/sys/x.h": "a\n"}


def test_paths_that_lie_nowhere_are_refused_with_the_remedy(tmp_path: Path) -> None:
    data = (
        b"Index: vmm.h\n--- vmm.h\t(revision 1)\n+++ vmm.h\t(working copy)\n@@ -1 +1 @@\n-a\n+b\n"
    )
    with pytest.raises(PatchError, match=r"p\.patch: its paths \(vmm\.h\) are not in a .*-pN"):
        load.load_series(write(tmp_path, data), "15.1")


def test_a_binary_file_with_its_data_is_applied(tmp_path: Path, tree: Path, repo: Path) -> None:
    (repo / "sys/x.bin").write_bytes(bytes(range(256)))
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "vmm: Add x")
    series = load.load_series(
        write(tmp_path, git(repo, "format-patch", "--stdout", "HEAD^")), "15.1"
    )
    with staging.staged(series, tree) as (folder, _):
        assert (folder / "sys/x.bin").read_bytes() == bytes(range(256))
