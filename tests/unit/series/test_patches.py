"""Reading series and patches, and the messages for those that do not apply."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from faketree import NUMBERED, diff, mail, make_series, make_tree, snapshot

from harness.errors import PatchError, UsageError
from harness.series import git, load, mailbox, staging

MANUAL = "share/man/man4/vmm.4"


def changed(old: str, new: str) -> str:
    return NUMBERED.replace(old, new)


@pytest.fixture
def edit(tmp_path: Path) -> bytes:
    return mail(diff(tmp_path, {MANUAL: NUMBERED}, {MANUAL: changed("line 20\n", "line XX\n")}))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "src")


def test_a_series_is_read_in_its_order_with_common_patches(tmp_path: Path, edit: bytes) -> None:
    added = mail(diff(tmp_path, {}, {"sys/dev/vmm/new.c": "x\n"}), subject="vmm: Add\n a new file")
    topic = make_series(tmp_path / "topic", {"0001-edit.patch": edit}, {"0002-add.patch": added})
    series = load.load_series(topic, "15.1")
    assert [patch.name for patch in series.patches] == ["0001-edit.patch", "0002-add.patch"]
    assert [patch.subject for patch in series.patches] == [
        "vmm: Change a thing",
        "vmm: Add a new file",
    ]
    assert [patch.common for patch in series.patches] == [False, True]
    assert series.patches[0].author == "A Hacker <a@example.org>"
    assert series.patches[0].message.startswith("It was wrong.")
    assert series.touched == ("share/man/man4/vmm.4", "sys/dev/vmm/new.c")
    assert load.releases(topic) == ("15.1",)


def test_the_digest_follows_content_and_order_alone(tmp_path: Path, edit: bytes) -> None:
    other = mail(diff(tmp_path, {}, {"a": "x\n"}))
    first = load.load_series(
        make_series(tmp_path / "1", {"a.patch": edit, "b.patch": other}), "15.1"
    )
    renamed = load.load_series(
        make_series(tmp_path / "2", {"c.patch": edit, "d.patch": other}), "15.1"
    )
    turned = load.load_series(
        make_series(tmp_path / "3", {"b.patch": other, "a.patch": edit}), "15.1"
    )
    assert first.digest == renamed.digest
    assert first.digest != turned.digest


def test_folders_files_and_lists_of_patches_do_as_a_series(tmp_path: Path, edit: bytes) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "0002-b.patch").write_bytes(mail(diff(tmp_path, {}, {"b": "x\n"})))
    (folder / "0001-a.patch").write_bytes(edit)
    (folder / "notes.txt").write_text("not a patch")
    names = ["0001-a.patch", "0002-b.patch"]
    assert [patch.name for patch in load.load_series(folder, "15.1").patches] == names
    assert len(load.load_series(folder / "0001-a.patch", "15.1").patches) == 1
    turned = load.load_series([folder / names[1], folder / names[0]], "15.1")
    assert [patch.name for patch in turned.patches] == names[::-1]
    topic = make_series(tmp_path / "topic", {"a.patch": edit})
    assert len(load.load_series(topic / "15.1", "15.1").patches) == 1
    on_top = load.load_series([topic, folder / names[1]], "15.1")
    assert [patch.name for patch in on_top.patches] == ["a.patch", names[1]]
    assert len(load.load_series(topic / "15.1/series", "15.1").patches) == 1


def test_a_branch_has_its_series_under_its_major_version(tmp_path: Path, edit: bytes) -> None:
    topic = make_series(tmp_path / "topic", {"a.patch": edit})
    (topic / "15.1").rename(topic / "14")
    assert load.load_series(topic, "14.2").release == "14.2"
    with pytest.raises(UsageError, match=r"no series for FreeBSD 15.1, only for 14"):
        load.load_series(topic, "15.1")


def test_an_empty_series_is_a_series_of_nothing(tmp_path: Path, tree: Path) -> None:
    series = load.load_series(make_series(tmp_path / "topic", {}), "15.1")
    assert series.patches == ()
    with staging.staged(series, tree) as (_folder, drift):
        assert drift == ()
    assert not staging.is_applied(series, tree)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("0009-gone.patch", r"series:3: it names 0009-gone.patch, which does not exist"),
        ("../../etc/passwd", r"neither in the folder of the series nor in ../common"),
        ("/etc/passwd", r"neither in the folder of the series nor in ../common"),
        ("a.patch", r"series:3: it names a.patch a second time"),
    ],
)
def test_a_bad_line_of_a_series_is_named(
    tmp_path: Path, edit: bytes, entry: str, message: str
) -> None:
    topic = make_series(tmp_path / "topic", {})
    (topic / "15.1/a.patch").write_bytes(edit)
    (topic / "15.1/series").write_text(f"# comment\na.patch\n{entry}\n")
    with pytest.raises(PatchError, match=message):
        load.load_series(topic, "15.1")


def test_a_series_file_with_crlf_line_ends_is_read(tmp_path: Path, edit: bytes) -> None:
    topic = make_series(tmp_path / "topic", {"a.patch": edit})
    (topic / "15.1/series").write_bytes(b"# x\r\na.patch\r\n")
    assert len(load.load_series(topic, "15.1").patches) == 1


def test_a_series_file_that_is_no_text_is_reported(tmp_path: Path) -> None:
    topic = make_series(tmp_path / "topic", {})
    (topic / "15.1/series").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PatchError, match="cannot be read as text"):
        load.load_series(topic, "15.1")


def test_unknown_topics_and_folders_are_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothere: no such series; .*meminfo"):
        load.load_series("nothere", "15.1")
    with pytest.raises(UsageError, match="neither a `series` file nor patches"):
        load.load_series(tmp_path, "15.1")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"just words\n", "there is no diff in it"),
        (b"--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n one\n", "broken at its line"),
        (b"--- a/../../x\n+++ b/../../x\n@@ -1 +1 @@\n-a\n+b\n", "not a path inside the tree"),
        (b"diff --git a/.git/config b/.git/config\n--- a/.git/config\n+++ b/.git/config\n"
         b"@@ -1 +1 @@\n-a\n+b\n", "not a path inside the tree"),
    ],
)  # fmt: skip
def test_what_is_no_patch_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "bad.patch").write_bytes(data)
    with pytest.raises(PatchError, match=rf"^bad.patch: .*{message}"):
        load.load_series(tmp_path / "bad.patch", "15.1")


LINK = """\
diff --git a/{path} b/{path}
new file mode 120000
--- /dev/null
+++ b/{path}
@@ -0,0 +1 @@
+/home/user/.ssh/id_rsa
\\ No newline at end of file
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LINK, r"symbolic link \(mode 120000\), .*use a file instead"),
        (LINK.replace("\n", "\r\n"), r"symbolic link \(mode 120000\)"),
        (LINK.replace("120000", "0120000"), r"symbolic link \(mode 0120000\)"),
        (
            "diff --git a/{path} b/{path}\nold mode 100644\nnew mode 120000\n",
            r"symbolic link \(mode 120000\)",
        ),
        (
            "diff --git a/{path} b/{path}\nindex 111..222 120000\n--- a/{path}\n+++ b/{path}\n"
            "@@ -1 +1 @@\n-here\n\\ No newline at end of file\n+/etc/passwd\n"
            "\\ No newline at end of file\n",
            r"symbolic link \(mode 120000\)",
        ),
        (
            "diff --git a/{path} b/{path}\ndeleted file mode 120000\n--- a/{path}\n+++ /dev/null\n"
            "@@ -1 +0,0 @@\n-here\n\\ No newline at end of file\n",
            r"symbolic link \(mode 120000\)",
        ),
        (
            "diff --git a/{path} b/{path}\nnew file mode 160000\n--- /dev/null\n+++ b/{path}\n"
            "@@ -0,0 +1 @@\n+Subproject commit 1111111111111111111111111111111111111111\n",
            r"submodule \(mode 160000\), .*a patch of the files themselves",
        ),
        (
            "diff --git a/{path} b/{path}\nindex 1111111..2222222 160000\n--- a/{path}\n"
            "+++ b/{path}\n@@ -1 +1 @@\n"
            "-Subproject commit 1111111111111111111111111111111111111111\n"
            "+Subproject commit 2222222222222222222222222222222222222222\n",
            r"submodule \(mode 160000\)",
        ),
    ],
)
@pytest.mark.parametrize("path", ["sys/dev/vmm/leak.h", "sys/contrib/x"])
def test_what_is_no_file_is_refused_with_the_reason(
    tmp_path: Path, text: str, reason: str, path: str
) -> None:
    (tmp_path / "bad.patch").write_bytes(mail(text.format(path=path).encode()))
    with pytest.raises(PatchError, match=rf"^bad\.patch: .*{reason}"):
        load.load_series(tmp_path / "bad.patch", "15.1")


