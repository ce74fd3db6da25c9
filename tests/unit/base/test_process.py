"""Running programs: how they end, how much of their output is saved, which environment they get."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness import process
from harness.deadline import Deadline
from harness.errors import CannotError


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie that its parent has yet to collect."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(pid: int) -> bool:
    """Whether a process ends within some seconds."""
    limit = Deadline.after(20)
    while alive(pid) and not limit.expired:
        time.sleep(0.02)
    return not alive(pid)


def test_both_outputs_and_the_exit_code_are_separate() -> None:
    done = process.run(["sh", "-c", "cat; echo wrong >&2; exit 3"], given=b"typed \xff\n")
    assert (done.code, done.output, done.stderr, done.ok) == (3, b"typed \xff\n", "wrong\n", False)
    assert done.stdout == "typed \ufffd\n"
    assert process.run(["sh", "-c", "kill -9 $$"]).code == -signal.SIGKILL


def test_standard_input_is_empty_unless_given() -> None:
    assert process.run(["cat"]).output == b""
    big = b"x" * 3_000_000
    assert process.run(["cat"], given=big).output == big
    # A program that does not read its input is not an error.
    assert process.run(["true"], given=big).ok


def test_output_is_bounded_and_what_is_beyond_is_read_and_dropped() -> None:
    seen: list[bytes] = []
    command = ["sh", "-c", "head -c 1000000 /dev/zero; echo end >&2"]
    done = process.run(command, most_bytes=1000, sink=seen.append)
    assert (len(done.output), done.errors, done.cut) == (1000, b"end\n", True)
    assert done.ok
    assert sum(map(len, seen)) == 1004


def test_merged_errors_come_in_their_place() -> None:
    done = process.run(["sh", "-c", "echo 1; echo 2 >&2; echo 3"], merged=True)
    assert (done.output, done.errors) == (b"1\n2\n3\n", b"")


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    said = process.run(["env"]).stdout
    assert "hunter2" not in said
    assert "LC_ALL=C\n" in said
    assert f"PATH={os.environ['PATH']}\n" in said
    assert process.run(["/usr/bin/env"], environment={"ONE": "1"}).stdout == "ONE=1\n"


def test_at_the_deadline_the_whole_group_ends() -> None:
    script = "trap '' TERM; sleep 600 & echo $! $$; sleep 600; sleep 600"
    with pytest.raises(process.Unfinished, match="sh did not end within 1 s") as caught:
        process.run(["sh", "-c", script], Deadline.after(1))
    pids = [int(word) for word in caught.value.detail.split()]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_what_a_program_leaves_ends_with_it_and_is_not_waited_for() -> None:
    done = process.run(["sh", "-c", "sleep 600 & echo $!"])
    assert done.ok
    assert gone(int(done.stdout))


def test_an_interrupt_ends_the_group(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, threading\nfrom harness import process\n"
        "threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        f"process.run(['sh', '-c', 'echo $$ >{tmp_path}/pid; sleep 600'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert b"KeyboardInterrupt" in done.stderr
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("command", [["no-such-program"], ["/"], ["a\0b"]])
def test_what_cannot_be_run_is_one_line(command: list[str]) -> None:
    with pytest.raises(CannotError, match="cannot be run: ") as caught:
        process.run(command)
    assert "\n" not in caught.value.message


def test_what_a_program_said_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "harness.process"):
        process.run(["sh", "-c", "echo out; echo err >&2; exit 4", "a b", "\udcff"])
    said = caplog.messages[0]
    assert "'a b'" in said
    assert ": exit code 4\n" in said
    assert "out\nerr" in said
    said.encode()


def test_an_interrupt_while_a_program_starts_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def interrupted(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        child = start(*args, **kwargs)
        started.append(child)
        # As if it came before Popen returned.
        os.kill(os.getpid(), signal.SIGINT)
        return child

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        process.run(["sleep", "60"])
    assert started[0].returncode is not None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
