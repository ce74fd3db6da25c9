"""The stand-in guest does what other tests expect of it."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backends
import paramiko
import pytest
from backends import QEMU

from harness.deadline import Deadline
from harness.errors import GuestPanic
from harness.machine import Drive, Machine, Spec
from harness.machine.console import Conversation

BOOT_S = 240.0
PROMPT = "root@standin:~ # "


@pytest.fixture(scope="module")
def guest(standin: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One stand-in for the tests that do not end it; the test that panics it comes last."""
    with booting(standin, tmp_path_factory.mktemp("standin") / "run") as machine:
        yield machine


@contextlib.contextmanager
def booting(standin: Any, folder: Path) -> Iterator[Machine]:
    """A stand-in under TCG that has just started."""
    spec = Spec(run_dir=folder, drive=Drive(standin.disk), memory_bytes=384 << 20)
    with backends.make(QEMU, spec) as machine:
        machine.start(Deadline.after(120))
        yield machine


def log_in(machine: Machine) -> Conversation:
    talk = machine.console.talk(0)
    deadline = Deadline.after(BOOT_S)
    talk.expect_any(["login: "], "the login prompt", deadline)
    talk.sendline("root")
    talk.expect_any([PROMPT], "the shell's prompt", deadline)
    return talk


def connect(machine: Machine, standin: Any) -> paramiko.SSHClient:
    """Connect as soon as the guest answers, and check its host key."""
    assert machine.forward is not None
    deadline = Deadline.after(BOOT_S)
    while True:
        client = paramiko.SSHClient()
        trust(client, machine, standin)
        try:
            client.connect(
                "127.0.0.1",
                machine.forward.port,
                "root",
                sock=machine.forward.connect(5),
                key_filename=str(standin.private_key),
                allow_agent=False,
                look_for_keys=False,
                banner_timeout=3,
            )
        except (paramiko.SSHException, OSError):
            client.close()
            machine.check()
            if deadline.expired:
                raise
            time.sleep(0.3)
        else:
            return client


def trust(client: paramiko.SSHClient, machine: Machine, standin: Any) -> None:
    """Let `client` accept only the guest's host key."""
    kind, blob = standin.host_key.split()[:2]
    key = paramiko.PKey.from_type_string(kind, base64.b64decode(blob))
    client.get_host_keys().add(f"[127.0.0.1]:{machine.ssh_port}", kind, key)


def test_ssh_takes_the_key_and_files_and_no_password(guest: Machine, standin: Any) -> None:
    client = connect(guest, standin)
    _, out, _ = client.exec_command("id -un; ip -4 addr show eth0")
    text = out.read().decode()
    assert text.startswith("root\n")
    assert "10.0.2.15" in text
    client.close()
    # dropbear ends a connection with its last session, at any moment.
    client = connect(guest, standin)
    into, out, _ = client.exec_command("cat >sent && wc -c <sent")
    into.write(b"x" * 100_000)
    into.channel.shutdown_write()
    assert out.read().strip() == b"100000"
    client.close()

    client = paramiko.SSHClient()
    trust(client, guest, standin)
    assert guest.forward is not None
    with pytest.raises(paramiko.SSHException):
        client.connect(
            "127.0.0.1",
            guest.forward.port,
            "root",
            sock=guest.forward.connect(5),
            password="",
            allow_agent=False,
            look_for_keys=False,
        )


def test_the_second_partition_outlives_a_reboot(guest: Machine, standin: Any) -> None:
    client = connect(guest, standin)
    talk = guest.console.talk()
    # Do not read the answer: the guest's end of the connection disappears silently.
    client.exec_command("echo kept >/dev/vda2; sync; reboot")
    talk.expect_any(["login: "], "the login prompt after the reboot", Deadline.after(BOOT_S))
    client.close()
    again = connect(guest, standin)
    assert (
        again.exec_command("head -c 5 /dev/vda2; cat /proc/uptime")[1].read().startswith(b"kept\n")
    )
    again.close()


def test_a_panic_on_demand_is_seen(guest: Machine) -> None:
    talk = log_in(guest)
    talk.sendline("echo c >/proc/sysrq-trigger")
    with pytest.raises(GuestPanic, match="sysrq triggered crash"):
        talk.expect_any(["never printed"], "the panic", Deadline.after(120))


def test_console_login_and_power_off(standin: Any, tmp_path: Path) -> None:
    with booting(standin, tmp_path / "run") as machine:
        talk = log_in(machine)
        talk.sendline("echo answer=$((6*7))")
        talk.expect_any(["answer=42"], "the command's output", Deadline.after(120))
        talk.sendline("poweroff")
        assert machine.wait_ended(Deadline.after(120)) == 0


def test_the_power_button_is_heard(standin: Any, tmp_path: Path) -> None:
    """A bare QEMU, so that this tests the guest and not our own machine classes."""
    monitor = tmp_path / "mon"
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35"),
        *("-accel", "tcg", "-m", "384M", "-serial", f"file:{tmp_path / 'console'}"),
        *("-kernel", standin.kernel, "-initrd", standin.initrd, "-append", standin.append),
        *("-monitor", f"unix:{monitor},server=on,wait=off"),
    ]
    with subprocess.Popen(command) as qemu:
        try:
            deadline = Deadline.after(BOOT_S)
            console = tmp_path / "console"
            while not console.exists() or b"login: " not in console.read_bytes():
                assert qemu.poll() is None
                assert not deadline.expired
                time.sleep(0.2)
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(str(monitor))
                line.sendall(b"system_powerdown\n")
                assert qemu.wait(20) == 0
        finally:
            qemu.kill()


def test_a_second_disk_is_read_as_it_is_and_not_written(standin: Any, tmp_path: Path) -> None:
    """A tar on it can be read from its first byte; the odd name has a comma, special in QEMU."""
    folder = tmp_path / "with, comma"
    folder.mkdir()
    (folder / "content").write_text("brought in\n")
    disk = folder / "source.tar"
    with tarfile.open(disk, "w") as tar:
        tar.add(folder / "content", "src/content")
    os.truncate(disk, 1 << 20)
    before = disk.read_bytes()
    spec = Spec(
        run_dir=tmp_path / "run",
        drive=Drive(standin.disk),
        second=Drive(disk),
        memory_bytes=384 << 20,
    )
    with backends.make(QEMU, spec) as machine:
        machine.start(Deadline.after(120))
        talk = log_in(machine)
        talk.sendline("tar -xOf /dev/vdb src/content; echo no >/dev/vdb")
        talk.expect_any([r"brought in\r\n"], "the file in the tar", Deadline.after(120))
        talk.sendline("echo its size $(cat /sys/block/vdb/size)")
        talk.expect_any([r"its size 2048\r\n"], "the disk's sectors", Deadline.after(120))
    assert disk.read_bytes() == before
