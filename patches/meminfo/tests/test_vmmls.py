"""vmmls: its lists, and its errors."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from harness import release as releases
from harness.bhyve.batch import Batch
from harness.bhyve.vmm import MIB, Listed, Memory, Vmm
from harness.guest.freebsd import Guest
from harness.run.workbench import Workbench

pytestmark = [pytest.mark.patch, pytest.mark.tools]

GIB = 1024 * MIB
HEADER = ["NAME", "OWNER", "VCPUS", "STATE", "MEMORY", "WIRED", "RESIDENT"]
SIZES = ("memory", "wired", "resident", "lowmem", "highmem")
NAME_MAX = 229
# All that vmmls asks of a VM.  kdump(1) of FreeBSD 14 has no name for the first two, and none has
# one for the third, which the series adds.
_REQUESTS = {
    "0x40087640": "VM_GET_TOPOLOGY",
    "0x8010765b": "VM_GET_CPUS",
    "0x40407647": "VM_GET_MEMSTAT",
}


def created(name: str, memory_bytes: int, high_bytes: int = 0) -> Listed:
    """A VM of root with memory that was never used, and not started."""
    low = memory_bytes - high_bytes
    return Listed(name, "root", 1, "created", memory_bytes, 0, 0, low, high_bytes)


def row(name: str, memory_bytes: int) -> str:
    """The same as vmmls -Hp prints it."""
    return f"{name}\troot\t1\tcreated\t{memory_bytes}\t0\t0\n"


def test_without_a_vm_the_list_is_empty(batch: Callable[..., Batch]) -> None:
    """without a VM, vmmls lists none, prints the totals and succeeds"""
    with batch() as ask:
        listing, memory = ask.listing(), ask.memory()
    assert listing.value.vms == ()
    assert listing.value.memory == memory.value


@pytest.mark.vtx
def test_names_and_memory_are_what_was_given(batch: Callable[..., Batch]) -> None:
    """vmmls lists the names, sorted, with the memory of each VM"""
    with batch() as ask:
        ask.create("zeta", 64 * MIB)
        ask.create("alpha", 128 * MIB)
        listing = ask.listing()
    assert listing.value.vms == (created("alpha", 128 * MIB), created("zeta", 64 * MIB))


@pytest.mark.vtx
@pytest.mark.freebsd("15.0")  # before, memory above 3 GiB has 1 GiB more: the hole up to 4 GiB
def test_memory_is_split_at_4_gib(batch: Callable[..., Batch]) -> None:
    """for a VM of 5 GiB the memory below and above 4 GiB is listed separately"""
    with batch() as ask:
        ask.create("big", 5 * GIB)
        listing = ask.listing()
    (big,) = listing.value.vms
    assert big.memory_bytes == 5 * GIB
    assert big.lowmem_bytes == 3 * GIB
    assert big.highmem_bytes == 2 * GIB


@pytest.mark.vtx
def test_the_list_agrees_with_the_sysctls(batch: Callable[..., Batch]) -> None:
    """the sum of the listed memory is mem_allocated, and the totals are those of the sysctls"""
    with batch() as ask:
        for number in range(5):
            ask.create(f"sum{number}", (number + 1) * 16 * MIB, 16 * MIB)
        listed, memory = ask.listing(), ask.memory()
    listing = listed.value
    assert sum(vm.memory_bytes or 0 for vm in listing.vms) == 240 * MIB
    assert listing.memory == memory.value
    assert listing.memory.allocated_bytes == 240 * MIB
    assert listing.memory.device_bytes == 80 * MIB


@pytest.mark.vtx
def test_names_as_arguments_choose(batch: Callable[..., Batch]) -> None:
    """with names on the command line only these VMs are listed; an unknown name is an error"""
    with batch() as ask:
        ask.create("wanted", 16 * MIB)
        ask.create("other", 16 * MIB)
        listing, unknown = ask.listing("wanted"), ask.vmmls("-H", "wanted", "nobody")
    assert [listed.name for listed in listing.value.vms] == ["wanted"]
    result = unknown.value
    assert result.exit_code == 1
    assert "nobody" in result.stderr
    assert result.stdout.startswith("wanted")


@pytest.mark.vtx
def test_exact_and_human_sizes(batch: Callable[..., Batch]) -> None:
    """sizes have units by default and are exact bytes with -p; -H leaves out header and sum"""
    with batch() as ask:
        ask.create("sizes", 1536 * MIB)
        human, exact, more = ask.vmmls(), ask.vmmls("-Hp"), ask.vmmls("-v")
    assert human.value.ok, human.value.describe()
    first, second, *_ = human.value.stdout.splitlines()
    assert first.split() == HEADER
    assert second.split() == ["sizes", "root", "1", "created", "1.5G", "0B", "0B"]
    assert exact.value.stdout == row("sizes", 1536 * MIB)
    lines = more.value.stdout.splitlines()
    assert lines[0].split() == [*HEADER, "LOWMEM", "HIGHMEM"]
    assert lines[1].split()[-2:] == ["1.5G", "0B"]


@pytest.mark.vtx
def test_wired_and_resident_memory(batch: Callable[..., Batch]) -> None:
    """wired memory is also resident; memory that was never used is neither"""
    with batch() as ask:
        ask.create("calm", 32 * MIB)
        ask.create("wired", 24 * MIB, wired=True)
        listing, text = ask.listing(), ask.vmmls("-Hp", "wired")
    calm, wired = listing.value.vms
    assert (calm.wired_bytes, calm.resident_bytes) == (0, 0)
    assert wired.memory_bytes == wired.wired_bytes == wired.resident_bytes == 24 * MIB
    assert text.value.stdout.split("\t")[4:] == [
        str(24 * MIB), str(24 * MIB), f"{24 * MIB}\n"
    ]  # fmt: skip


@pytest.mark.vtx
def test_it_lists_again(guest: Guest, vmm: Vmm, vm: Callable[..., None]) -> None:
    """with -w the list is printed repeatedly, each time with the current state"""
    vm("first", 16 * MIB)
    script = """
