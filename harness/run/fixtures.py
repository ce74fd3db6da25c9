"""The fixtures that are made from `workbench`; plugin.py offers them to checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.bhyve.batch import Batch
from harness.bhyve.l2 import L2
from harness.bhyve.vmm import Vmm
from harness.guest.freebsd import Guest
from harness.host import HostFacts, gather
from harness.machine import Machine
from harness.run.workbench import Workbench


@pytest.fixture(scope="session")
def host() -> HostFacts:
    """What this machine can do; the fixture boots nothing."""
    return gather()


@pytest.fixture(scope="session")
def guest(workbench: Workbench) -> Guest:
    """The FreeBSD guest."""
    return workbench.guest


@pytest.fixture
def machine(guest: Guest) -> Machine:
    """The virtual computer that the guest runs in."""
    return guest.machine


@pytest.fixture(scope="session")
def vmm(workbench: Workbench) -> Vmm:
    """The guest's vmm: its sysctls, vmmls and virtual machines."""
    return workbench.vmm


@pytest.fixture
def vm(vmm: Vmm) -> Iterator[Callable[..., None]]:
    """Make virtual machines: `vm("name", memory_bytes)`; they are destroyed after the test."""
    yield vmm.create
    if not vmm.guest.given_up:
        vmm.destroy_all()


@pytest.fixture
def batch(vmm: Vmm) -> Iterator[Callable[..., Batch]]:
    """Make several requests by one command: `with batch() as ask:`; the test leaves nothing."""
    yield vmm.batch
    if not vmm.guest.given_up:
        vmm.destroy_all()


@pytest.fixture
def l2(vmm: Vmm) -> Iterator[Callable[..., L2]]:
    """Make a guest inside the guest: `l2("name", mib)`, not started; ended after the test."""
    made: list[L2] = []

    def make(name: str, memory_mib: int = 32) -> L2:
        made.append(L2(vmm, name, memory_mib))
        return made[-1]

    yield make
    for guest in made:
        if not vmm.guest.given_up:
            guest.end()


@pytest.fixture
def reloaded(guest: Guest, vmm: Vmm) -> Iterator[None]:
    """For a check that unloads the module: it is loaded again afterwards in any case."""
    yield
    paths = [kld.path for kld in guest.klds() if kld.name == "vmm.ko"]
    if paths != [vmm.loaded.path]:
        if paths:
            guest.must(["kldunload", "vmm"])
        guest.must(["kldload", vmm.loaded.path], guest.deadline(30))


@pytest.fixture
def unloaded(guest: Guest, reloaded: None) -> None:
    """Unload the module during the check."""
    guest.must(["kldunload", "vmm"])
