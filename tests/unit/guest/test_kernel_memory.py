"""What the kernel has in use, from what vmstat(8) prints."""

from __future__ import annotations

import json

from fakes import FakeGuest

from harness.guest import kernel_memory
from harness.guest.freebsd import Guest
from harness.guest.ssh import Result


class _Asked(FakeGuest):
    def script(self, text: str, *_: str, **__: object) -> Result:
        return self.run([text])


def test_zones_and_pages_are_asked_for_at_once() -> None:
    rows = [{"name": "malloc-16", "used": 7}, {"name": "a, b", "used": 0}]
    said = json.dumps({"vmstat": {"memory-zone-statistics": {"zone": rows}}}, indent=1)
    guest: Guest = _Asked({"vmstat --libxo json -z": (0, f"{said}\n\n1234\n", "")})
    assert kernel_memory.zones(guest) == {"wired pages": 1234, "malloc-16": 7, "a, b": 0}
    assert len(guest.said) == 1  # type: ignore[attr-defined]


def test_types() -> None:
    rows = [{"type": "vmx", "in-use": 3}]
    said = json.dumps({"vmstat": {"malloc-statistics": {"memory": rows}}})
    guest = FakeGuest({"vmstat --libxo json -m": (0, said, "")})
    assert kernel_memory.types(guest) == {"vmx": 3}


def test_what_has_grown() -> None:
    before, after = {"a": 1, "b": 5, "c": 9}, {"a": 11, "b": 14, "new": 10}
    assert kernel_memory.grown(before, after, 10) == {"a": 10, "new": 10}


def test_the_pages_of_another_zone_are_no_leak() -> None:
    """What a guest of Bochs said of 20 VMs: only SMR leaks, a known fault."""
    seen = {
        "wired pages": 11, "vm pgcache": 9, "UMA Slabs 0": 10, "SMR SHARED": 20, "SMR CPU": 20,
        "DEVCTL": 40,
    }  # fmt: skip
    assert kernel_memory.suspicious({}, seen, 20) == {"SMR SHARED": 20, "SMR CPU": 20}
    # A large piece of malloc(9) is whole pages, a small one an item.
    leak = kernel_memory.suspicious({}, {**seen, "wired pages": 31, "malloc-64": 12}, 20)
    assert leak.keys() - {"SMR SHARED", "SMR CPU"} == {"wired pages", "malloc-64"}
