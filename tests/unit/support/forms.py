"""Patches in many forms, and what they make of a tree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from faketree import NUMBERED

from harness.series import load, staging

MANUAL = "share/man/man4/vmm.4"

SOURCE = "sys/dev/vmm/vmm.h"

EDITED = NUMBERED.replace("line 20\n", "line XX\n")


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


def stripped(edit: bytes, old: str = "", new: str = "") -> bytes:
    """The diff with other things before its paths than a/ and b/."""
    for mark in (b" ", b'"'):
        edit = edit.replace(mark + b"a/", mark + old.encode())
        edit = edit.replace(mark + b"b/", mark + new.encode())
    return edit
