"""Finding the facts: the parsers, and /dev/kvm in every state that can be made here."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import host
from harness.guest.freebsd import Access
from harness.host import kvm, survey
from harness.image.model import ImageRecord
from harness.run import doctor

CPUINFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) CPU
flags\t\t: fpu vme vmx ept hypervisor

processor\t: 1
vendor_id\t: Other
flags\t\t: svm
"""

DATA = Path(__file__).parents[1] / "data"
BOCHS = """\
00000000000i[      ] LTDL_LIBRARY_PATH not set. using compile time default
Supported CPU models:

bx_generic
corei7_skylake_x

00000000000i[SIM   ] quit_sim called with exit code 0
                        Bochs x86 Emulator 2.7
"""


def test_cpuinfo() -> None:
    cpu = survey.parse_cpuinfo(CPUINFO)
    assert (cpu.vendor, cpu.model) == ("GenuineIntel", "Intel(R) Xeon(R) CPU")
    assert (cpu.vmx, cpu.svm, cpu.hypervisor) == (True, False, True)


def test_cpuinfo_of_another_architecture() -> None:
    cpu = survey.parse_cpuinfo("processor\t: 0\nBogoMIPS : 50.00\nFeatures\t: fp asimd\n")
    assert (cpu.vendor, cpu.vmx, cpu.svm) == ("", False, False)


def test_bochs() -> None:
    found = survey.parse_bochs("/usr/bin/bochs", BOCHS)
    assert found.version == "2.7"
    assert found.cpu_models == ("bx_generic", "corei7_skylake_x")
    assert found.problem == ""


@pytest.mark.parametrize(("version", "debugger"), [("2.7", "always"), ("3.0", "on request")])
def test_bochs_says_whether_it_runs_in_its_debugger(version: str, debugger: str) -> None:
    raised = (DATA / f"bochs-{version}-help.txt").read_text()
    assert survey.parse_bochs("/usr/bin/bochs", BOCHS, raised).debugger == debugger
    assert survey.parse_bochs("/usr/bin/bochs", BOCHS).debugger == ""


def test_bochs_that_says_something_else() -> None:
    assert survey.parse_bochs("/usr/bin/bochs", "cannot open display").problem


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2)", "7.2.22"),
        ("20200710\n", "20200710"),
        ("", ""),
        ("usage: mandoc [-ac]", ""),
    ],
)
def test_versions(answer: str, version: str) -> None:
    assert survey.version_in(answer) == version


def test_modules_and_their_settings(tmp_path: Path) -> None:
    for module, name, text in (
        ("kvm_intel", "nested", "Y\n"),
        ("kvm_intel", "dump_invalid_vmcs", "N\n"),
        ("kvm", "halt_poll_ns", "200000\n"),
    ):
        folder = tmp_path / module / "parameters"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "kvm_intel/initstate").write_text("live\n")
    assert survey._modules(tmp_path) == survey.Modules(
        ("kvm", "kvm_intel"), ("kvm",), {"kvm_intel.nested": "Y"}
    )
    assert survey._modules(tmp_path / "nowhere") == survey.Modules()


def test_what_the_device_said() -> None:
    found = {
        "present": True,
        "device": True,
        "api_version": 12,
        "cpuid": {"0x1": [1, 2, 1 << 5, 4], "0x8000000a": [1, 8, 0, 9]},
        "msrs": {"0x480": 1 << 54},
    }
    made = survey.make_kvm(found, survey.Modules(("kvm", "kvm_intel")))
    assert made.guest == host.Processor(leaf1_ecx=1 << 5, svm_edx=9, msrs={0x480: 1 << 54})
    assert made.kind == "Intel"


@pytest.mark.parametrize(
    ("modules", "kind"),
    [
        (("kvm", "kvm_amd"), "AMD"),
        (("kvm", "kvm_pvm"), "software (kvm_pvm)"),
        (("kvm",), "unknown"),
        ((), "unknown"),
    ],
)
def test_which_kvm_is_beneath(modules: tuple[str, ...], kind: str) -> None:
    assert host.Kvm(modules=modules).kind == kind


def test_no_device(tmp_path: Path) -> None:
    assert kvm.look(str(tmp_path / "kvm")) == {"present": False}


