"""The command line's manners: one line for an error, the right exit code, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness import errors
from harness.cli.program import run_task
from harness.files import PROJECT

TASKS = """
import errno, os, sys, time
from invoke.collection import Collection
from invoke.tasks import task
from harness import errors, progress, report
from harness.cli.program import run_task

@task(help={"kind": "the error's name"})
@run_task
def fails(_context, kind=""):
    raise getattr(errors, kind)("what went wrong; the mend", detail="line \\x1b[31m1\\nline 2")

@task
@run_task
def ends(_context, code=0):
    return int(code)

@task
@run_task
def sleeps(_context):
    print("asleep", flush=True)
    time.sleep(60)

@task(help={"rich": "by way of rich"})
@run_task
def floods(_context, rich=False):
    for number in range(100000):
        progress.out.print("a line", markup=False) if rich else print("a line")

@task
@run_task
def whispers(_context):
    time.sleep(0.5)
    print("one line, still in the buffer when the task ends")

@task
@run_task
def shows(_context):
    progress.say("working")
    progress.table(("head",), [("a cell",)])

@task
@run_task
def full(_context):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/some/file")

@task
@run_task
def bug(_context):
    raise OSError(errno.ENOTTY, "a bug of ours")

@task
@run_task
def cut(_context):
    raise BrokenPipeError(errno.EPIPE, "a socket of ours")

namespace = Collection(fails, ends, sleeps, floods, whispers, shows, full, bug, cut)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "harness.cli.program", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("ChecksFailed", 1),
        ("UsageError", 2),
        ("CannotError", 3),
        ("GuestError", 4),
        ("GuestPanic", 4),
        ("MachineDied", 4),
        ("WaitTimeout", 4),
        ("PatchError", 5),
        ("Interrupted", 130),
    ],
)
def test_each_kind_of_error_has_its_code(
    kind: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    @run_task
    def task() -> None:
        raise getattr(errors, kind)("what went wrong", detail="line\n")

    with pytest.raises(SystemExit) as caught:
        task()
    assert caught.value.code == code
    assert capsys.readouterr() == ("", "line\nerror: what went wrong\n")


def test_an_error_is_a_line_and_a_code(folder: Path) -> None:
    done = run(folder, "fails", "--kind", "PatchError")
    assert done.returncode == 5
    assert done.stderr == "line ?[31m1\nline 2\nerror: what went wrong; the mend\n"
    assert done.stdout == ""


def test_a_returned_number_is_the_exit_code(folder: Path) -> None:
    assert run(folder, "ends", "--code", "3").returncode == 3


@pytest.mark.parametrize(
    "arguments",
    [("ends", "--nonsense"), ("nonsense",), ("fails", "--kind"), ("--nope",)],
)
def test_calling_it_wrongly(folder: Path, arguments: tuple[str, ...]) -> None:
    done = run(folder, *arguments)
    assert done.returncode == 2
    assert "inv --list" in done.stderr
    assert "Traceback" not in done.stderr


def test_called_from_nowhere(tmp_path: Path) -> None:
    done = run(tmp_path, "--list")
    assert done.returncode == 2
    assert done.stderr.endswith("run inv from the project's top folder\n")
    assert "Traceback" not in done.stderr


def test_ctrl_c(folder: Path) -> None:
    with subprocess.Popen(
        command("sleeps"), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"asleep\n"
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=20)[1]
    assert child.returncode == 130
    assert said == b"error: interrupted\n"


@pytest.mark.parametrize(
    "arguments", [("floods",), ("floods", "--rich"), ("whispers",)], ids=["print", "rich", "buffer"]
)
def test_a_reader_who_goes_is_no_error(folder: Path, arguments: tuple[str, ...]) -> None:
    """And no failed check either: rich would exit with 1."""
    near, far = os.pipe()
    with subprocess.Popen(
        command(*arguments), cwd=folder, stdout=far, stderr=subprocess.PIPE
    ) as child:
        os.close(far)
        if arguments[0] == "floods":
            os.read(near, 10)
        os.close(near)
        said = child.communicate(timeout=60)[1]
    assert said == b""
    assert child.returncode == 141


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(folder: Path, closed: str) -> None:
    """And no failed check either, as a traceback's exit code would say."""
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command("shows")]
    done = subprocess.run(
        shell, cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ("" if "2>&-" in closed else "working\n")
    assert ("a cell" in done.stdout) == (">&-" not in closed.split())


def test_a_kill_is_ctrl_c(folder: Path) -> None:
    with subprocess.Popen(
        command("sleeps"), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "asleep\n"
        child.terminate()
        assert child.communicate(timeout=60)[1] == "error: interrupted\n"
    assert child.returncode == 130


def test_a_full_disk_is_a_line(folder: Path) -> None:
    done = run(folder, "full")
    assert (done.returncode, done.stderr) == (3, "error: /some/file: No space left on device\n")


@pytest.mark.parametrize("task", ["bug", "cut"])
def test_a_bug_is_not_hidden(folder: Path, task: str) -> None:
    done = run(folder, task)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "of ours" in done.stderr


def test_each_task_of_the_project_has_a_line_of_help() -> None:
    done = run(PROJECT, "--list", "--list-format=json")
    assert done.returncode == 0
    top = json.loads(done.stdout)
    helps = {
        task["name"]: task["help"] for part in (top, *top["collections"]) for task in part["tasks"]
    }
    assert {"verify", "setup", "doctor", "test", "lint"} <= set(helps)
    assert [name for name, text in helps.items() if not text] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "--backend", "vbox"),
        ("probe", "--backend", "vbox"),
        ("test", "--only", "nonsense"),
        ("fuzz", "--calls", "many"),
    ],
)
def test_a_name_that_is_none(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        command(*arguments),
        cwd=PROJECT,
        env={**os.environ, "HARNESS_RUNS": str(tmp_path), "HARNESS_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
