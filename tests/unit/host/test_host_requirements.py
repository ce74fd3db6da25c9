"""What vmm.ko asks of a processor, compared bit by bit."""

from __future__ import annotations

import dataclasses

import pytest

from harness import host
from harness.files import PROJECT
from harness.host.facts import load
from harness.host.requirements import EPT, VMX_BASIC, VMX_CONTROLS

HOSTS = PROJECT / "tests" / "unit" / "data" / "hosts"
VMX = 1 << 5
SVM = 1 << 2


@pytest.fixture
def whole() -> host.Processor:
    """A processor with everything, as KVM gives it on an Intel host."""
    guest = load((HOSTS / "intel-nested.json").read_text()).kvm.guest
    assert guest is not None
    return guest


def names(lacks: tuple[host.Lack, ...]) -> list[str]:
    return [lack.name for lack in lacks]


def test_nothing_is_lacking(whole: host.Processor) -> None:
    assert host.lacking(whole) == ()


@pytest.mark.parametrize("demand", VMX_CONTROLS, ids=lambda demand: demand.name)
def test_each_control_is_missed_alone(whole: host.Processor, demand: host.Control) -> None:
    index = demand.field.true_msr or demand.field.msr
    bit = demand.bit + (32 if demand.want and not demand.field.plain else 0)
    assert whole.msrs[index] >> bit & 1 == demand.want
    without = dataclasses.replace(whole, msrs={**whole.msrs, index: whole.msrs[index] ^ 1 << bit})
    assert names(host.lacking(without)) == [demand.name]
    required = [demand.name] if demand.need is not host.Need.OPTIONAL else []
    assert names(host.required_lacking(without)) == required


def test_old_registers_count_where_there_are_no_true_ones(whole: host.Processor) -> None:
    """Without IA32_VMX_BASIC bit 55 the "true" registers do not exist and must not be believed."""
    old = dataclasses.replace(
        whole, msrs={**whole.msrs, VMX_BASIC: whole.msrs[VMX_BASIC] & ~(1 << 55)}
    )
    # In the old registers CR3 exiting is among the bits that must be 1.
    cr3 = ["procbased.cr3_load_exiting", "procbased.cr3_store_exiting"]
    assert names(host.lacking(old)) == cr3


def test_a_register_that_is_not_there_is_named(whole: host.Processor) -> None:
    less = {index: value for index, value in whole.msrs.items() if index != EPT.msr}
    lacks = host.lacking(dataclasses.replace(whole, msrs=less))
    assert {lack.name.split(".")[0] for lack in lacks} == {"ept", "vpid"}
    assert "MSR 0x48c (IA32_VMX_EPT_VPID_CAP) is not there" in lacks[0].evidence


@pytest.mark.parametrize(("value", "forbidden"), [(0x0, False), (0x1, True), (0x5, False)])
def test_feature_control(whole: host.Processor, value: int, forbidden: bool) -> None:
    changed = dataclasses.replace(whole, msrs={**whole.msrs, 0x3A: value})
    assert names(host.lacking(changed)) == (["vmx.feature_control"] if forbidden else [])


@pytest.mark.parametrize(
    ("edx", "lacks"),
    [
        (0b1001, []),
        (0b0001, ["svm.nrip_save"]),
        (0b1000, ["svm.npt"]),
        (0, ["svm.npt", "svm.nrip_save"]),
    ],
)
def test_svm(edx: int, lacks: list[str]) -> None:
    assert names(host.lacking(host.Processor(ext1_ecx=SVM, svm_edx=edx))) == lacks


def test_neither_vmx_nor_svm() -> None:
    (lack,) = host.required_lacking(host.Processor(leaf1_ecx=~VMX, ext1_ecx=0x400393))
    assert lack.name == "vmx.cpuid"
    assert "0x400393" in lack.evidence


def test_names_are_unique() -> None:
    listed = [demand.name for demand in VMX_CONTROLS]
    assert len(listed) == len(set(listed))
