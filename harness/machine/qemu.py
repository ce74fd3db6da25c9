"""QEMU, under KVM with nested VT-x or under TCG."""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..console import Console
from ..deadline import Deadline
from ..errors import CannotError, GuestError, MachineDied
from .base import Machine, PortTaken, Spec, Traits, describe_exit, free_port, tail_of
from .qmp import Qmp

KVM = Traits(backend="kvm", time_scale=1.0, virtualizes=True)
TCG = Traits(backend="tcg", time_scale=6.0, virtualizes=False)

_TERMINATED = "terminating on signal"
_PORT_TAKEN = "Could not set up host forwarding rule"
_GDB_SOCKET = "gdb.sock"
OVERLAY = "overlay.qcow2"


def default_cpu(traits: Traits, vendor_flag: str = "vmx") -> str:
    """The -cpu argument: under KVM the host's own, refused by QEMU if nesting is not there."""
    return f"host,+{vendor_flag},enforce" if traits is KVM else "max"


def command_line(
    spec: Spec,
    traits: Traits,
    *,
    console_fd: int,
    qmp_fd: int,
    ssh_port: int | None,
    cpu: str,
) -> list[str]:
    """QEMU's arguments for `spec`; pure, so that golden files can hold it.

    The machine starts stopped (-S): an early exit is told apart from a guest's.
    """
    accel = "kvm" if traits is KVM else "tcg,thread=multi"
    command = [
        "qemu-system-x86_64",
        "-name", spec.name.replace(",", ",,"),
        "-nodefaults",
        "-no-user-config",
        "-display", "none",
        "-S",
        "-machine", "q35",
        "-accel", accel,
        "-cpu", spec.cpu or cpu,
        "-smp", str(spec.cpus),
        "-m", f"{spec.memory_bytes >> 20}M",
        "-chardev", f"socket,id=com1,fd={console_fd}",
        "-serial", "chardev:com1",
        "-chardev", f"socket,id=qmp,fd={qmp_fd}",
        "-mon", "chardev=qmp,mode=control",
        # The overlay is thrown away with the run: nothing in it needs to survive a power cut.
        "-drive", f"if=none,id=disk0,file={OVERLAY},format=qcow2,cache=unsafe,discard=unmap",
        "-device", "virtio-blk-pci,drive=disk0",
        "-device", "virtio-rng-pci",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]  # fmt: skip
    if spec.ssh:
        restrict = "off" if spec.network_out else "on"
        command += [
            "-netdev",
            f"user,id=net0,restrict={restrict},hostfwd=tcp:127.0.0.1:{ssh_port}-:22",
            "-device", "virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56",
        ]  # fmt: skip
    if spec.debug_exit:
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
    return command


class QemuMachine(Machine):
    """A virtual computer in QEMU."""

    def __init__(self, spec: Spec, traits: Traits, vendor_flag: str = "vmx") -> None:
        super().__init__(spec)
        self.traits = traits
        self._cpu = default_cpu(traits, vendor_flag)
        self._qmp: Qmp | None = None

    @property
    def overlay(self) -> Path:
        """What the guest wrote; nothing before it started."""
        return self.spec.run_dir / OVERLAY

    def command(self) -> list[str]:
        return command_line(
            self.spec,
            self.traits,
            console_fd=3,
            qmp_fd=4,
            ssh_port=self.ssh_port or 0,
            cpu=self._cpu,
        )

    def _prepare(self) -> None:
        make_overlay(self.spec.drive.path, self.spec.drive.format, self.overlay)

    def _start_once(self, deadline: Deadline) -> None:
        self.ssh_port = free_port() if self.spec.ssh else None
        console_near, console_far = socket.socketpair()
        qmp_near, qmp_far = socket.socketpair()
        with qmp_near, console_near, console_far, qmp_far:
            command = command_line(
                self.spec,
                self.traits,
                console_fd=console_far.fileno(),
                qmp_fd=qmp_far.fileno(),
                ssh_port=self.ssh_port,
                cpu=self._cpu,
            )
            self._process = self._spawn(command, pass_fds=(console_far.fileno(), qmp_far.fileno()))
            # Ours have to be closed, or the emulator's end would not be seen.
            console_far.close()
            qmp_far.close()
            self._console = Console(
                console_near.detach(), self.spec.console_log, self._check_process
            )
            try:
                self._qmp = Qmp(qmp_near.dup(), self.spec.name, deadline)
                self._qmp.execute("cont", deadline)
            except GuestError as error:
                self.wait_ended(deadline.at_most(2))
                code = self.exit_code
                how = describe_exit(code) if code is not None else error.message
                words = self.last_words()
                kind = PortTaken if _PORT_TAKEN in words else MachineDied
                raise kind(
                    f"QEMU did not start: {how}; it was run as: {shlex.join(command)}",
                    detail=words,
                ) from error

    def powered_off(self) -> bool:
        # QEMU ends as well when it is asked to by a signal, and then says so.
        return self.exit_code == 0 and _TERMINATED not in self.last_words()

    def last_words(self) -> str:
        return tail_of(self.spec.emulator_log)

    def open_debugger(self, deadline: Deadline) -> Path:
        # QEMU runs in its run folder, so the name stays short wherever that is.
        self._gdbserver(f"unix:{_GDB_SOCKET},server=on,wait=off", deadline)
        return self.spec.run_dir / _GDB_SOCKET

    def close_debugger(self, deadline: Deadline) -> None:
        self._gdbserver("none", deadline)
        if self._qmp is not None:
            self._qmp.execute("cont", deadline)
        (self.spec.run_dir / _GDB_SOCKET).unlink(missing_ok=True)

    def _gdbserver(self, where: str, deadline: Deadline) -> None:
        if self._qmp is None:
            raise GuestError("the machine was not started")
        line = {"command-line": f"gdbserver {where}"}
        said = str(self._qmp.execute("human-monitor-command", deadline, line)).strip()
        if "Waiting for gdb" not in said and "Disabled gdbserver" not in said:
            raise GuestError(f"QEMU does not open its stub for gdb: {said}")

    def _quit(self, deadline: Deadline) -> None:
        if self._qmp is not None:
            with contextlib.suppress(GuestError):
                self._qmp.execute("quit", deadline.at_most(2))
            self.wait_ended(deadline.at_most(5))

    def _release(self) -> None:
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None


def make_overlay(base: Path, base_format: str, overlay: Path) -> None:
    """A fresh qcow2 file over `base`, which is only read from then on."""
    overlay.unlink(missing_ok=True)
    _qemu_img(
        base,
        [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            base_format,
            "-b",
            str(base.absolute()),
            str(overlay),
        ],
    )


def flatten(overlay: Path, target: Path) -> None:
    """Write an overlay and all beneath it as one sparse raw disk."""
    _qemu_img(overlay, ["convert", "-q", "-f", "qcow2", "-O", "raw", str(overlay), str(target)])


def _qemu_img(about: Path, arguments: Sequence[str]) -> None:
    try:
        done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CannotError("qemu-img is not installed; run ./inv setup") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [describe_exit(done.returncode)]
        raise CannotError(
            f"{about}: qemu-img {arguments[0]}: {said[0]}", detail="\n".join(said[1:])
        )
