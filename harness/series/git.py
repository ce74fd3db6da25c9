"""Uses git to read and apply patches, independently of the user's settings.

`git apply` works without a repository, refuses paths that leave the folder, and changes nothing
when one hunk does not fit.  Here it never guesses: it uses no fuzz and repairs no white space; a
hunk that fits some lines away (an offset) is reported as drift.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchSet

from harness import beneath, process
from harness.deadline import Deadline
from harness.errors import CannotError, PatchError
from harness.series import diffs, places

JOURNAL_FOLDER = ".vmm-workbench-apply"
"""The folder of earlier versions' journal in the user's tree; no patch may use this name."""

_FAILED = re.compile(r"^error: patch failed: (?P<path>.*):(?P<line>\d+)$", re.M)
_CORRUPT = re.compile(
    r"^error: (?:corrupt patch|patch fragment without header) at line (\d+)", re.M
)
_MISSING = re.compile(r"^error: (.*): No such file or directory$", re.M)
_EXISTS = re.compile(r"^error: (.*): already exists in working directory$", re.M)
_RENAME = re.compile(rb"^(?:rename|copy) from (.*)$", re.M)
_MODE = re.compile(
    rb"^(?:(?:old|new) mode|(?:new|deleted) file mode|index [0-9a-f]+(?:,[0-9a-f]+)*\.\.[0-9a-f]+)"
    rb" (?P<mode>[0-7]+)\r?$",
    re.M,
)
_SEARCH_LINES = 500
_LIMIT_S = 600.0
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Drift:
    """A hunk that fits, but `offset_lines` away from where its header says."""

    patch: str
    path: str
    hunk: int
    offset_lines: int

    def __str__(self) -> str:
        return f"{self.patch}: {self.path}: hunk {self.hunk} moved {self.offset_lines:+d} lines"


def environment(folder: Path) -> dict[str, str]:
    """The environment for git: no GIT_* of the caller, no settings, no repository around `folder`.

    Inside a repository `git apply` would take paths as relative to it and silently skip
    everything outside the current folder.
    """
    return {
        **process.clean_environment(),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CEILING_DIRECTORIES": f"{folder.absolute().parent}:{folder.resolve().parent}",
        "GIT_TERMINAL_PROMPT": "0",
    }


def run_git(
    arguments: Sequence[str], folder: Path, data: bytes = b"", extra: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run git in `folder` with `data` on its standard input.  CannotError where there is no git."""
    if not shutil.which("git"):
        raise CannotError("git is not installed; run ./inv setup")
    done = process.run(
        ["git", *arguments],
        Deadline.after(_LIMIT_S),
        cwd=folder,
        environment={**environment(folder), **(extra or {})},
        given=data,
        most_bytes=_MOST_BYTES,
    )
    if done.cut:
        raise CannotError(f"git {arguments[0]} printed more than {_MOST_BYTES >> 20} MiB")
    return subprocess.CompletedProcess(done.command, done.code, done.output, done.errors)


def text_of(data: bytes) -> str:
    """Bytes as text that turns back into the same bytes."""
    return data.decode("utf-8", "surrogateescape")


def touched_paths(data: bytes, name: str) -> tuple[str, ...]:
    """The paths a patch reads or writes, the old names of renamed files included.

    Raises PatchError when git cannot read the patch: not a diff, cut off, or a path that leaves
    the tree.
    """
    with tempfile.TemporaryDirectory(prefix="vmm-patch-") as empty:
        done = run_git(["apply", "--numstat", "-z", "-"], Path(empty), data)
    if done.returncode:
        raise PatchError(_malformed(done.stderr.decode(errors="replace"), name))
    paths = [text_of(record.split(b"\t", 2)[2]) for record in done.stdout.split(b"\0") if record]
    paths += [text_of(diffs.unquote(old.rstrip(b"\r"))) for old in _RENAME.findall(data)]
    for path in paths:
        if reason := refusal(path):
            raise PatchError(
                f"{name}: it names {path!r}, which is not a path inside the tree: {reason}"
            )
    _require_files(data, name)
    return tuple(dict.fromkeys(paths))


def refusal(path: str) -> str:
    """Why a patch may not name `path`; empty if it may."""
    names = [part.lower() for part in path.split("/")]
    for ours in (".git", JOURNAL_FOLDER):
        if ours in names:
            return f"{ours} is not part of the source"
    return beneath.refusal(path)


