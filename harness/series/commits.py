"""Writes the commits of a checkout as a series: one patch per commit, together exactly their
change.

git format-patch is not used: its output depends on dozens of settings, it ignores merges, it takes
the boundary of a shallow clone for the first commit, and a diff in a commit's message looks like a
part of the patch.  Here the patches are applied to the base again, and the result must be the head
commit.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import files, process
from harness.errors import CannotError, UsageError
from harness.series import git
from harness.series.mailbox import escaped

# All settings that could change git's output are fixed.
_DIFF = (
    "diff-tree", "-p", "-M", "-U3", "--inter-hunk-context=0", "--no-commit-id", "--root",
    "--binary",
    "--full-index", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/",
    "--dst-prefix=b/", "--no-relative", "--submodule=short", "--ignore-submodules=none",
    "--diff-algorithm=myers", "-O/dev/null", "--end-of-options",
)  # fmt: skip
_PINNED = (
    "core.fsmonitor=false", "core.hooksPath=/dev/null", "core.quotePath=true",
    "i18n.logOutputEncoding=UTF-8", "diff.renameLimit=10000", "log.showSignature=false",
    "core.autocrlf=false", "gc.auto=0",
)  # fmt: skip
_DEEPER = "fetch more of the history (actions/checkout: fetch-depth: 0)"


@dataclass(frozen=True)
class Commit:
    """A commit as a patch: a file's name, and the mail."""

    name: str
    mail: bytes


