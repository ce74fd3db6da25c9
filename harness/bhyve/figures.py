"""The figures of vmm and the output of vmmls as data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from harness.guest.ssh import CommandFailed

FIGURES = ("total", "allocated", "free", "device")
SYSCTLS = tuple(f"hw.vmm.mem_{name}" for name in FIGURES)
LIMIT = "hw.vmm.mem_limit"
USER_LIMIT = "hw.vmm.mem_user_limit"
_SIZES = ("memory", "wired", "resident", "lowmem", "highmem")


@dataclass(frozen=True)
class Memory:
    """The host's figures at one moment, in bytes; `allocated_bytes` is only system memory."""

    total_bytes: int
    allocated_bytes: int
    free_bytes: int
    device_bytes: int = 0


@dataclass(frozen=True)
class Listed:
    """A virtual machine as vmmls -v shows it; without permission only name and owner are not None.

    While the VM's memory is being changed only the sizes are None.
    """

    name: str
    owner: str = "root"
    vcpus: int | None = None
    state: str | None = None
    memory_bytes: int | None = None
    wired_bytes: int | None = None
    resident_bytes: int | None = None
    lowmem_bytes: int | None = None
    highmem_bytes: int | None = None


@dataclass(frozen=True)
class Listing:
    """The complete output of one call of vmmls."""

    vms: tuple[Listed, ...]
    memory: Memory


def library_figures(text: str) -> Memory:
    """Parse what `vmtool memory` prints: libvmmapi's figures; CommandFailed if it is invalid."""
    try:
        said = dict(line.split() for line in text.splitlines())
        return Memory(*(int(said[name]) for name in FIGURES))
    except (KeyError, ValueError) as error:
        raise CommandFailed(
            f"libvmmapi's figures have the wrong form: {error!r}", detail=text
        ) from error


def parse_listing(text: str) -> Listing:
    """Parse vmmls's JSON; CommandFailed if it is invalid or lacks a figure."""
    try:
        top = json.loads(text)["vmm"]
        rows = top.get("virtual-machine", [])
        return Listing(
            vms=tuple(
                Listed(
                    _of(str, row["name"]),
                    _of(str, row["owner"]),
                    _of(int, row.get("vcpus"), None),
                    _of(str, row.get("state"), None),
                    *(_of(int, row.get(key), None) for key in _SIZES),
                )
                for row in rows
            ),
            memory=Memory(*(_of(int, top[key]) for key in FIGURES)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandFailed(
            f"vmmls printed JSON that is not in the documented form: {error!r}", detail=text
        ) from error


def _of(kind: type, value: Any, *others: Any) -> Any:
    """`value`, if it has exactly this type or one of `others`; "1" and true are not sizes."""
    if type(value) is not kind and value not in others:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value