def test_a_link_made_by_whatever_way_is_seen_after_it_was_applied(
    tmp_path: Path, tree: Path, edit: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git, "_require_files", lambda *_: None)
    (tmp_path / "p.patch").write_bytes(LINK.format(path="sys/dev/vmm/leak.h").encode())
    series = load.load_series(tmp_path / "p.patch", "15.1")
    with (
        pytest.raises(PatchError, match="the series turns it into a symbolic link"),
        staging.staged(series, tree),
    ):
        pass


@pytest.mark.parametrize("name", ["a b.c", "ümlaut.c", 'quo"te.c', "tab\there.c", "-dash.c"])
def test_odd_names_of_files(tmp_path: Path, tree: Path, name: str) -> None:
    path = f"sys/dev/vmm/{name}"
    (tree / path).write_text("old\n")
    (tmp_path / "odd name.patch").write_bytes(diff(tmp_path, {path: "old\n"}, {path: "new\n"}))
    series = load.load_series(tmp_path / "odd name.patch", "15.1")
    assert series.touched == (path,)
    with staging.staged(series, tree) as (folder, _):
        assert (folder / path).read_text() == "new\n"


def test_renames_touch_both_names(tmp_path: Path, tree: Path) -> None:
    (tree / "old name.c").write_text(NUMBERED)
    (tmp_path / "p.patch").write_bytes(
        diff(tmp_path, {"old name.c": NUMBERED}, {"old name.c": None, "new.c": NUMBERED})
    )
    series = load.load_series(tmp_path / "p.patch", "15.1")
    assert series.touched == ("new.c", "old name.c")
    with staging.staged(series, tree) as (folder, _):
        assert not (folder / "old name.c").exists()
        assert (folder / "new.c").read_text() == NUMBERED


