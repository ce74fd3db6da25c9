"""snapshot: a guest is suspended to files and resumed from them; needs BHYVE_SNAPSHOT."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from harness.bhyve.l2 import L2
from harness.bhyve.vmm import Vmm
from harness.guest.freebsd import Guest

pytestmark = [pytest.mark.vtx, pytest.mark.tools]

# bhyve's exit code after a suspension (usr.sbin/bhyve/snapshot.c).
SUSPENDED = 5
COUNTS = re.compile(r"L2ROM counts (\d+)$", re.M)
COUNTED = re.compile(r"L2ROM counted to (\d+), bad pages: (\d+)")
ASK = """
set -e
PATH="$1:$PATH"
cd "$2"
bhyvectl "$3=$4" --vm="$5"
"""
SNAPSHOT_S = 30.0

Make = Callable[..., L2]


@pytest.fixture(autouse=True)
def run_dir(guest: Guest, vmm: Vmm) -> None:
    """The folder of bhyve's socket for bhyvectl; skip unless bhyve was built with the option."""
    if "bhyve" not in [path.name for path in vmm.build.programs]:
        reasons = dict(vmm.build.not_built)
        pytest.skip(f"bhyve was not built with BHYVE_SNAPSHOT: {reasons.get('bhyve', 'no reason')}")
    guest.must(["mkdir", "-p", "/var/run/bhyve"])


def counted(number: int) -> re.Pattern[str]:
    """A pattern for L2.ask, which needs plain words first: L2 has counted to this number."""
    return re.compile(rf"L2ROM counts {number}\b")


def counting(l2: Make, name: str) -> L2:
    """A guest that counts, and has reached 3."""
    inner = l2(name, 32)
    inner.start()
    inner.ask("n", counted(3))
    return inner


def save(vmm: Vmm, inner: L2, how: str) -> str:
    """Let bhyvectl suspend or checkpoint a guest; returns the file's path."""
    file = f"{inner.name}.saved"
    limit = vmm.guest.deadline(SNAPSHOT_S)
    vmm.guest.script(ASK, vmm.home, vmm.home, how, file, inner.name, deadline=limit)
    return f"{vmm.home}/{file}"


def resume(vmm: Vmm, l2: Make, name: str, file: str) -> L2:
    """Another guest, which continues from the file."""
    inner = l2(name, 32)
    inner.launch("-l", f"bootrom,{vmm.home}/l2rom.bin", "-r", file)
    return inner


def numbers(inner: L2) -> list[int]:
    """The numbers that a guest has printed so far."""
    return [int(it) for it in COUNTS.findall(inner.output())]


def goes_on(vmm: Vmm, inner: L2, last: int) -> None:
    """Check that a resumed guest counts on from `last`, leaves out no number, and has its
    memory.
    """
    inner.ask("", counted(last + 3), vmm.guest.deadline(SNAPSHOT_S))
    seen = numbers(inner)
    # The number that it was printing when it was suspended is divided between both outputs.
    assert seen[0] in (last, last + 1, last + 2)
    assert seen == list(range(seen[0], seen[-1] + 1))
    found = inner.ask("x", COUNTED)
    assert (int(found[1]) >= seen[-1], found[2]) == (True, "0")


def test_a_suspended_guest_goes_on(vmm: Vmm, l2: Make) -> None:
    """a guest that was suspended to files and resumed continues to count, with its memory"""
    inner = counting(l2, "counts")
    file = save(vmm, inner, "--suspend")
    assert inner.wait_exit() == SUSPENDED
    assert vmm.names() == []
    goes_on(vmm, resume(vmm, l2, "counts2", file), numbers(inner)[-1])


def test_a_guest_goes_on_beside_its_checkpoint(vmm: Vmm, l2: Make) -> None:
    """a checkpoint leaves the guest running, and another guest continues from it"""
    inner = counting(l2, "kept")
    before = numbers(inner)[-1]
    file = save(vmm, inner, "--checkpoint")
    after = numbers(inner)[-1]
    inner.ask("", counted(after + 2), vmm.guest.deadline(SNAPSHOT_S))
    seen = numbers(inner)
    assert seen == list(range(1, seen[-1] + 1))
    inner.end()
    again = resume(vmm, l2, "kept2", file)
    # The first line may lack its beginning, but not the second.
    again.ask("", re.compile(r"L2ROM counts \d+\r?$", re.M), vmm.guest.deadline(SNAPSHOT_S))
    first = numbers(again)[0]
    assert before <= first <= after + 2
    goes_on(vmm, again, first)


def test_files_that_are_cut_short_are_refused(vmm: Vmm, l2: Make, guest: Guest) -> None:
    """if the file with the kernel's state is incomplete, bhyve does not run the guest"""
    inner = counting(l2, "short")
    file = save(vmm, inner, "--suspend")
    assert inner.wait_exit() == SUSPENDED
    guest.must(["truncate", "-s", "64", f"{file}.kern"])
    again = resume(vmm, l2, "short2", file)
    assert again.wait_exit() not in (0, 2, 3)
    assert numbers(again) == []