"$1" $4 -w 1 >"$2" & pid=$!
until_seen() {
    for _ in $(jot 300); do
        grep -q "$1" "$2" && return
        kill -0 $pid || exit 1
        sleep 0.1
    done
}
until_seen first "$2"
"$3" create second 16777216
until_seen second "$2"
kill $pid; cat "$2"; rm "$2"
"""
    home = f"{vmm.home}/again.out"
    try:
        said = guest.script(script, vmm.vmmls_path, home, vmm.vmtool_path, "-Hp").stdout
        guest.run([vmm.vmtool_path, "clean", "second"])
        people = guest.script(script, vmm.vmmls_path, home, vmm.vmtool_path, "-p").stdout
    finally:
        guest.run([vmm.vmtool_path, "clean", "second"])
    assert said.startswith(row("first", 16 * MIB))
    assert row("first", 16 * MIB) + row("second", 16 * MIB) in said
    # The last line is also computed again.
    sums = re.findall(r"Allocated: (\d+) ", people)
    assert {int(sums[0]), int(sums[-1])} == {16 * MIB, 32 * MIB}
    assert people.count("NAME ") == len(sums)


@pytest.mark.vtx
def test_a_slash_in_a_name_is_found(batch: Callable[..., Batch]) -> None:
    """a VM whose name has a slash is in a directory of its own, and listed"""
    with batch() as ask:
        ask.create("rack/one", 16 * MIB)
        listing = ask.listing()
    assert [listed.name for listed in listing.value.vms] == ["rack/one"]


@pytest.mark.vtx
def test_an_escape_sequence_in_a_name_is_harmless(batch: Callable[..., Batch]) -> None:
    """a name with an escape sequence reaches no terminal as it is"""
    with batch() as ask:
        ask.create("evil\x1b[31mred", 16 * MIB)
        answers = [
            ask.vmmls(*arguments)
            for arguments in ((), ("-H",), ("--libxo", "json"), ("--libxo", "html"))
        ]
    for answer in answers:
        result = answer.value
        assert result.ok, result.describe()
        assert "\x1b" not in result.stdout
        assert "evil" in result.stdout


# What a name may hold besides letters, and how vis(3) writes it.
ODD = {
    "%s%n": "%s%n",
    "<b>&": "<b>&",
    "back\\slash": r"back\134slash",
    "bell\x07": r"bell\007",
    "café": r"caf\303\251",
    "csi\u009b2J": r"csi\302\2332J",
    "gone\x7f": r"gone\177",
    "{k:x}": "{k:x}",
}


@pytest.mark.vtx
def test_odd_names_are_escaped_and_found(batch: Callable[..., Batch]) -> None:
    """odd bytes in names are shown in octal, in text and JSON, and such names can be arguments"""
    with batch() as ask:
        for name in ODD:
            ask.create(name, MIB)
        text, listing, table = ask.vmmls("-Hp", *ODD), ask.listing(), ask.vmmls()
    assert text.value.ok, text.value.describe()
    assert text.value.stdout == "".join(row(label, MIB) for label in ODD.values())
    assert [listed.name for listed in listing.value.vms] == list(ODD.values())
    shown = table.value.stdout.splitlines()[1 : 1 + len(ODD)]
    assert [line.split()[0] for line in shown] == list(ODD.values())


@pytest.mark.vtx
def test_the_longest_name_is_whole(batch: Callable[..., Batch], workbench: Workbench) -> None:
    """names of 229 bytes, with and without a slash, are listed in full; 230 bytes are refused"""
    names = ["d/" + "s" * (NAME_MAX - 2), "n" * NAME_MAX]
    with batch() as ask:
        for name in names:
            ask.create(name, 16 * MIB)
        listing, table = ask.listing(), ask.vmmls()
        longer = ask.refused("n" * (NAME_MAX + 1))
    assert [listed.name for listed in listing.value.vms] == names
    rows = table.value.stdout.splitlines()[1:3]
    rest = ["root", "1", "created", "16M", "0B", "0B"]
    assert [line.split() for line in rows] == [[name, *rest] for name in names]
    # FreeBSD 14 has the same limit and answers EINVAL.
    recent = releases.parse(workbench.options.release).has(releases.parse("15.0"))
    assert ("too long" if recent else "Invalid argument") in longer.value


@pytest.mark.vtx
def test_every_format_says_the_same(batch: Callable[..., Batch]) -> None:
    """JSON, XML and text contain the same names and figures; JSON and XML are valid"""
    with batch() as ask:
        ask.create("same/low", 48 * MIB)
        ask.create("same/high", 5 * GIB)
        ask.create("evil<&>'\x1b", 16 * MIB)
        ask.create("none")
        listed, memory = ask.listing(), ask.memory()
        plain, xml = ask.vmmls("-Hpv"), ask.vmmls("--libxo", "xml", "-v")
        exact = ask.vmmls("-p")
    listing, text = listed.value, plain.value.stdout
    assert [line.split("\t") for line in text.splitlines()] == [
        list(map(str, dataclasses.astuple(vm))) for vm in listing.vms
    ]
    top = ET.fromstring(xml.value.stdout)  # noqa: S314  (of our own guest)
    rows = [
        [vm.findtext(key) for key in ("name", "owner", "vcpus", "state", *SIZES)]
        for vm in top.findall("virtual-machine")
    ]
    assert rows == [line.split("\t") for line in text.splitlines()]
    figures = [int(top.findtext(key) or -1) for key in ("total", "allocated", "free", "device")]
    assert Memory(*figures) == listing.memory == memory.value
    last = exact.value.stdout.splitlines()[-1].split()
    assert last == [
        "Total:", str(figures[0]), "Allocated:", str(figures[1]), "Device:", str(figures[3]),
        "Free:", str(figures[2]),
    ]  # fmt: skip


@pytest.mark.vtx
def test_a_vm_without_memory_is_listed(batch: Callable[..., Batch]) -> None:
    """a VM without memory, or with only device memory, is listed with no memory"""
    with batch() as ask:
        ask.create("bare")
        ask.create("device", 0, 16 * MIB)
        listing = ask.listing()
    assert listing.value.vms == (created("bare", 0), created("device", 0))


def test_without_the_module_it_says_so(guest: Guest, vmm: Vmm, unloaded: None) -> None:
    """without the module vmmls says so, exits with 1, and does not load it"""
    said = vmm.vmmls()
    assert (said.exit_code, said.stdout) == (1, ""), said.describe()
    assert "the vmm module is not loaded" in said.stderr
    assert not guest.run(["kldstat", "-q", "-m", "vmm"]).ok


@pytest.mark.vtx
def test_listing_disturbs_no_vm(guest: Guest, vmm: Vmm, vm: Callable[..., None]) -> None:
    """the requests of vmmls stop no vCPU and wait for no lock, and it does not open /dev/vmmctl"""
    vm("calm", 16 * MIB)
    script = 'ktrace -i -f "$1" "$2" -p >/dev/null && kdump -f "$1"; rm -f "$1"'
    calls = guest.script(script, f"{vmm.home}/ktrace.out", vmm.vmmls_path).stdout
    assert "/dev/vmm/calm" in calls
    assert "/dev/vmmctl" not in calls
    asked = set(re.findall(r"CALL  ioctl\(0x\w+,(VM\w+|0x\w+)", calls))
    assert {_REQUESTS.get(it, it) for it in asked} == set(_REQUESTS.values())


@pytest.mark.vtx
def test_not_root_sees_names_but_no_sizes(vmm: Vmm, batch: Callable[..., Batch]) -> None:
    """a user without the right to open a VM still sees its name, and the host's figures"""
    with batch() as ask:
        ask.create("closed", 32 * MIB)
        said = ask.run(["su", "-m", "nobody", "-c", f"{vmm.vmmls_path} --libxo json"])
    assert said.value.ok, said.value.describe()
    data = json.loads(said.value.stdout)["vmm"]
    assert data["virtual-machine"] == [{"name": "closed", "owner": "root"}]
    assert data["allocated"] == 32 * MIB


@pytest.mark.parametrize("arguments", [("-x",), ("--nonsense",), ("-p", "-q")])
def test_bad_use_gets_a_usage_line(vmm: Vmm, arguments: tuple[str, ...]) -> None:
    """an unknown option gets a usage line and exit code 1"""
    result = vmm.vmmls(*arguments)
    assert result.exit_code == 1, result.describe()
    assert "usage: vmmls" in result.stderr
    assert result.stdout == ""