def write_series(repo: Path, base: str, out: Path) -> tuple[Path, ...]:
    """Write the commits of `repo` after `base` to the folder `out`, which must be new or empty.

    Merges without changes of their own are skipped; if one has changes, everything becomes one
    patch. Returns the files.

    Raises UsageError if it is not a checkout, for an unknown commit, if there is no commit after
    it, or if `out` is in use; CannotError if a shallow clone lacks the needed history, or git does
    not trust the checkout.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: there is something already; name a new folder with --out")
    checkout = _Checkout(repo)
    found = checkout.commits(base.strip())
    written = []
    for commit in found:
        files.write_atomic(out / commit.name, commit.mail)
        written.append(out / commit.name)
    return tuple(written)


def uncommitted(repo: Path) -> int:
    """How many files of a checkout are changed and not committed: no commit has these changes."""
    return _Checkout(repo).uncommitted()


class _Checkout:
    """A repository, read with fixed settings, except those that say which checkouts git trusts."""

    def __init__(self, repo: Path) -> None:
        if not repo.is_dir():
            raise UsageError(f"{repo}: no such folder; name the checkout with the commits")
        self._repo = repo
        self._settings = [f"safe.directory={it}" for it in _trusted()]
        done = self._run("rev-parse", "--absolute-git-dir")
        if done.returncode:
            stderr_text = done.stderr.decode(errors="replace")
            if "dubious ownership" in stderr_text:
                raise CannotError(
                    f"{repo}: it belongs to another user, so git does not read it; run "
                    f"git config --global --add safe.directory {shlex.quote(str(repo.resolve()))}"
                )
            raise UsageError(f"{repo}: not a git checkout ({_last(stderr_text)})")
        top = self._run("rev-parse", "--show-toplevel")
        if not top.returncode:
            named = Path(git.text_of(top.stdout).rstrip("\n"))
            # core.worktree may name a folder that is gone; git reads the commits all the same.
            self._repo = named if named.is_dir() else repo

    def _run(
        self, *arguments: str, data: bytes = b"", extra: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        settings = [word for it in (*_PINNED, *self._settings) for word in ("-c", it)]
        # It may also be a folder inside the checkout: git searches its parents.
        # The commits as they are, and not what `git replace` shows in their place.
        looking = {
            "GIT_CEILING_DIRECTORIES": "",
            "GIT_NO_REPLACE_OBJECTS": "1",
            **(extra or {}),
        }
        return git.run_git([*settings, *arguments], self._repo, data, looking)

    def _ask(self, *arguments: str) -> str:
        done = self._run(*arguments)
        if done.returncode:
            raise self._failed(arguments[0], done.stderr)
        return git.text_of(done.stdout).rstrip("\n")

    def _failed(self, what: str, stderr: bytes) -> CannotError:
        stderr_text = _last(stderr.decode(errors="replace"))
        if "promisor remote" in stderr_text:
            return CannotError(
                f"{self._repo}: a partial clone, and its remote does not give what it lacks "
                f"({stderr_text}); let git reach the remote, or clone it without --filter"
            )
        return CannotError(f"{self._repo}: git {what} failed: {stderr_text}")

    def uncommitted(self) -> int:
        """How many files are changed and not committed; 0 where git cannot say."""
        how = ("status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames")
        done = self._run(*how, "--ignore-submodules=all")
        return 0 if done.returncode else done.stdout.count(b"\0")

    def commits(self, base: str) -> tuple[Commit, ...]:
        """The commits after `base`, as patches that turn the base into the head."""
        shallow = self._ask("rev-parse", "--is-shallow-repository") == "true"
        head, first = self._commit("HEAD", shallow), self._commit(base, shallow)
        done = self._run("merge-base", first, head)
        if done.returncode:
            if shallow:
                raise CannotError(
                    f"{self._repo}: a shallow clone in which {base} and HEAD have nothing in "
                    f"common; {_DEEPER}"
                )
            raise UsageError(f"{self._repo}: {base} and HEAD have no commit in common")
        start = done.stdout.decode().strip()
        after = self._ask("rev-list", "--reverse", "--topo-order", f"{start}..{head}").split()
        if shallow and (edge := set(after) & self._edges()):
            raise CannotError(
                f"{self._repo}: a shallow clone that ends between {base} and HEAD (at "
                f"{min(edge)[:12]}), so what its commits change cannot be known; {_DEEPER}"
            )
        if not after:
            waits = self.uncommitted()
            raise UsageError(
                f"{self._repo}: no commit after {base}: nothing to test"
                + (f"; commit your changes first ({waits} files)" if waits else "")
            )
        merges = set(self._ask("rev-list", "--merges", f"{start}..{head}").split())
        plain = [(it, self._diff(it)) for it in after if it not in merges]
        changes = [(it, diff) for it, diff in plain if diff]
        if not self._makes(start, head, [diff for _, diff in changes]):
            # A merge with changes of its own: only the difference of both ends is certain.
            changes = [(head, self._diff(start, head))]
        if not any(diff for _, diff in changes):
            raise UsageError(f"{self._repo}: the commits after {base} change nothing")
        total = len(changes)
        return tuple(
            self._mail(commit, diff, number, total)
            for number, (commit, diff) in enumerate(changes, 1)
        )

    def _commit(self, name: str, shallow: bool) -> str:
        done = self._run(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
        )
        if done.returncode or name.startswith("-"):
            if shallow:
                raise CannotError(
                    f"{self._repo}: a shallow clone without the commit {name}; {_DEEPER}"
                )
            raise UsageError(f"{self._repo}: there is no commit {name!r}; {self._advice(name)}")
        return done.stdout.decode().strip()

    def _advice(self, name: str) -> str:
        """What to give instead of a name that is no commit."""
        if ".." in name:
            return "give the commit before yours alone, as the last one is always HEAD"
        # A CI's checkout has the one branch that it tests, and the others as its remote's.
        how = ("for-each-ref", "--format=%(refname:short)", f"refs/remotes/*/{name}")
        if known := self._ask(*how).split("\n")[0]:
            return f"it is known as {known} here"
        return "git branch --all and git tag show the names that this checkout has"

    def _edges(self) -> set[str]:
        """Commits whose parents are missing in a shallow clone."""
        path = Path(self._ask("rev-parse", "--git-path", "shallow"))
        try:
            return set((self._repo / path).read_text().split())
        except OSError as error:
            raise CannotError(f"{path}: cannot be read: {error.strerror}") from error

    def _diff(self, *commits: str) -> bytes:
        done = self._run(*_DIFF, *commits)
        if done.returncode:
            raise self._failed("diff-tree", done.stderr)
        return done.stdout

    def _makes(self, start: str, head: str, diffs: Sequence[bytes]) -> bool:
        """Whether the diffs, applied in order, turn `start` into `head`."""
        with tempfile.TemporaryDirectory(prefix="vmm-commits-") as name:
            # Use a separate index and object folder, so that the checkout is only read.
            (Path(name) / "objects").mkdir()
            objects = self._repo / self._ask("rev-parse", "--git-path", "objects")
            extra = {
                "GIT_INDEX_FILE": f"{name}/index",
                "GIT_OBJECT_DIRECTORY": f"{name}/objects",
                "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects.resolve()),
            }
            if self._run("read-tree", start, extra=extra).returncode:
                return False
            for diff in diffs:
                how = ("apply", "--cached", "--whitespace=nowarn", "-")
                if self._run(*how, data=diff, extra=extra).returncode:
                    return False
            tree = self._run("write-tree", extra=extra).stdout
        return tree.decode().strip() == self._ask("rev-parse", f"{head}^{{tree}}")

    def _mail(self, commit: str, diff: bytes, number: int, total: int) -> Commit:
        form = "--format=%an <%ae>%n%aD%n%s%n%b"
        text = self._ask("log", "-1", form, "--no-show-signature", "--end-of-options", commit)
        author, date, subject, message = (*text.split("\n", 3), "", "", "")[:4]
        slug = re.sub(r"[^A-Za-z0-9._]+", "-", subject).strip("-.")[:52] or "patch"
        count = f" {number}/{total}" if total > 1 else ""
        head = (
            f"From {commit} Mon Sep 17 00:00:00 2001\nFrom: {author}\nDate: {date}\n"
            f"Subject: [PATCH{count}] {subject}\nMIME-Version: 1.0\n"
            "Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n\n"
        )
        raw = (head.encode("utf-8", "surrogateescape"), message.encode("utf-8", "surrogateescape"))
        return Commit(
            f"{number:04}-{slug}.patch", raw[0] + escaped(raw[1].strip()) + b"\n---\n\n" + diff
        )


def _trusted() -> list[str]:
    """The folders of other users that the user's git settings trust."""
    try:
        # With the caller's whole environment, because it decides which settings git reads.
        done = process.run(
            ["git", "config", "--null", "--get-all", "safe.directory"],
            cwd=Path(os.sep),
            environment=os.environ,
        )
    except CannotError as error:
        raise CannotError("git is not installed; run ./inv setup") from error
    return [git.text_of(it) for it in done.output.split(b"\0") if it]


def _last(stderr_text: str) -> str:
    """What git says at the end, from its last `fatal:` on, as one line."""
    lines = [line.strip() for line in stderr_text.splitlines() if line.strip()]
    fatal = [at for at, line in enumerate(lines) if line.startswith("fatal: ")]
    said = " ".join(lines[fatal[-1] :] if fatal else lines[-1:])
    return said.removeprefix("fatal: ") or "no reason given"