def _require_files(data: bytes, name: str) -> None:
    """Raise PatchError for anything but plain files: a symbolic link could lead to any file."""
    for found in _MODE.finditer(data):
        mode = found["mode"].decode()
        kind = int(mode, 8) & 0o170000
        if kind == 0o120000:
            raise PatchError(
                f"{name}: it contains a symbolic link (mode {mode}), which is not "
                f"applied, because a link "
                "could lead out of the tree; use a file instead"
            )
        if kind == 0o160000:
            raise PatchError(
                f"{name}: it changes a submodule (mode {mode}), but a submodule's files "
                f"are not in "
                "the patch; make a patch of the files themselves"
            )


def _malformed(stderr_text: str, name: str) -> str:
    if found := _CORRUPT.search(stderr_text):
        return f"{name}: the patch is broken at its line {found[1]} (truncated, or edited by hand?)"
    if "No valid patches" in stderr_text or "unrecognized input" in stderr_text:
        return f"{name}: there is no diff in it"
    return f"{name}: git cannot read it: {_first_line(stderr_text)}"


def _first_line(stderr_text: str) -> str:
    lines = [
        line.removeprefix("error: ")
        for line in stderr_text.splitlines()
        if line.strip() and not places.CHECKING.match(line)
    ]
    return lines[0] if lines else "no reason given"


def apply_in(
    folder: Path, data: bytes, name: str, *, reverse: bool = False, only: str = ""
) -> tuple[Drift, ...]:
    """Apply one patch to the files in `folder`, or its part for the path `only`; all or nothing.

    Returns the hunks that had to move.  Raises PatchError naming patch, file, hunk and reason.
    """
    _require_same_end(folder, data, name, reverse=reverse)
    arguments = ["apply", "-v", "--whitespace=nowarn"]
    arguments += ["-R"] if reverse else []
    arguments += [f"--include={glob.escape(only)}"] if only else []
    check = [*arguments, "--check", "-"]
    if bare := _without_context(folder, data, name, reverse=reverse):
        # Only its line number shows where such a hunk belongs.
        arguments.append("--unidiff-zero")
        data = diffs.with_exact_lines(data.splitlines(keepends=True))
        check = [*arguments, "--check", "-"]
        if moved := _drift(_run(folder, check, data, name), name):
            raise PatchError(
                f"{name} does not apply: it was made without context (diff -U0), and "
                f"hunk "
                f"{moved[0].hunk} of {moved[0].path} fits only {moved[0].offset_lines:+d} "
                "lines away; make it with context (git diff -U3)"
            )
    stderr_text = _run(folder, check, data, name)
    if doubt := places.doubtful(stderr_text, data, folder, reverse=reverse, bare=bare):
        raise PatchError(
            f"{name} does not apply: it was made from another version of {doubt.path}, "
            f"and its hunk "
            f"{doubt.hunk} fits in {doubt.places} places; make it from this source, or with "
            "more context (git diff -U10)"
        )
    return _drift(_run(folder, [*arguments, "-"], data, name), name)


def _require_same_end(folder: Path, data: bytes, name: str, *, reverse: bool) -> None:
    """PatchError where a hunk's last line ends the file without a newline, and the file goes on.

    git finds the beginning of a longer line there and joins what follows to it.
    """
    read = b" +" if reverse else b" -"
    seen: set[bytes] = set()
    for section in diffs.sections(data.splitlines(keepends=True)):
        side = section.new if reverse else section.old
        if side is None or side in seen:
            # What an earlier part of the patch makes of the file is not there yet.
            continue
        seen.add(side)
        for number, hunk in enumerate(section.hunks, 1):
            if not set(hunk.ends) & set(read):
                continue
            path = text_of(diffs.strip(side, 1))
            with contextlib.suppress(OSError):
                if (folder / path).read_bytes().endswith(b"\n"):
                    raise PatchError(
                        f"{name} does not apply: by its hunk {number} {path} ends without a "
                        "newline, and here it ends with one; make it of this source"
                    )


def _without_context(folder: Path, data: bytes, name: str, *, reverse: bool) -> bool:
    """Whether a patch must be applied only by its line numbers.

    Raises PatchError if it inserts lines by number and was made from another version of the file.
    """
    found = diffs.sections(data.splitlines(keepends=True))
    sure = diffs.needs_no_context(found)
    for section in found:
        if not section.bare or not section.blobs or section.old is None:
            continue
        path = text_of(diffs.strip((section.new if reverse else section.old) or b"", 1))
        wanted = section.blobs[1 if reverse else 0]
        same = places.is_blob(folder / path, wanted)
        sure = sure or same
        inserts = any(not (hunk.new_lines if reverse else hunk.old_lines) for hunk in section.bare)
        if sure and not same and inserts:
            raise PatchError(
                f"{name} does not apply: it was made without context (diff -U0), from "
                f"another "
                f"version of {path} ({wanted}), so the place of its lines is unknown; make it "
                "with context (git diff -U3)"
            )
    return sure


