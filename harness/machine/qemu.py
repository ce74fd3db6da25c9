"""QEMU, under KVM with nested VT-x or under TCG."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness import process
from harness.deadline import Deadline
from harness.errors import CannotError, DiskFull, GuestError, MachineDied
from harness.machine import qemu_state as state
from harness.machine import vga
from harness.machine.base import Machine, PortTaken, describe_exit, tail_of
from harness.machine.console import Console
from harness.machine.qemu_state import Memory
from harness.machine.qmp import Qmp
from harness.machine.spec import Spec, Traits

KVM = Traits(backend="kvm", time_scale=1.0, virtualizes=True, saves=True)
TCG = Traits(backend="tcg", time_scale=6.0, virtualizes=False, saves=True)

_TERMINATED = "terminating on signal"
_PORT_TAKEN = "Could not set up host forwarding rule"
_GDB_SOCKET = "gdb.sock"
_IMAGE_S = 3600.0
OVERLAY = "overlay.qcow2"
_SCREEN = "screen.bin"
_SCREEN_S = 2.0
# The address of the text of a graphics card in text mode.
_TEXT_AT = 0xB8000


def default_cpu(traits: Traits, vendor_flag: str = "vmx") -> str:
    """The -cpu argument: under KVM the host's own, which QEMU refuses without nesting."""
    return f"host,+{vendor_flag},enforce" if traits is KVM else "max"


