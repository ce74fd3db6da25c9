"""What runs in the Linux of test_kvm_vmx.py: the decision for each setting of KVM, then the probe.

    python kvm_vmx_inside.py FOLDER      FOLDER holds kvm.ko and kvm_intel.ko

Each answer is a line of JSON on standard output, after LINE.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import host
from harness.errors import WorkbenchError
from harness.machine import Backend
from harness.probe import run

LINE = "answer: "
SETTINGS = {
    "nothing changed": (),
    "nested=N": ("nested=0",),
    "ept=N": ("ept=0",),
    "unrestricted_guest=N": ("unrestricted_guest=0",),
}
NO_MODULE = "no module"
# Under KVM in Bochs, the step that this leaves out hangs the Linux too (images/vtxprobe/README.md).
WITHOUT_THE_LAST_STEP = "hide-pinbased.preemption_timer"


def answer(**line: object) -> None:
    print(f"\n{LINE}{json.dumps(line)}", flush=True)


def load(folder: Path, options: Sequence[str] | None) -> None:
    """kvm_intel with these options, or (None) without the module."""
    subprocess.run(["busybox", "rmmod", "kvm_intel"], check=False)
    if options is not None:
        module = str(folder / "kvm_intel.ko")
        subprocess.run(["busybox", "insmod", module, "preemption_timer=0", *options], check=True)


def decide(setting: str) -> None:
    facts = host.gather()
    for asked in ("kvm", "auto"):
        made = host.decide(facts, asked)
        answer(
            setting=setting,
            asked=asked,
            backend=str(made.backend) if made.backend else None,
            reason=made.reason,
            remedy=made.remedy,
        )


def main() -> None:
    folder = Path(sys.argv[1])
    load(folder, None)
    decide(NO_MODULE)
    for setting, options in reversed(SETTINGS.items()):
        load(folder, options)
        decide(setting)
    try:
        result = run.run_probe(Backend("kvm"), fault=WITHOUT_THE_LAST_STEP)
        answer(probe=result.reason, held=result.held, seconds=round(result.seconds, 1))
    except WorkbenchError as error:
        answer(probe=f"{error.message}\n{error.detail}", held=False)
    answer(ended=True)


if __name__ == "__main__":
    main()
