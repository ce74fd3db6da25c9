"""The emulators for the tests: TCG and each Bochs, or KVM in the Linux of images/nested.

That Linux sets HARNESS_TEST_QEMU to "kvm amd" or "kvm intel"; then the same tests run under its
KVM, and none in Bochs.
"""

from __future__ import annotations

import os

from harness import machine as machines
from harness.machine import Backend, Machine, Spec, bochs_packages
from harness.machine.models import vendor_of

BOCHS_VERSIONS = tuple(bochs_packages.SUITES)

QEMU, _, _vendor = os.environ.get("HARNESS_TEST_QEMU", "tcg intel").partition(" ")
VENDOR = vendor_of(_vendor)
EMULATORS = (QEMU, *(f"bochs {version}" for version in BOCHS_VERSIONS if QEMU == "tcg"))
BACKENDS = (QEMU, "bochs") if QEMU == "tcg" else (QEMU,)


def make(backend: str, spec: Spec) -> Machine:
    """A machine in a backend; KVM's has the processor of the Linux that the tests run in."""
    return machines.make(Backend(backend, VENDOR), spec)
