"""The program that runs commands in the guest, over a real sshd: the same answers as without it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sshd import Sshd

from harness import limits
from harness.deadline import Deadline
from harness.errors import GuestError, GuestPanic, WaitTimeout
from harness.guest import runner
from harness.guest.ssh import CommandFailed, Ssh
from harness.guest.ssh_exec import TooMuchOutput

ODD = ["a b", "'", '"', "new\nline", "*", "$HOME", "", "\\", "`id`", "-n", "~", "!!", "é", "a;b"]


def soon(limit_s: float = 30) -> Deadline:
    return Deadline.after(limit_s)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled for this machine."""
    compiler = shutil.which("cc")
    assert compiler
    made = tmp_path_factory.mktemp("a folder") / "runner"
    flags = ["-D_GNU_SOURCE", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", made, runner.SOURCE], check=True)
    return made


@pytest.fixture
def ssh(sshd: Sshd, program: Path) -> Iterator[Ssh]:
    with Ssh(sshd.address(), runner=str(program)) as connection:
        connection.connect(soon())
        yield connection
        # It has run all of them: no command needed a channel of its own.
        assert connection.runner == str(program)


def running(program: Path) -> list[psutil.Process]:
    """The processes of the program; psutil splits a command line with a space in it."""
    return [it for it in psutil.process_iter(["exe"]) if it.info["exe"] == str(program)]


def test_a_command_is_answered_as_over_a_channel_of_its_own(ssh: Ssh, sshd: Sshd) -> None:
    commands = (
        ["sh", "-c", "echo out; echo err >&2; exit 7"],
        ["printf", "%s|", *ODD],
        ["true"],
        ["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x; echo end >&2"],
        ["pwd"],
        ["sh", "-c", "echo $HOME $PATH $USER $SHELL"],
        ["sh", "-c", "kill -0 $$ && ps -o sid= -p $$ | grep -c $$"],
    )
    with Ssh(sshd.address()) as plain:
        plain.connect(soon())
        for command in commands:
            ours, theirs = (it.run(command, soon()) for it in (ssh, plain))
            assert (ours.exit_code, ours.stdout, ours.stderr) == (
                theirs.exit_code,
                theirs.stdout,
                theirs.stderr,
            )
            assert ours.command == theirs.command


def test_one_program_runs_all_commands_of_a_connection(ssh: Ssh, program: Path) -> None:
    parents = {ssh.must(["sh", "-c", "echo $PPID"], soon()) for _ in range(5)}
    (process,) = running(program)
    assert parents == {f"{process.pid}\n"}
    ssh.close()
    process.wait(20)


def test_standard_input_arrives_whole_and_its_end_too(ssh: Ssh) -> None:
    data = bytes(range(256)) * 4000
    assert ssh.must(["wc", "-c"], soon(), stdin=data).split() == ["1024000"]
    assert ssh.run(["cat"], soon()).stdout == ""
    # One that reads nothing of it, and one that reads a little.
    assert ssh.run(["true"], soon(), stdin=data).ok
    assert ssh.run(["head", "-c", "3"], soon(), stdin=b"abcdef" * 90000).stdout == "abc"
    assert ssh.script('echo "$1" $#', soon(), ["-x y", "z"]).stdout == "-x y 2\n"


def test_a_file_is_put_whole(ssh: Ssh, tmp_path: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    source.write_bytes(bytes(range(256)) * 3000)
    ssh.put(source, str(target), soon(), 0o751)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o751
    assert sorted(it.name for it in tmp_path.iterdir()) == ["from", "to"]
    with pytest.raises(CommandFailed, match=r"cannot copy from to /no/such.*: No such file"):
        ssh.put(source, "/no/such/folder/file", soon())
    (tmp_path / "folder").mkdir()
    with pytest.raises(CommandFailed, match=r"cannot copy from to .*irectory"):
        ssh.put(source, str(tmp_path / "folder"), soon())
    assert sorted(it.name for it in tmp_path.iterdir()) == ["folder", "from", "to"]
    with pytest.raises(CommandFailed, match="cannot copy"):
        ssh.put(source, f"{tmp_path}/{'n' * 300}", soon())
    with pytest.raises(CommandFailed, match="cannot copy"):
        ssh.put(source, f"{tmp_path}/{'n/' * 600}", soon())
    assert ssh.run(["true"], soon()).ok


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGPIPE, signal.SIGTERM])
def test_a_signal_is_a_negative_exit_code(ssh: Ssh, number: signal.Signals) -> None:
    assert ssh.run(["sh", "-c", f"kill -{number.value} $$"], soon()).exit_code == -number


def test_a_program_that_is_not_there(ssh: Ssh, tmp_path: Path) -> None:
    result = ssh.run(["/no/such/program", "x"], soon())
    assert result.exit_code == 127
    assert "/no/such/program: not found" in result.stderr
    (tmp_path / "plain").write_text("")
    assert ssh.run([str(tmp_path / "plain")], soon()).exit_code == 126


