"""FreeBSD in a machine, with a fake machine and a fake shell."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from fakes import Answer, FakeGuest

from harness.deadline import Deadline
from harness.errors import GuestError, GuestPanic, MachineDied, WaitTimeout
from harness.guest.freebsd import Kld, parse_kldstat
from harness.guest.ssh import CommandFailed
from harness.guest.ssh_connect import SshRefused

KLDSTAT = """\
Id Refs Address                Size Name
 1   12 0xffffffff80200000  1f3f2d0 kernel (/boot/kernel/kernel)
\tContains modules:
\t\t Id Name
\t\t  1 cam
 2    1 0xffffffff82a00000   4d5e08 vmm.ko (/var/tmp/vmm-workbench/ab (1)/vmm.ko)
\tContains modules:
\t\t Id Name
\t\t512 vmm
"""


def test_kldstat_is_read() -> None:
    assert parse_kldstat(KLDSTAT) == [
        Kld("kernel", "/boot/kernel/kernel", 0x1F3F2D0, 0xFFFFFFFF80200000),
        Kld("vmm.ko", "/var/tmp/vmm-workbench/ab (1)/vmm.ko", 0x4D5E08, 0xFFFFFFFF82A00000),  # noqa: S108
    ]
    assert parse_kldstat("") == []
    assert parse_kldstat("nonsense\n") == []


def test_sysctls() -> None:
    guest = FakeGuest(
        {
            "sysctl -n kern.ostype": (0, "FreeBSD\n", ""),
            "sysctl -n empty": (0, "\n", ""),
            "sysctl -n none": (1, "", "sysctl: unknown oid 'none'\n"),
            "sysctl -n closed": (1, "", "sysctl: closed: Operation not permitted\n"),
        }
    )
    assert guest.sysctl("kern.ostype") == "FreeBSD"
    assert guest.sysctl("empty") == ""
    assert guest.sysctl("none") is None
    with pytest.raises(GuestError, match=r"sysctl closed: .*not permitted"):
        guest.sysctl("closed")


@pytest.mark.parametrize(
    "said", ["", "many", "12 34", "1e30", "0x10", "9" * 5000, "\x1b[31m", "None", "1\n::error::x"]
)
def test_a_sysctl_that_is_no_number(said: str) -> None:
    """Whatever a guest answers, a bad answer is reported as the guest's fault, in one line."""
    guest = FakeGuest({"sysctl -n kern.osreldate": (0, said + "\n", "")})
    with pytest.raises(GuestError, match=r"sysctl kern\.osreldate: the guest answers") as caught:
        guest.number("kern.osreldate")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 250


def test_sysctls_that_are_numbers() -> None:
    two = (0, "-1\n1501000\n", "")
    guest = FakeGuest({"sysctl -n a b": two, "sysctl -n a b c": two})
    assert guest.numbers("a", "b") == (-1, 1501000)
    with pytest.raises(GuestError, match="3 whole numbers are expected"):
        guest.numbers("a", "b", "c")


def test_must_and_exists() -> None:
    guest = FakeGuest({"test -e /no": (1, "", ""), "cat": (2, "", "cat: no\n")})
    assert guest.exists("/yes")
    assert not guest.exists("/no")
    with pytest.raises(CommandFailed, match="exited with 2: cat: no"):
        guest.must(["cat", "x"])


def test_shut_down_waits_for_the_end() -> None:
    guest = FakeGuest({"shutdown": GuestError("the connection broke")})
    guest.machine.ends_after = 2  # type: ignore[attr-defined]
    guest.shut_down(Deadline.after(5))
    assert guest.said == ["shutdown -p now"]


def test_a_panic_on_the_way_down_is_no_time_out() -> None:
    """The machine keeps running then, so waiting only for its end would never finish."""
    guest = FakeGuest({"shutdown": GuestPanic("the guest panicked: bad dirent")})
    guest.machine.ends_after = 1000  # type: ignore[attr-defined]
    guest.machine.console.panic = "bad dirent"  # type: ignore[attr-defined]
    with pytest.raises(GuestPanic, match="bad dirent"):
        guest.shut_down(Deadline.after(5))


def test_a_guest_that_does_not_go_down() -> None:
    guest = FakeGuest()
    guest.machine.ends_after = 1000000  # type: ignore[attr-defined]
    guest.machine.console.text = "Waiting (max 60 seconds)"  # type: ignore[attr-defined]
    with pytest.raises(WaitTimeout, match=r"guest did not power off within 0 s.*console\.log") as e:
        guest.shut_down(Deadline.after(0.1))
    assert "max 60" in e.value.detail


def test_an_end_without_power_off_is_reported() -> None:
    guest = FakeGuest()
    guest.machine.off = False  # type: ignore[attr-defined]
    guest.machine.error = MachineDied("exited with 1")  # type: ignore[attr-defined]
    with pytest.raises(MachineDied, match="exited with 1"):
        guest.shut_down(Deadline.after(5))


def boots(*answers: Answer) -> dict[str, Answer]:
    left = list(answers)
    return {
        "sysctl -n kern.boottime": lambda: left.pop(0),
        "shutdown": GuestError("the SSH connection broke"),
    }


def test_reboot_waits_for_the_new_system() -> None:
    """The old one still answers, and then breaks off in the middle of an answer."""
    guest = FakeGuest(
        boots((0, "1", ""), (0, "1", ""), GuestError("the SSH connection broke"), (0, "2", ""))
    )
    guest.reboot(Deadline.after(20))
    assert guest.waited == 3
    assert guest.said[1] == "shutdown -r now"


@pytest.mark.parametrize(
    "error", [GuestPanic("panic"), MachineDied("died"), SshRefused("key"), WaitTimeout("late")]
)
def test_reboot_ends_with_what_is_final(error: GuestError) -> None:
    with pytest.raises(type(error)):
        FakeGuest(boots((0, "1", ""), error)).reboot(Deadline.after(20))


def test_reboot_has_a_limit() -> None:
    same: list[Answer] = [(0, "1", "")] * 50
    with pytest.raises(WaitTimeout, match="did not reboot within 1 s"):
        FakeGuest(boots(*same)).reboot(Deadline.after(1))


def test_a_resumed_guest_is_given_the_time_and_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = FakeGuest()
    fed: list[bytes] = []
    raised: list[Sequence[str]] = []

    def must(command: Sequence[str], _deadline: Deadline, *, stdin: bytes = b"") -> str:
        raised.append(command)
        fed.append(stdin)
        return ""

    monkeypatch.setattr(guest, "must", must)
    monkeypatch.setattr(guest, "_connect", lambda _deadline: None)
    before = time.time()
    for _ in range(2):
        guest.wake(Deadline.after(5))
    assert abs(int(raised[0][-1]) - before) <= 5
    assert "date" in raised[0][2]
    assert "cat >/dev/random" in raised[0][2]
    assert [len(data) for data in fed] == [4096, 4096]
    assert fed[0] != fed[1]
