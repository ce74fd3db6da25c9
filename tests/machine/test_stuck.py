"""A guest that does not come up is reported in seconds, because of its screen or its resets.

The guests are boot sectors; a time limit of minutes would be too late.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import machine as machines
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, WorkbenchError
from harness.machine import Drive, Machine, Spec

RESETS, LOADER, LOGIN = 1, 2, 3
# Longer than any test may take, so that a wait is never ended by the limit.
LONG_S = 600.0


def disk_of(folder: Path, stuck: int) -> Path:
    source = Path(__file__).with_name("stuck.S")
    compiling = ["gcc", "-m32", "-nostdlib", "-ffreestanding", f"-DSTUCK={stuck}", "-c"]
    linking = ["ld", "-m", "elf_i386", "-Ttext=0x7c00", "--oformat", "binary"]
    subprocess.run([*compiling, "-o", "stuck.o", source], cwd=folder, check=True)
    subprocess.run([*linking, "-o", "disk.img", "stuck.o"], cwd=folder, check=True)
    os.truncate(folder / "disk.img", 1 << 20)
    return folder / "disk.img"


@pytest.fixture
def started(tmp_path: Path, backend: str, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine with the boot sector that the test chooses."""
    disk = disk_of(tmp_path, request.param)
    spec = Spec(tmp_path / "run", Drive(disk), memory_bytes=32 << 20, ssh=False, screen=True)
    with machines.make(backend, spec) as machine:
        machine.start(Deadline.after(120))
        yield machine


def waits_for_a_login(machine: Machine) -> WorkbenchError:
    with machine.booting(), pytest.raises((GuestError, CannotError)) as error:
        machine.console.talk(0).expect_any(["login: "], "the login prompt", Deadline.after(LONG_S))
    return error.value


@pytest.mark.parametrize("started", [RESETS], indirect=True)
def test_a_guest_that_resets_again_and_again(started: Machine, backend: str) -> None:
    error = waits_for_a_login(started)
    assert error.exit_code == 4
    assert "the guest resets again and again: it was reset" in error.message
    assert "without a login prompt" in error.message
    if backend == "bochs":
        assert "3rd (13) exception with no resolution" in error.detail


@pytest.mark.parametrize("started", [LOADER], indirect=True)
def test_a_loader_at_its_prompt_is_read_from_the_screen(started: Machine) -> None:
    error = waits_for_a_login(started)
    assert error.exit_code == 4
    assert (
        "did not boot, its boot loader stopped at its prompt ('OK' on its screen)" in error.message
    )
    assert "can't load 'kernel'" in error.detail
    assert not started.console.since(0).strip()


@pytest.mark.parametrize("started", [LOGIN], indirect=True)
def test_a_system_whose_console_is_the_screen(started: Machine) -> None:
    error = waits_for_a_login(started)
    assert error.exit_code == 3
    assert "asks for a login on its screen, but nothing came over the serial line" in error.message
    assert 'console="comconsole"' in error.message
    assert "FreeBSD/amd64 (Amnesiac) (ttyv0)" in error.detail


def test_a_disk_that_does_not_boot(tmp_path: Path, backend: str) -> None:
    disk = tmp_path / "blank.img"
    disk.write_bytes(bytes(1 << 20))
    spec = Spec(tmp_path / "run", Drive(disk), memory_bytes=32 << 20, ssh=False, screen=True)
    with machines.make(backend, spec) as machine:
        machine.start(Deadline.after(120))
        error = waits_for_a_login(machine)
    assert error.exit_code == 4
    assert "bootable" in f"{error.message} {error.detail}".lower()
