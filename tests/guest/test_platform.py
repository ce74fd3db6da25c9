"""bhyve's own devices, as a guest sees them: PCI, firmware, ACPI, interrupts, processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.bhyve.l2 import FIRMWARE, L2, PLATFORM, Exit
from harness.bhyve.vmm import Vmm
from harness.probe import tap

pytestmark = [pytest.mark.vtx, pytest.mark.freebsd("15.0")]

CLAIMS = (
    "second_processor", "all_processors",
    "pci_devices", "pci_widths", "pci_writes", "pci_bars", "pci_moved", "pci_memory",
    "pci_capabilities", "firmware", "acpi_registers", "serial_line", "keyboard", "nothing",
    "acpi_tables", "other_tables", "interrupts", "msrs", "virtio",
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


def test_the_rom_told_all_it_looked_at(report: tap.Report) -> None:
    """the boot ROM examined everything, and its report is complete"""
    assert report.problem == ""
    assert [test.name for test in report.tests] == [f"platform.{name}" for name in CLAIMS]


def test_a_vm_destroyed_under_bhyve_ends_it(l2: Callable[..., L2]) -> None:
    """if a VM is destroyed while bhyve runs it, bhyve ends with the exit code of an error"""
    inner = l2("doomed")
    inner.start()
    inner.destroy()
    assert inner.wait_exit() == Exit.ERROR


@pytest.mark.parametrize("name", CLAIMS)
def test_platform(report: tap.Report, name: str) -> None:
    """a guest of bhyve finds the devices that the manuals describe"""
    _require(report, name)


@pytest.mark.parametrize("name", FIRMWARE_CLAIMS)
def test_firmware(firmware: tap.Report, name: str) -> None:
    """if bhyve has QEMU's fw_cfg, a guest finds it, and its memory map in there"""
    _require(firmware, name)


def _require(report: tap.Report, name: str) -> None:
    test = next((it for it in report.tests if it.name == f"platform.{name}"), None)
    assert test is not None, f"the ROM's report has nothing about {name}"
    assert test.held, f"{test.what}: {'; '.join(test.notes)}"
