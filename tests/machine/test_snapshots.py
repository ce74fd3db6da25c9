"""Saves and resumes a real guest: the stand-in in QEMU under TCG."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import backends
import pytest
from backends import QEMU

from harness.deadline import Deadline
from harness.errors import GuestError, MachineDied
from harness.guest import snapshot
from harness.guest.freebsd import Access, Guest
from harness.guest.snapshot import Snapshot, Unusable
from harness.machine import Machine, Spec, qemu_state
from harness.machine.qemu import QemuMachine

Resume = Callable[..., Guest]


def make(spec: Spec) -> Machine:
    return backends.make(QEMU, spec)


def ask(guest: Guest, command: str) -> str:
    """A command's output; the stand-in's server needs a connection for each command."""
    guest.disconnect()
    guest._connect(guest.deadline())
    return guest.must(["/bin/sh", "-c", command]).strip()


@pytest.fixture
def saved(booted: Guest) -> Snapshot:
    (found,) = snapshot.kept(booted.machine.spec.drive.path)
    return found


def test_the_guest_goes_on_after_it_was_saved(booted: Guest) -> None:
    assert ask(booted, "echo $((6 * 7))") == "42"


def test_resumed_guests_are_right_and_the_snapshot_stays_as_it_is(
    booted: Guest, saved: Snapshot, spec: Spec, access: Access, tmp_path: Path
) -> None:
    identities = set()
    for number in range(2):
        here = replace(spec, run_dir=tmp_path / f"run{number}")
        guest, note = snapshot.bring_up(make, here, access, "image")
        try:
            assert note == "resumed from a snapshot"
            before = time.time()
            # Writes of one resumed guest appear neither in the snapshot nor in the next guest.
            # All in one command, as each needs a connection.
            read = "date +%s; head -c 4 /dev/vda2 | tr '\\0' -; echo"
            write = "echo mine >/dev/vda2; sync; dd if=/dev/zero of=/tmp/x bs=1M count=8"
            clock, disk = ask(guest, f"{read}; ({write}) 2>/dev/null").split()
            assert before - 2 <= int(clock) <= time.time() + 2
            assert disk == "----"
            machine = guest.machine
            assert isinstance(machine, QemuMachine)
            assert machine._qmp is not None
            raised = machine._qmp.execute("query-vm-generation-id", Deadline.after(5))
            assert isinstance(raised, dict)
            identities.add(raised["guid"])
        finally:
            guest.machine.stop(Deadline.after(5))
    # The stand-in's kernel has no driver for it, and uses new randomness only after a while;
    # FreeBSD's gives other numbers immediately (docs/guest.md).
    assert len(identities) == 2
    # They must be read again, whatever their times are.
    (saved.folder / "verified.json").unlink()
    saved.verify()


def test_another_host_key_than_the_pinned_is_refused(
    saved: Snapshot, spec: Spec, access: Access, tmp_path: Path
) -> None:
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPaoAoH6ABZrDDkZ8BtUwgkj2vXtMrFTFwT1cOCFgWJk"
    machine = make(replace(spec, run_dir=tmp_path, resume_from=saved.state))
    with machine:
        machine.start(Deadline.after(120))
        with pytest.raises(GuestError, match="shows the host key"):
            Guest(machine, replace(access, host_key=other)).wake(Deadline.after(120))


def test_a_full_disk_stops_the_saving_and_not_the_guest(
    booted: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_state, "DEVICES", "/dev/full")
    with pytest.raises(GuestError, match="could not save the guest's state"):
        booted.machine.save(tmp_path, Deadline.after(120))
    assert ask(booted, "echo still here") == "still here"
    monkeypatch.undo()

    def full(_fd: int, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(qemu_state, "copy_sparse", full)
    with pytest.raises(OSError, match="No space"):
        booted.machine.save(tmp_path, Deadline.after(120))
    assert ask(booted, "echo still here") == "still here"


@pytest.mark.parametrize("name", [qemu_state.DEVICES, qemu_state.DISK, qemu_state.RAM])
def test_what_is_cut_off_is_refused_at_once(
    saved: Snapshot, spec: Spec, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "copy"
    # The other files are only read.
    shutil.copytree(saved.folder, copy, copy_function=os.link)
    cut = copy / "state" / name
    cut.unlink()
    with (saved.state / name).open("rb") as source:
        qemu_state.copy_sparse(source.fileno(), cut)
    os.truncate(cut, cut.stat().st_size // 2)
    with pytest.raises(Unusable, match=name):
        replace(saved, folder=copy).verify()
    # QEMU itself would notice it only here.
    if name != qemu_state.DEVICES:
        return
    machine = make(replace(spec, run_dir=tmp_path / "run", resume_from=copy / "state"))
    with machine, pytest.raises(MachineDied, match="did not start"):
        machine.start(Deadline.after(120))
