"""The remote shell, against a real sshd: what it runs, carries and quotes."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from sshd import Sshd

from harness import limits
from harness.deadline import Deadline
from harness.errors import CannotError, GuestPanic, WaitTimeout
from harness.guest.ssh import CommandFailed, Ssh, succeeded
from harness.guest.ssh_exec import TooMuchOutput

TEN_MB = 10 * 1000 * 1000
ODD = ["a b", "'", '"', "new\nline", "*", "$HOME", "", "\\", "`id`", "-n", "~", "!!", "é", "a;b"]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="module")
def ssh(sshd: Sshd) -> Iterator[Ssh]:
    with Ssh(sshd.address()) as connection:
        connection.connect(Deadline.after(20))
        yield connection


def soon(limit_s: float = 30) -> Deadline:
    return Deadline.after(limit_s)


def test_output_errors_and_exit_code(ssh: Ssh) -> None:
    result = ssh.run(["sh", "-c", "echo out; echo err >&2; exit 7"], soon())
    assert (result.exit_code, result.stdout, result.stderr) == (7, "out\n", "err\n")
    assert not result.ok
    with pytest.raises(CommandFailed, match=r"exited with 7: err") as caught:
        succeeded(result)
    assert "--- stdout\nout" in caught.value.detail
    assert "--- stderr\nerr" in caught.value.detail


def test_must_gives_output_or_fails(ssh: Ssh) -> None:
    assert ssh.must(["echo", "yes"], soon()) == "yes\n"
    with pytest.raises(CommandFailed, match="exited with 1"):
        ssh.must(["false"], soon())


def test_a_signal_is_a_negative_exit_code(ssh: Ssh) -> None:
    assert ssh.run(["sh", "-c", "kill -9 $$"], soon()).exit_code < 0
    assert ssh.run(["true"], soon()).ok


def test_odd_arguments_arrive_as_they_are(ssh: Ssh) -> None:
    said = ssh.must(["sh", "-c", 'for a do printf "%s\\0" "$a"; done', "sh", *ODD], soon())
    assert said.split("\0") == [*ODD, ""]


def test_a_script_gets_odd_arguments_too(ssh: Ssh) -> None:
    result = ssh.script('for a do printf "%s\\0" "$a"; done; exit 3', soon(), ["-e", *ODD])
    assert result.stdout.split("\0") == ["-e", *ODD, ""]
    assert result.exit_code == 3


def test_ten_megabytes_both_ways_at_once(ssh: Ssh) -> None:
    data = os.urandom(1000) * (TEN_MB // 1000)
    # tee fills both outputs while it still reads its input: reading one after the other hangs.
    command = ["sh", "-c", "tee /dev/stderr | sha256sum >/dev/null; echo done"]
    result = ssh.run(command, soon(60), stdin=data)
    assert result.ok
    assert result.stdout == "done\n"
    assert len(result.stderr) > TEN_MB // 2
    lines = ssh.run(["seq", "1500000"], soon(60)).stdout
    assert len(lines) > TEN_MB
    assert lines.endswith("\n1500000\n")


def test_output_behind_the_exit_status_is_not_lost(ssh: Ssh) -> None:
    # The shell ends at once; its child, which holds the same pipe, goes on for a moment.
    command = ["sh", "-c", "(sleep 0.5; seq 100000) & exit 5"]
    result = ssh.run(command, soon())
    assert result.exit_code == 5
    assert result.stdout.endswith("\n100000\n")


def test_a_daemon_left_behind_does_not_hold_us(ssh: Ssh) -> None:
    result = ssh.run(["sh", "-c", "sleep 12 & echo up"], soon(10))
    assert result.stdout == "up\n"
    assert result.ok


def test_a_chatty_daemon_left_behind_ends_at_the_deadline(ssh: Ssh) -> None:
    command = ["sh", "-c", "(for i in $(seq 30); do echo x; sleep 0.1; done) & exit 0"]
    result = ssh.run(command, soon(1.5))
    assert result.ok
    assert result.stdout.startswith("x\n")


def test_a_command_that_does_not_read_its_input(ssh: Ssh) -> None:
    result = ssh.run(["sh", "-c", "head -c 1; exit 4"], soon(), stdin=b"y" * TEN_MB)
    assert (result.exit_code, result.stdout) == (4, "y")
    assert ssh.run(["true"], soon(), stdin=b"y" * TEN_MB).exit_code == 0


def test_the_deadline_ends_a_command_and_shows_what_it_said(ssh: Ssh) -> None:
    start = time.monotonic()
    with pytest.raises(WaitTimeout, match=r"did not end within 1 s") as caught:
        ssh.run(["sh", "-c", "echo so far; sleep 20"], soon(1))
    assert "so far" in caught.value.detail
    assert time.monotonic() - start < 5
    assert ssh.must(["echo", "on"], soon()) == "on\n"


def test_the_deadline_ends_a_command_that_never_stops_talking(ssh: Ssh) -> None:
    start = time.monotonic()
    with pytest.raises(WaitTimeout) as caught:
        ssh.run(["sh", "-c", "while echo y; do sleep 0.001; done"], soon(1))
    assert time.monotonic() - start < 8
    assert caught.value.detail.startswith("y")


def test_output_without_end_is_ended_and_not_kept(
    ssh: Ssh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that answers any command with zeros fills neither the memory nor the disk."""
    monkeypatch.setattr(limits, "COMMAND_OUTPUT_BYTES", 1 << 20)
    for command in (["cat", "/dev/zero"], ["sh", "-c", "cat /dev/zero >&2"]):
        fresh = Ssh(ssh.address)
        fresh.connect(soon())
        with pytest.raises(TooMuchOutput, match=r"printed more than .* and was ended"):
            fresh.run(command, soon())
        fresh.close()
    monkeypatch.setattr(shutil, "disk_usage", lambda _p: SimpleNamespace(free=600 << 20))
    with pytest.raises(TooMuchOutput):
        ssh.get("/dev/zero", tmp_path / "zero", soon(60))
    assert list(tmp_path.iterdir()) == []
    assert ssh.run(["true"], soon()).ok


