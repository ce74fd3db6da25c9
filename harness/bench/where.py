"""Describes the machine that a bench ran on."""

from __future__ import annotations

import os
import platform
from typing import Any

from harness import host
from harness.files import human_bytes


def machine() -> dict[str, Any]:
    """Processor, processors, memory, kernel, emulators, and how busy it is."""
    facts = host.gather()
    return {
        "processor": facts.cpu.model,
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "emulators": {name: found.version for name, found in facts.emulators.items()},
        "load average": [round(load, 1) for load in os.getloadavg()],
    }


def line(where: dict[str, Any]) -> str:
    """The same as one line for people."""
    emulators = ", ".join(f"{name} {version}" for name, version in where["emulators"].items())
    return (
        f"{where['processor']}, {where['processors']} processors, "
        f"{human_bytes(where['memory_bytes'])}, {where['kernel']}; {emulators}; "
        f"load {where['load average'][0]}"
    )
