"""The commits of a checkout as a series: exactly what they change, whatever the checkout is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from faketree import NUMBERED, make_tree

from harness.errors import CannotError, UsageError
from harness.series import commits, load, staging

MANUAL = "share/man/man4/vmm.4"
SOURCE = "sys/dev/vmm/vmm.h"


def git(repo: Path, *words: str, home: Path | None = None) -> str:
    keep = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    who = [
        "-c",
        "user.name=Ä Hacker",
        "-c",
        "user.email=a@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    environment = {**keep, "HOME": str(home or repo), "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        ["git", *who, *words], cwd=repo, env=environment, check=True, capture_output=True, text=True
    ).stdout


def change(repo: Path, path: str, text: str | None, message: str) -> None:
    if text is None:
        (repo / path).unlink()
    else:
        (repo / path).parent.mkdir(parents=True, exist_ok=True)
        (repo / path).write_text(text)
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "--cleanup=verbatim", "-m", message)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A tree with a history: three old commits, and two after `base`."""
    place = make_tree(tmp_path / "repo")
    git(place, "init", "-q", "-b", "main")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "base 1")
    for number in (2, 3):
        change(place, "UPDATING", f"{number}\n", f"base {number}")
    git(place, "tag", "base")
    change(
        place, MANUAL, NUMBERED.replace("line 20\n", "line XX\n"), "vmm.4: Fix\n\nIt was wrong.\n"
    )
    change(place, SOURCE, "#define NUMBER 2\n", "vmm: Count")
    return place


def result(where: Path, repo: Path, start: str = "base") -> dict[str, str]:
    """What a series makes of the files of `start` that it touches."""
    tree = where.parent / "at-start"
    git(repo, "worktree", "add", "-q", "-f", str(tree), start)
    series = load.load_series(where, "15.1")
    with staging.staged(series, tree) as (folder, drift):
        assert drift == ()
        return {
            str(path.relative_to(folder)): path.read_text(errors="replace")
            for path in folder.rglob("*")
            if path.is_file()
        }


BOTH = {MANUAL: NUMBERED.replace("line 20\n", "line XX\n"), SOURCE: "#define NUMBER 2\n"}


def test_each_commit_is_a_patch(tmp_path: Path, repo: Path) -> None:
    out = tmp_path / "out"
    written = commits.write_series(repo, "base", out)
    assert [path.name for path in written] == ["0001-vmm.4-Fix.patch", "0002-vmm-Count.patch"]
    series = load.load_series(out, "15.1")
    assert [patch.author for patch in series.patches] == ["Ä Hacker <a@example.org>"] * 2
    assert [patch.subject for patch in series.patches] == ["vmm.4: Fix", "vmm: Count"]
    assert series.patches[0].message == "It was wrong."
    assert result(out, repo) == BOTH
    with pytest.raises(UsageError, match=r"there is something already; .* with --out"):
        commits.write_series(repo, "base", out)
    assert len(commits.write_series(repo / "sys", "HEAD~1", tmp_path / "one")) == 1


SETTINGS = """
[format]
	coverLetter = true
	noprefix = true
	attach = "==="
	outputDirectory = /nowhere
	suffix = .txt
	subjectPrefix = X
[diff]
	noprefix = true
	mnemonicPrefix = true
	context = 0
	interHunkContext = 9
	algorithm = patience
	external = /bin/false
	renames = false
	orderFile = /nowhere
	wsErrorHighlight = all
	suppressBlankEmpty = true
	submodule = log
[color]
	ui = always
	diff = always
[core]
	quotePath = false
	autocrlf = true
[i18n]
	logOutputEncoding = latin1
[log]
	showSignature = true
	mailmap = true
"""


@pytest.mark.parametrize("where", ["global", "local"])
def test_no_setting_changes_the_series(
    tmp_path: Path, repo: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [path.read_bytes() for path in commits.write_series(repo, "base", tmp_path / "plain")]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "/bin/false")
    config = tmp_path / ".gitconfig" if where == "global" else repo / ".git/config"
    with config.open("a") as stream:
        stream.write(SETTINGS)
    set_so = [path.read_bytes() for path in commits.write_series(repo, "base", tmp_path / "set")]
    assert set_so == plain


