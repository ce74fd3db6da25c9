"""Many boots, one after another and in parallel: none fails, and none leaves anything behind.

A few run with the other tests, many with `./inv test --only soak`.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import backends
import psutil
import pytest
from backends import QEMU

from harness.deadline import Deadline
from harness.guest.freebsd import Access, Guest
from harness.machine import Drive, Spec
from harness.machine.forward import Forward

BOOT_S = 300.0


def boot_once(standin: Any, folder: Path) -> Forward:
    """Boot, run a command, power off; returns the network that was used."""
    spec = Spec(folder, Drive(standin.disk), memory_bytes=384 << 20, name=folder.name)
    with (
        backends.make(QEMU, spec) as machine,
        Guest(machine, Access(standin.private_key, standin.host_key)) as guest,
    ):
        machine.start(Deadline.after(60))
        guest.wait_ready(Deadline.after(BOOT_S))
        assert guest.must(["echo", folder.name]) == f"{folder.name}\n"
        forward = machine.forward
    assert forward is not None
    assert machine.pid is None
    assert spec.console_log.stat().st_size > 0
    return forward


def held() -> dict[str, object]:
    """The resources of this process, by kind."""
    process = psutil.Process()
    return {
        "descriptors": process.num_fds(),
        "threads": sorted(t.name for t in threading.enumerate()),
        "children": [child.cmdline() for child in process.children(recursive=True)],
        "listening": [c.laddr for c in process.net_connections() if c.status == "LISTEN"],
    }


def is_closed(forward: Forward) -> bool:
    try:
        forward.connect(5).close()
    except ConnectionRefusedError:
        return True
    return False


def files_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "boots",
    [2, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(4 * 3600)])],
)
def test_boots_in_a_row(standin: Any, tmp_path: Path, boots: int) -> None:
    before = None
    for number in range(boots):
        assert is_closed(boot_once(standin, tmp_path / f"boot-{number}"))
        # Resources that are made once and stay, also by libraries, exist after the first boot.
        before = before or held()
        assert held() == before
        print(f"boot {number + 1} of {boots}: nothing left", flush=True)
    assert files_below(tmp_path) == {"console.log", "emulator.log", "overlay.qcow2"}


@pytest.mark.parametrize(
    ("rounds", "side_by_side"),
    [
        pytest.param(1, 2, marks=pytest.mark.soak),
        pytest.param(25, 4, marks=[pytest.mark.soak, pytest.mark.timeout(4 * 3600)]),
    ],
)
def test_boots_side_by_side(standin: Any, tmp_path: Path, rounds: int, side_by_side: int) -> None:
    before = None
    for number in range(rounds):
        folders = [tmp_path / f"round-{number}-{place}" for place in range(side_by_side)]
        # An emulator ends with the thread that started it, so the pool lasts as long as its
        # machines.
        with ThreadPoolExecutor(side_by_side, thread_name_prefix="boots") as pool:
            ways = list(pool.map(boot_once, [standin] * side_by_side, folders))
        assert len(set(ways)) == side_by_side
        assert all(map(is_closed, ways))
        before = before or held()
        assert held() == before
        print(f"round {number + 1} of {rounds}: {side_by_side} booted, nothing left", flush=True)
