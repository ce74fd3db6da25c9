"""Checks whether a series is ready to be sent: does it apply, is its style right, is it signed?

Drift (a hunk that fits some lines away) is reported, but not wrong: a patch in common/ cannot have
the line numbers of every release.  Without a source tree, the checks that need one are marked as
not run.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchSet

from harness.errors import PatchError
from harness.series import git, mandoc, staging, style9
from harness.series.load import Patch, Series

KINDS = ("applies", "drift", "style", "message", "manual")
_SIGNED = re.compile(r"^Signed-off-by: .*<([^<>\s]+@[^<>\s]+)>\s*$", re.M)
_ADDRESS = re.compile(r"<([^<>]+)>")
_SUBJECT_COLUMNS = 72
_MESSAGE_COLUMNS = 78


@dataclass(frozen=True)
class Finding:
    """A remark about one patch; `wrong` makes the check fail."""

    patch: str
    kind: str
    text: str
    wrong: bool = True


@dataclass(frozen=True)
class Report:
    """All findings, and the kinds of check that were not run, with the reasons."""

    series: Series
    tree: Path | None
    findings: tuple[Finding, ...]
    not_run: tuple[tuple[str, str], ...]

    @property
    def held(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.wrong for finding in self.findings)

    def state(self, patch: Patch, kind: str) -> str:
        """One cell of the table."""
        found = [it for it in self.findings if it.kind == kind and it.patch == patch.name]
        if found:
            return str(len(found)) if kind != "applies" else "no"
        return "not run" if kind in dict(self.not_run) else "ok"

    def to_data(self) -> dict[str, object]:
        """For --json."""
        return {
            "topic": self.series.topic,
            "release": self.series.release,
            "tree": str(self.tree) if self.tree else None,
            "held": self.held,
            "series_digest": self.series.digest,
            "not_run": dict(self.not_run),
            "patches": [
                {
                    "patch": patch.name,
                    "subject": patch.subject,
                    "findings": [
                        {"kind": it.kind, "text": it.text, "wrong": it.wrong}
                        for it in self.findings
                        if it.patch == patch.name
                    ],
                }
                for patch in self.series.patches
            ],
        }


def check(series: Series, tree: Path | None) -> Report:
    """Check every patch of a series, against `tree` if one is given."""
    findings: list[Finding] = []
    not_run: list[tuple[str, str]] = []
    if tree is None:
        not_run += [(kind, "there is no source tree") for kind in ("applies", "drift")]
    for patch in series.patches:
        findings += _message(patch)
        findings += _style(patch)
    with tempfile.TemporaryDirectory(prefix="vmm-check-") as name:
        folder = Path(name) / "tree"
        folder.mkdir()
        if tree is not None:
            staging.copy_touched(series.touched, tree, folder)
        if reason := mandoc.unavailable():
            not_run.append(("manual", reason))
        findings += _apply(series, tree, folder, lint=not reason)
    return Report(series, tree, tuple(findings), tuple(not_run))


def _apply(series: Series, tree: Path | None, folder: Path, *, lint: bool) -> Iterator[Finding]:
    """Apply one patch after another, and check the manuals after each."""
    if tree is not None:
        try:
            with staging.staged(series, tree):
                pass
        except PatchError as error:
            if staging.is_applied(series, tree):
                yield Finding(series.patches[0].name, "applies", error.message)
                return
    for patch in series.patches:
        pages = [path for path in patch.touched if mandoc.is_manual(path)]
        before = {path: mandoc.lint(folder / path) if lint else Counter() for path in pages}
        try:
            if tree is not None:
                for drift in staging.apply_patch(folder, patch):
                    text = (
                        f"{drift.path}: hunk {drift.hunk} fits {drift.offset_lines:+d} lines away"
                    )
                    yield Finding(patch.name, "drift", text, wrong=False)
            else:
                # Without a tree only the pages that the series itself adds can be checked.
                pages = _add_pages(patch, pages, folder)
        except PatchError as error:
            yield Finding(patch.name, "applies", error.message)
            return
        for path in pages if lint else ():
            for text, count in (mandoc.lint(folder / path) - before[path]).items():
                times = f" ({count} times)" if count > 1 else ""
                yield Finding(patch.name, "manual", f"{path}: {text}{times}")


def _add_pages(patch: Patch, pages: list[str], folder: Path) -> list[str]:
    """Apply to `folder` the patch's changes of pages that the series itself adds."""
    added = {changed.path for changed in PatchSet(git.text_of(patch.diff)).added_files}
    done = [path for path in pages if path in added or (folder / path).is_file()]
    for path in done:
        staging.apply_patch(folder, patch, only=path)
    return done


def _message(patch: Patch) -> Iterator[Finding]:
    def wrong(text: str) -> Finding:
        return Finding(patch.name, "message", text)

    if not patch.author:
        yield wrong("no From: line; make the patch with git format-patch")
        return
    if ": " not in patch.subject:
        yield wrong(
            f"the subject does not begin with the changed part (vmm: ...): {patch.subject!r}"
        )
    if len(patch.subject) > _SUBJECT_COLUMNS:
        yield wrong(f"the subject is longer than {_SUBJECT_COLUMNS} characters")
    if patch.subject.endswith("."):
        yield wrong("the subject ends with a full stop")
    signed = _SIGNED.findall(patch.message)
    author = _ADDRESS.search(patch.author)
    if not signed:
        yield wrong("no Signed-off-by: line")
    elif author and author[1].lower() not in {address.lower() for address in signed}:
        yield wrong(f"it is signed off, but not by its author {author[1]}")
    if not _SIGNED.sub("", patch.message).strip():
        yield wrong("the message does not say why")
    for line in patch.message.splitlines():
        if len(line) > _MESSAGE_COLUMNS and " " in line.strip() and not _SIGNED.match(line):
            yield wrong(f"a line of the message is {len(line)} columns wide: {line[:40]!r}...")


def _style(patch: Patch) -> Iterator[Finding]:
    if b"\r\n" in patch.diff:
        yield Finding(patch.name, "style", "the patch has CRLF line ends")
    try:
        files = PatchSet(git.text_of(patch.diff))
    except UnidiffParseError as error:
        yield Finding(patch.name, "style", f"it cannot be read as a unified diff: {error}")
        return
    for changed in files:
        for number, text in style9.check_file(changed):
            yield Finding(patch.name, "style", f"{changed.path}:{number}: {text}")
