"""Saves and resumes a running guest's state in QEMU.

The guest's memory is our file from the start on, so QEMU writes only its devices' state (migration
with x-ignore-shared) and we copy the memory's pages.  A resumed guest maps the saved memory
privately: pages are read when they are first used, and the file is never written to.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import CannotError, GuestError
from harness.files import sha256_text
from harness.machine.qmp import Qmp
from harness.machine.spec import Spec

RAM = "ram"
DEVICES = "devices"
DISK = "disk.qcow2"

_PAGE = 4096
_CHUNK_BYTES = 1 << 20
_POLL_S = 0.005
_CAPABILITIES = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


@dataclass
class Memory:
    """The open files with a machine's memory and, if it is resumed, its devices' state."""

    ram_fd: int
    devices_fd: int | None = None

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that the emulator must inherit."""
        return (self.ram_fd,) if self.devices_fd is None else (self.ram_fd, self.devices_fd)

    def close(self) -> None:
        """Close the files."""
        for fd in self.fds:
            os.close(fd)


def memory_of(spec: Spec) -> Memory | None:
    """The memory of a machine that may be saved or is resumed; None for any other.

    Raises CannotError if the folder has nothing to resume.
    """
    if spec.resume_from:
        try:
            # QEMU needs write access, although it maps the file privately.
            ram = os.open(spec.resume_from / RAM, os.O_RDWR | os.O_CLOEXEC)
            try:
                devices = os.open(spec.resume_from / DEVICES, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                os.close(ram)
                raise
        except OSError as error:
            raise CannotError(f"{error.filename}: cannot be resumed: {error.strerror}") from error
        return Memory(ram, devices)
    if spec.savable:
        memory = Memory(os.memfd_create("ram"))
        os.ftruncate(memory.ram_fd, spec.memory_bytes)
        return memory
    return None


def load(qmp: Qmp, memory: Memory, deadline: Deadline) -> None:
    """Let QEMU, started with -incoming defer, load the devices' state; the guest stays stopped."""
    qmp.execute("migrate-set-capabilities", deadline, _CAPABILITIES)
    qmp.execute("migrate-incoming", deadline, {"uri": f"fd:{memory.devices_fd}"})
    _wait_migrated(qmp, deadline)


def save(qmp: Qmp, memory: Memory, overlay: Path, folder: Path, deadline: Deadline) -> None:
    """Stop the guest, write its memory, devices and disk into `folder`, and continue it.

    It also continues if the folder's disk is full (OSError) or QEMU refuses (GuestError).
    """
    qmp.execute("stop", deadline)
    try:
        qmp.execute("migrate-set-capabilities", deadline, _CAPABILITIES)
        with (folder / DEVICES).open("wb") as devices:
            qmp.give("devices", devices.fileno(), deadline)
            qmp.execute("migrate", deadline, {"uri": "fd:devices"})
            _wait_migrated(qmp, deadline)
        copy_sparse(memory.ram_fd, folder / RAM)
        with overlay.open("rb") as written:
            copy_sparse(written.fileno(), folder / DISK)
    finally:
        qmp.execute("cont", Deadline.after(5))


def _wait_migrated(qmp: Qmp, deadline: Deadline) -> None:
    while True:
        answer = qmp.execute("query-migrate", deadline)
        status = answer.get("status", "none") if isinstance(answer, dict) else "none"
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            why = answer.get("error-desc", status) if isinstance(answer, dict) else status
            raise GuestError(f"QEMU could not save the guest's state: {why}")
        if deadline.expired:
            raise GuestError(f"QEMU did not save the state within {deadline.limit_s:.0f} s")
        time.sleep(_POLL_S)


def copy_sparse(source_fd: int, target: Path) -> None:
    """Copy an open file from its beginning; pages of zeros become holes."""
    size = os.fstat(source_fd).st_size
    with target.open("xb") as out:
        for start, end in _data(source_fd, size):
            for at in range(start, end, _CHUNK_BYTES):
                chunk = os.pread(source_fd, min(_CHUNK_BYTES, end - at), at)
                _write_pages(out.fileno(), chunk, at)
        out.truncate(size)


def _write_pages(fd: int, chunk: bytes, at: int) -> None:
    """Write the pages that are not zero; small gaps of zeros are written as well."""
    zero = bytes(_PAGE)
    run = None
    for offset in range(0, len(chunk) + _PAGE, _PAGE):
        page = chunk[offset : offset + _PAGE]
        blank = not page or page == zero[: len(page)]
        if not blank and run is None:
            run = offset
        elif blank and run is not None:
            _write_all(fd, memoryview(chunk)[run:offset], at + run)
            run = None


def _write_all(fd: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that contain data rather than holes."""
    at = 0
    with contextlib.suppress(OSError):
        # The end of the data is also reported as an error (ENXIO).
        while at < size:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, at


def emulator(name: str) -> str:
    """Identifies the emulator's program by path, size and date, which change with the package.

    Its contents are not read, because these are 20 MB at each start.  Raises CannotError if it is
    not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise CannotError(f"{name} is not installed; run ./inv setup")
    about = Path(path).stat()
    return f"{path} {about.st_size} {about.st_mtime_ns}"


def host_processor() -> str:
    """The facts of the host that a guest under KVM depends on: processor, kernel, KVM's
    settings.
    """
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags")
    cpu: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            cpu.setdefault(name.strip(), value.strip())
    settings = [
        f"{path}={path.read_text().strip()}"
        for path in sorted(Path("/sys/module").glob("kvm*/parameters/*"))
        if os.access(path, os.R_OK)
    ]
    return sha256_text(platform.release(), *(cpu.get(name, "") for name in wanted), *settings)