@pytest.mark.parametrize(
    "message",
    [
        "vmm: Add x\n\n{}\n\nSigned-off-by: A <a@example.org>\n",
        "vmm: Add x\n\nWhy.\n---\n x | 2 +-\n\n{}\n-- \n2.39\n",
        "vmm: Add x\n\n---\n\n{}\nFrom 1234567 Mon Sep 17 00:00:00 2001\nFrom: B <b@c>\n"
        "Subject: [PATCH] y\n\n---\n{}",
        "vmm: Add x\n\nSubject: other\nFrom: other <o@example.org>\n\n{}",
        "vmm: Add x\n\nIndex: share/mk/sys.mk\n{}",
    ],
)
def test_a_diff_in_a_message_is_not_in_the_series(tmp_path: Path, repo: Path, message: str) -> None:
    hidden = (
        "diff --git a/share/mk/sys.mk b/share/mk/sys.mk\n--- a/share/mk/sys.mk\n"
        "+++ b/share/mk/sys.mk\n@@ -1 +1,2 @@\n CC?=cc\n+X!=touch /tmp/pwned\n"
    )
    change(repo, "sys/x.h", "x\n", message.replace("{}", hidden))
    names = git(repo, "diff", "--name-only", "HEAD^", "HEAD").split()
    (path,) = commits.write_series(repo, "HEAD^", tmp_path / "out")
    series = load.load_series(tmp_path / "out", "15.1")
    assert list(series.touched) == names
    assert (series.patches[0].author, series.patches[0].subject) == (
        "Ä Hacker <a@example.org>", "vmm: Add x"
    )  # fmt: skip
    assert series.notes == ()
    box = tmp_path / "am"
    git(repo, "worktree", "add", "-q", str(box), "HEAD^")
    git(box, "am", "-q", str(path))
    assert git(box, "diff", "--name-only", "HEAD^", "HEAD").split() == names


def test_odd_commits(tmp_path: Path, repo: Path) -> None:
    """Names with blanks, renames, modes, binary files, CRLF, no end of line, empty ones."""
    change(repo, "sys/a b.h", NUMBERED, "a")
    git(repo, "mv", "sys/a b.h", "sys/ü.h")
    git(repo, "commit", "-qm", "renamed")
    (repo / "sys/x.bin").write_bytes(bytes(range(256)) * 9)
    change(repo, "sys/crlf.c", "a\r\nb\r\n", "crlf")
    git(repo, "commit", "-q", "--allow-empty", "-m", "empty")
    (repo / "sys/ü.h").chmod(0o755)
    change(repo, "sys/noend", "no end", "x")
    change(repo, "sys/crlf.c", None, "gone")
    written = commits.write_series(repo, "base", tmp_path / "out")
    assert len(written) == 7
    assert set(result(tmp_path / "out", repo)) == {
        MANUAL, SOURCE, "sys/ü.h", "sys/x.bin", "sys/noend"
    }  # fmt: skip


def test_a_merge_without_changes_of_its_own_is_passed_over(tmp_path: Path, repo: Path) -> None:
    git(repo, "checkout", "-qb", "pull", "base~1")
    change(repo, "sys/x.h", "x\n", "vmm: Add x")
    git(repo, "checkout", "-q", "main")
    git(repo, "merge", "-q", "--no-ff", "-m", "Merge", "pull")
    assert len(commits.write_series(repo, "base", tmp_path / "out")) == 3
    assert result(tmp_path / "out", repo) == {**BOTH, "sys/x.h": "x\n"}


def test_a_merge_with_changes_of_its_own_makes_all_one_patch(tmp_path: Path, repo: Path) -> None:
    git(repo, "checkout", "-qb", "pull", "base")
    change(repo, SOURCE, "#define NUMBER 3\n", "vmm: Count to 3")
    git(repo, "checkout", "-q", "main")
    git(repo, "merge", "-q", "--no-commit", "-s", "ours", "pull")
    change(repo, SOURCE, "#define NUMBER 5\n", "Merge of both")
    (path,) = commits.write_series(repo, "base", tmp_path / "out")
    assert path.name == "0001-Merge-of-both.patch"
    assert result(tmp_path / "out", repo) == {**BOTH, SOURCE: "#define NUMBER 5\n"}


@pytest.mark.parametrize(("depth", "message"), [
    (1, r"a shallow clone without the commit base; .*fetch-depth: 0"),
    (2, r"a shallow clone without the commit base; .*fetch-depth: 0"),
])  # fmt: skip
def test_a_shallow_clone_without_the_base_is_named(
    tmp_path: Path, repo: Path, depth: int, message: str
) -> None:
    git(tmp_path, "clone", "-q", f"--depth={depth}", repo.as_uri(), "shallow")
    with pytest.raises(CannotError, match=message):
        commits.write_series(tmp_path / "shallow", "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shallow_clone_whose_edge_lies_after_the_base_is_named(
    tmp_path: Path, repo: Path
) -> None:
    """The base is there, but a commit on the way to it has lost its parents."""
    base = git(repo, "rev-parse", "base").strip()
    git(tmp_path, "clone", "-q", "--depth=2", repo.as_uri(), "shallow")
    clone = tmp_path / "shallow"
    git(clone, "fetch", "-q", "--depth=1", "origin", base)
    with pytest.raises(CannotError, match=r"a shallow clone .*fetch-depth: 0"):
        commits.write_series(clone, base, tmp_path / "out")
    # Merged with the old line, both ends have a commit in common, and the edge is still there.
    git(clone, "merge", "-q", "--allow-unrelated-histories", "-s", "ours", "-m", "Merge", base)
    with pytest.raises(CannotError, match=r"ends between .* and HEAD .*fetch-depth: 0"):
        commits.write_series(clone, base, tmp_path / "out")