def _run(folder: Path, arguments: Sequence[str], data: bytes, name: str) -> str:
    """Run `git apply`; returns its output.  PatchError with the reason if the patch does not
    apply.
    """
    done = run_git(arguments, folder, data)
    stderr_text = done.stderr.decode(errors="replace")
    if done.returncode:
        said = [line for line in stderr_text.splitlines() if line.startswith(("error", "warning"))]
        said = [line for line in said if not line.endswith("while searching for:")]
        raise PatchError(_why(folder, data, name, stderr_text), detail="\n".join(said))
    return stderr_text


def _drift(stderr_text: str, name: str) -> tuple[Drift, ...]:
    drift = []
    path = ""
    for line in stderr_text.splitlines():
        if found := places.CHECKING.match(line):
            path = found["path"]
        elif found := places.OFFSET.match(line):
            drift.append(Drift(name, path, int(found["hunk"]), int(found["offset"])))
    return tuple(drift)


def _why(folder: Path, data: bytes, name: str, stderr_text: str) -> str:
    if found := _FAILED.search(stderr_text):
        return (
            f"{name} does not apply: {_hunk_story(folder, data, found['path'], int(found['line']))}"
        )
    if "without full index line" in stderr_text:
        return (
            f"{name}: its index lines are abbreviated, but a binary file needs them in "
            f"full; make it "
            "with git diff --binary"
        )
    if found := _MISSING.search(stderr_text):
        return f"{name} does not apply: {found[1]} is not in the tree"
    if found := _EXISTS.search(stderr_text):
        return f"{name} does not apply: it adds {found[1]}, which the tree already has"
    if _CORRUPT.search(stderr_text):
        return _malformed(stderr_text, name)
    if "removal patch leaves file contents" in stderr_text:
        return (
            f"{name}: it removes a file and does not have all of its lines; make it without "
            "--irreversible-delete (-D)"
        )
    return f"{name} does not apply: {_first_line(stderr_text)}"


def _hunk_story(folder: Path, data: bytes, path: str, line: int) -> str:
    """The hunk of `path` that failed, and the first line where the file differs."""
    try:
        files = PatchSet(text_of(data))
    except UnidiffParseError:
        return f"{path}, the hunk at line {line}: the lines it expects are not there"
    for changed in files:
        if changed.path != path and changed.source_file != f"a/{path}":
            continue
        for number, hunk in enumerate(changed, 1):
            if hunk.source_start != line:
                continue
            where = f"{path}, hunk {number} of {len(changed)} (line {line})"
            wanted = [str(item.value) for item in hunk if item.is_context or item.is_removed]
            return f"{where}: {_mismatch(folder / path, wanted, line)}"
    return f"{path}, the hunk at line {line}: the lines it expects are not there"


def _mismatch(file: Path, wanted: Sequence[str], line: int) -> str:
    try:
        have = text_of(file.read_bytes()).splitlines(keepends=True)
    except OSError:
        return "the lines it expects are not there"
    if any(text.endswith("\r\n") for text in wanted) != any(t.endswith("\r\n") for t in have[:50]):
        owner = "the patch" if any(text.endswith("\r\n") for text in wanted) else "the file"
        return f"{owner} has CRLF line ends, the other does not"
    best_start, best_score = line - 1, -1
    for distance in range(_SEARCH_LINES):
        for start in {line - 1 - distance, line - 1 + distance}:
            if not 0 <= start <= len(have):
                continue
            score = sum(a == b for a, b in zip(wanted, have[start:], strict=False))
            if score > best_score:
                best_start, best_score = start, score
    for index, text in enumerate(wanted):
        at = best_start + index
        if at >= len(have):
            return f"the file ends at line {len(have)}, expected {_short(text)}"
        if have[at] != text:
            if have[at] == text.rstrip("\n"):
                return f"line {at + 1} ends the file without a newline, and in the patch with one"
            if have[at].split() == text.split():
                return (
                    f"line {at + 1} differs only in white space (changed by a mail "
                    f"program or an "
                    "editor?); get the patch as a file"
                )
            return f"line {at + 1} is {_short(have[at])}, expected {_short(text)}"
    return "the lines it expects are not there"


def _short(text: str) -> str:
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")
