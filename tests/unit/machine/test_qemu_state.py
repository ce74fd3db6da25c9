"""What a saved guest of QEMU's depends on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.errors import CannotError
from harness.machine import qemu_state


def test_the_emulator_is_known_by_size_and_date_and_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an emulated machine, reading it all took half a minute of each start."""
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "qemu"
    program.write_bytes(b"one")
    program.chmod(0o755)
    os.utime(program, ns=(1, 1))
    before = qemu_state.emulator("qemu")
    program.write_bytes(b"two")
    os.utime(program, ns=(1, 1))
    assert qemu_state.emulator("qemu") == before
    os.utime(program, ns=(1, 2_000_000_000))
    assert qemu_state.emulator("qemu") != before
    program.write_bytes(b"longer")
    os.utime(program, ns=(1, 1))
    assert qemu_state.emulator("qemu") != before
    with pytest.raises(CannotError, match="qemu-6 is not installed"):
        qemu_state.emulator("qemu-6")
