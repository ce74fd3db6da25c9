"""The KVM backend, everywhere: the tests of machines run under KVM in a Linux that QEMU emulates.

Most machines that run these tests have no KVM, or KVM without nesting.  images/nested makes a Linux
with KVM (AMD's kind, as QEMU emulates no VMX); this project's own tests run in it, with KVM as
their emulator, and each is one test here.  It boots only once for all of them. docs/ci.md says what
this shows about the KVM backend, and what it does not show.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import pytest
from backends import QEMU
from test_machines import sector

from harness.deadline import Deadline
from harness.errors import CannotError

__all__ = ["sector"]

pytestmark = [
    pytest.mark.skipif(QEMU == "kvm", reason="this is the Linux that these tests run in"),
    # The first test boots it and runs all; another worker waits.
    pytest.mark.timeout(3200),
]

# It takes two minutes of a processor's time; this is for a machine with much else to do.
LIMIT_S = 3000.0

_TESTS = {
    "test_closed": (
        "test_no_port_on_this_machine[kvm]",
        "test_qemu_runs_in_its_sandbox_and_gains_no_rights",
        "test_without_our_key_there_is_no_way_in",
        "test_the_guest_has_no_way_out",
    ),
    "test_machines": (
        "test_a_machine_lives_and_switches_itself_off[kvm]",
        "test_the_accelerator_is_the_backend_s",
        "test_the_brought_disk_is_never_written_to[kvm]",
        "test_an_emulator_that_is_killed_ends_waits_at_once[kvm-in a wait]",
        "test_a_signal_from_outside_is_no_power_off",
        "test_an_emulator_does_not_outlive_a_killed_harness[kvm-ssh]",
        "test_a_model_that_does_not_exist_is_named_by_the_emulator[kvm]",
        "test_gdb_s_stub_reads_the_guest_and_lets_it_go_on",
        "test_three_machines_side_by_side",
    ),
    "test_faults": (
        "test_killed_at_any_moment[0.1]",
        "test_a_stopped_emulator_is_named[kvm]",
        "test_a_guest_that_switches_itself_off_is_named[kvm]",
        "test_a_full_disk_beneath_the_guest_is_named[kvm-No space left on device]",
        "test_a_full_disk_before_the_start_is_named",
    ),
    "test_snapshots": (
        "test_the_guest_goes_on_after_it_was_saved",
        "test_resumed_guests_are_right_and_the_snapshot_stays_as_it_is",
        "test_a_full_disk_stops_the_saving_and_not_the_guest",
        "test_what_is_cut_off_is_refused_at_once[devices]",
    ),
}
INSIDE = tuple(f"tests/machine/{file}.py::{it}" for file, its in _TESTS.items() for it in its)


@pytest.fixture(scope="session")
def inside(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Mapping[str, Any]:
    """The reports of that Linux, by test, and its other lines; the first test boots it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "nested"
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            standin = request.getfixturevalue("standin")
            sector = request.getfixturevalue("sector")
            boot_and_run(request.getfixturevalue("nested"), folder, standin, sector)
    return read(folder)


def boot_and_run(nested: ModuleType, folder: Path, standin: Any, sector: Path) -> None:
    """Run INSIDE in that Linux; `folder` holds its console's output, results and any fault."""
    try:
        script = nested.pytest_script(INSIDE, standin.disk.parents[2], sector)
        extra = [standin.disk.parent, sector]
        nested.run(nested.build(), folder, script, extra, Deadline.after(LIMIT_S))
    except CannotError as error:
        (folder / "fault").write_text(error.message)


def read(folder: Path) -> Mapping[str, Any]:
    """The lines of the results by the test's name; a truncated line is ignored."""
    found: dict[str, Any] = {"fault": "", "phases": {}, "about": {}}
    if (folder / "fault").exists():
        found["fault"] = (folder / "fault").read_text()
    console = folder / "console"
    found["console"] = console.read_text(errors="replace")[-3000:] if console.exists() else ""
    results = folder / "results"
    for line in results.read_text(errors="replace").splitlines() if results.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "test" in record:
            found["phases"].setdefault(record["test"], []).append(record)
        else:
            found["about"].update(record)
    return found


def test_that_linux_has_a_kvm_of_its_own_and_runs_all(inside: Mapping[str, Any]) -> None:
    assert not inside["fault"], inside["fault"] + "\n" + inside["console"]
    about = inside["about"]
    assert about["kvm"] == ["kvm_amd"]
    assert {"svm", "npt"} <= set(about["flags"])
    assert sorted(inside["phases"]) == sorted(INSIDE)
    assert about["ended"] in (0, 1), inside["console"]


@pytest.mark.parametrize("test", INSIDE)
def test_under_kvm(
    inside: Mapping[str, Any], test: str, record_property: Callable[[str, object], None]
) -> None:
    for name, value in inside["about"].items():
        record_property(name, value)
    phases = inside["phases"].get(test, [])
    assert phases, f"it did not run there. {inside['fault']}\n{inside['console']}"
    bad = [f"{it['phase']} {it['outcome']}: {it['said']}" for it in phases]
    # Tests that cannot run there are not on the list, because a skipped test shows nothing.
    assert [(it["phase"], it["outcome"]) for it in phases] == [
        ("setup", "passed"), ("call", "passed"), ("teardown", "passed"),
    ], "\n".join(bad)  # fmt: skip
    record_property("seconds there", sum(it["seconds"] for it in phases))