def test_what_a_command_left_behind_is_not_waited_for(ssh: Ssh) -> None:
    result = ssh.run(["sh", "-c", "sleep 60 & echo $!"], soon(20))
    assert result.ok
    psutil.Process(int(result.stdout)).kill()
    assert ssh.must(["echo", "next"], soon()) == "next\n"


def test_a_command_that_takes_too_long_spoils_no_later_one(ssh: Ssh) -> None:
    with pytest.raises(WaitTimeout, match="did not end within 1 s") as caught:
        ssh.run(["sh", "-c", "echo so far; exec sleep 30"], soon(1))
    assert "so far" in caught.value.detail
    assert ssh.must(["echo", "next"], soon()) == "next\n"


def test_a_panic_during_the_wait_ends_it(sshd: Sshd, program: Path) -> None:
    panicked = threading.Event()

    def watch() -> None:
        if panicked.is_set():
            raise GuestPanic("panic: seen")

    with Ssh(sshd.address(), watch, runner=str(program)) as ssh:
        ssh.connect(soon())
        ssh.must(["true"], soon())
        threading.Timer(0.5, panicked.set).start()
        with pytest.raises(GuestPanic, match="seen"):
            ssh.run(["sleep", "30"], soon())


def test_too_much_output_ends_the_command(ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMMAND_OUTPUT_BYTES", 100_000)
    with pytest.raises(TooMuchOutput, match="printed more than"):
        ssh.run(["sh", "-c", "while :; do echo many words again and again; done"], soon())
    assert ssh.must(["echo", "next"], soon()) == "next\n"


def test_it_is_started_again_after_it_was_killed(ssh: Ssh, program: Path) -> None:
    ssh.must(["true"], soon())
    (process,) = running(program)
    with pytest.raises(GuestError, match="the program that runs commands in the guest ended"):
        ssh.run(["sh", "-c", f"kill -9 {process.pid}; sleep 5"], soon())
    assert ssh.must(["echo", "next"], soon()) == "next\n"
    assert running(program) != [process]


@pytest.mark.parametrize("kind", ["missing", "of other words", "silent"])
def test_without_a_good_one_each_command_has_its_own_channel(
    sshd: Sshd, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "runner"
    if kind != "missing":
        place.write_text("#!/bin/sh\n" + ("exit 0" if kind == "silent" else "echo Good morning"))
        place.chmod(0o755)
    with Ssh(sshd.address(), runner=str(place)) as ssh:
        ssh.connect(soon())
        assert ssh.must(["echo", "yes"], soon()) == "yes\n"
        assert ssh.runner == ""


def test_it_is_sent_and_started_by_one_command(
    sshd: Sshd, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a new folder" / "runner"
    umask = "umask"
    with Ssh(sshd.address()) as plain:
        plain.connect(soon())
        wanted = plain.must(["sh", "-c", umask], soon())
    opened: list[str] = []
    opens = runner.Runner._open

    def counted(self: runner.Runner, command: str, deadline: Deadline) -> None:
        opened.append(command)
        opens(self, command, deadline)

    monkeypatch.setattr(runner.Runner, "_open", counted)
    for _ in range(2):
        with Ssh(sshd.address(), runner=str(place), runner_source=program) as ssh:
            ssh.connect(soon())
            assert ssh.must(["sh", "-c", umask], soon()) == wanted
            assert ssh.runner == str(place)
    assert len(opened) == 2
    assert place.read_bytes() == program.read_bytes()
    assert [path.name for path in place.parent.iterdir()] == ["runner"]


def test_one_that_cannot_be_sent_is_done_without(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    source = tmp_path / "source"
    source.write_text("x")
    for place, given in (
        (tmp_path / "file" / "runner", source),
        (tmp_path / "runner", tmp_path / "nothing"),
    ):
        with Ssh(sshd.address(), runner=str(place), runner_source=given) as ssh:
            ssh.connect(soon())
            assert ssh.must(["echo", "yes"], soon()) == "yes\n"
            assert ssh.runner == ""


def test_two_at_once_do_not_wait_for_each_other(ssh: Ssh, tmp_path: Path) -> None:
    ssh.must(["true"], soon())
    go_on = tmp_path / "go-on"
    answers: list[int] = []
    script = f"while ! test -e {go_on}; do sleep 0.05; done; exit 9"
    thread = threading.Thread(
        target=lambda: answers.append(ssh.run(["sh", "-c", script], soon()).exit_code)
    )
    thread.start()
    assert ssh.must(["touch", str(go_on)], soon()) == ""
    thread.join()
    assert answers == [9]


@pytest.mark.parametrize("answer", [b"o 99999999\n", b"o -1\n", b"o many\n", b"z 1\n", b"y" * 99])
def test_nonsense_is_refused(answer: bytes) -> None:
    class Channel:
        closed = False

        def recv(self, _size: int) -> bytes:
            return answer

    talker = runner.Runner(None, lambda: None)  # type: ignore[arg-type]
    talker._channel = Channel()  # type: ignore[assignment]
    with pytest.raises(runner.RunnerMissing, match="answers"):
        talker.answer(soon())
