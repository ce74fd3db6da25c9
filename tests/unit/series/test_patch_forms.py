"""The forms in which people have patches: each is read as what its author meant, or refused."""

from __future__ import annotations

import base64
import os
import quopri
import subprocess
from pathlib import Path

import pytest
from faketree import NUMBERED, diff, mail, make_tree
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.errors import PatchError, UsageError, WorkbenchError
from harness.series import diffs, load, mailbox, mails, staging

MANUAL = "share/man/man4/vmm.4"
SOURCE = "sys/dev/vmm/vmm.h"
EDITED = NUMBERED.replace("line 20\n", "line XX\n")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "src")


@pytest.fixture
def edit(tmp_path: Path) -> bytes:
    """A diff that changes one line of the manual and adds a header."""
    return diff(tmp_path, {MANUAL: NUMBERED}, {MANUAL: EDITED, "sys/dev/vmm/new.h": "x\n"})


def applied(where: Path | list[Path], tree: Path, *, known: bool = False) -> dict[str, str]:
    """What a series makes of the tree's files that it touches."""
    series = load.load_series(where, "15.1", tree if known else None)
    with staging.staged(series, tree) as (folder, _):
        return {
            str(path.relative_to(folder)): path.read_text()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


WHOLE = {MANUAL: EDITED, "sys/dev/vmm/new.h": "x\n"}


def write(tmp_path: Path, data: bytes, name: str = "p.patch") -> Path:
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def git(repo: Path, *words: str) -> bytes:
    keep = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    settings = ["-c", "user.name=A Hacker", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", *settings, *words],
        cwd=repo,
        env={**keep, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
        check=True,
        capture_output=True,
    ).stdout


@pytest.fixture
def repo(tmp_path: Path, tree: Path) -> Path:
    """The tree as a repository with two commits on top of it."""
    fork = tmp_path / "fork"
    subprocess.run(["cp", "-r", str(tree), str(fork)], check=True)
    git(fork, "init", "-q")
    git(fork, "add", "-A")
    git(fork, "commit", "-qm", "base")
    (fork / MANUAL).write_text(EDITED)
    git(fork, "commit", "-qam", "vmm.4: Fix a wörd\n\nIt was wrong.")
    (fork / SOURCE).write_text("#define NUMBER 2\n")
    git(fork, "commit", "-qam", "vmm: Count on\n\nFrom here on it is 2.")
    return fork


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


def stripped(edit: bytes, old: str = "", new: str = "") -> bytes:
    """The diff with other things before its paths than a/ and b/."""
    for mark in (b" ", b'"'):
        edit = edit.replace(mark + b"a/", mark + old.encode())
        edit = edit.replace(mark + b"b/", mark + new.encode())
    return edit


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


def test_a_binary_file_with_its_data_is_applied(tmp_path: Path, tree: Path, repo: Path) -> None:
    (repo / "sys/x.bin").write_bytes(bytes(range(256)))
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "vmm: Add x")
    series = load.load_series(
        write(tmp_path, git(repo, "format-patch", "--stdout", "HEAD^")), "15.1"
    )
    with staging.staged(series, tree) as (folder, _):
        assert (folder / "sys/x.bin").read_bytes() == bytes(range(256))


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


def test_a_mail_is_told_from_a_diff() -> None:
    body = b"--- sys/x\n+++ sys/x\n@@ -1 +1 @@\n-a\n+b\n"
    for text in (b"Index: sys/x\n===\n" + body, body, b"# HG changeset patch\n# User x\n" + body):
        assert mails.read(text, "x")[0].author == ""
