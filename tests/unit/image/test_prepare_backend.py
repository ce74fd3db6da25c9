"""On a machine whose KVM nests SVM, an image is prepared with SVM, and the line says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import Answer, FakeGuest

from harness import host
from harness import machine as machines
from harness.cli import image_commands
from harness.deadline import Deadline
from harness.errors import GuestError
from harness.files import PROJECT
from harness.guest.freebsd import Access
from harness.host.facts import load
from harness.image import obtain, prepare
from harness.image.model import ImageRecord
from harness.image.obtain import Files
from harness.machine.qemu import QemuMachine

HOSTS = PROJECT / "tests" / "unit" / "data" / "hosts"
MIB = 1 << 20


@pytest.mark.parametrize(
    ("name", "flag", "other"), [("amd-nested", "+svm", "vmx"), ("intel-nested", "+vmx", "svm")]
)
def test_the_processors_own_flag_is_asked_for(
    name: str, flag: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(host, "gather", lambda: load((HOSTS / f"{name}.json").read_text()))
    commands: list[list[str]] = []

    def start(machine: QemuMachine, _deadline: Deadline) -> None:
        commands.append(machine.command())
        raise GuestError("far enough")

    monkeypatch.setattr(QemuMachine, "start", start)
    disk = tmp_path / "disk"
    disk.write_bytes((b"".ljust(510, b"\0") + b"\x55\xaa").ljust(MIB, b"\0"))
    with pytest.raises(GuestError, match="far enough"):
        obtain.import_files("15.1", Files(disk=disk))
    (command,) = commands
    processor = command[command.index("-cpu") + 1]
    assert flag in processor
    assert other not in processor


def test_the_line_names_the_system_once(tmp_path: Path) -> None:
    uname = "FreeBSD freebsd 15.1-RELEASE-p1 FreeBSD 15.1-RELEASE-p1 releng/15.1 GENERIC amd64"
    record = ImageRecord(
        release="15.1",
        origin="/d",
        origin_format="raw",
        origin_sha256="0" * 64,
        disk=tmp_path / "disk.raw",
        disk_bytes=MIB,
        disk_sha256="0" * 64,
        access=Access(tmp_path / "key", "ssh-ed25519 AAAA", "root"),
        osversion=1501000,
        uname=uname,
        prepared_at="2026-11-25T00:00:00+00:00",
        prepare_version=1,
    )
    assert image_commands._short(record) == f"FreeBSD 15.1-RELEASE-p1; {tmp_path / 'disk.raw'}"


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        ((0, "options\tINVARIANTS\nident\tGENERIC-DEBUG\n\n", ""),
         ("options INVARIANTS", "ident GENERIC-DEBUG")),
        ((0, "\n", ""), ()),
        ((1, "", "sysctl: unknown oid 'kern.conftxt'\n"), ()),
    ],
)  # fmt: skip
def test_the_kernel_states_its_configuration(answer: Answer, lines: tuple[str, ...]) -> None:
    guest: Any = FakeGuest({"sysctl -n kern.conftxt": answer})
    assert prepare._configuration(guest) == lines


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((), "unknown: modules are built for GENERIC of the source"),
        (("options SMP", "ident GENERIC"), "GENERIC"),
        (("ident X", "options WITNESS", "options INVARIANTS"), "X, with INVARIANTS and WITNESS"),
    ],
)
def test_image_info_names_the_kernel(lines: tuple[str, ...], words: str) -> None:
    assert image_commands._kernel(lines) == words


def test_make_is_given_the_vendor() -> None:
    """The machine itself: a Backend of either vendor gives its flag."""
    for vendor, flag in (("intel", "+vmx"), ("amd", "+svm")):
        backend = machines.Backend("kvm", vendor)  # type: ignore[arg-type]
        spec = machines.Spec(Path("/run"), machines.Drive(Path("/disk")))
        command = machines.make(backend, spec).command()
        assert flag in command[command.index("-cpu") + 1]
