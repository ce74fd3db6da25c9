"""The hardware probe in real emulators: their features, their gaps, and that every line can fail.

The deliberate faults and what each must do are listed in images/vtxprobe/faults.txt.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness import host, hostmake, machine
from harness.deadline import Deadline
from harness.errors import GuestError, UsageError
from harness.files import PROJECT
from harness.machine import Backend
from harness.machine.models import BOCHS_MODELS
from harness.probe import run as probe
from harness.probe import tap

VMX_MODEL = BOCHS_MODELS["intel"]
SVM_MODEL = "ryzen"


def run(backend: str, cpu: str | None = None, fault: str = "") -> probe.ProbeResult:
    return probe.run_probe(Backend(backend), cpu=cpu, fault=fault)


def by_name(result: probe.ProbeResult) -> dict[str, tap.Test]:
    return {test.name: test for test in result.report.tests}


def failed(result: probe.ProbeResult) -> list[str]:
    """The lines that ran and failed, without the optional ones."""
    return [test.name for test in result.report.missing if not test.needs]


def processor_of(result: probe.ProbeResult) -> host.Processor:
    """The processor according to the probe's raw registers."""
    found = (
        re.match(r"msr (0x[0-9a-f]+) \S+ (0x[0-9a-f]+)", line) for line in result.report.comments
    )
    msrs = {int(match[1], 16): int(match[2], 16) for match in found if match}
    return host.Processor(leaf1_ecx=1 << 5, msrs=msrs)


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder in which failed runs leave their folders."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("HARNESS_RUNS", str(folder))
    return folder


@pytest.fixture(scope="module")
def whole(each_bochs: str) -> probe.ProbeResult:
    """The probe in each Bochs with the model that has all features."""
    return run("bochs")


def test_bochs_has_everything(whole: probe.ProbeResult) -> None:
    assert whole.held
    assert whole.exit_code == 0
    assert whole.report.first_missing is None
    tests = by_name(whole)
    for step in (
        "vmxon",
        "l2.launch",
        "l2.real_mode",
        "l2.ept_violation_write",
        "l2.hlt",
        "vmxoff",
    ):
        assert tests[step].held
    assert whole.report.cost_cycles["samples"] == 1001
    assert whole.report.cost_cycles["median"] > 0


@pytest.mark.usefixtures("each_bochs")
@pytest.mark.parametrize("cpu", [SVM_MODEL, "zambezi", "trinity_apu"])
def test_bochs_virtualizes_as_amd_does(cpu: str) -> None:
    result = run("bochs", cpu)
    assert result.held
    assert by_name(result)["l2.npt_fault_write"].held
    assert result.report.verdict["vt"] == "svm"


@pytest.mark.usefixtures("each_bochs")
@pytest.mark.parametrize(
    ("cpu", "first"),
    [
        ("corei5_lynnfield_750", "procbased2.unrestricted_guest"),
        ("core2_penryn_t9600", "exit.save_efer"),
        ("turion64_tyler", "svm.npt"),
        ("phenom_8650_toliman", "svm.nrip_save"),
        ("athlon64_venice", "svm.cpuid"),
        ("pentium", "cpu.long_mode"),
    ],
)
def test_what_lesser_processors_lack_in_bochs(cpu: str, first: str) -> None:
    lacks("bochs", cpu, first)


@pytest.mark.parametrize(
    ("cpu", "first"),
    [
        (None, "svm.nrip_save"),
        ("max,-npt", "svm.npt"),
        ("max,-svm", "svm.cpuid"),
        ("Skylake-Client", "vmx.cpuid"),
        ("qemu32", "cpu.long_mode"),
    ],
)
def test_what_lesser_processors_lack_in_qemu(cpu: str | None, first: str) -> None:
    lacks("tcg", cpu, first)


def lacks(backend: str, cpu: str | None, first: str) -> None:
    """Check that the probe names `first` as the first missing feature of that processor."""
    result = run(backend, cpu)
    assert result.exit_code == 3
    assert result.report.first_missing is not None
    assert result.report.first_missing.name == first
    assert first in result.reason
    # No other part of virtual machines can have passed.
    if first != "svm.nrip_save":
        assert not any(test.held for test in result.report.tests if test.name.startswith("l2."))


@pytest.mark.usefixtures("each_bochs")
@pytest.mark.parametrize("cpu", [VMX_MODEL, "core2_penryn_t9600", "corei5_lynnfield_750"])
def test_the_doctor_would_have_judged_the_same(cpu: str) -> None:
    """host.lacking infers from the registers exactly what the probe finds, line by line."""
    result = run("bochs", cpu)
    inferred = {lack.name for lack in host.lacking(processor_of(result))}
    tests = by_name(result)
    for demand in host.VMX_CONTROLS:
        assert tests[demand.name].held == (demand.name not in inferred), demand.name
    # A failed line says itself whether it is optional.
    for demand in host.VMX_CONTROLS:
        if not tests[demand.name].held:
            assert tests[demand.name].optional == (demand.need is host.Need.OPTIONAL), demand.name