def test_file_in_place_of_the_device(tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    assert kvm.look(str(tmp_path / "kvm")) == {"present": True, "device": False}


def test_dangling_link_in_place_of_the_device(tmp_path: Path) -> None:
    (tmp_path / "kvm").symlink_to("nowhere")
    assert kvm.look(str(tmp_path / "kvm")) == {"present": True, "open_error": "ENOENT"}


def test_some_other_device() -> None:
    found = kvm.look("/dev/null")
    assert found["problem"] == "its ioctls fail with ENOTTY"


def test_the_child_answers_as_the_function_does() -> None:
    assert kvm.finish(kvm.start("/dev/null"), 10) == kvm.look("/dev/null")


def _child(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", script], stdout=subprocess.PIPE)


def test_a_device_that_hangs() -> None:
    child = _child("import time; time.sleep(60)")
    begun = time.monotonic()
    found = kvm.finish(child, 0.2)
    assert time.monotonic() - begun < 30
    assert found["problem"] == "it did not answer within 0.2 s"
    assert child.wait(timeout=5) == -9


def answer_after(delay_s: float) -> subprocess.Popen[bytes]:
    return _child(f"import time; time.sleep({delay_s}); print('{{\"present\": true}}')")


def test_a_slow_machine_s_kvm_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program there needs seconds to start."""
    monkeypatch.setattr(kvm, "start", lambda: answer_after(1.5))
    facts = host.gather()
    assert (facts.kvm.present, facts.kvm.problem) == (True, "")


def test_a_tool_that_hangs_does_not_refuse_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_LIMIT_S", 2.0)
    monkeypatch.setattr(survey, "_commands", lambda: {"git": ["sleep", "60"]})
    monkeypatch.setattr(kvm, "start", lambda: answer_after(0.2))
    facts = host.gather()
    assert (facts.kvm.present, facts.kvm.problem) == (True, "")
    assert facts.tools["git"] == ""


def test_a_device_that_kills_who_asks() -> None:
    found = kvm.finish(_child("import os; os.kill(os.getpid(), 11)"), 10)
    assert found["problem"] == "the process that asks it ended with exit code -11"


def test_this_machine() -> None:
    facts = host.gather()
    assert facts.memory_available_bytes > 0
    assert facts.cpu.count >= 1
    assert facts.cache.free_bytes is not None
    assert doctor.examine(facts).rows


def test_the_folder_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", "/dev/null/cache")
    facts = host.gather()
    assert facts.cache.free_bytes is None
    assert "HARNESS_CACHE" in facts.cache.problem


def test_a_folder_that_is_somebody_else_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_a: False)
    facts = host.gather()
    assert facts.runs.problem.endswith("nothing can be written there")
    assert doctor.examine(facts).exit_code == 3


def test_prepared_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = ImageRecord(
        release="15.1",
        origin="disk.raw",
        origin_format="raw",
        origin_sha256="0",
        disk=tmp_path / "disk.raw",
        disk_bytes=1,
        disk_sha256="0",
        access=Access(tmp_path / "key", "ssh-ed25519 AAAA"),
        osversion=1501000,
        uname="FreeBSD",
        prepared_at="2026-01-01T00:00:00+00:00",
        prepare_version=1,
        source=tmp_path,
    )
    monkeypatch.setattr("harness.image.store.prepared", lambda: [record])
    assert doctor._prepared() == (host.Image("15.1", source=True, sysroot=False),)


def test_a_cache_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", "/dev/null/cache")
    assert doctor._prepared() == ()


def test_tools_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("harness.debian.search_path", lambda: str(tmp_path))
    facts = host.gather()
    assert facts.emulators == {}
    assert "bochs" in facts.packages_missing


class FakeKvm:
    """<linux/kvm.h> as an Intel host with nesting would answer, for 200 CPUID entries."""

    def __init__(self, msrs: dict[int, int], create_vm_errno: int = 0) -> None:
        self.msrs = msrs
        self.create_vm_errno = create_vm_errno

    def ioctl(self, _handle: int, number: int, argument: int | bytearray = 0) -> int:
        if number == 0xAE00:
            return 12
        if number == 0xAE01:
            if self.create_vm_errno:
                raise OSError(self.create_vm_errno, "no")
            return os.open(os.devnull, os.O_RDONLY)
        assert isinstance(argument, bytearray)
        (room,) = struct.unpack_from("=I", argument)
        if number == 0xC008AE05:
            entries = [(leaf, 0, 0, 0, 0, 0, 0, 0, 0, 0) for leaf in range(2, 200)]
            entries.append((0x1, 0, 0, 0x50654, 0, 0xFFFA3223, 0xBFF, 0, 0, 0))
            entries.append((0x80000001, 0, 0, 0, 0, 0x121, 0, 0, 0, 0))
            if room < len(entries):
                raise OSError(errno.E2BIG, "too many")
            struct.pack_into("=I", argument, 0, len(entries))
            for place, entry in enumerate(entries):
                struct.pack_into("=10I", argument, 8 + 40 * place, *entry)
            return 0
        if number == 0xC004AE0A:
            offered = [0x8B, *self.msrs, 0x491]
            struct.pack_into(f"={len(offered) + 1}I", argument, 0, len(offered), *offered)
            return 0
        if number == 0xC008AE88:
            (index,) = struct.unpack_from("=I", argument, 8)
            if index not in self.msrs:
                return 0
            struct.pack_into("=Q", argument, 16, self.msrs[index])
            return 1
        raise OSError(errno.ENOTTY, "what is that")


def test_all_of_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    registers = {0x480: 0xD8100011E57ED0, 0x48C: 0xF0106334141}
    monkeypatch.setattr("harness.host.kvm.fcntl.ioctl", FakeKvm(registers).ioctl)
    assert kvm.look("/dev/null") == {
        "present": True,
        "device": True,
        "api_version": 12,
        "cpuid": {"0x1": [0x50654, 0, 0xFFFA3223, 0xBFF], "0x80000001": [0, 0, 0x121, 0]},
        # 0x491 is on the list, but KVM does not show it; 0x8b is of no interest.
        "msrs": {hex(index): value for index, value in registers.items()},
    }


def test_another_hypervisor_holds_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.host.kvm.fcntl.ioctl", FakeKvm({}, errno.EBUSY).ioctl)
    found = kvm.look("/dev/null")
    assert found["create_vm_error"] == "EBUSY"
    assert "cpuid" in found
