"""What the guest's kernel has in use: zones and pages, which are cheap to ask for, and types."""

from __future__ import annotations

import json

from harness.guest.freebsd import Guest

_WIRED = "vm.stats.vm.v_wire_count"
BOUNDED = frozenset({"DEVCTL"})
"""Zones whose items the kernel bounds: events of devices that devd(8) has not read yet."""
# These count pages, of which the items of other zones take some.
_COARSE = ("wired pages", "UMA Slabs")


def zones(guest: Guest) -> dict[str, int]:
    """How many items of each zone are in use, and how many pages are wired ("wired pages").

    malloc(9) takes what is small from zones and what is large as wired pages, so that whatever
    leaks shows here.
    """
    script = f"vmstat --libxo json -z && echo && sysctl -n {_WIRED}"
    said, wired = guest.script(script).stdout.rsplit("\n\n", 1)
    rows = json.loads(said)["vmstat"]["memory-zone-statistics"]["zone"]
    return {"wired pages": int(wired), **{row["name"]: int(row["used"]) for row in rows}}


def types(guest: Guest) -> dict[str, int]:
    """How many pieces of memory each of malloc(9)'s types has in use.

    The kernel answers with the figures of 1,024 processors, there or not: 4 s in Bochs.
    """
    data = json.loads(guest.must(["vmstat", "--libxo", "json", "-m"]))
    rows = data["vmstat"]["malloc-statistics"]["memory"]
    return {row["type"]: int(row["in-use"]) for row in rows}


def grown(before: dict[str, int], after: dict[str, int], least: int) -> dict[str, int]:
    """By how much each has grown that has grown by `least` or more."""
    by = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in by.items() if count >= least}


def suspicious(before: dict[str, int], after: dict[str, int], count: int) -> dict[str, int]:
    """What may have leaked while something was done `count` times: by how much each has grown.

    Half as much is enough, since others may free some meanwhile.  Pages must have grown by all,
    since a zone that grows takes some.
    """
    return {
        name: by
        for name, by in grown(before, after, count // 2).items()
        if name not in BOUNDED and (by >= count or not name.startswith(_COARSE))
    }
