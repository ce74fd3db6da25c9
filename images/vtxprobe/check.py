#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
#
# Copyright (c) 2026 The vmm-workbench authors
"""Check the probe itself: every processor model and every fault, in Bochs.

    check.py models [MODEL ...]    check the table models.txt
    check.py faults [FAULT ...]    check the table faults.txt, and each hide-NAME

A line counts as failed by itself if it is not ok and not marked "not run".
Needs bochs and bochs-term.  CC and O are passed on to make.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT_S = 30
BOCHSRC = """\
display_library: term
megs: 32
romimage: file=/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
cpu: model={model}, count=1, ips=10000000, reset_on_triple_fault=0
clock: sync=none
boot: disk
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path={image}, mode=volatile, cylinders=2, heads=16, spt=63
com1: enabled=1, mode=file, dev={room}/com1
log: {room}/log
panic: action=fatal
error: action=report
info: action=report
"""


def build(out: Path, fault: str) -> Path:
    subprocess.run(["make", "-s", "-C", str(HERE), f"O={out}", f"FAULT={fault}"], check=True)
    return out / "vtxprobe.img"


def run(image: Path, model: str) -> str:
    """Boot `image` in Bochs and return its output on COM1."""
    with tempfile.TemporaryDirectory(prefix="vtxprobe-") as room:
        Path(room, "bochsrc").write_text(BOCHSRC.format(model=model, image=image, room=room))
        Path(room, "go").write_text("c\n")  # Debian's Bochs starts in its debugger
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ["TERM"] = "linux"
            os.execvp("bochs", ["bochs", "-q", "-f", f"{room}/bochsrc", "-rc", f"{room}/go"])  # noqa: S606
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    if not os.read(terminal, 65536):
                        break
                except OSError:
                    break
        else:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
        return Path(room, "com1").read_text(errors="replace")


def failed(tap: str) -> tuple[list[str], list[str]]:
    """The required and the optional lines that failed by themselves."""
    required: list[str] = []
    optional: list[str] = []
    lines = tap.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=False):
        match = re.match(r"not ok \d+ - ([^:]+):", line)
        if match and not after.startswith("# not run"):
            (optional if "# TODO" in line else required).append(match[1])
    if "\nBail out!" in tap:
        required.append("Bail")
    elif "\n# verdict " not in tap:
        required.append("(no verdict)")
    return required, optional


def table(name: str) -> list[list[str]]:
    lines = (HERE / name).read_text().splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def names(column: str) -> list[str]:
    return [] if column == "-" else column.split(",")


def report(what: str, good: bool, seen: str, took_s: float) -> bool:
    print(f"{'ok' if good else 'WRONG':5} {what:60} {took_s:4.1f} s  {seen}", flush=True)
    return good


def models(out: Path, only: list[str]) -> bool:
    image = build(out, "")
    good = True
    for model, first, lines in table("models.txt"):
        if only and model not in only:
            continue
        start = time.monotonic()
        tap = run(image, model)
        required, _ = failed(tap)
        holds = required == names(lines) and f" first_missing={first}" in tap
        good &= report(model, holds, ",".join(required) or "-", time.monotonic() - start)
    return good


def faults(out: Path, only: list[str]) -> bool:
    listed = subprocess.run(
        ["make", "-s", "-C", str(HERE), "list-faults"], check=True, capture_output=True, text=True
    )
    expected = {name: (names(vmx), names(svm)) for name, vmx, svm in table("faults.txt")}
    tests = {"corei7_skylake_x": 0, "ryzen": 1}
    image = build(out, "")
    base = {model: failed(run(image, model)) for model in tests}
    good = True
    for fault in listed.stdout.split():
        if only and fault not in only:
            continue
        image = build(out, fault)
        for model, column in tests.items():
            start = time.monotonic()
            required, optional = failed(run(image, model))
            required = [line for line in required if line not in base[model][0]]
            optional = [line for line in optional if line not in base[model][1]]
            line = fault.removeprefix("hide-")
            if line == fault:
                holds = required == expected[fault][column] and not optional
            elif line.startswith("svm.") == (model == "ryzen"):
                holds = required + optional == ([line] if line not in base[model][1] else [])
            else:
                holds = not required and not optional
            seen = ",".join(required + [f"{name} (optional)" for name in optional]) or "-"
            good &= report(f"{fault} on {model}", holds, seen, time.monotonic() - start)
    return good


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in ("models", "faults"):
        print(__doc__, file=sys.stderr)
        return 2
    check = models if sys.argv[1] == "models" else faults
    if "O" in os.environ:
        return 0 if check(Path(os.environ["O"]).resolve(), sys.argv[2:]) else 1
    with tempfile.TemporaryDirectory(prefix="vtxprobe-") as out:
        return 0 if check(Path(out), sys.argv[2:]) else 1


if __name__ == "__main__":
    sys.exit(main())
