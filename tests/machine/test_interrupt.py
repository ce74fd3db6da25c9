"""Ctrl-C, a kill, or two runs at once: each run ends cleanly, and the next one works."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ended import still_running

from harness import files
from harness.files import PROJECT

PROGRAM = Path(__file__).with_name("interrupted.py")
STAGES = ("host", "probe", "image", "build", "boot", "load", "checks")
SLOW = "never"
# The program at work in a stage.  Others (qemu-img) come and go before it.
PROGRAMS = {"probe": "qemu-system", "build": "sleep", "boot": "qemu-system"}

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(standin: Any, tmp_path: Path) -> Iterator[Start]:
    """Start a run that never leaves the given stage."""
    running: list[subprocess.Popen[str]] = []

    def run(stage: str) -> subprocess.Popen[str]:
        guest = [standin.disk, standin.private_key, standin.host_key]
        running.append(
            subprocess.Popen(
                [sys.executable, PROGRAM, stage, tmp_path / "lock", *guest],
                env={**os.environ, "HARNESS_RUNS": str(tmp_path / "runs")},
                cwd=PROJECT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return running[-1]

    yield run
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def reach(process: subprocess.Popen[str], stage: str) -> str:
    """Wait until a stage has begun, and for a sign that it works."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(f"{stage} ..."):
            break
    while stage in PROGRAMS and not runs_below(process, PROGRAMS[stage]):
        assert process.poll() is None, said
        time.sleep(0.02)
    return said


def runs_below(process: subprocess.Popen[str], program: str) -> bool:
    for child in descendants(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name().startswith(program):
                return True
    return False


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize(
    "stage", [*STAGES[:5], pytest.param("load", marks=pytest.mark.soak), "checks"]
)
def test_ctrl_c_at_every_stage(stage: str, start: Start, tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        if stage == "image":
            held.enter_context(files.locked(tmp_path / "lock", "another run"))
        process = start(stage)
        said = reach(process, stage)
        below = descendants(process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, said + err
    assert "Traceback" not in err
    assert "no verdict: interrupted" in out
    saved = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())
    assert saved["error"] == "interrupted"
    outcomes = [it["outcome"] for it in saved["stages"]]
    at = STAGES.index(stage)
    assert outcomes[: at + 1] == ["ok"] * at + ["failed"]
    assert set(outcomes[at + 1 :]) <= {"not run"}
    assert still_running(below) == []
    assert list((tmp_path / "runs").glob("*/guest/overlay.*")) == []


def test_killed_and_started_again_and_two_at_once(start: Start, tmp_path: Path) -> None:
    """SIGTERM, which ends a CI job, works like Ctrl-C; SIGKILL leaves nothing that prevents a new
    run.
    """
    killed, ended = start("boot"), start("boot")
    for process in (killed, ended):
        reach(process, "boot")
    below = descendants(killed) + descendants(ended)
    assert len(below) >= 2
    killed.kill()
    ended.terminate()
    assert ended.wait(120) == 130
    assert still_running(below) == []
    together = [start(SLOW), start(SLOW)]
    for process in together:
        out, err = process.communicate(timeout=250)
        assert process.returncode == 0, err
        assert "1 of 1 checks ok" in out
    assert len(list((tmp_path / "runs").glob("*-verify-stock*"))) == 4
