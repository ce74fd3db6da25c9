"""Compares builds: from scratch, after one file was touched, with nothing changed."""

from __future__ import annotations

import difflib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import defaults
from harness.bench.model import Live, Measurements, Ratio, Result
from harness.bench.subject import Subject
from harness.build import builder
from harness.errors import CannotError
from harness.files import cache_dir
from harness.image import store
from harness.series import load

_TOPIC = defaults.TOPIC
_TOUCHED = ("sys/amd64/vmm/x86.c", "sys/amd64/vmm/vmm_util.c", "sys/amd64/vmm/vmm_ktr.h")
_SCRATCH, _ONE, _NOTHING = "from scratch", "one file touched", "nothing changed"


def build(subject: Subject, rounds: int, live: Live) -> Result:
    """Build module, library and tool of the project's own series, in a separate cache."""
    record = subject.record
    if record is None or record.source is None:
        raise CannotError(
            "inv bench build needs FreeBSD's source: "
            + store.trees_line(defaults.RELEASE, src=True)
        )
    series = load.load_series(_TOPIC, record.release)
    paths = [patch.path for patch in series.patches]
    touched = next((name for name in _TOUCHED if (record.source / name).is_file()), None)
    if touched is None:
        raise CannotError(f"{record.source} has none of {', '.join(_TOUCHED)}")
    measured = Measurements()
    for number in range(rounds):
        with _own_cache() as folder:
            more = folder / "touch.patch"
            more.write_text(_touch(record.source / touched, touched, number))
            both = load.load_series([*paths, more], record.release)
            for name, what in ((_SCRATCH, series), (_ONE, both), (_NOTHING, both)):
                live(f"round {number + 1} of {rounds}: {name}")
                start = time.monotonic()
                made = builder.build(
                    record.source, record.sysroot, what, record.release, kernel=record.kernel
                )
                measured.add(name, time.monotonic() - start)
                if made.cached != (name == _NOTHING):
                    raise CannotError(
                        f"the build of {name} was {'' if made.cached else 'not '}cached"
                    )
    return Result(
        "build",
        "vmm.ko, libvmmapi and vmmls",
        f"FreeBSD {record.release}, series {series.topic}",
        measured.samples(),
        tuple(
            Ratio(f"{name} / from scratch", measured.median(name) / measured.median(_SCRATCH))
            for name in (_ONE, _NOTHING)
        ),
        (f"touched: {touched}, by a patch on top of the series",),
    )


def _touch(path: Path, name: str, number: int) -> str:
    old = path.read_text().splitlines(keepends=True)
    new = [*old, f"/* touched {number} */\n"]
    return "".join(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}", n=1))


@contextmanager
def _own_cache() -> Iterator[Path]:
    """An empty cache, on the same disk as the real one."""
    before = os.environ.get("HARNESS_CACHE")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache_dir()) as folder:
        os.environ["HARNESS_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["HARNESS_CACHE"]
            else:
                os.environ["HARNESS_CACHE"] = before
