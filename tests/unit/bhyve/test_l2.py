"""The scripts that run bhyve and talk to L2, on this host with a script in the place of bhyve."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness.bhyve import l2 as l2s
from harness.bhyve.l2 import L2, Exit, Found
from harness.deadline import Deadline
from harness.errors import GuestError, WaitTimeout
from harness.guest.ssh import CommandFailed, Result

# It answers as images/l2rom does; its last argument is the VM's name.
BHYVE = r"""#!/bin/sh
echo "$@" >"$(dirname "$0")/arguments"
for name; do :; done
case $name in
broken) echo "vm_open: no such thing" >&2; exit 4 ;;
mute) ;;
*) printf 'L2ROM ready, memory: low 32 MiB, high 0 MiB\r\n' ;;
esac
while read -r line; do
    case $line in
    p) printf 'L2ROM powers off\r\n'; exit 1 ;;
    r) exit 0 ;;
    t*) printf 'L2ROM touched %s MiB, bad pages: 0\r\n' "${line#t}" ;;
    u) printf 'TAP version 13\r\n1..1\r\nok 1 - platform.firmware: it\r\n# verdict failed=0\r\n' ;;
    esac
done
"""


class Local:
    """A guest whose scripts run on this host; `asked` counts them."""

    machine = SimpleNamespace()

    def __init__(self) -> None:
        self.asked = 0
        self.limit_s = 60.0

    def deadline(self, _native_s: float = 0) -> Deadline:
        return Deadline.after(self.limit_s)

    def script(
        self, text: str, *arguments: str, deadline: Deadline | None = None, check: bool = True
    ) -> Result:
        self.asked += 1
        command = ["sh", "-s", "--", *arguments]
        try:
            done = subprocess.run(
                command,
                input=text,
                check=False,
                capture_output=True,
                text=True,
                timeout=(deadline or self.deadline()).remaining_s,
            )
        except subprocess.TimeoutExpired as error:
            raise WaitTimeout("it did not end") from error
        if check and done.returncode:
            raise CommandFailed(done.stderr)
        return Result("sh", done.returncode, done.stdout, done.stderr, 0.0)

    def must(self, command: list[str]) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def put(self, local: Path, remote: str) -> None:
        Path(remote).write_bytes(local.read_bytes())


@pytest.fixture
def vmm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    home = tmp_path / "a home"
    home.mkdir()
    (home / "bhyve").write_text(BHYVE)
    (home / "bhyve").chmod(0o755)
    rom = tmp_path / "l2rom.bin"
    rom.write_bytes(b"rom")
    monkeypatch.setattr(l2s, "build_rom", lambda: rom)
    yield SimpleNamespace(
        guest=Local(), home=str(home), put_once=lambda local: f"{home}/{local.name}"
    )
    for process in left(home):
        # It may end by itself meanwhile.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def left(home: Path | str) -> list[psutil.Process]:
    """The processes that still run for L2."""
    return [
        process
        for process in psutil.process_iter(["cwd", "cmdline"])
        if str(home) in " ".join([process.info["cwd"] or "", *(process.info["cmdline"] or ())])
    ]


def test_starting_l2_is_one_command(vmm: Any) -> None:
    inner = L2(vmm, "one", 32)
    assert inner.start() == Found(32, 0)
    assert vmm.guest.asked == 1
    words = Path(vmm.home, "arguments").read_text()
    assert words.startswith("-H -m 32M -s 0,hostbridge -s 31,lpc -l com1,stdio -l bootrom,")
    assert words.endswith("-c 1 one\n")
    assert not Path(inner.folder, "disk1").exists()
    assert inner.wait_exit("p") == Exit.POWER_OFF
    assert vmm.guest.asked == 2
    assert "L2ROM powers off" in inner.output()


def test_answers_are_only_those_after_the_typed_line(vmm: Any) -> None:
    inner = L2(vmm, "one", 32)
    inner.start()
    assert inner.touch(1) == 0
    match = inner.ask("t2", re.compile(r"touched (\d+) MiB"))
    assert (match[1], match.string) == ("2", "L2ROM touched 2 MiB, bad pages: 0\n")
    assert inner.exit_code() is None
    inner.send("r")
    assert inner.wait_exit() == Exit.RESET
    assert inner.exit_code() == 0


def test_a_report_is_read_by_the_command_that_waits_for_it(vmm: Any) -> None:
    inner = L2(vmm, "platform", 64, ("-s", "4,nvme,{folder}/disk1"))
    inner.start()
    asked = vmm.guest.asked
    report = inner.platform()
    assert vmm.guest.asked == asked + 1
    assert [test.name for test in report.tests] == ["platform.firmware"]
    assert Path(inner.folder, "disk1").stat().st_size == 1 << 20
    assert f"-s 4,nvme,{inner.folder}/disk1" in Path(vmm.home, "arguments").read_text()


def test_a_bhyve_that_ends_at_once_says_why(vmm: Any) -> None:
    with pytest.raises(GuestError, match="bhyve exited with 4") as caught:
        L2(vmm, "broken", 32).start()
    assert "no such thing" in caught.value.detail


def test_a_silent_l2_is_a_time_out_and_can_be_ended(vmm: Any) -> None:
    inner = L2(vmm, "mute", 32)
    inner.launch()
    limit = Deadline.after(60)
    while not Path(inner.folder, "pid").exists() and not limit.expired:
        time.sleep(0.01)
    with pytest.raises(WaitTimeout, match="'L2ROM ready' not printed"):
        inner.ask("", re.compile("L2ROM ready"), Deadline.after(0.2))
    inner.kill()
    assert inner.exit_code() == 128 + 9
    # Another L2 can be started after that.
    assert L2(vmm, "mute2", 32).start() == Found(32, 0)


def test_nothing_of_a_wait_stays(vmm: Any) -> None:
    inner = L2(vmm, "one", 32)
    inner.start()
    for _ in range(3):
        inner.touch(1)
    inner.end()
    limit = Deadline.after(60)
    while left(vmm.home) and not limit.expired:
        time.sleep(0.01)
    assert left(vmm.home) == []


def test_a_folder_from_before_is_replaced(vmm: Any) -> None:
    first = L2(vmm, "one", 32)
    first.start()
    first.wait_exit("p")
    again = L2(vmm, "one", 32)
    again.start()
    assert again.exit_code() is None
    assert "powers off" not in again.output()