def command_line(
    spec: Spec,
    traits: Traits,
    *,
    console: str,
    qmp: str | None,
    forward: str,
    cpu: str,
    ram_fd: int | None = None,
) -> list[str]:
    """QEMU's arguments for `spec`; a pure function, tested with golden files.

    `console` and `qmp` are the character devices com1, the serial line, and qmp; `forward` is the
    address and port that lead to the guest's port 22.  With QMP the machine starts stopped (-S), so
    that an early exit of QEMU can be distinguished from the guest's. With `ram_fd` the guest's
    memory is that file: shared while it may be saved from there, private when resumed.
    """
    accel = spec.accel or ("kvm" if traits is KVM else "tcg,thread=multi")
    memory = f"{spec.memory_bytes >> 20}M"
    command = [
        "qemu-system-x86_64",
        "-name", spec.name.replace(",", ",,"),
        "-nodefaults",
        "-no-user-config",
        "-display", "none",
        *(("-S",) if qmp else ()),
        "-machine", "q35" + (",memory-backend=ram0" if ram_fd is not None else ""),
        "-accel", accel,
        "-cpu", spec.cpu or cpu,
        "-smp", str(spec.cpus),
        "-m", memory,
        "-chardev", console,
        "-serial", "chardev:com1",
        *(("-chardev", qmp, "-mon", "chardev=qmp,mode=control") if qmp else ()),
        # The overlay is deleted with the run, so nothing in it needs to survive a power failure.
        "-drive", f"if=none,id=disk0,file={OVERLAY},format=qcow2,cache=unsafe,discard=unmap",
        "-device", "virtio-blk-pci,drive=disk0",
        "-device", "virtio-rng-pci",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]  # fmt: skip
    if spec.second:
        path = str(spec.second.path.absolute()).replace(",", ",,")
        command += [
            "-drive", f"if=none,id=disk1,file={path},format=raw,readonly=on",
            "-device", "virtio-blk-pci,drive=disk1",
        ]  # fmt: skip
    if spec.ssh:
        restrict = "off" if spec.network_out else "on"
        command += [
            "-netdev",
            f"user,id=net0,restrict={restrict},hostfwd=tcp:{forward}-:22",
            "-device", "virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56",
        ]  # fmt: skip
    if ram_fd is not None:
        share = "off" if spec.resume_from else "on"
        command += [
            "-object",
            f"memory-backend-file,id=ram0,size={memory},mem-path=/proc/self/fd/{ram_fd},share={share}",
            # Each run has a new identity, which makes the guest seed its random numbers again.
            "-device", "vmgenid,guid=auto",
        ]  # fmt: skip
    if spec.resume_from:
        command += ["-incoming", "defer"]
    if spec.screen:
        command += ["-device", "VGA"]
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
        self._memory: Memory | None = None

    @property
    def overlay(self) -> Path:
        """The overlay with the guest's writes; None before the start."""
        return self.spec.run_dir / OVERLAY

    def command(self) -> list[str]:
        kept = self.spec.savable or self.spec.resume_from
        return self._command(3, 4, self.ssh_port or 0, ram_fd=5 if kept else None)

    def _command(
        self, console_fd: int, qmp_fd: int, ssh_port: int | None, ram_fd: int | None
    ) -> list[str]:
        return command_line(
            self.spec,
            self.traits,
            console=f"socket,id=com1,fd={console_fd}",
            qmp=f"socket,id=qmp,fd={qmp_fd}",
            forward=f"127.0.0.1:{ssh_port}",
            cpu=self._cpu,
            ram_fd=ram_fd,
        )

    def _prepare(self) -> None:
        saved = self.spec.resume_from
        if saved:
            make_overlay(saved / state.DISK, "qcow2", self.overlay)
        else:
            make_overlay(self.spec.drive.path, self.spec.drive.format, self.overlay)

    def _start_once(self, deadline: Deadline) -> None:
        self.ssh_port = self._choose_port()
        self._memory = state.memory_of(self.spec)
        console_near, console_far = socket.socketpair()
        qmp_near, qmp_far = socket.socketpair()
        with qmp_near, console_near, console_far, qmp_far:
            memory = self._memory
            command = self._command(
                console_far.fileno(),
                qmp_far.fileno(),
                self.ssh_port,
                memory.ram_fd if memory else None,
            )
            handed = [console_far.fileno(), qmp_far.fileno(), *(memory.fds if memory else ())]
            self._process = self._spawn(command, pass_fds=handed)
            # Our copies must be closed, or the emulator's end would not be noticed.
            console_far.close()
            qmp_far.close()
            self._console = Console(
                console_near.detach(), self.spec.console_log, self._check_process
            )
            try:
                self._qmp = Qmp(qmp_near.dup(), self.spec.name, deadline)
                if memory and self.spec.resume_from:
                    state.load(self._qmp, memory, deadline)
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

    def save(self, folder: Path, deadline: Deadline) -> None:
        if self._qmp is None or self._memory is None or not self.spec.savable:
            raise CannotError(f"{self.spec.name} was not started as one that can be saved")
        state.save(self._qmp, self._memory, self.overlay, folder, deadline)

    def depends_on(self) -> dict[str, str]:
        bare = replace(self.spec, name="", savable=True, resume_from=None)
        plain = QemuMachine(bare, self.traits)
        plain._cpu = self._cpu
        command = plain._command(3, 4, 0, ram_fd=5)
        facts = {"emulator": state.emulator(command[0]), "command line": shlex.join(command)}
        if self.traits is KVM:
            facts["host processor"] = state.host_processor()
        return facts

    def powered_off(self) -> bool:
        # QEMU also ends after a signal, and then reports that.
        return self.exit_code == 0 and _TERMINATED not in self.last_words()

    @property
    def boots(self) -> int:
        return super().boots + self.resets

    @property
    def resets(self) -> int:
        return self._qmp.resets if self._qmp is not None else 0

    def screen(self) -> list[str]:
        if self._qmp is None or not self.spec.screen:
            return []
        # QEMU runs in its run folder.
        file = self.spec.run_dir / _SCREEN
        text = {"val": _TEXT_AT, "size": vga.BYTES, "filename": _SCREEN}
        with contextlib.suppress(GuestError, OSError):
            self._qmp.execute("pmemsave", Deadline.after(_SCREEN_S), text)
            return vga.lines(file.read_bytes())
        return []

    def _check_running(self) -> None:
        super()._check_running()
        if self._qmp is not None and self._qmp.disk_error:
            raise DiskFull(
                f"{self.spec.name}: its disk cannot be written ({self._qmp.disk_error}), so QEMU "
                f"has stopped the guest; free some room under {self.spec.run_dir}, or set "
                "HARNESS_RUNS to a folder with more",
                detail=self.console.tail(),
            )

    def last_words(self) -> str:
        return tail_of(self.spec.emulator_log)

    def open_debugger(self, deadline: Deadline) -> Path:
        # QEMU runs in its run folder, so the name is short whatever the folder's path is.
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
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def make_overlay(base: Path, base_format: str, overlay: Path) -> None:
    """Make a new qcow2 file over `base`, which is only read from then on."""
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
    """Write an overlay and its backing files as one sparse raw disk."""
    _qemu_img(overlay, ["convert", "-q", "-f", "qcow2", "-O", "raw", str(overlay), str(target)])


def _qemu_img(about: Path, arguments: Sequence[str]) -> None:
    if not shutil.which("qemu-img"):
        raise CannotError("qemu-img is not installed; run ./inv setup")
    done = process.run(["qemu-img", *arguments], Deadline.after(_IMAGE_S))
    if not done.ok:
        said = done.stderr.strip().splitlines() or [describe_exit(done.code)]
        raise CannotError(
            f"{about}: qemu-img {arguments[0]}: {said[0]}", detail="\n".join(said[1:])
        )
