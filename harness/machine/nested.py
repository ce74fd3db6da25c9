"""Runs guests under KVM on any machine: a Linux in Bochs runs QEMU with KVM.

Bochs emulates a processor with VMX or SVM.  A small Linux (images/nested/kvmhost.py) boots on it,
loads KVM and starts one QEMU, with the usual command line of the KVM backend.  For all other code
this is one machine: its serial line is the guest's, its forwarded port leads to the guest, and it
is saved and resumed like any machine in Bochs, including the Linux and the QEMU in it.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from harness import files, process
from harness.deadline import Deadline
from harness.errors import CannotError
from harness.machine import bochs, qemu
from harness.machine.models import BOCHS_MODELS, KVM_IN_BOCHS, Backend
from harness.machine.spec import Spec, Traits

TRAITS = Traits(
    backend=KVM_IN_BOCHS,
    # Each exit takes a hundred to a thousand instructions of an emulated processor.
    time_scale=150.0,
    virtualizes=True,
    saves=True,
    can_be_asked=False,
    processors=1,
)

# The memory of the Linux: the guest's memory, and the same again for itself and the guest's writes.
_LINUX_BYTES = 1 << 30
# If a second has few instructions, a guest in the guest is interrupted before it has run much.
_IPS = 100_000_000
_PROGRAM = files.PROJECT / "images" / "nested" / "kvmhost.py"
_BUILD_S = 1800.0
_GUEST_DISK, _ORDERS = "guest.img", "orders.img"
_ORDERS_TIME_S = 1_000_000_000
# One cylinder of Bochs's smallest disk.
_ORDERS_BYTES = 16 * 63 * 512


# In Bochs 2.7 these instructions compute X25519 wrongly, so that SSH fails.
_WITHOUT_ADX = ",-adx"


def orders(spec: Spec, vendor_flag: str, bochs_version: str) -> str:
    """The commands for the Linux's shell: QEMU, with its guest's serial line on the Linux's own."""
    wrong = bochs_version.startswith("2.7")
    command = qemu.command_line(
        replace(spec, savable=False, resume_from=None),
        qemu.KVM,
        console="stdio,id=com1,signal=off",
        qmp=None,
        forward="0.0.0.0:22",
        cpu=qemu.default_cpu(qemu.KVM, vendor_flag) + (_WITHOUT_ADX if wrong else ""),
    )
    # The guest's disk is the second disk of the Linux.
    disk = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        "/dev/guest-disk",
        qemu.OVERLAY,
    ]
    lines = [
        "cd /run",
        "stty raw -echo",
        f"{shlex.join(disk)} || exit",
        f"{shlex.join(command)} 2>qemu.log",
        'echo "QEMU in the Linux ended with $?"',
        "cat qemu.log",
        "exit",
    ]
    return "\n".join(lines) + "\n"


class NestedMachine(bochs.BochsMachine):
    """A virtual computer under KVM, in a Linux, in Bochs."""

    traits = TRAITS

    def __init__(self, spec: Spec, backend: Backend) -> None:
        super().__init__(spec)
        self._orders = orders(spec, backend.flag, self._bochs.version)
        self._linux = replace(
            spec,
            cpu=BOCHS_MODELS[backend.vendor],
            memory_bytes=spec.memory_bytes + _LINUX_BYTES,
            cpus=1,
        )

    @property
    def _emulated(self) -> Spec:
        return self._linux

    def _settings(self) -> str:
        return bochs.configuration(
            self._linux,
            has_network=self.spec.ssh,
            ips=_IPS,
            more_disks=(_GUEST_DISK, _ORDERS),
            # With KVM each access to a device's memory causes a violation, which the processor
            # logs.
            errors="action=report, cpu0=ignore",
        )

    @cached_property
    def linux_disk(self) -> Path:
        """The disk that Linux boots from; CannotError if it can neither be found nor made."""
        return _linux_disk(self.spec.ssh)

    def orders_image(self) -> bytes:
        """The disk with the commands for Linux's shell."""
        return self._orders.encode().ljust(_ORDERS_BYTES, b"\0")

    def _disks(self) -> dict[str, Path]:
        return {
            **super()._disks(),
            _GUEST_DISK: self.spec.drive.path.absolute(),
            bochs.DISK: self.linux_disk,
        }

    def start(self, deadline: Deadline) -> None:
        # The deadline does not include making the Linux.
        _ = self.linux_disk
        super().start(Deadline.after(deadline.limit_s))

    def _prepare(self) -> None:
        super()._prepare()
        orders = self.spec.run_dir / _ORDERS
        orders.write_bytes(self.orders_image())
        # A resumed Bochs refuses a disk that was changed since; it compares the file's time.
        os.utime(orders, (_ORDERS_TIME_S, _ORDERS_TIME_S))

    def depends_on(self) -> dict[str, str]:
        return {
            **super().depends_on(),
            "Linux with KVM": str(self.linux_disk),
            "QEMU": self._orders,
        }


def _linux_disk(network: bool) -> Path:
    """The disk of the Linux, which is made if it is not in the cache."""
    # The program gets no environment from this process, but must use the same cache.
    environment = process.clean_environment({"HARNESS_CACHE": str(files.cache_dir())})
    command = [sys.executable, str(_PROGRAM), *(("network",) if network else ())]
    done = process.run(command, Deadline.after(_BUILD_S), environment=environment)
    if not done.ok:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.code}"]
        raise CannotError(f"the Linux with KVM cannot be made: {said[-1]}")
    return Path(done.stdout.strip())
