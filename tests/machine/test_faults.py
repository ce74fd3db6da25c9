"""Faults of a machine or a guest end in time, with a line that names the cause.

docs/troubleshooting.md lists them; faults of a single module are tested with that module.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backends
import psutil
import pytest
from backends import BACKENDS, QEMU
from test_machines import Made, ask, boot, make, sector

from harness.deadline import Deadline
from harness.errors import (
    CannotError,
    DiskFull,
    GuestError,
    GuestRebooted,
    MachineDied,
    WaitTimeout,
)
from harness.guest.freebsd import Access, Guest
from harness.guest.ssh import CommandFailed
from harness.guest.ssh_connect import SshRefused
from harness.machine import Drive, Spec, base

__all__ = ["make", "sector"]

BOOT_S = 240.0


# --- the emulator


def children() -> set[psutil.Process]:
    """The processes that this one started and that still run."""
    return {it for it in psutil.Process().children() if it.status() != psutil.STATUS_ZOMBIE}


@pytest.mark.parametrize("delay_s", [0.0, 0.03, 0.1, 0.2, 0.35, 0.6])
def test_killed_at_any_moment(make: Made, delay_s: float) -> None:
    """From the first instruction of its start to the last of its end: one of our errors, or
    none.
    """
    machine = make(QEMU, ssh=True)
    before = children()

    def kill() -> None:
        time.sleep(delay_s)
        while machine.pid is None and machine.exit_code is None:
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError, TypeError):
            os.kill(machine.pid or 0, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with contextlib.suppress(GuestError):
        boot(machine)
        ask(machine, "echo", "echo")
    killer.join()
    machine.stop(Deadline.after(3))
    assert machine.pid is None
    assert children() <= before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stopped_emulator_is_named(
    make: Made, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_STOPPED_S", 1.0)
    machine = make(backend)
    boot(machine)
    assert machine.pid is not None
    os.kill(machine.pid, signal.SIGSTOP)
    with pytest.raises(GuestError, match=rf"process {machine.pid}\) was stopped by a"):
        machine.console.talk().expect_any(["never"], "what never comes", Deadline.after(60))
    os.kill(machine.pid, signal.SIGCONT)
    ask(machine, "echo", "echo")
    os.kill(machine.pid, signal.SIGSTOP)
    machine.stop(Deadline.after(10))
    assert machine.pid is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_guest_that_switches_itself_off_is_named(make: Made, backend: str) -> None:
    machine = make(backend)
    boot(machine)
    machine.console.send("q")
    with pytest.raises(MachineDied, match="the guest powered itself off"):
        machine.console.talk().expect_any(["never"], "what never comes", Deadline.after(60))


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A folder with just enough room for a machine's start."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=320k,mode=700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    ("backend", "said"),
    [(QEMU, "No space left on device"), ("bochs", "Bochs cannot write the guest's disk")],
)
def test_a_full_disk_beneath_the_guest_is_named(
    make: Made, tiny: Path, backend: str, said: str
) -> None:
    machine = make(backend, run=str(tiny / "run"))
    boot(machine)
    with contextlib.suppress(OSError), (tiny / "fill").open("wb", buffering=0) as fill:
        while fill.write(b"x" * 512):
            pass
    machine.console.send("w")
    with pytest.raises(DiskFull, match=rf"{said}.*HARNESS_RUNS") as raised:
        machine.console.talk().expect_any(["never"], "what never comes", Deadline.after(60))
    assert raised.value.exit_code == 3


def test_a_full_disk_before_the_start_is_named(make: Made, tiny: Path) -> None:
    with contextlib.suppress(OSError), (tiny / "fill").open("wb", buffering=0) as fill:
        while fill.write(b"x" * 512):
            pass
    with pytest.raises((GuestError, OSError, CannotError)) as raised:
        boot(make(QEMU, run=str(tiny / "run")))
    assert "No space left on device" in f"{raised.value}"


# --- the guest


@pytest.fixture(scope="module")
def guest(standin: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One stand-in for all of these; the tests that break it permanently come last."""
    folder = tmp_path_factory.mktemp("faults") / "run"
    spec = Spec(folder, Drive(standin.disk), memory_bytes=384 << 20, name="the stand-in")
    with (
        backends.make(QEMU, spec) as machine,
        Guest(machine, Access(standin.private_key, standin.host_key)) as made,
    ):
        machine.start(Deadline.after(120))
        made.wait_ready(Deadline.after(BOOT_S))
        yield made


