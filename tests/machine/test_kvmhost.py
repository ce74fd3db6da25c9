"""The Linux of `kvm-in-bochs`, tried in QEMU, which has the same devices and is faster than Bochs.

It boots from its disk, finds its orders on the third one, starts QEMU with KVM (AMD's kind), and
the guest in that answers through both networks.  `./inv test --only kvm` runs this.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from backends import QEMU

from harness.deadline import Deadline
from harness.machine import Backend, Drive, Spec
from harness.machine.models import KVM_IN_BOCHS
from harness.machine.nested import NestedMachine

pytestmark = [
    pytest.mark.skipif(QEMU == "kvm", reason="this is a Linux with KVM already"),
    pytest.mark.kvm,
    pytest.mark.timeout(1800),
]

LIMIT_S = 1500.0
_TRY_S = 20.0


def _command(disks: list[Path], port: int, console: Path, cpu: str) -> list[str]:
    command = ["setpriv", "--pdeathsig=KILL", "--", "qemu-system-x86_64"]
    command += ["-machine", "pc", "-accel", "tcg", "-cpu", cpu, "-m", "1536M", "-no-reboot"]
    command += ["-nodefaults", "-display", "none", "-serial", f"file:{console}"]
    command += ["-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"]
    command += ["-device", "e1000,netdev=net"]
    for number, disk in enumerate(disks):
        drive = f"file={disk},format=raw,if=ide,index={number},snapshot=on"
        command += ["-drive", drive]
    return command


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _greeting(port: int, deadline: Deadline, linux: subprocess.Popen[bytes]) -> bytes:
    """The first bytes of the guest's sshd; nothing when the Linux ended or time ran out."""
    while not deadline.expired and linux.poll() is None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), _TRY_S) as line,
        ):
            line.settimeout(_TRY_S)
            if said := line.recv(64):
                return said
        time.sleep(1)
    return b""


def test_it_runs_a_guest_under_kvm_that_answers_through_both_networks(
    nested: ModuleType, standin: Any, tmp_path: Path
) -> None:
    spec = Spec(tmp_path / "run", Drive(standin.disk), memory_bytes=384 << 20)
    machine = NestedMachine(spec, Backend(KVM_IN_BOCHS, "amd"))
    orders = tmp_path / "orders.img"
    orders.write_bytes(machine.orders_image())
    port, console = _free_port(), tmp_path / "console"
    disks = [machine.linux_disk, standin.disk, orders]
    with subprocess.Popen(_command(disks, port, console, nested.CPU), cwd=tmp_path) as linux:
        try:
            said = _greeting(port, Deadline.after(LIMIT_S), linux)
        finally:
            linux.kill()
    assert said.startswith(b"SSH-2.0-dropbear"), console.read_text(errors="replace")[-2000:]
    # The serial line of the Linux is the guest's.
    assert "standin login:" in console.read_text(errors="replace")
