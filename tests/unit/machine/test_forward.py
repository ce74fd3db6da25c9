"""Connecting to a guest's sshd in another process's network namespace, also with OpenSSH."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.machine import forward
from harness.machine.forward import Forward, fenced, unavailable

needs_namespaces = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "-")

_SERVER = """
import os, socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    print(os.getpid(), os.getppid(), flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"hello from inside\\n")
            connection.recv(1)
"""


@pytest.fixture
def inside() -> Iterator[Forward]:
    """A server in a network of its own, as an emulator is one."""
    command = fenced([sys.executable, "-I", "-S", "-c", _SERVER, "2222"])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        pid, parent = map(int, server.stdout.readline().split())
        assert (pid, parent) == (server.pid, os.getpid()), "it is the process that was started"
        yield Forward(2222, pid)
        server.kill()


@needs_namespaces
def test_only_who_enters_its_network_reaches_the_port(inside: Forward) -> None:
    with pytest.raises(ConnectionRefusedError):
        Forward(inside.port).connect(5)
    for _ in range(3):
        with inside.connect(10) as line:
            assert line.getpeername() == ("127.0.0.1", 2222)
            assert line.gettimeout() is None
            assert line.makefile().readline() == "hello from inside\n"
    assert (str(inside), str(Forward(41)), inside.pid in (None, 0)) == (
        "a private network",
        "127.0.0.1:41",
        False,
    )


@needs_namespaces
def test_a_port_where_nobody_listens(inside: Forward) -> None:
    with pytest.raises(ConnectionRefusedError, match="Connection refused"):
        Forward(2223, inside.pid).connect(10)


def test_one_that_has_ended_is_not_looked_for_on_this_machine() -> None:
    """Its number may be that of a process whose network is this machine's."""
    with socket.create_server(("127.0.0.1", 0)) as here:
        port = here.getsockname()[1]
        Forward(port).connect(5).close()
        for pid in (0, os.getpid()):
            with pytest.raises(ConnectionRefusedError, match="the emulator has ended"):
                Forward(port, pid).connect(10)


def test_nothing_is_left_open(inside: Forward) -> None:
    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = held()
    for port in (2222, 2223):
        try:
            Forward(port, inside.pid).connect(10).close()
        except ConnectionRefusedError:
            assert port == 2223
    assert held() == before


@needs_namespaces
@pytest.mark.skipif(shutil.which("ssh") is None, reason="OpenSSH is not installed")
def test_openssh_gets_there_whatever_the_names_and_the_shell(
    inside: Forward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / 'it\'s "a" $HOME %h `touch x` \n;'
    folder.mkdir()
    shutil.copy(forward.__file__.replace("forward", "enter_network"), folder / "entry.py")
    monkeypatch.setattr(forward, "_ENTER", folder / "entry.py")
    options, environment = inside.for_openssh()
    words = ["ssh", "-F", "none", "-p", "2222", "-v"]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    done = subprocess.run(
        [*words, "--", "root@127.0.0.1", "true"],
        cwd=tmp_path,
        env={**os.environ, "SHELL": "/bin/false", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # The server is no sshd: what counts is that its words arrived.
    assert "hello from inside" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert Forward(22).for_openssh() == ({}, {})


def test_where_it_is_forbidden_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = tmp_path / "entry.py"
    refusing.write_text("import sys\nsys.exit('unshare: Operation not permitted')\n")
    monkeypatch.setattr(forward, "_ENTER", refusing)
    asked = forward.unavailable.__wrapped__
    assert asked() == "this machine forbids it (unshare, Operation not permitted)"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    assert "cannot be run" in asked()
