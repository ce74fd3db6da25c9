"""The KVM backend with Intel's VMX on a machine without it: in a Linux that Bochs emulates.

`./inv test --only kvm` runs this.  This machine's Python and project run in that Linux: the project
decides about KVM as its module's settings change, and then runs the probe under it.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import kvm_vmx_inside as inside_it
import pytest
from backends import QEMU

from harness import files
from harness.deadline import Deadline
from harness.machine import Backend, Drive, Spec
from harness.machine.models import KVM_IN_BOCHS
from harness.machine.nested import NestedMachine
from harness.probe import run

pytestmark = [
    pytest.mark.skipif(QEMU == "kvm", reason="this is the Linux that these tests run in"),
    pytest.mark.kvm,
    pytest.mark.timeout(3600),
]

LIMIT_S = 3300.0
_MODULES = Path("/l1")
# Root is the only user there, so no remedy says sudo.
_RELOAD = "end all virtual machines, then modprobe -r kvm_intel && modprobe kvm_intel"


class _Linux(NestedMachine):
    """The Linux with KVM, which runs Python from its second disk instead of a guest."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, Backend(KVM_IN_BOCHS))
        self._orders = "\n".join(
            [
                "mkdir /mnt && busybox mount -t ext4 /dev/guest-disk /mnt || exit",
                "for name in dev proc sys; do busybox mount --bind /$name /mnt/$name; done",
                f"busybox cp /lib/modules/*.ko /mnt{_MODULES}",
                "busybox chroot /mnt /bin/sh /l1/run",
                "exit",
                "",
            ]
        )


@pytest.fixture(scope="module")
def answers(nested: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The project's answers in there, by their questions."""
    folder = tmp_path_factory.mktemp("linux")
    image = run.build(inside_it.WITHOUT_THE_LAST_STEP)
    program = Path(inside_it.__file__)
    environment = {
        "PATH": "/usr/bin:/usr/sbin",
        "HOME": "/root",
        "HARNESS_CACHE": str(image.parents[2]),
        "HARNESS_RUNS": "/root/runs",
        "PYTHONPATH": str(files.PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    command = [sys.executable, str(program), str(_MODULES)]
    script = "\n".join([f"cd {shlex.quote(str(files.PROJECT))}", *lines, shlex.join(command), ""])
    disk = folder / "python.ext4"
    nested.make_disk(disk, nested.build(), script, [image.parent])
    machine = _Linux(Spec(folder / "run", Drive(disk), ssh=False, name="the Linux with KVM"))
    with machine:
        machine.start(Deadline.after(60))
        machine.wait_ended(Deadline.after(LIMIT_S))
    found: dict[str, Any] = {}
    console = machine.console.since(0)
    for line in console.splitlines():
        _, begun, text = line.partition(inside_it.LINE)
        if begun:
            said = json.loads(text)
            key = "probe" if "probe" in said else f"{said.get('asked', '')} {said.get('setting')}"
            found[key] = said
    found["console"] = console[-3000:]
    return found


@pytest.mark.parametrize("asked", ["kvm", "auto"])
def test_kvm_is_taken_where_it_nests(answers: Mapping[str, Any], asked: str) -> None:
    made = answers.get(f"{asked} nothing changed")
    assert made, answers["console"]
    assert made["backend"] == "kvm"
    assert made["reason"] == "KVM gives guests VMX, EPT and unrestricted guest"


@pytest.mark.parametrize(
    ("setting", "reason", "remedy"),
    [
        ("nested=N", "nesting is off (kvm_intel.nested=N)", f"{_RELOAD} nested=1"),
        (
            "ept=N",
            "ept.invept, ... (kvm_intel.ept=N, kvm_intel.unrestricted_guest=N)",
            f"{_RELOAD} ept=1 unrestricted_guest=1",
        ),
        (
            "unrestricted_guest=N",
            "procbased2.unrestricted_guest (kvm_intel.unrestricted_guest=N)",
            f"{_RELOAD} unrestricted_guest=1",
        ),
        (
            inside_it.NO_MODULE,
            "there is no /dev/kvm: the module is not loaded",
            "modprobe kvm_intel",
        ),
    ],
)
def test_each_refusal_names_its_cause_and_its_remedy(
    answers: Mapping[str, Any], setting: str, reason: str, remedy: str
) -> None:
    made = answers.get(f"kvm {setting}")
    assert made, answers["console"]
    assert made["backend"] is None
    assert reason in made["reason"]
    assert made["remedy"] == remedy
    # Bochs is not installed there, so no backend is left.
    assert reason in answers[f"auto {setting}"]["reason"]


def test_the_probe_holds_under_it(answers: Mapping[str, Any]) -> None:
    said = answers.get("probe")
    assert said, answers["console"]
    assert said["held"], said["probe"]
    assert said["probe"].startswith("kvm runs virtual machines")
