"""The value of --series: a folder, a file, or patches from standard input or another pipe."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from harness import files
from harness.errors import UsageError
from harness.files import human_bytes
from harness.limits import PATCH_BYTES

STANDARD_INPUT = "-"
_FOLDER = "given"
_ADDRESS = re.compile(r"(?:https?|ftp|file|git|ssh)://", re.I)
# GitHub's pages of a pull request or a commit; the same address plus .patch is the patch.
_PAGE = re.compile(r"https://github\.com/[^/]+/[^/]+/(?:pull/[0-9]+|commit/[0-9a-f]+)\Z")
# A pipe can be read once, and a run reads its series several times.
_read: dict[str, Path] = {}


def paths(given: Iterable[str]) -> tuple[Path, ...]:
    """The files and folders that --series names, as they were typed.

    `-` and a pipe (`<(git format-patch --stdout BASE)`) are read to their end and stored in the
    cache, under a descriptive name.  Raises UsageError for an address, a terminal, or an empty
    pipe.
    """
    return tuple(_path(it) for it in given)


def absolute_paths(given: Iterable[str]) -> tuple[Path, ...]:
    """Like `paths`, but absolute, for a process in another folder."""
    return tuple(path.absolute() for path in paths(given))


def _path(given: str) -> Path:
    if _ADDRESS.match(given):
        address = shlex.quote(f"{given}.patch" if _PAGE.match(given) else given)
        raise UsageError(
            f"--series {given}: only files are read, nothing is downloaded; fetch it with "
            f"curl -fLO {address}, or give it on standard input: "
            f"curl -fL {address} | ./inv TASK --series -"
        )
    path = Path(given)
    if given != STANDARD_INPUT and not _is_pipe(path):
        return path
    if given not in _read:
        _read[given] = _store(given, _content(given))
    return _read[given]


def require_files(given: Iterable[str], what: str) -> None:
    """Raise UsageError if one of them is a pipe, because `what` could not write to it."""
    for each in given:
        if each == STANDARD_INPUT or _is_pipe(Path(each)):
            raise UsageError(f"--series {each}: {what} changes the files of a series; name them")


def forget_stored() -> int:
    """Remove the stored patches from pipes; returns the bytes freed."""
    freed = 0
    for path in (files.cache_dir() / _FOLDER).glob("*"):
        freed += path.stat().st_size
        path.unlink()
    return freed


def _is_pipe(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


def _content(given: str) -> bytes:
    what = f"--series {given}"
    pipe_in = "git format-patch --stdout BASE | ./inv TASK --series -"
    with contextlib.ExitStack() as stack:
        try:
            stream = (
                sys.stdin.buffer
                if given == STANDARD_INPUT
                else stack.enter_context(open(given, "rb"))
            )
            if stream.isatty():
                raise UsageError(f"{what}: this is a terminal; pipe the patches in: {pipe_in}")
            data = stream.read(PATCH_BYTES + 1)
        except (OSError, ValueError) as error:
            raise UsageError(f"{what}: cannot be read: {error}; pipe them in: {pipe_in}") from error
    if not data:
        raise UsageError(
            f"{what}: it was empty; check that the command before the | prints a patch"
        )
    if len(data) > PATCH_BYTES:
        raise UsageError(
            f"{what}: it has more than {human_bytes(PATCH_BYTES)}; is it a series of patches?"
        )
    return data


def _store(given: str, data: bytes) -> Path:
    name = "stdin" if given == STANDARD_INPUT else "pipe"
    folder = files.cache_dir() / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}.patch"
    if not os.path.lexists(path):
        files.write_atomic(path, data, 0o600)
    return path