def deliberate_faults() -> list[tuple[str, str, list[str]]]:
    """Fault, processor model, and the lines that must fail, from the probe's own list."""
    cases = []
    for line in (PROJECT / "images/vtxprobe/faults.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, vmx, svm = line.split()
            for model, lines in ((VMX_MODEL, vmx), (SVM_MODEL, svm)):
                if lines not in {"-", "Bail"}:
                    cases.append((name, model, lines.split(",")))
    return cases


@pytest.mark.usefixtures("each_bochs")
@pytest.mark.parametrize(
    ("fault", "cpu", "lines"),
    deliberate_faults(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_step_can_fail(fault: str, cpu: str, lines: list[str]) -> None:
    result = run("bochs", cpu, fault)
    assert failed(result) == lines
    assert result.exit_code == 3
    assert f"FAULT={fault}" in result.reason


@pytest.mark.usefixtures("each_bochs")
@pytest.mark.parametrize(
    ("fault", "cpu"),
    [
        ("hide-vmx.cpuid", VMX_MODEL),
        ("hide-procbased.cr3_load_exiting", VMX_MODEL),
        ("hide-ept.write_back", VMX_MODEL),
        ("hide-svm.npt", SVM_MODEL),
    ],
)
def test_capability_lines_can_fail(fault: str, cpu: str) -> None:
    result = run("bochs", cpu, fault)
    assert failed(result)[0] == fault.removeprefix("hide-")
    assert result.exit_code == 3


@pytest.mark.usefixtures("each_bochs")
def test_a_probe_that_gives_up(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="it stopped early: unexpected exception 6") as caught:
        probe.run_probe(Backend("bochs"), fault="trap", run_dir=tmp_path / "run")
    assert caught.value.exit_code == 4
    assert "Bail out!" in caught.value.detail
    assert "Bail out!" in (tmp_path / "run" / "console.log").read_text()


@pytest.mark.usefixtures("each_bochs")
def test_an_emulator_that_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def kill(running: machine.Machine, *_limits: object) -> None:
        assert running.pid is not None
        os.kill(running.pid, signal.SIGKILL)
        running.wait_ended(Deadline.after(5))

    monkeypatch.setattr(probe, "_wait", kill)
    with pytest.raises(GuestError, match=r"did not finish on bochs: .*ended with -9") as caught:
        probe.run_probe(Backend("bochs"), run_dir=tmp_path / "run")
    assert caught.value.exit_code == 4


def test_a_probe_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A disk that cannot boot: the BIOS waits for ever, and the time runs out."""
    blank = tmp_path / "blank.img"
    blank.write_bytes(bytes(1032192))
    monkeypatch.setattr(probe, "build", lambda _fault: blank)
    wait = probe._wait
    monkeypatch.setattr(
        probe, "_wait", lambda running, *_limits: wait(running, Deadline.after(1), 1)
    )
    with pytest.raises(
        GuestError, match=r"it printed nothing \(it was ended after \d s\)"
    ) as caught:
        probe.run_probe(Backend("tcg"), run_dir=tmp_path / "run")
    assert caught.value.exit_code == 4


def test_a_model_that_does_not_exist(backend: str) -> None:
    with pytest.raises(UsageError, match="--cpu nonsense: "):
        run(backend, "nonsense")


def test_a_fault_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="--fault nonsense: there is no such fault"):
        run("bochs", fault="nonsense")


def test_nothing_is_left_when_all_held(runs: Path) -> None:
    assert run("bochs").held
    assert list(runs.iterdir()) == []
    assert not run("tcg").held
    (kept,) = runs.iterdir()
    assert "svm.nrip_save" in (kept / "console.log").read_text()


def test_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    image = probe.build()
    assert image.stat().st_size <= 1032192
    monkeypatch.setattr(hostmake, "make", pytest.fail)
    assert probe.build() == image
    names = sorted(path.name for path in (tmp_path / "vtxprobe").iterdir())
    assert names == sorted([image.parent.name, "lock"])


def inv(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli.program", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_task_says_what_is_missing_first() -> None:
    done = inv("probe", "--backend", "tcg", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["first_missing"] == "svm.nrip_save"
    assert "error: tcg lacks svm.nrip_save" in done.stderr
    assert "Traceback" not in done.stderr


def test_task_when_all_held(whole: probe.ProbeResult) -> None:
    done = inv("probe", "--backend", "bochs")
    assert done.returncode == 0
    for test in whole.report.tests:
        assert test.name in done.stdout
    assert "bochs runs virtual machines" in done.stdout


def test_task_refuses_what_is_no_backend() -> None:
    done = inv("probe", "--backend", "xen")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: --backend xen: there is no such backend; use one of auto, kvm, bochs, tcg, "
        "kvm-in-bochs"
    ]


def test_nothing_is_lost_where_the_reader_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU ends when the probe tells it to, including the rest of its serial output."""
    monkeypatch.setattr("harness.machine.console._GATHER_S", 0.5)
    assert run("tcg").report.problem == ""
