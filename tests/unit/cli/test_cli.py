"""Errors on the command line: one line, the right exit code, never a traceback."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import faketree
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
    raise getattr(errors, kind)("what went wrong; the remedy", detail="line \\x1b[31m1\\nline 2")

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


# Nothing should be installed for a command that cannot work anyway.
WITHOUT_PACKAGES = """
from harness import debian
from harness.cli import program
debian.ensure = lambda: None
program.main()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def command(folder: Path, *arguments: str) -> list[str]:
    """The program with the tasks of `folder` instead of this project's."""
    return [sys.executable, "-m", "harness.cli.program", f"--search-root={folder}", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
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
    assert done.stderr == "line ?[31m1\nline 2\nerror: what went wrong; the remedy\n"
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
    assert "`inv --list` shows" in done.stderr or "`inv --help " in done.stderr
    assert "Traceback" not in done.stderr


def test_where_there_are_no_tasks(tmp_path: Path) -> None:
    done = run(tmp_path, "--list")
    assert done.returncode == 2
    assert done.stderr.endswith("run inv from the project's top folder\n")
    assert "Traceback" not in done.stderr


def test_paths_are_meant_from_where_it_was_called(tmp_path: Path) -> None:
    """Tasks and modules of another project in that folder are not imported."""
    (tmp_path / "tasks.py").write_text("raise SystemExit(99)\n")
    (tmp_path / "json.py").write_text("raise SystemExit(98)\n")
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness/__init__.py").write_text("raise SystemExit(97)\n")
    (tmp_path / "mine").mkdir()
    faketree.make_tree(tmp_path / "src")
    (tmp_path / "mine/1.patch").write_bytes(
        faketree.mail(faketree.diff(tmp_path, {}, {"sys/x.h": "x\n"}))
    )
    top = tmp_path / "a checkout"
    top.mkdir()
    for name in ("inv", "harness", "tasks.py", "requirements.lock", "pyproject.toml"):
        (top / name).symlink_to(PROJECT / name)
    (top / ".venv/bin").mkdir(parents=True)
    (top / ".venv/bin/python").symlink_to(sys.executable)
    for lock, digest in (("requirements.lock", "lock"), ("pyproject.toml", "project")):
        text = hashlib.sha256((PROJECT / lock).read_bytes()).hexdigest()
        (top / f".venv/{digest}.sha256").write_text(f"{text}\n")
    (top / ".venv/bin/python").unlink()
    (top / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (top / ".venv/bin/python").chmod(0o755)

    def go(*arguments: str, stdin: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HARNESS_CACHE": "kept", "HARNESS_RUNS": "ran"}
        source = os.open(stdin or "/dev/null", os.O_RDONLY)
        try:
            return subprocess.run(
                [top / "inv", *arguments],
                stdin=source,
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )
        finally:
            os.close(source)

    done = go("patch.apply", "src", "--series", "mine")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "src/sys/x.h").read_text() == "x\n"
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["applies", "locks"]
    done = go("patch.export", "--series", "mine", "--out", "out.mbox")
    assert (done.returncode, (tmp_path / "out.mbox").is_file()) == (0, True), done.stderr
    done = go("patch.check", "--series", "nowhere")
    assert (done.returncode, done.stderr[:24]) == (2, "error: nowhere: no such ")
    # Standard input, also where it is nothing that could be read.
    done = go("patch.check", "--series", "-", stdin=tmp_path / "mine/1.patch")
    assert (done.returncode, "stdin-" in done.stdout) == (0, True), done.stderr
    done = go("patch.check", "--series", "-", stdin=tmp_path / "mine")
    assert (done.returncode, "it was empty" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("verify --alone", "--alone needs --series"),
        ("verify --name x", "--name x belongs to --keep"),
        ("verify --series mine --alone --side-by-side", "leave out --side-by-side or --alone"),
        ("verify --stock --series mine", "leave out --series or --stock"),
        ("verify --stock --side-by-side", "leave out --stock or --side-by-side"),
        ("up --stock --series mine", "leave out --series or --stock"),
        ("fuzz --stock --series mine", "leave out --series or --stock"),
        ("build --stock --series mine", "leave out --series or --stock"),
        ("verify --series nowhere", "nowhere: no such series"),
        ("verify --release 77.0", "there is no manifest for it"),
        ("verify --keep --name ../x", "a name has 1 to 40 letters"),
        ("up --name ../x", "a name has 1 to 40 letters"),
        ("image.rm --release 15.1", "there is nothing of it in"),
        ("image.import --bundle nowhere.tar", "--bundle nowhere.tar: no such file"),
    ],
)
def test_wrong_use_is_a_line_without_a_table(tmp_path: Path, words: str, reason: str) -> None:
    environment = {**os.environ, "HARNESS_CACHE": "kept", "HARNESS_RUNS": "ran"}
    program = [sys.executable, "-c", WITHOUT_PACKAGES, *words.split()]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith("error: ")
    assert line.count(reason) == 1


def test_ctrl_c(folder: Path) -> None:
    with subprocess.Popen(
        command(folder, "sleeps"), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"asleep\n"
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=20)[1]
    assert child.returncode == 130
    assert said == b"error: interrupted\n"


@pytest.mark.parametrize(
    "arguments",
    [("floods",), ("floods", "--rich"), ("whispers",), ("--list",), ("--help", "floods")],
    ids=["print", "rich", "buffer", "list", "help"],
)
def test_a_reader_who_goes_is_no_error(folder: Path, arguments: tuple[str, ...]) -> None:
    """And no failed check either: rich would exit with 1."""
    near, far = os.pipe()
    with subprocess.Popen(
        command(folder, *arguments), cwd=folder, stdout=far, stderr=subprocess.PIPE
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
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(folder, "shows")]
    done = subprocess.run(
        shell, cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ("" if "2>&-" in closed else "working\n")
    assert ("a cell" in done.stdout) == (">&-" not in closed.split())


def test_a_kill_is_ctrl_c(folder: Path) -> None:
    with subprocess.Popen(
        command(folder, "sleeps"),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "asleep\n"
        child.terminate()
        assert child.communicate(timeout=60)[1] == "error: interrupted\n"
    assert child.returncode == 130


def test_a_full_disk_is_a_line(folder: Path) -> None:
    done = run(folder, "full")
    reason = "error: /some/file: No space left on device; free some room or choose another folder"
    assert (done.returncode, done.stderr) == (
        3, f"{reason} (HARNESS_CACHE, HARNESS_RUNS, TMPDIR)\n"
    )  # fmt: skip


@pytest.mark.parametrize("task", ["bug", "cut"])
def test_a_bug_is_not_hidden(folder: Path, task: str) -> None:
    """Nor does it pass for a check that failed: 1 is theirs."""
    done = run(folder, task)
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: a fault of the workbench itself (")
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
    ("arguments", "said"),
    [
        (
            ("verfy",),
            "error: inv verfy: there is no such task (did you mean verify?); `inv --list`",
        ),
        (("patch.chek",), "error: inv patch.chek: there is no such task (did you mean patch.check"),
        (
            ("--help", "nope"),
            "error: inv nope: there is no such task; `inv --list` shows the tasks",
        ),
        (("verify", "more"), "error: inv more: there is no such task; `inv --help verify` shows"),
        (("verify", "--serie", "x"), "error: inv verify: there is no option --serie (did you mean"),
        (("--frob",), "error: inv: there is no option --frob; `inv --list` shows the tasks"),
        (
            ("verify", "--release"),
            "error: inv verify: --release needs a value; `inv --help verify`",
        ),
        (("topic.new",), "error: inv topic.new: a word is missing: 'name'; `inv --help topic.new`"),
        (("verify", "--backend", "vbox"), "error: --backend vbox: there is no such backend; use"),
        (("up", "--cpu-vendor", "via"), "error: --cpu-vendor via: no such vendor; use intel or"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        command(PROJECT, *arguments),
        cwd=tmp_path,
        env={**os.environ, "HARNESS_RUNS": str(tmp_path), "HARNESS_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "--backend", "vbox"),
        ("probe", "--backend", "vbox"),
        ("test", "--only", "nonsense"),
        ("fuzz", "--calls", "many"),
    ],
)
def test_a_name_that_is_invalid(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        command(PROJECT, *arguments),
        cwd=PROJECT,
        env={**os.environ, "HARNESS_RUNS": str(tmp_path), "HARNESS_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
