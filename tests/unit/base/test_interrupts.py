"""An interrupt that arrives within a destructor or a weak reference's callback still counts."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.files import PROJECT

_PROGRAM = """
import os, signal, sys, time, weakref
from harness.cli import program

class Thing:
    pass

class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), number)

def within_callback():
    thing = Thing()
    held.append(weakref.ref(thing, lambda _: os.kill(os.getpid(), number)))

def within_destructor():
    Destroyed()

@program.run_task
def main():
    program.end_on_signals()
    globals()[sys.argv[2]]()
    print("waits", flush=True)
    time.sleep(60)

held = []
number = int(sys.argv[1])
main()
"""

_CHECK = """
import os, signal, time

class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def test_a():
    Destroyed()
    time.sleep(60)
"""


@pytest.mark.parametrize("where", ["within_callback", "within_destructor"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_callback_interrupts(number: int, where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(int(number)), where],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_a_signal_within_a_callback_ends_the_checks(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(_CHECK)
    command = [sys.executable, "-m", "pytest", "-q", "test_it.py"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    assert "KeyboardInterrupt" in done.stdout
