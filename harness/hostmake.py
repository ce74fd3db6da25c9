"""Builds the project's own C programs, the probe and the boot ROM, with the host's make.

make and its shell cannot handle every path.  So the sources are copied to a private folder with a
plain name and built there, whatever the paths of the checkout and the cache are.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness import files, process
from harness.deadline import Deadline
from harness.errors import CannotError

_LIMIT_S = 300.0
_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+\Z")
_SHARED = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - mkdtemp makes a folder of our own


def make(source: Path, *arguments: str, result: str = "", target: Path | None = None) -> str:
    """Run make on a copy of the folder `source` with O=FOLDER; returns its output.

    The file FOLDER/`result` is copied to `target`.  Raises CannotError with the compiler's messages
    if make is missing or fails.
    """
    if not shutil.which("make"):
        raise CannotError("make is not installed; run ./inv setup")
    with _plain_folder() as folder:
        shutil.copytree(source, folder / "source")
        (folder / "made").mkdir()
        command = ["make", "-s", "-j4", "--no-print-directory", "-C", str(folder / "source")]
        done = process.run([*command, f"O={folder / 'made'}", *arguments], Deadline.after(_LIMIT_S))
        if not done.ok:
            said = done.stdout + done.stderr
            if full := files.out_of_room(folder, said):
                raise full
            raise CannotError(
                f"building {source} failed: {_why(said)}",
                detail="\n".join(said.splitlines()[-20:]),
            )
        if target:
            shutil.copyfile(folder / "made" / result, target)
        return done.stdout


def _why(said: str) -> str:
    """The most useful line of the output of make and a compiler, with the remedy if there is
    one.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no reason given"]
    why = next((line for line in lines if "rror: " in line or "not found" in line), lines[-1])
    return why if shutil.which("cc") else f"{why}; there is no C compiler here, run ./inv setup"


@contextmanager
def _plain_folder() -> Iterator[Path]:
    """A private folder that exists during the block, with a path that make and a shell can
    handle.
    """
    with tempfile.TemporaryDirectory(prefix="vmm-workbench-", dir=_place()) as made:
        yield Path(made)


def _place(folders: Sequence[str] = _SHARED) -> str:
    for folder in (tempfile.gettempdir(), *folders):
        if _PLAIN.match(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise CannotError(f"no folder for building: none of {', '.join(folders)} can be written to")
