"""A pytest plugin that writes each phase of a test as a line of JSON as soon as it has ended.

    python -m pytest -p kvm_results ...     HARNESS_TEST_RESULTS names the file for the lines

The limits in the tests are for a machine's own processor; there, one processor emulates another, so
each limit is longer.  The lines leave that Linux over its second serial line, so they are already
outside if it hangs or ends.  The first line says what this ran on.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

from harness.deadline import Deadline

SLOWER = 10.0
# How long to wait for an emulator to end by itself: a stopped one never does, and this wait is most
# of the time of such a test.
_ENDS_S = 5.0
_after = Deadline.after


def _tell(**line: object) -> None:
    with open(os.environ["HARNESS_TEST_RESULTS"], "a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def _slower(limit_s: float) -> Deadline:
    return _after(limit_s * SLOWER)


def _at_most(self: Deadline, limit_s: float) -> Deadline:
    other = _after(limit_s) if limit_s <= _ENDS_S else _slower(limit_s)
    return other if other.at_s < self.at_s else self


def pytest_sessionstart() -> None:
    """Write the facts about the system that the tests run on."""
    Deadline.after = staticmethod(_slower)  # type: ignore[method-assign]
    Deadline.at_most = _at_most  # type: ignore[method-assign]
    version = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    cpu = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpu)
    _tell(
        kernel=platform.release(),
        processor=model[1] if model else "",
        flags=sorted({"svm", "vmx", "npt", "ept", "nrip_save", "hypervisor"} & set(cpu.split())),
        kvm=sorted(path.name for path in Path("/sys/module").glob("kvm_*")),
        emulator=version,
        python=platform.python_version(),
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One phase of one test: setup, call or teardown."""
    said = report.longrepr
    reason = said[2] if isinstance(said, tuple) else report.longreprtext
    _tell(
        test=report.nodeid,
        phase=report.when,
        outcome=report.outcome,
        seconds=round(report.duration, 2),
        said=reason[-6000:],
    )


def pytest_sessionfinish(exitstatus: int) -> None:
    """Write that all results were reported, and pytest's exit code."""
    _tell(ended=int(exitstatus))