def test_a_shallow_clone_that_is_deep_enough_will_do(tmp_path: Path, repo: Path) -> None:
    base = git(repo, "rev-parse", "base").strip()
    git(tmp_path, "clone", "-q", "--depth=3", repo.as_uri(), "shallow")
    assert len(commits.write_series(tmp_path / "shallow", base, tmp_path / "out")) == 2


@pytest.mark.parametrize("base", ["bsae", "", "-x", "HEAD:sys", "base..HEAD", "deadbeef" * 5])
def test_a_misspelt_base_is_wrong_use(tmp_path: Path, repo: Path, base: str) -> None:
    with pytest.raises(UsageError, match="there is no commit"):
        commits.write_series(repo, base, tmp_path / "out")


def test_what_has_no_commits_to_test_is_wrong_use(tmp_path: Path, repo: Path) -> None:
    with pytest.raises(UsageError, match="no commit after HEAD: nothing to test"):
        commits.write_series(repo, "HEAD", tmp_path / "out")
    git(repo, "commit", "-q", "--allow-empty", "-m", "empty")
    with pytest.raises(UsageError, match=r"the commits after HEAD\^ change nothing"):
        commits.write_series(repo, "HEAD^", tmp_path / "out")
    with pytest.raises(UsageError, match="not a git checkout"):
        commits.write_series(tmp_path, "HEAD", tmp_path / "out")
    with pytest.raises(UsageError, match="no such folder"):
        commits.write_series(tmp_path / "nowhere", "HEAD", tmp_path / "out")
    git(repo, "checkout", "-q", "--orphan", "other")
    git(repo, "commit", "-qm", "orphan")
    with pytest.raises(UsageError, match="base and HEAD have no commit in common"):
        commits.write_series(repo, "base", tmp_path / "out")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a checkout to somebody else")
def test_a_checkout_of_another_user_is_named(
    tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    subprocess.run(["chown", "-R", "12345", str(repo)], check=True)
    with pytest.raises(CannotError, match=r"belongs to another user.*safe\.directory"):
        commits.write_series(repo, "base", tmp_path / "out")
    git(tmp_path, "config", "--global", "--add", "safe.directory", str(repo), home=tmp_path)
    assert len(commits.write_series(repo, "base", tmp_path / "out")) == 2


def test_a_name_that_is_no_commit_has_its_remedy(repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"'base\.\.HEAD'; give the commit before yours alone"):
        commits.write_series(repo, "base..HEAD", out)
    with pytest.raises(UsageError, match="'trunk'; git branch --all and git tag show"):
        commits.write_series(repo, "trunk", out)
    git(repo, "update-ref", "refs/remotes/upstream/trunk", "base")
    with pytest.raises(UsageError, match="'trunk'; it is known as upstream/trunk here"):
        commits.write_series(repo, "trunk", out)
    # As a shell's `$(cat FILE)` or a CI's variable may bring it.
    assert len(commits.write_series(repo, " base\n", out)) == 2


def test_what_is_not_committed_is_named(repo: Path, tmp_path: Path) -> None:
    assert commits.uncommitted(repo) == 0
    (repo / SOURCE).write_text("#define NUMBER 3\n")
    (repo / "sys/untracked.c").write_text("x\n")
    assert commits.uncommitted(repo) == 1
    with pytest.raises(UsageError, match=r"nothing to test; commit your changes first \(1 files\)"):
        commits.write_series(repo, "HEAD", tmp_path / "out")
    git(repo, "clone", "-q", "--bare", ".", str(tmp_path / "bare"))
    assert commits.uncommitted(tmp_path / "bare") == 0


def test_what_replace_shows_is_not_taken(repo: Path, tmp_path: Path) -> None:
    git(repo, "replace", "--graft", "HEAD")
    assert len(commits.write_series(repo, "base", tmp_path / "out")) == 2


def test_a_work_tree_that_is_gone(repo: Path, tmp_path: Path) -> None:
    git(repo, "config", "core.worktree", "/nonexistent")
    assert len(commits.write_series(repo, "base", tmp_path / "out")) == 2


def test_a_partial_clone_without_its_remote(repo: Path, tmp_path: Path) -> None:
    git(repo, "config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "clone"
    how = ("-c", "protocol.file.allow=always", "clone", "-q", "--filter=blob:none")
    git(tmp_path, *how, "--no-checkout", f"file://{repo}", str(clone), home=tmp_path)
    git(clone, "remote", "set-url", "origin", "file:///nowhere")
    with pytest.raises(CannotError, match=r"a partial clone, and .*; .* clone it without --filter"):
        commits.write_series(clone, "base", tmp_path / "out")


def test_what_git_says_in_several_lines(repo: Path, tmp_path: Path) -> None:
    git(repo, "config", "core.repositoryformatversion", "1")
    with (repo / ".git/config").open("a") as config:
        config.write("[extensions]\n\tnewThing = true\n")
    with pytest.raises(UsageError, match=r"unknown repository extension.*newthing"):
        commits.write_series(repo, "base", tmp_path / "out")
