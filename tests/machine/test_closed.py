"""Closed by default: other users have no way into a guest, and a guest has no way out."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backends
import paramiko
import psutil
import pytest
from backends import BACKENDS, QEMU
from test_machines import Made, boot, make, sector

from harness.deadline import Deadline
from harness.errors import GuestError
from harness.files import PROJECT
from harness.guest.freebsd import Access, Guest
from harness.guest.keys import make_key
from harness.guest.ssh_connect import SshRefused
from harness.machine import Drive, Machine, Spec, base, enter_network
from harness.machine.forward import unavailable

__all__ = ["make", "sector"]

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
needs_namespaces = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "-")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another local user")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, as pytest's own cannot be."""
    folder = Path(tempfile.mkdtemp(prefix="vmm-workbench-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def head(path: Path) -> str:
    """The output of another user's attempt to read a file's first byte."""
    command = [*AS_NOBODY, "head", "-c1", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def listening(machine: Machine) -> list[tuple[str, int]]:
    """The addresses at which an emulator listens: TCP, UDP, paths of sockets."""
    assert machine.pid is not None
    found = []
    for it in psutil.Process(machine.pid).net_connections(kind="all"):
        if it.family in (socket.AF_INET, socket.AF_INET6):
            if it.status == psutil.CONN_LISTEN or it.type == socket.SOCK_DGRAM:
                found.append((it.laddr.ip, it.laddr.port))
        elif it.laddr:
            found.append((str(it.laddr), 0))
    return found


@pytest.fixture
def shared_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that forbids network namespaces, so that the port is on its own loopback."""
    monkeypatch.setattr(base, "unavailable", lambda: "forbidden for this test")


def network_of(pid: int | None) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


@needs_namespaces
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_port_on_this_machine(make: Made, backend: str) -> None:
    machine = make(backend, ssh=True)
    boot(machine)
    assert network_of(machine.pid) != network_of(os.getpid())
    assert listening(machine) == []
    assert machine.forward is not None
    with machine.forward.connect(30) as connection:
        assert connection.getpeername() == ("127.0.0.1", machine.ssh_port)
    closed = make(backend, run="closed")
    boot(closed)
    assert listening(closed) == []
    machine.stop(Deadline.after(10))
    with pytest.raises(ConnectionRefusedError):
        machine.forward.connect(30)


@pytest.mark.usefixtures("shared_network")
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_port_on_loopback_where_namespaces_are_forbidden(make: Made, backend: str) -> None:
    machine = make(backend, ssh=True)
    boot(machine)
    assert network_of(machine.pid) == network_of(os.getpid())
    assert listening(machine) == [("127.0.0.1", machine.ssh_port)]


def test_qemu_runs_in_its_sandbox_and_gains_no_rights(make: Made) -> None:
    machine = make(QEMU, ssh=True)
    boot(machine)
    status = Path(f"/proc/{machine.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Seccomp"] == "2"
    assert fields["NoNewPrivs"] == "1"


@root_only
@pytest.mark.parametrize("backend", BACKENDS)
def test_another_user_finds_the_machine_s_files_and_lines_closed(
    make: Made, backend: str, open_folder: Path
) -> None:
    (open_folder / "open").write_text("x")
    assert head(open_folder / "open") == "", "what is open can be read, so the test can tell"
    machine = make(backend, run=str(open_folder / "run"), ssh=True)
    boot(machine)
    wanted = [path for path in machine.spec.run_dir.iterdir() if not path.is_symlink()]
    fds = Path(f"/proc/{machine.pid}/fd")
    lines = {os.readlink(fd) for fd in fds.iterdir()}
    wanted += [Path(line) for line in lines if line.startswith("/dev/pts/")]
    assert len(wanted) > (3 if backend == "bochs" else 2)
    for path in (*wanted, fds / "0"):
        assert "Permission denied" in head(path), path


_BOOT_AS = """
import sys
import tempfile
from pathlib import Path
from harness import machine
from harness.deadline import Deadline
from harness.machine.forward import unavailable
# This Python may be in a folder that the user cannot enter.
sys.executable = "/usr/bin/python3"
spec = machine.Spec(Path(sys.argv[2]), machine.Drive(Path(sys.argv[3])), 32 << 20)
with machine.make(sys.argv[1], spec) as virtual:
    virtual.start(Deadline.after(120))
    virtual.console.talk(0).expect_any(["sector"], "greeting", Deadline.after(60))
    virtual.forward.connect(10).close()
    print("greeted", virtual.spec.run_dir.stat().st_uid, unavailable() or virtual.private)
"""


@root_only
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_machine_needs_root(backend: str, sector: Path, open_folder: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(open_folder), "PYTHONDONTWRITEBYTECODE": "1"}
    python = [*AS_NOBODY, "--no-new-privs", sys.executable, "-c"]
    run = functools.partial(
        subprocess.run, cwd=PROJECT, env=env, capture_output=True, text=True, check=False
    )
    tried = run([*python, "import harness.machine"])
    if tried.returncode:
        why = tried.stderr.strip().splitlines()[-1]
        pytest.skip(f"another local user cannot use this project's Python: {why}")
    shutil.copy(sector, open_folder / "disk.img")
    for path in (open_folder, open_folder / "disk.img"):
        os.chown(path, NOBODY, NOBODY)
    done = run([*python, _BOOT_AS, backend, open_folder / "run", open_folder / "disk.img"])
    assert done.stdout == f"greeted {NOBODY} True\n", done.stderr


# --- a guest that listens


@pytest.fixture(scope="module")
def guest(booted: Guest) -> Guest:
    """One stand-in for most of these tests, which do not change it."""
    return booted


@contextlib.contextmanager
def up(standin: Any, folder: Path) -> Iterator[Guest]:
    """The stand-in, ready."""
    spec = Spec(folder, Drive(standin.disk), memory_bytes=384 << 20, name="the stand-in")
    with (
        backends.make(QEMU, spec) as machine,
        Guest(machine, Access(standin.private_key, standin.host_key)) as made,
    ):
        machine.start(Deadline.after(120))
        made.wait_ready(Deadline.after(240))
        yield made


def test_without_our_key_there_is_no_way_in(guest: Guest, tmp_path: Path) -> None:
    make_key(tmp_path / "other", "a stranger's")
    stranger = Guest(guest.machine, Access(tmp_path / "other", guest.access.host_key))
    with pytest.raises(SshRefused, match="key"):
        stranger.enter(Deadline.after(60))
    for how in ("auth_none", "auth_password"):
        assert guest.machine.forward is not None
        with guest.machine.forward.connect(5) as connection:
            transport = paramiko.Transport(connection)
            try:
                transport.start_client(timeout=30)
                offered = ["root"] if how == "auth_none" else ["root", ""]
                with pytest.raises(paramiko.BadAuthenticationType) as raised:
                    getattr(transport, how)(*offered)
                assert raised.value.allowed_types == ["publickey"]
            finally:
                transport.close()


SYSTEM_PYTHON = "/usr/bin/python3"

_HOLD = """
import socket, sys
held = []
for _ in range(120):
    try:
        # One after another: of many at once the guest may drop all.
        held.append(socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2))
    except OSError:
        pass
print(len(held), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def idle_connections(port: int) -> Iterator[int]:
    """120 idle connections to a port on this machine, by another user if possible."""
    other_user = AS_NOBODY if os.geteuid() == 0 else ()
    command = [*other_user, SYSTEM_PYTHON, "-c", _HOLD, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        yield int(holder.stdout.readline())
        holder.kill()


def enters(guest: Guest, limit_s: float = 60) -> None:
    """Whether one more connection succeeds, in addition to the existing one."""
    one_more = Guest(guest.machine, guest.access)
    with one_more:
        one_more.enter(Deadline.after(limit_s))


@needs_namespaces
def test_idle_connections_of_others_do_not_block_the_owner(guest: Guest) -> None:
    with idle_connections(guest.machine.ssh_port or 0) as held:
        assert held == 0
        enters(guest)


@pytest.mark.usefixtures("shared_network")
def test_idle_connections_do_so_where_namespaces_are_forbidden(
    standin: Any, tmp_path: Path
) -> None:
    """This shows that the test above can fail; docs/security.md describes it."""
    with up(standin, tmp_path / "run") as guest:
        with idle_connections(guest.machine.ssh_port or 0) as held:
            assert held > 30
            with pytest.raises(GuestError):
                enters(guest, 10)
        enters(guest)


@needs_namespaces
@root_only
def test_another_local_user_cannot_get_in(guest: Guest, open_folder: Path) -> None:
    """They can neither reach the port, nor enter the network that it is in."""
    entry = open_folder / "entry.py"
    shutil.copy(enter_network.__file__, entry)
    ask = ["-I", "-S", str(entry), "connect", str(guest.machine.pid), str(guest.machine.ssh_port)]
    for user, code, word in ((AS_NOBODY, errno.EACCES, "Permission denied"), ((), 0, "")):
        near, far = socket.socketpair()
        with near, far:
            command: list[str] = [*user, SYSTEM_PYTHON, *ask]
            done = subprocess.run(
                command, stdout=far.fileno(), stderr=subprocess.PIPE, text=True, check=False
            )
        assert (done.returncode, word in done.stderr) == (code, True), done.stderr
    machine_s = ["nsenter", f"--net=/proc/{guest.machine.pid}/ns/net", "true"]
    done = subprocess.run([*AS_NOBODY, *machine_s], capture_output=True, text=True, check=False)
    assert "Permission denied" in done.stderr


@root_only
@pytest.mark.usefixtures("shared_network")
def test_another_local_user_has_no_key(standin: Any, open_folder: Path, tmp_path: Path) -> None:
    """If the port is open to every local user, only the key keeps them out."""
    make_key(open_folder / "own", "another user's")
    os.chown(open_folder / "own", NOBODY, NOBODY)
    ours = open_folder / "ours"
    shutil.copy(standin.private_key, ours)
    with up(standin, tmp_path / "run") as guest:
        ssh = ["ssh", "-p", str(guest.machine.ssh_port), "-o", "BatchMode=yes", "-F", "none"]
        ssh += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        for key in (open_folder / "own", ours):
            command = [*AS_NOBODY, *ssh, "-i", str(key), "root@127.0.0.1", "echo", "inside"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 255
            assert "Permission denied" in done.stderr
            assert "inside" not in done.stdout
        command = [*ssh, "-i", str(ours), "root@127.0.0.1", "echo", "inside"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "inside\n", "the owner gets in the same way, so the test can tell"


def test_the_guest_has_no_way_out(guest: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside:
        port = outside.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            outside.accept()[0].close()
        outside.settimeout(0.2)
        reach = 'echo | timeout 3 nc "$1" "$2"'
        own = guest.script(reach, "10.0.2.15", "22", check=False)
        assert own.stdout.startswith("SSH-2.0"), "the guest's own tool works, so the test can tell"
        assert not guest.script(reach, "10.0.2.2", str(port), check=False).ok
        with pytest.raises(TimeoutError):
            outside.accept()
    assert not guest.script("timeout 5 nslookup example.org 10.0.2.3", check=False).ok