def test_a_full_disk_in_the_guest_is_named(guest: Guest, tmp_path: Path) -> None:
    guest.script("mkdir -p /mnt/s && mount -t tmpfs -o size=64k tmpfs /mnt/s")
    (tmp_path / "much").write_bytes(bytes(200_000))
    with pytest.raises(CommandFailed, match=r"to /mnt/s/much: .*No space left on device"):
        guest.put(tmp_path / "much", "/mnt/s/much")
    assert guest.script("ls /mnt/s").stdout == ""


def test_another_host_key_is_refused(guest: Guest, standin: Any, tmp_path: Path) -> None:
    other = "ssh-ed25519 " + "AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
    stranger = Guest(guest.machine, Access(standin.private_key, other))
    with pytest.raises(SshRefused, match=r"shows the host key .* the prepared image's"):
        stranger.enter(Deadline.after(60))


def test_a_hung_sshd_is_distinguished_from_a_hung_machine(guest: Guest) -> None:
    talk = guest.machine.console.talk()
    talk.sendline("root")
    talk.expect_any(["# "], "a shell on the serial line", Deadline.after(120))
    talk.sendline("killall -STOP dropbear; echo stop''ped")
    talk.expect_any(["stopped"], "the shell's answer", Deadline.after(120))
    with pytest.raises(WaitTimeout, match=r"`true` .* did not end within|no SSH conn"):
        guest.run(["true"], Deadline.after(3))
    guest.disconnect()
    with pytest.raises(WaitTimeout, match="no SSH banner came"):
        guest.enter(Deadline.after(5))
    talk.sendline("killall -CONT dropbear; echo going''on")
    talk.expect_any(["goingon"], "the shell's answer", Deadline.after(120))
    guest.enter(Deadline.after(120))


def test_a_cut_network_ends_at_the_deadline(guest: Guest) -> None:
    qmp = guest.machine._qmp  # type: ignore[attr-defined]
    qmp.execute("set_link", Deadline.after(5), {"name": "net0", "up": False})
    with pytest.raises(WaitTimeout, match="did not end within 2 s"):
        guest.run(["true"], Deadline.after(2))
    qmp.execute("set_link", Deadline.after(5), {"name": "net0", "up": True})
    guest.disconnect()
    guest.enter(Deadline.after(120))


def test_a_guest_that_hangs_ends_at_the_deadline(guest: Guest) -> None:
    qmp = guest.machine._qmp  # type: ignore[attr-defined]
    qmp.execute("stop", Deadline.after(5))
    with pytest.raises(WaitTimeout, match="did not end within 2 s"):
        guest.run(["true"], Deadline.after(2))
    qmp.execute("cont", Deadline.after(5))
    guest.disconnect()
    guest.enter(Deadline.after(120))


def test_a_guest_that_reboots_by_itself_is_not_taken_for_the_old_one(guest: Guest) -> None:
    mark = guest.machine.console.mark
    with pytest.raises(GuestRebooted, match="the stand-in rebooted by itself"):
        guest.run(["sh", "-c", "reboot -f; sleep 60"], Deadline.after(60))
    talk = guest.machine.console.talk(mark)
    talk.expect_any(["login: "], "the login prompt after the reboot", Deadline.after(BOOT_S))
    with pytest.raises(GuestRebooted):
        guest.run(["true"])
    guest.enter(Deadline.after(60))
    assert guest.run(["true"]).ok


def test_an_emulator_killed_during_a_command(guest: Guest) -> None:
    pid = guest.machine.pid
    assert pid is not None
    timer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    timer.start()
    with pytest.raises(MachineDied, match=r"the stand-in: tcg was killed by SIGKILL"):
        guest.run(["sleep", "60"], Deadline.after(60))
    assert b"login: " in guest.machine.spec.console_log.read_bytes()
