"""Connecting over SSH: a refusal is distinguished from waiting, and an end from hanging."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from paramiko import AuthenticationException
from sshd import Sshd

from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, MachineDied, WaitTimeout
from harness.guest import ssh_connect, ssh_reason
from harness.guest.keys import make_key
from harness.guest.ssh import Ssh
from harness.guest.ssh_connect import Address, SshRefused
from harness.machine.base import free_port


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd") as server:
        yield server


@pytest.fixture
def silent(sshd: Sshd) -> Iterator[Address]:
    """A server that accepts connections and sends nothing, as QEMU does before the guest is up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Address(listener.getsockname()[1], sshd.key, sshd.host_key)


def test_a_wrong_key_is_refused_at_once(sshd: Sshd, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_key(other, "other")
    start = time.monotonic()
    with pytest.raises(SshRefused, match=f"denied our key for {sshd.user}.*import"):
        Ssh(sshd.address(key=other)).connect(Deadline.after(60))
    assert time.monotonic() - start < 15


def test_another_host_key_is_refused_at_once_and_both_are_named(sshd: Sshd, tmp_path: Path) -> None:
    pinned = make_key(tmp_path / "pinned", "")
    prints = []
    for line in (sshd.host_key, pinned):
        raised = subprocess.run(
            ["ssh-keygen", "-lf", "-"], input=line, capture_output=True, text=True, check=True
        )
        prints.append(raised.stdout.split()[1])
    start = time.monotonic()
    with pytest.raises(SshRefused) as caught:
        Ssh(sshd.address(host_key=pinned)).connect(Deadline.after(60))
    assert time.monotonic() - start < 15
    assert all(text in caught.value.message for text in (*prints, str(sshd.port)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"KexAlgorithms": "sntrup761x25519-sha512@openssh.com"}, "have no common algorithm"),
        ({"AuthenticationMethods": "publickey,publickey"}, "two-step authentication"),
    ],
)
def test_what_waiting_cannot_change_is_refused_at_once(
    tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    with Sshd(tmp_path / "sshd", more=settings) as server:
        start = time.monotonic()
        with pytest.raises(SshRefused, match=said) as caught:
            Ssh(server.address()).connect(Deadline.after(60))
        assert time.monotonic() - start < 20
        assert "import it again" in caught.value.message


@pytest.mark.parametrize(
    "algorithm", ["rsa-sha2-512", "ecdsa-sha2-nistp256", "ssh-ed25519-cert-v01@openssh.com"]
)
def test_a_server_without_a_host_key_to_show_is_not_waited_for(
    tmp_path: Path, algorithm: str
) -> None:
    """Its settings exclude its only host key, so it closes every connection."""
    with Sshd(tmp_path / "sshd", more={"HostKeyAlgorithms": algorithm}) as server:
        with pytest.raises(SshRefused, match="HostKeyAlgorithms allow none of its host keys"):
            Ssh(server.address()).connect(Deadline.after(60))
        log = (tmp_path / "sshd" / "log").read_text()
        assert log.count("No supported key exchange algorithms") == ssh_reason.HANG_UPS


def test_a_host_key_of_another_kind_is_called_so(tmp_path: Path) -> None:
    """The pinned key is the server's own, and its settings have it show another one."""
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", other], check=True)
    more = {"HostKeyAlgorithms": f"ecdsa-sha2-nistp256\nHostKey {other}"}
    with (
        Sshd(tmp_path / "sshd", more=more) as server,
        pytest.raises(SshRefused, match=r"type ecdsa-sha2-nistp256.* is ssh-ed25519; take"),
    ):
        Ssh(server.address()).connect(Deadline.after(60))


def test_a_server_that_hangs_up_a_few_times_is_waited_for(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that goes down and comes back: it fails fewer times in a row than count as a
    refusal.
    """
    real = ssh_connect._connect_once
    # False: greeted, then cut off.  True: cut off without a greeting, which starts the count again.
    tries = iter([False, False, True, False, False])

    def cut_off(address: Address, client: Any, *arguments: Any) -> None:
        silent = next(tries, None)
        if silent is None:
            return real(address, client, *arguments)
        version = "" if silent else "SSH-2.0-OpenSSH_9.9"
        transport = SimpleNamespace(remote_version=version, host_key_type=None)
        monkeypatch.setattr(client, "get_transport", lambda: transport)
        raise EOFError

    monkeypatch.setattr(ssh_connect, "_connect_once", cut_off)
    with Ssh(sshd.address()) as ssh:
        ssh.connect(Deadline.after(60))
        assert ssh.run(["true"], Deadline.after(20)).ok


def test_nobody_listens(sshd: Sshd) -> None:
    address = Address(free_port(), sshd.key, sshd.host_key)
    start = time.monotonic()
    with pytest.raises(WaitTimeout, match=r"within 1 s; the last attempt: connection refused"):
        Ssh(address).connect(Deadline.after(1))
    assert time.monotonic() - start < 3


def test_a_key_that_cannot_be_read_is_no_reason_to_wait(sshd: Sshd, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(CannotError, match=r"absent: .*import"):
        Ssh(sshd.address(key=tmp_path / "absent")).connect(Deadline.after(30))
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(CannotError, match=r"junk: this is not a private key"):
        Ssh(sshd.address(key=tmp_path / "junk")).connect(Deadline.after(30))
    assert time.monotonic() - start < 5


def test_silence_is_called_so(silent: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_connect, "_FIRST_TRY_S", 0.5)
    with pytest.raises(WaitTimeout, match="no SSH banner came"):
        Ssh(silent).connect(Deadline.after(1.5))


def test_a_handshake_that_stops_is_not_called_silence(silent: Address) -> None:
    """Seen in Bochs: sshd greets, and its key exchange never ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            with contextlib.suppress(OSError):
                far, _ = listener.accept()
                with far:
                    far.sendall(b"SSH-2.0-OpenSSH_10.0\r\n")
                    while far.recv(4096):
                        pass

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        address = replace(silent, port=listener.getsockname()[1])
        with pytest.raises(WaitTimeout, match="the last attempt: the handshake did not end"):
            Ssh(address).connect(Deadline.after(2), listening=True)
        thread.join(5)


@pytest.mark.parametrize(("listening", "tries"), [(False, 2), (True, 1)])
def test_a_slow_guest_is_not_asked_again_while_it_works(
    silent: Address, monkeypatch: pytest.MonkeyPatch, listening: bool, tries: int
) -> None:
    """Each try that is given up costs an emulated processor a handshake more."""
    monkeypatch.setattr(ssh_connect, "_FIRST_TRY_S", 0.4)
    genuine = ssh_connect._connect_once
    made = []

    def counted(*arguments: Any) -> None:
        made.append(arguments)
        genuine(*arguments)

    monkeypatch.setattr(ssh_connect, "_connect_once", counted)
    with pytest.raises(WaitTimeout):
        Ssh(silent).connect(Deadline.after(1), listening=listening)
    assert len(made) == tries


def test_a_machine_that_dies_ends_a_silent_try_at_once(silent: Address) -> None:
    died = threading.Event()

    def watch() -> None:
        if died.is_set():
            raise MachineDied("the emulator was killed by SIGKILL")

    timer = threading.Timer(0.5, died.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(MachineDied, match="SIGKILL"):
        Ssh(silent, watch).connect(Deadline.after(60))
    assert time.monotonic() - start < 4
    timer.join()


def test_a_server_that_comes_late_is_waited_for(sshd: Sshd) -> None:
    sshd.stop()
    timer = threading.Timer(0.7, sshd.start)
    timer.start()
    with Ssh(sshd.address()) as ssh:
        ssh.connect(Deadline.after(30))
        assert ssh.run(["true"], Deadline.after(10)).ok
    timer.join()


@pytest.mark.parametrize(
    "words", ["Authentication timeout.", "Authentication failed: transport shut down or saw EOF"]
)
def test_an_authentication_that_breaks_off_is_tried_again(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """A guest that goes down for a reboot ends the handshake; paramiko calls that a refusal."""
    genuine = ssh_connect._connect_once
    tries = []

    def breaks_off(*arguments: Any) -> None:
        tries.append(arguments)
        if len(tries) == 1:
            raise AuthenticationException(words)
        genuine(*arguments)

    monkeypatch.setattr(ssh_connect, "_connect_once", breaks_off)
    with Ssh(sshd.address()) as ssh:
        ssh.connect(Deadline.after(20))
        assert ssh.connected
    assert len(tries) == 2


def test_a_server_killed_during_a_command_is_an_error_at_once(sshd: Sshd) -> None:
    with Ssh(sshd.address()) as ssh:
        ssh.connect(Deadline.after(20))
        threading.Timer(0.5, sshd.stop).start()
        start = time.monotonic()
        with pytest.raises(GuestError, match="connection broke") as caught:
            ssh.run(["sh", "-c", "echo before; sleep 30"], Deadline.after(30))
        assert not isinstance(caught.value, WaitTimeout)
        assert "before" in caught.value.detail
        assert time.monotonic() - start < 5
        assert not ssh.connected
        with pytest.raises(GuestError, match="is closed"):
            ssh.run(["true"], Deadline.after(5))


@pytest.fixture
def frozen(sshd: Sshd) -> Iterator[Ssh]:
    """A connection whose other end has stopped, as a hung kernel does: it is up and is silent."""
    with Ssh(sshd.address()) as ssh:
        ssh.connect(Deadline.after(20))
        sessions = sshd.sessions()
        for session in sessions:
            session.suspend()
        yield ssh
        for session in sessions:
            try:
                with contextlib.suppress(psutil.NoSuchProcess):
                    session.kill()
            except psutil.NoSuchProcess:
                continue


@pytest.mark.parametrize("stdin", [b"", b"x" * 30_000_000], ids=["no input", "much input"])
def test_a_guest_that_hangs_ends_at_the_deadline(frozen: Ssh, stdin: bytes) -> None:
    start = time.monotonic()
    with pytest.raises(WaitTimeout, match="did not end within 1 s"):
        frozen.run(["cat"], Deadline.after(1), stdin=stdin)
    assert time.monotonic() - start < 6


def test_a_guest_that_hangs_while_it_is_fed_ends_at_the_deadline(sshd: Sshd) -> None:
    with Ssh(sshd.address()) as ssh:
        ssh.connect(Deadline.after(20))

        def suspend() -> None:
            for one in sshd.sessions():
                one.suspend()

        timer = threading.Timer(0.3, suspend)
        timer.start()
        start = time.monotonic()
        with pytest.raises(WaitTimeout):
            ssh.run(["sh", "-c", "sleep 1; cat >/dev/null"], Deadline.after(2), stdin=b"x" * 10**8)
        assert time.monotonic() - start < 8
        timer.join()
        for one in sshd.sessions():
            one.kill()


def test_the_users_own_keys_and_agent_are_left_alone(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that would be let in lies in ~/.ssh, and an agent is there: neither is asked."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id_ed25519").write_bytes(sshd.key.read_bytes())
    other = tmp_path / "other"
    make_key(other, "other")
    asked = []
    agent = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)
    agent.bind("agent")
    agent.listen()
    thread = threading.Thread(target=lambda: asked.append(agent.accept()), daemon=True)
    thread.start()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    with pytest.raises(SshRefused):
        Ssh(sshd.address(key=other)).connect(Deadline.after(20))
    assert asked == []
    agent.close()


def test_no_traceback_of_paramikos_reaches_standard_error(silent: Address, sshd: Sshd) -> None:
    """Its logger would print one for each try that meets a guest which is not up."""
    program = (
        "import sys, harness.guest.ssh_connect as s\n"
        "from pathlib import Path\n"
        "from harness.deadline import Deadline\n"
        "from harness.errors import WaitTimeout\n"
        "from harness.guest.ssh import Ssh\n"
        "s._FIRST_TRY_S = 0.4\n"
        "ssh = Ssh(s.Address(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))\n"
        "try:\n ssh.connect(Deadline.after(1))\n"
        "except WaitTimeout: print('waited')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(silent.port), str(sshd.key), sshd.host_key],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("waited\n", "")


def test_connections_leave_neither_threads_nor_descriptors(sshd: Sshd) -> None:
    def held() -> tuple[int, int]:
        return psutil.Process().num_fds(), threading.active_count()

    with Ssh(sshd.address()) as ssh:
        ssh.connect(Deadline.after(20))
        ssh.run(["true"], Deadline.after(10))
    time.sleep(0.2)
    before = held()
    for _ in range(4):
        with Ssh(sshd.address()) as ssh:
            ssh.connect(Deadline.after(20))
            ssh.run(["true"], Deadline.after(10))
            ssh.connect(Deadline.after(20))
    until = time.monotonic() + 5
    while held() > before and time.monotonic() < until:
        time.sleep(0.1)
    assert held() <= before


def test_the_private_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        make_key(tmp_path / "key", "comment")
    finally:
        os.umask(old)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("leap_s", [86400.0, -86400.0])
def test_a_clock_that_jumps_changes_nothing(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch, leap_s: float
) -> None:
    """The host's clock is set during the wait: our limits use the monotonic clock."""
    real, calls = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + leap_s * (next(calls) % 7 > 2))
    with Ssh(sshd.address()) as ssh:
        ssh.connect(Deadline.after(60))
        assert ssh.run(["echo", "here"], Deadline.after(60)).stdout == "here\n"
        with pytest.raises(WaitTimeout, match="did not end within 1 s"):
            ssh.run(["sleep", "30"], Deadline.after(1))