def test_put_is_whole_and_has_its_mode(ssh: Ssh, tmp_path: Path) -> None:
    local, far, back = tmp_path / "local", tmp_path / "it's far", tmp_path / "back"
    data = bytes(range(256)) * 5000
    local.write_bytes(data)
    far.write_bytes(b"old")
    far.chmod(0o444)
    ssh.put(local, str(far), soon(), mode=0o755)
    assert far.read_bytes() == data
    assert stat.S_IMODE(far.stat().st_mode) == 0o755
    ssh.get(str(far), back, soon())
    assert back.read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "it's far", "local"]


def test_put_and_get_say_what_failed(ssh: Ssh, tmp_path: Path) -> None:
    local = tmp_path / "local"
    with pytest.raises(CannotError, match="cannot be read"):
        ssh.put(local, str(tmp_path / "far"), soon())
    local.write_bytes(b"new")
    with pytest.raises(CommandFailed, match=r"cannot copy local .*nowhere"):
        ssh.put(local, str(tmp_path / "nowhere" / "far"), soon())
    with pytest.raises(CommandFailed, match=r"cannot read .*nothing"):
        ssh.get(str(tmp_path / "nothing"), local, soon())
    assert local.read_bytes() == b"new"


def test_a_watch_that_raises_ends_a_command_at_once(sshd: Sshd) -> None:
    alive = True

    def watch() -> None:
        if not alive:
            raise GuestPanic("the guest panicked: test")

    with Ssh(sshd.address(), watch) as connection:
        connection.connect(soon())
        alive = False
        start = time.monotonic()
        with pytest.raises(GuestPanic):
            connection.run(["sleep", "20"], soon())
        assert time.monotonic() - start < 3