def test_a_hunk_that_does_not_fit_is_reported_in_one_line(
    tmp_path: Path, tree: Path, edit: bytes
) -> None:
    topic = make_series(tmp_path / "topic", {"0001-edit.patch": edit})
    (tree / MANUAL).write_text(changed("line 19\n", "line nineteen\n"))
    before = snapshot(tree)
    with (
        pytest.raises(PatchError) as caught,
        staging.staged(load.load_series(topic, "15.1"), tree),
    ):
        pass
    assert caught.value.message == (
        "0001-edit.patch does not apply: share/man/man4/vmm.4, hunk 1 of 1 (line 17): "
        "line 19 is 'line nineteen', expected 'line 19'"
    )
    assert "patch failed: share/man/man4/vmm.4:17" in caught.value.detail
    assert snapshot(tree) == before


def test_the_reason_is_found_where_the_lines_have_moved(
    tmp_path: Path, tree: Path, edit: bytes
) -> None:
    (tmp_path / "p.patch").write_bytes(edit)
    (tree / MANUAL).write_text("new\n" * 30 + changed("line 22\n", "other\n"))
    series = load.load_series(tmp_path / "p.patch", "15.1")
    with (
        pytest.raises(PatchError, match="line 52 is 'other', expected 'line 22'"),
        staging.staged(series, tree),
    ):
        pass


def test_a_hunk_that_fits_elsewhere_is_drift(tmp_path: Path, tree: Path, edit: bytes) -> None:
    (tmp_path / "p.patch").write_bytes(edit)
    (tree / MANUAL).write_text("new\n" * 7 + NUMBERED)
    with staging.staged(load.load_series(tmp_path / "p.patch", "15.1"), tree) as (_, drift):
        assert [(it.path, it.hunk, it.offset_lines) for it in drift] == [(MANUAL, 1, 7)]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"sys/gone.c": "a\n"}, {"sys/gone.c": "b\n"}, "sys/gone.c is not in the tree"),
        ({}, {"sys/sys/param.h": "b\n"}, "it adds sys/sys/param.h, which the tree already has"),
    ],
)
def test_files_missing_and_in_the_way(
    tmp_path: Path,
    tree: Path,
    before: dict[str, str | None],
    after: dict[str, str | None],
    message: str,
) -> None:
    (tmp_path / "p.patch").write_bytes(diff(tmp_path, before, after))
    series = load.load_series(tmp_path / "p.patch", "15.1")
    with (
        pytest.raises(PatchError, match=f"p.patch does not apply: {message}"),
        staging.staged(series, tree),
    ):
        pass


