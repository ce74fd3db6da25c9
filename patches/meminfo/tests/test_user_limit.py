"""hw.vmm.mem_user_limit, which only the series for main has: a limit for each user."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness import release as releases
from harness.bhyve.vmm import LIMIT, MIB, USER_LIMIT, Vmm
from harness.guest.freebsd import Guest
from harness.guest.ssh import CommandFailed, Result
from harness.report.data import N_A
from harness.run.workbench import Workbench

pytestmark = [pytest.mark.patch, pytest.mark.vtx, pytest.mark.tools]

Give = Callable[[str, str, int], Result]


@pytest.fixture(autouse=True)
def limited(guest: Guest, workbench: Workbench) -> None:
    """Before FreeBSD 16 only root can make VMs, so the series for these releases lack the limit."""
    release = releases.parse(workbench.options.release)
    if guest.sysctl(USER_LIMIT) is None and not release.has(releases.parse("16.0")):
        pytest.skip(f"{N_A}only the series for main has a limit for each user")


@pytest.fixture
def give(guest: Guest, vmm: Vmm) -> Iterator[Give]:
    """A user gives a VM of root's, whose node is open to all, so much memory."""
    guest.must(["chmod", "666", "/dev/vmmctl"])

    def run(user: str, name: str, memory_bytes: int) -> Result:
        vmm.create(name)
        guest.must(["chmod", "666", f"/dev/vmm/{name}"])
        command = f"{vmm.vmtool_path} domains {name} 1 {memory_bytes}"
        return guest.run(["su", "-m", user, "-c", command])

    yield run
    vmm.destroy_all()
    for name in (USER_LIMIT, LIMIT):
        guest.run(["sysctl", f"{name}=0"])
    guest.must(["chmod", "600", "/dev/vmmctl"])


def test_each_user_has_a_limit(guest: Guest, vmm: Vmm, give: Give) -> None:
    """each user, root included, gets exactly the limit, and again what was given back"""
    guest.must(["sysctl", f"{USER_LIMIT}={64 * MIB}"])
    refused = give("nobody", "a", 65 * MIB)
    assert "Cannot allocate memory" in refused.stderr, refused.describe()
    assert vmm.mem_allocated_bytes == 0
    given = give("nobody", "b", 48 * MIB)
    assert given.ok, given.describe()
    # The kernel reports at most one refusal a second, and another check may just have made one.
    guest.must(["sleep", "1.5"])
    refused = give("nobody", "c", 17 * MIB)
    assert "Cannot allocate memory" in refused.stderr, refused.describe()
    # Others have room of their own, each as much.
    given = give("games", "d", 64 * MIB)
    assert given.ok, given.describe()
    vmm.create("root", 64 * MIB)
    with pytest.raises(CommandFailed, match="Cannot allocate memory"):
        vmm.create("more", 4096)
    assert vmm.mem_allocated_bytes == 176 * MIB
    # Exactly what is left fits, and what was given back can be had again.
    given = give("nobody", "e", 16 * MIB)
    assert given.ok, given.describe()
    vmm.destroy("b")
    refused = give("nobody", "f", 49 * MIB)
    assert "Cannot allocate memory" in refused.stderr, refused.describe()
    given = give("nobody", "g", 48 * MIB)
    assert given.ok, given.describe()
    said = "\n".join(guest.dmesg())
    uid = guest.must(["id", "-u", "nobody"]).strip()
    assert f"uid {uid}: {USER_LIMIT} leaves no" in said


def test_both_limits_hold(guest: Guest, vmm: Vmm, give: Give) -> None:
    """the limit of all and that of each user hold together; without them all is given"""
    guest.must(["sysctl", f"{USER_LIMIT}={64 * MIB}", f"{LIMIT}={80 * MIB}"])
    assert vmm.mem_total_bytes == 80 * MIB
    assert give("nobody", "a", 64 * MIB).ok
    refused = give("games", "b", 17 * MIB)
    assert "Cannot allocate memory" in refused.stderr, refused.describe()
    assert give("games", "c", 16 * MIB).ok
    guest.must(["sysctl", f"{USER_LIMIT}=0", f"{LIMIT}=0"])
    assert give("nobody", "d", 1024 * MIB).ok


def test_only_root_sets_it_and_not_to_minus_one(guest: Guest) -> None:
    """a user who is not root cannot set the limit of users, and nobody can set it to -1"""
    for user, value in (("nobody", "1048576"), ("root", "-1")):
        assert not guest.run(["su", "-m", user, "-c", f"/sbin/sysctl {USER_LIMIT}={value}"]).ok
    assert guest.sysctl(USER_LIMIT) == "0"
