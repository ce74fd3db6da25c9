"""One file of a run for sending to others: what was run where, and the result.

Only the values that are named here go into the file; consoles, commands, evidence, logs and command
lines do not.  Texts are cut short, and words that may name a person, a machine, a place or a key
are replaced by a mark.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import progress
from harness.files import write_atomic
from harness.report.data import Report
from harness.report.matrix import Cell, Matrix

FILE = "shared.json"
FORMAT = "vmm-workbench shared report, version 1"

_MOST_CHARS = 300
# Names that identify nobody, and that also occur as words in reports.
_NOBODY = frozenset(
    [
        "root",
        "user",
        "users",
        "runner",
        "test",
        "tests",
        "guest",
        "freebsd",
        "debian",
        "ubuntu",
        "localhost",
        "vmm",
        "build",
        "bhyve",
        "default",
        "admin",
        "home",
        "nobody",
        "intel",
        "amd",
        "bochs",
        "qemu",
        "kvm",
        "stock",
        "patch",
        "check",
        "checks",
    ]
)
_IN_HOMES = re.compile(r"/(?:usr/)?(?:home|Users)/([^/\s\"'\\:]+)")
_HEX = re.compile(r"[0-9a-f]{16,128}|none")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_WORD = re.compile(r"[A-Za-z][A-Za-z -]{0,40}")
_SYSTEM = re.compile(r"FreeBSD \d+\.\d+-[A-Za-z0-9-]+")
_VERSION = re.compile(r"(?:^|/)([A-Za-z0-9_-]+) ([0-9]{1,3}(?:\.[0-9]{1,3}){0,2})$")
_DIGESTS = ("image sha256", "module sha256", "module build id", "series sha256", "kernel build id")

_SOURCE = r"(?:sys|lib|usr\.sbin|usr\.bin|sbin|bin|share|tests/sys|include|stand)/[\w./+-]+"
_SUFFIXES = r"(?:py|c|h|S|s|ko|so|o|md|toml|txt|log|json|xml|patch|diff|sh|mk|\d)"
_SYSCTLS = r"(?:hw|vm|kern|machdep|security|dev|debug|compat|vfs|net)"
_SEPARATORS = r"\s'\"`()\[\]{}<>,;:|="

_MARKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r".*PRIVATE KEY.*"), "<key>"),
    (re.compile(r"\b(?:ssh|ecdsa|sk)-[\w@.-]+ +AAAA\S*(?: \S+)?"), "<key>"),
    (re.compile(r"\beyJ[\w-]+(?:\.[\w-]+)+"), "<key>"),
    (
        re.compile(r"\b(?:gh[a-z]|github_pat|glpat|sk|pk|xox\w|AKIA)[-_]?[A-Za-z0-9_-]{12,}"),
        "<key>",
    ),
    (
        re.compile(
            r"(?i)\b((?:pass(?:word|wd|phrase)?|token|secret|api.?key|authorization)\b\s*[=:]\s*)"
            r"(?:bearer |basic )?\S+"
        ),
        r"\1<key>",
    ),
    (re.compile(r"(?=[\w+/=-]*\d)(?=[\w+/=-]*[A-Z])(?=[\w+/=-]*[a-z])[\w+/=-]{24,}"), "<key>"),
    (re.compile(r"\b[A-Za-z0-9+/=]{32,}"), "<key>"),
    (re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://\S+"), "<address>"),
    (re.compile(rf"[^{_SEPARATORS}]+@[^{_SEPARATORS}]+"), "<address>"),
    (re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?:[:/]\d+)?(?![\d.])"), "<address>"),
    (
        re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4})?(?:%\w+)?(?![\w:])"),
        "<address>",
    ),
    (re.compile(r"\b[A-Za-z]:\\[^\s\"']*|\\\\[^\s\"']+"), "<path>"),
    (re.compile(rf"~[^{_SEPARATORS}]*"), "<path>"),
    (
        re.compile(
            rf"(?<![^{_SEPARATORS}])(?!{_SOURCE}(?:[{_SEPARATORS}]|$))[^{_SEPARATORS}]*/[^{_SEPARATORS}]*"
        ),
        "<path>",
    ),
    (
        re.compile(
            rf"\b(?!{_SYSCTLS}\.)(?![\w./-]*\.{_SUFFIXES}\b)(?:[A-Za-z0-9-]+\.)+[A-Za-z]{{2,}}\b(?!\()"
        ),
        "<name>",
    ),
)


def write(found: Report | Matrix) -> Path:
    """Write the file into the run's folder; its path."""
    path = found.run_dir / FILE
    write_atomic(path, json.dumps(shared(found), indent=1, ensure_ascii=True) + "\n")
    return path


