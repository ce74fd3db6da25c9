"""bhyve's own devices, as a guest sees them: PCI, firmware, ACPI, interrupts, processors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from harness.bhyve import differences
from harness.bhyve.l2 import FIRMWARE, L2, PLATFORM, Exit
from harness.bhyve.vmm import Vmm
from harness.guest.freebsd import Guest
from harness.machine.models import BOCHS_RUNS
from harness.probe import tap
from harness.report.data import N_A
from harness.run.workbench import Workbench

# The exit code that a shell reports if SIGABRT ended a program.
ABORTED = 134

pytestmark = [pytest.mark.vtx]

CLAIMS = (
    "second_processor", "all_processors",
    "pci_devices", "pci_widths", "pci_writes", "pci_bars", "pci_moved", "pci_memory",
    "pci_capabilities", "firmware", "acpi_registers", "serial_line", "keyboard", "nothing",
    "acpi_tables", "other_tables", "interrupts", "msrs", "virtio", "virtio_disk", "ahci_disk",
    "nvme_disk",
)  # fmt: skip
FIRMWARE_CLAIMS = ("fwcfg_items", "fwcfg_directory", "fwcfg_e820")


@pytest.fixture(scope="module")
def report(vmm: Vmm) -> Iterator[tap.Report]:
    """The complete report of the boot ROM, from one run of bhyve."""
    inner = L2(vmm, "platform", 64, PLATFORM)
    try:
        inner.start()
        yield inner.platform()
    finally:
        inner.end()


@pytest.fixture(scope="module")
def firmware(vmm: Vmm) -> Iterator[tap.Report]:
    """Its report on a machine with QEMU's fw_cfg."""
    inner = L2(vmm, "firmware", 64, FIRMWARE)
    try:
        inner.start()
        yield inner.platform("w")
    finally:
        inner.end()


def test_the_rom_reports_every_claim(report: tap.Report) -> None:
    """the boot ROM examined everything, and its report is complete"""
    assert report.problem == ""
    assert [test.name for test in report.tests] == [f"platform.{name}" for name in CLAIMS]


@pytest.mark.freebsd("15.0")  # before, destroying a VM waits until bhyve ends
def test_a_vm_destroyed_under_bhyve_ends_it(l2: Callable[..., L2]) -> None:
    """a second bhyve of the same VM is refused; if the VM is destroyed, bhyve ends with an error"""
    inner = l2("doomed")
    inner.start()
    assert inner.start_second() == Exit.ERROR
    assert inner.touch(1) == 0
    # The vCPU sleeps in VM_RUN then, which reports how the VM ended.  If bhyve calls VM_RUN
    # afterwards, it gets an error instead.
    inner.ask("z", re.compile("L2ROM sleeps"))
    inner.destroy()
    assert inner.wait_exit() == Exit.ERROR


def test_bhyve_is_killed_before_its_processors_start(guest: Guest, vmm: Vmm) -> None:
    """SIGKILL ends bhyve while some processors of its guest have not been started"""
    inner = L2(vmm, "waiting", 32, ("-c", "3"))
    try:
        inner.start()
        inner.kill()
        assert guest.exists("/dev/vmm/waiting")
    finally:
        inner.end()
    assert not guest.exists("/dev/vmm/waiting")


@pytest.mark.parametrize(
    ("command", "code"), [("p", Exit.POWER_OFF), ("r", Exit.RESET), ("h", Exit.HALTED)]
)
def test_bhyve_tells_how_l2_ended(l2: Callable[..., L2], command: str, code: Exit) -> None:
    """bhyve's exit code says whether L2 was powered off, reset or halted"""
    inner = l2(f"ends-{command}")
    inner.start()
    assert inner.wait_exit(command) == code


def test_a_triple_fault_ends_l2(workbench: Workbench, l2: Callable[..., L2]) -> None:
    """a triple fault ends L2, and bhyve reports it: by exit code on AMD, by an abort on Intel"""
    if workbench.backend in BOCHS_RUNS and workbench.options.cpu_vendor == "amd":
        pytest.skip(f"{N_A}Bochs as AMD hangs in a guest's triple fault")
    inner = l2("faults")
    inner.start()
    code = inner.wait_exit("f")
    assert code == Exit.TRIPLE_FAULT or (code == ABORTED and "Triple fault" in inner.errors())


@pytest.mark.parametrize("name", CLAIMS)
def test_platform(workbench: Workbench, report: tap.Report, name: str) -> None:
    """a guest of bhyve finds the devices that the manuals describe"""
    _require(workbench, report, name)


@pytest.mark.parametrize("name", FIRMWARE_CLAIMS)
def test_firmware(workbench: Workbench, firmware: tap.Report, name: str) -> None:
    """if bhyve has QEMU's fw_cfg, a guest finds it, and its memory map in there"""
    _require(workbench, firmware, name)


def _require(workbench: Workbench, report: tap.Report, name: str) -> None:
    test = next((it for it in report.tests if it.name == f"platform.{name}"), None)
    assert test is not None, f"the ROM's report has nothing about {name}"
    if not test.held and (why := differences.reason(workbench.options.release, test.name)):
        pytest.skip(f"{N_A}{why}")
    assert test.held, f"{test.what}: {'; '.join(test.notes)}"
