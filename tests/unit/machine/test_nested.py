"""The machine that runs KVM's guests in a Linux in Bochs: what of it needs no emulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.machine import Backend, Drive, Spec, bochs
from harness.machine.nested import NestedMachine, orders


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NestedMachine:
    disk = tmp_path / "guest.raw"
    disk.write_bytes(bytes(512))
    monkeypatch.setattr(bochs.BochsMachine, "_prepare", lambda _self: None)
    return NestedMachine(Spec(tmp_path, Drive(disk)), Backend("kvm-in-bochs"))


def test_the_orders_are_the_same_disk_in_each_run(machine: NestedMachine, tmp_path: Path) -> None:
    """A resumed Bochs ends when a disk's time is another one than when it was saved."""
    orders = tmp_path / "orders.img"
    machine._prepare()
    before = orders.stat().st_mtime_ns, orders.read_bytes()
    orders.unlink()
    machine._prepare()
    assert (orders.stat().st_mtime_ns, orders.read_bytes()) == before


def test_the_linux_has_memory_beside_its_guest_s(machine: NestedMachine) -> None:
    small = NestedMachine(replace(machine.spec, memory_bytes=64 << 20), Backend("kvm-in-bochs"))
    assert "memory: guest=2048, host=2048" in machine._settings()
    assert "memory: guest=1088, host=1088" in small._settings()
    # Above 2 GiB, Bochs's guests do not all boot.
    assert machine._emulated.memory_bytes <= 2 << 30


def test_the_linux_has_one_processor_with_many_instructions_a_second(
    machine: NestedMachine,
) -> None:
    """With the usual ten million, a guest in the guest is interrupted before it has run much."""
    assert "cpu: model=broadwell_ult, count=1, ips=100000000" in machine._settings()


@pytest.mark.parametrize(("version", "hidden"), [("2.7", True), ("3.0", False)])
def test_instructions_that_bochs_gets_wrong_are_hidden(
    machine: NestedMachine, version: str, hidden: bool
) -> None:
    said = orders(machine.spec, "vmx", version)
    assert ("host,+vmx,enforce,-adx " in said) == hidden
    assert "host,+vmx,enforce" in said