def shared(found: Report | Matrix, names: Iterable[str] | None = None) -> dict[str, Any]:
    """The contents of the file; `names` are words to leave out, by default this machine's."""
    cells = found.cells if isinstance(found, Matrix) else (Cell.of(found),)
    known = {*(own_names() if names is None else names), *_homes(found)}
    scrub = _Scrub(known)
    return {"format": FORMAT, "runs": [_run(cell, scrub) for cell in cells]}


def own_names() -> set[str]:
    """The user's and the machine's names here."""
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER", "HOSTNAME")}
    host = socket.gethostname()
    names |= {host, host.partition(".")[0], Path.home().name}
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return names
    return names | {entry.pw_name, *entry.pw_gecos.partition(",")[0].split()}


def _homes(found: Report | Matrix) -> set[str]:
    """The users whose homes a report names: it may be another machine's."""
    return set(_IN_HOMES.findall(json.dumps(found.to_data(), ensure_ascii=False, default=str)))


class _Scrub:
    """Replaces words that may name a person, a machine, a place or a key."""

    def __init__(self, names: Iterable[str]) -> None:
        words = {it for it in names if len(it) > 1 and it.lower() not in _NOBODY}
        longest_first = sorted(words, key=lambda it: (-len(it), it))
        parts = "|".join(re.escape(it) for it in longest_first)
        self._names = re.compile(rf"(?i)(?<![a-z0-9])(?:{parts})(?![a-z0-9])") if parts else None

    def __call__(self, text: str) -> str:
        """One line of ASCII, at most 300 characters."""
        # A terminal's sequences and the like could hide a name from the patterns.
        plain = progress.printable(text).encode("ascii", "replace").decode()
        cut = f"{plain[:_MOST_CHARS]} ..." if len(plain) > _MOST_CHARS else plain
        for pattern, mark in _MARKS:
            cut = pattern.sub(mark, cut)
        return self._names.sub("<name>", cut) if self._names else cut


def _run(cell: Cell, scrub: _Scrub) -> dict[str, Any]:
    """One run; values with a fixed form are used only if they have it."""
    where = {
        "release": scrub(cell.release),
        "backend": scrub(cell.backend),
        "processor": scrub(cell.vendor),
        "module": "stock" if cell.stock else "patched",
        "exit_code": cell.exit_code,
    }
    if cell.report is None:
        return {**where, "words": scrub(cell.words)}
    report, said = cell.report, cell.report.properties
    emulator = _VERSION.search(said.get("emulator", ""))
    return {
        **where,
        "series": scrub(report.series),
        "topic": scrub(report.topic),
        "date": _only(_DATE, report.started_at),
        "verdict": scrub(report.verdict),
        "host": scrub(said.get("host", "")),
        "emulator": f"{emulator[1]} {emulator[2]}" if emulator else "",
        "system": _only(_SYSTEM, said.get("image", "")),
        "digests": {
            name: said[name] for name in _DIGESTS if _HEX.fullmatch(said.get(name, "").lower())
        },
        "stages": [
            {
                "name": _only(_WORD, stage.name),
                "outcome": _only(_WORD, stage.outcome),
                "seconds": round(stage.seconds, 1),
            }
            for stage in report.stages
        ],
        "checks": [
            {
                "name": scrub(check.name),
                "status": status,
                "seconds": round(check.seconds, 1),
                **({"why": scrub(why)} if why and status != "ok" else {}),
            }
            for check in report.checks
            for status, why in [report.status(check)]
        ],
        "panic": [scrub(report.panic.message), *(scrub(str(it)) for it in report.panic.frames)]
        if report.panic
        else [],
    }


def _only(form: re.Pattern[str], text: str) -> str:
    """The beginning of a text that has this form, or nothing."""
    found = form.match(text)
    return found[0] if found else ""
