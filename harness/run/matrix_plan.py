"""The jobs of a matrix for a CI engine (`inv matrix --plan`), and read back for a merge."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import backends
from harness.errors import UsageError
from harness.files import read_bounded
from harness.report import Cell
from harness.run.options import Options

FORMS = ("github", "gitlab")

_MOST_JOBS = {"github": 256, "gitlab": 200}
_MOST_BYTES = 1 << 20
_VENDORS = ("", "intel", "amd")
_RELEASE = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}(?:-[A-Za-z0-9]{1,20})?")


def plan(cells: Sequence[Cell], options: Options, form: str, *, named: bool) -> Any:
    """The jobs as GitHub's `matrix` (`{"include": [...]}`) or GitLab's `parallel:matrix` has them.

    KVM is optional unless a backend was `named`, because only the runner knows whether it has KVM.
    Raises UsageError if there are more jobs than the engine starts, and for options that a job's
    settings cannot contain.
    """
    if form not in FORMS:
        raise UsageError(f"--plan {form}: no such CI engine; use one of {', '.join(FORMS)}")
    if len(cells) > (most := _MOST_JOBS[form]):
        raise UsageError(
            f"{len(cells)} jobs, and {form} starts {most} of one matrix; name fewer releases, "
            "backends or processors"
        )
    given = " ".join(_words(options))
    jobs = [(cell, "1" if cell.backend == "kvm" and not named else "0") for cell in cells]
    if form == "github":
        return {
            "include": [
                {
                    "name": cell.label,
                    "release": cell.release,
                    "backend": cell.backend,
                    "cpu_vendor": cell.vendor,
                    "stock": "1" if cell.stock else "0",
                    "options": given,
                    "optional": optional,
                }
                for cell, optional in jobs
            ]
        }
    # GitLab accepts only text, and makes variables of it.
    return [
        {
            "RELEASE": cell.release,
            "BACKEND": cell.backend,
            "CPU_VENDOR": cell.vendor,
            "STOCK": "1" if cell.stock else "0",
            "OPTIONS": given,
            "OPTIONAL": optional,
        }
        for cell, optional in jobs
    ]


def _words(options: Options) -> list[str]:
    """The options of every job, as words; OPTIONS of ci/verify.sh is split at blanks."""
    if options.series:
        raise UsageError(
            "--series is not part of a plan; give it to the jobs (SERIES of ci/verify.sh, the "
            "action's input `series`)"
        )
    words = ["--full"] if options.full else []
    for name, value in (("--topic", options.topic or ""), ("--only", options.only)):
        if re.search(r"\s", value):
            raise UsageError(f"{name} {value}: a plan cannot contain blanks there; leave them out")
        words += [name, value] if value else []
    return words


def read(path: Path) -> tuple[Cell, ...]:
    """The jobs of a plan in a file, in either form; raises UsageError if there are none."""
    try:
        data: Any = json.loads(read_bounded(path, _MOST_BYTES))
    except OSError as error:
        raise UsageError(f"--planned {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--planned {path}: it is not a plan: {error}") from error
    jobs = data.get("include") if isinstance(data, dict) else data
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise UsageError(f"--planned {path}: it is not a plan; ./inv matrix --plan makes one")
    return tuple(_job(path, {str(key).lower(): job[key] for key in job}) for job in jobs)


def _job(path: Path, job: dict[str, Any]) -> Cell:
    release, backend = job.get("release"), job.get("backend")
    vendor, stock = job.get("cpu_vendor", ""), job.get("stock", False)
    for name, value, right in (
        ("release", release, isinstance(release, str) and bool(_RELEASE.fullmatch(release))),
        ("backend", backend, backend in backends.ASKED),
        ("cpu_vendor", vendor, vendor in _VENDORS),
        ("stock", stock, stock in (False, True, "0", "1")),
    ):
        if not right:
            raise UsageError(f"--planned {path}: {name}: {json.dumps(value)[:80]} is invalid")
    return Cell(
        str(release),
        str(backend),
        str(vendor),
        stock in (True, "1"),
        named=job.get("optional") != "1",
    )
