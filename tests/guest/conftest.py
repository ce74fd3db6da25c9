"""What several files of checks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.guest import Guest
from harness.vmm import Vmm


@pytest.fixture
def reloaded(guest: Guest, vmm: Vmm) -> Iterator[None]:
    """For a check that unloads the module: ours is loaded again afterwards, whatever came."""
    yield
    paths = [kld.path for kld in guest.klds() if kld.name == "vmm.ko"]
    if paths != [vmm.loaded.path]:
        if paths:
            guest.must(["kldunload", "vmm"])
        guest.must(["kldload", vmm.loaded.path], guest.deadline(30))


@pytest.fixture
def unloaded(guest: Guest, reloaded: None) -> None:
    """The module is not loaded during the check."""
    guest.must(["kldunload", "vmm"])