def test_crlf_on_one_side_is_the_reason_given(tmp_path: Path, tree: Path, edit: bytes) -> None:
    crlf = {MANUAL: NUMBERED.replace("\n", "\r\n")}
    other = {MANUAL: crlf[MANUAL].replace("line 20", "line XX")}
    (tmp_path / "p.patch").write_bytes(mail(diff(tmp_path, crlf, other)))
    series = load.load_series(tmp_path / "p.patch", "15.1")
    with (
        pytest.raises(PatchError, match="the patch has CRLF line ends, the other does not"),
        staging.staged(series, tree),
    ):
        pass
    (tree / MANUAL).write_bytes(crlf[MANUAL].encode())
    with staging.staged(series, tree) as (folder, _):
        assert (folder / MANUAL).read_bytes() == other[MANUAL].encode()
    (tmp_path / "p.patch").write_bytes(edit)
    (tree / MANUAL).write_bytes(NUMBERED.replace("\n", "\r\n").encode())
    series = load.load_series(tmp_path / "p.patch", "15.1")
    with (
        pytest.raises(PatchError, match="the file has CRLF line ends, the other does not"),
        staging.staged(series, tree),
    ):
        pass


def test_a_series_applied_already_is_called_that(tmp_path: Path, tree: Path, edit: bytes) -> None:
    second = mail(
        diff(
            tmp_path,
            {MANUAL: changed("line 20\n", "line XX\n")},
            {MANUAL: changed("line 20\n", "line YY\n")},
        )
    )
    series = load.load_series(
        make_series(tmp_path / "topic", {"1.patch": edit, "2.patch": second}), "15.1"
    )
    (tree / MANUAL).write_text(changed("line 20\n", "line YY\n"))
    with pytest.raises(PatchError, match="is already applied in"), staging.staged(series, tree):
        pass


def test_the_users_git_settings_change_nothing(
    tmp_path: Path, tree: Path, edit: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(
        "[apply]\n\twhitespace = error-all\n\tignoreWhitespace = change\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    subprocess.run(
        ["git", "init", "-q", str(tmp_path)],
        check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "p.patch").write_bytes(edit.replace(b"+line XX", b"+line XX  "))
    with staging.staged(load.load_series(tmp_path / "p.patch", "15.1"), tree) as (folder, _):
        assert "line XX  \n" in (folder / MANUAL).read_text()


def test_what_is_no_source_tree_is_wrong_use(tmp_path: Path, edit: bytes) -> None:
    (tmp_path / "p.patch").write_bytes(edit)
    series = load.load_series(tmp_path / "p.patch", "15.1")
    for place, message in ((tmp_path / "none", "no such folder"), (tmp_path, "newvers.sh is not")):
        with pytest.raises(UsageError, match=message), staging.staged(series, place):
            pass


def test_an_exported_series_goes_through_git_am(tmp_path: Path, tree: Path, edit: bytes) -> None:
    message = "Why: because.\n\nFrom here on it works.\nFrom: nobody in particular"
    added = mail(diff(tmp_path, {}, {"sys/new.c": "x\n"}), subject="vmm: Ädd", message=message)
    topic = make_series(tmp_path / "topic", {"1.patch": edit, "2.patch": added})
    out = tmp_path / "out.mbox"
    mailbox.export(load.load_series(topic, "15.1"), out)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "GIT_COMMITTER_NAME": "C",
        "GIT_COMMITTER_EMAIL": "c@example.org",
        "GIT_AUTHOR_NAME": "C",
        "GIT_AUTHOR_EMAIL": "c@example.org",
    }
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["commit", "-qm", "base"],
        ["am", "-q", str(out)],
    ):
        subprocess.run(["git", *command], cwd=tree, env=environment, check=True)
    log = subprocess.run(
        ["git", "log", "-2", "--format=%an %s"],
        cwd=tree,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert log == "A Hacker vmm: Ädd\nA Hacker vmm: Change a thing\n"
    assert (tree / "sys/new.c").read_text() == "x\n"
    assert b"Subject: [PATCH 1/2] vmm: Change a thing\n" in out.read_bytes()


def test_a_bare_diff_cannot_be_exported(tmp_path: Path) -> None:
    (tmp_path / "p.patch").write_bytes(diff(tmp_path, {}, {"a": "x\n"}))
    with pytest.raises(PatchError, match="no From: and Subject: lines"):
        mailbox.export(load.load_series(tmp_path / "p.patch", "15.1"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
