"""What any vmm.ko must do, with or without a patch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.bhyve import vmm_module
from harness.bhyve.batch import Batch
from harness.bhyve.vmm import MIB, Vmm
from harness.guest.freebsd import Guest


def test_the_loaded_module_is_ours(guest: Guest, vmm: Vmm) -> None:
    """the kernel runs the vmm.ko that was built, loaded from its path"""
    assert [kld.path for kld in guest.klds() if kld.name == "vmm.ko"] == [vmm.loaded.path]


@pytest.mark.vtx
def test_the_processor_virtualizes(guest: Guest, vmm: Vmm) -> None:
    """the processor has the features that the module needs"""
    assert guest.exists(vmm_module.CONTROL) or not vmm_module.has_control_device(vmm.build)
    intel = guest.sysctl("hw.vmm.vmx.initialized")
    assert intel == "1" or guest.sysctl("hw.vmm.svm.features") is not None


@pytest.mark.vtx
@pytest.mark.tools
def test_a_vm_comes_and_goes(batch: Callable[..., Batch]) -> None:
    """a new VM appears under /dev/vmm, and disappears when it is destroyed"""
    with batch() as ask:
        ask.create("there", 32 * MIB)
        during = ask.names()
        ask.destroy("there")
        after = ask.names()
    assert during.value == ["there"]
    assert after.value == []


@pytest.mark.vtx
@pytest.mark.tools
def test_unload_is_refused_while_a_vm_exists(batch: Callable[..., Batch]) -> None:
    """the module cannot be unloaded while a VM exists"""
    with batch() as ask:
        ask.create("holder", 16 * MIB)
        unload, names = ask.run(["kldunload", "vmm"]), ask.names()
    assert not unload.value.ok
    assert names.value == ["holder"]


@pytest.mark.vtx
@pytest.mark.tools
def test_the_module_comes_and_goes(
    guest: Guest, vmm: Vmm, vm: Callable[..., None], reloaded: None
) -> None:
    """after it is unloaded and loaded again, the module makes VMs as before"""
    vmm.reload()
    vm("again", 16 * MIB)
    assert vmm.names() == ["again"]
