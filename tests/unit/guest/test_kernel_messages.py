"""The complaints of a debug kernel, as its sources print them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kernel_texts import (
    AFTER_FREE,
    ALLOCATING,
    ASSERTION,
    DUPLICATE,
    HELD,
    OWNER,
    RETURNING,
    REVERSAL,
    THREE,
    TYPE,
    UPGRADE,
    ZONE,
)

from harness.guest import kernel_messages
from harness.guest.panic_report import Frame

ALL = {
    "lock order": (REVERSAL, THREE),
    "duplicate lock": (DUPLICATE,),
    "locks held": (HELD, ALLOCATING, RETURNING),
    "shared and exclusive": (UPGRADE,),
    "assertion": (ASSERTION,),
    "sleeping owner": (OWNER,),
    "used after free": (AFTER_FREE,),
    "leaked zone": (ZONE,),
    "leaked type": (TYPE,),
}
EACH = [(kind, text) for kind, texts in ALL.items() for text in texts]


def read(text: str) -> tuple[kernel_messages.Complaint, ...]:
    return kernel_messages.read(text.splitlines())


@pytest.mark.parametrize(("kind", "text"), EACH)
def test_each_form(kind: str, text: str) -> None:
    (found,) = read(f"em0: link state changed to UP\n{text}login: \n#1 of something else\n")
    assert (found.kind, "\n".join(found.lines)) == (kind, text.rstrip("\n"))
    assert found.of_unloading == kind.startswith("leaked")
    assert "\n" not in found.summary


@pytest.mark.parametrize(("kind", "text"), EACH)
def test_the_cursor_may_be_behind_a_prompt(kind: str, text: str) -> None:
    (found,) = read(f"host login: {text}")
    assert (found.kind, found.lines[0]) == (kind, text.splitlines()[0])


def test_all_of_them_in_a_row() -> None:
    found = read("".join(text for _kind, text in EACH))
    assert [it.kind for it in found] == [kind for kind, _text in EACH]


def test_a_summary_names_locks_places_and_the_function() -> None:
    (found,) = read(REVERSAL)
    assert found.summary == (
        "lock order reversal: (sleepable after non-sleepable) "
        "1st vm foo @ vmm_mem.c:123; 2nd segs @ vmm_dev.c:88; in vm_alloc_memseg"
    )
    assert read(HELD)[0].summary == (
        'Sleeping on "vmwait" with the following non-sleepable locks held: '
        "sleep mutex vmmdev @ x.c:99; rw vm stats @ vmm_stat.c:5; in vmmdev_ioctl"
    )
    assert read(UPGRADE)[0].summary == "exclusive lock of (sx) vm mem_segs @ vmm_mem.c:31"
    frame = Frame("vm_open", 3, sources=("sys/dev/vmm/a.h:5", "sys/dev/vmm/vmm_dev.c:9"))
    located = replace(found, frames=(frame,))
    assert located.summary.endswith("; in vm_open (vmm_dev.c:9)")
    assert str(read(HELD)[0].culprit) == "vmmdev_ioctl+0x44"
    assert str(read(ASSERTION)[0].culprit) == "vm_free_memseg+0x91"
    assert read(TYPE)[0].culprit is None


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (REVERSAL, REVERSAL.replace("0xfffff80003b0d068 vm foo", "0xfffff80003b0e000 vm bar")),
        (REVERSAL, REVERSAL.replace("/usr/src/sys", "/elsewhere/sys").replace(":123", ":140")),
        (REVERSAL, REVERSAL.replace("+0x44", "+0x54")),
        (HELD, HELD.replace(":99", ":101").replace("0xffffffff82a1b2c0", "0xffffffff82a1b200")),
        (TYPE, TYPE.replace("2 allocations, 128", "3 allocations, 192")),
        (ZONE, ZONE.replace("3 items", "5 items")),
        (UPGRADE, UPGRADE.replace(":31", ":33")),
    ],
)
def test_the_same_complaint_of_another_boot_or_build(text: str, other: str) -> None:
    assert text != other
    assert read(text)[0].signature == read(other)[0].signature


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (REVERSAL, REVERSAL.replace("(vm mem_segs, sx)", "(vm vcpus, sx)")),
        (REVERSAL, REVERSAL.replace("vmm_dev.c", "vmm_stat.c")),
        (HELD, HELD.replace("vmwait", "vmidle")),
        (HELD, HELD.replace("(vmmdev mutex)", "(vm mutex)")),
        (DUPLICATE, DUPLICATE.replace("vm mem_segs", "vm vcpus")),
        (TYPE, TYPE.replace("type vm", "type vmx")),
        (ASSERTION, ASSERTION.replace("bad segment", "no segment")),
    ],
)
def test_another_complaint(text: str, other: str) -> None:
    assert text != other
    assert read(text)[0].signature != read(other)[0].signature


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the kernel said: lock order reversal: somewhere",
        "lock order reversal",
        "reversal: lock order",
        "memory type vm leaked memory",
        " 1st 0x1 a (a, sx) @ x.c:1\n",
        "stack backtrace:\n#0 0xffffffff80bf8a41 at witness_debugger+0x71\n",
        "WITNESS: unable to allocate a new witness object",
        "pci0: <unknown> with the following locks",
    ],
)
def test_what_is_no_complaint(text: str) -> None:
    assert read(text) == ()


def test_a_flood_is_bounded() -> None:
    frames = "".join(f"#{n} 0xffffffff80bf8a41 at f{n}+0x1\n" for n in range(5000))
    (found,) = read(f"{DUPLICATE}{frames}")
    assert len(found.lines) < 200
