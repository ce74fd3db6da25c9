"""The benches' arithmetic, charts and exit codes, without measuring anything."""

from __future__ import annotations

import contextlib
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness import host, process
from harness.bench import boots, builds, chart, checks, phases, run, settings, subject, where
from harness.bench.model import Measurements, Ratio, Result, Samples, at_least, at_most
from harness.cli.program import spread
from harness.errors import CannotError, UsageError
from harness.files import PROJECT, runs_dir
from harness.guest.freebsd import Access
from harness.guest.transcript import Evidence
from harness.host.facts import load
from harness.machine import Drive, Spec, bochs_program, qemu
from harness.machine.bochs_program import Bochs
from harness.machine.models import Backend
from harness.machine.qemu import QemuMachine
from harness.report import Check, Report, StageResult, store

RESULT = Result(
    "boot",
    "To the <first> answer",
    "FreeBSD & co. in tcg",
    (Samples("cold", (30.0, 26.0, 28.0)), Samples("memory", (100.0,), "MiB")),
    (at_least("cold / resumed", 28.0, 25), at_most("added", 0.06, 0.05)),
    ("a note",),
)


def test_medians_and_ratios() -> None:
    taken = Measurements()
    for value in (3.0, 1.0, 2.0):
        taken.add("a", value)
    taken.add("b", 4.0)
    assert (taken.median("a"), taken.median("b")) == (2.0, 4.0)
    assert [sample.unit for sample in taken.samples({"b": "MiB"})] == ["s", "MiB"]
    assert [ratio.held for ratio in RESULT.ratios] == [True, False]
    assert chart.ratios(RESULT) == [
        "cold / resumed: 28 (wanted >= 25: held)",
        "added: 0.06 (wanted <= 0.05: not held)",
    ]
    assert RESULT.to_data()["samples"][0]["median"] == 28.0


def test_the_picture_is_one_well_formed_file() -> None:
    root = ET.fromstring(chart.draw(RESULT, "a machine < another"))  # noqa: S314
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"To the <first> answer", "28 s", "100 MiB", "a note", "a machine < another"} <= set(
        texts
    )
    bars = [
        float(node.get("width", "0"))
        for node in root.iter("{http://www.w3.org/2000/svg}rect")
        if node.get("class") == "bar"
    ]
    # Each unit has a scale of its own.
    assert bars[0] < bars[1] < 760


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["inv", "bench"], ["inv", "bench"]),
        (["inv", "bench", "--json"], ["inv", "bench", "--json"]),
        (
            ["inv", "bench", "boot", "ssh", "--rounds", "5"],
            ["inv", "bench", "--only", "boot", "--only", "ssh", "--rounds", "5"],
        ),
        (["inv", "verify", "boot"], ["inv", "verify", "boot"]),
    ],
)
def test_benches_are_named_by_words(given: list[str], wanted: list[str]) -> None:
    assert spread(given) == wanted


def test_settings_of_qemu_are_booted_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    used = iter((10.0, 8.0, 5.0, 11.0, 10.0, 20.0))

    @contextlib.contextmanager
    def up(whom: subject.Subject, *, cold: bool) -> Iterator[tuple[Any, float, str]]:
        assert cold
        machine = QemuMachine(whom.spec, qemu.TCG)
        lines.append(" ".join(machine.command()))
        yield SimpleNamespace(machine=SimpleNamespace(pid=1)), 1.0, "booted"

    times = SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=next(used), system=0.0))
    monkeypatch.setattr(psutil, "Process", lambda _pid: times)
    monkeypatch.setattr(subject.Subject, "up", up)
    spec = Spec(tmp_path, Drive(tmp_path / "disk"), cpus=2)
    whom = subject.Subject("played", spec, Access(tmp_path, ""), "", Backend("tcg"))
    found = settings.tcg(whom, 1, lambda _line: None)
    assert "-accel tcg,thread=multi -cpu max -smp 2 " in lines[0]
    assert "-accel tcg,thread=single -cpu max -smp 2 " in lines[1]
    assert "-smp 1 " in lines[2]
    assert "tb-size=32 " in lines[3]
    assert "-cpu qemu64 " in lines[5]
    assert found.ratios[0] == Ratio("processor time, one thread / as it is", 0.8)
    with pytest.raises(CannotError, match="--backend tcg"):
        settings.tcg(replace(whom, chosen=Backend("kvm")), 1, lambda _line: None)


def test_each_installed_bochs_is_booted_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    each = [Bochs("/usr/bin/bochs", version="2.7"), Bochs("/x/bochs-bin", Path("/x"), "3.0")]
    seconds = iter((20.0, 8.0, 30.0, 12.0))
    used: list[str] = []

    def played(_whom: subject.Subject) -> list[tuple[str, float]]:
        used.append(os.environ["HARNESS_BOCHS"])
        return [("kernel", next(seconds)), ("init", 2.0)]

    monkeypatch.delenv("HARNESS_BOCHS", raising=False)
    monkeypatch.setattr(bochs_program, "found", lambda: each)
    monkeypatch.setattr(phases, "_phases", played)
    whom: Any = SimpleNamespace(backend="bochs", name="played")
    found = phases.bochs(whom, 2, lambda _line: None)
    assert used == ["", "/x", "", "/x"]
    assert "HARNESS_BOCHS" not in os.environ
    medians = {sample.name: sample.median for sample in found.samples}
    assert medians["2.7: kernel"] == 25.0
    assert medians["3.0: together"] == 12.0
    assert [(ratio.meaning, ratio.value) for ratio in found.ratios] == [
        ("a boot in 2.7 / in 3.0", 27 / 12)
    ]
    monkeypatch.setattr(bochs_program, "found", lambda: each[:1])
    seconds = iter((5.0,))
    monkeypatch.setenv("HARNESS_BOCHS", "/y")
    assert phases.bochs(whom, 1, lambda _line: None).notes == ("together 7.0 s",)
    assert used[-1] == "/y"


def test_a_bare_emulator_is_run_without_the_harness_s_sockets() -> None:
    command = ["qemu", "-S", "-chardev", "socket,id=com1,fd=3", "-serial", "chardev:com1"]
    command += ["-chardev", "socket,id=qmp,fd=4", "-mon", "chardev=qmp,mode=control", "-m", "1G"]
    assert boots._without_harness(command) == [
        "qemu", "-chardev", "file,id=com1,path=console.log", "-serial", "chardev:com1", "-m", "1G",
    ]  # fmt: skip


def test_a_touched_file_is_a_patch_that_git_takes(tmp_path: Path) -> None:
    path = tmp_path / "x86.c"
    path.write_text("int a;\nint b;\n")
    assert builds._touch(path, "sys/x86.c", 1) == (
        "--- a/sys/x86.c\n+++ b/sys/x86.c\n@@ -2 +2,2 @@\n int b;\n+/* touched 1 */\n"
    )


Go = Callable[..., int]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Run fake benches: `good`, `slow` (a ratio not reached), `not_here`."""
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))
    found: dict[str, object] = {
        "processor": "P",
        "processors": 2,
        "memory_bytes": 1 << 30,
        "kernel": "K",
    }
    found |= {"emulators": {}, "load average": [0.1]}
    monkeypatch.setattr(where, "machine", lambda: found)
    monkeypatch.setattr(subject, "find", lambda *_a: SimpleNamespace())
    monkeypatch.setattr(run, "_backend", lambda *_a: "tcg")
    rounds: list[int] = []

    def good(_whom: Any, number: int, _live: Any) -> Result:
        rounds.append(number)
        return Result("good", "t", "s", (Samples("a", (1.0,)),), (at_least("r", 3, 2),))

    def slow(*_args: Any) -> Result:
        return Result("slow", "t", "s", (Samples("a", (1.0,)),), (at_least("r", 1, 2),))

    def not_here(*_args: Any) -> Result:
        raise CannotError("no source here")

    benches = {
        "good": (good, 3, "goes well"),
        "slow": (slow, 1, "is slow"),
        "not_here": (not_here, 1, "cannot be measured"),
    }
    monkeypatch.setattr(run, "BENCHES", benches)

    def call(*names: str, number: int = 0, json: bool = False) -> int:
        return run.run(names, "15.1", "auto", number, json)

    call.rounds = rounds  # type: ignore[attr-defined]
    return call


def test_measurements_are_stored_and_printed(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("good", json=True) == 0
    raised = json.loads(capsys.readouterr().out)
    folder = tmp_path / "runs" / "latest"
    assert json.loads((folder / "bench.json").read_text()) == raised
    assert raised["benches"][0]["ratios"][0]["held"] is True
    assert (folder / "good.svg").read_text().startswith("<svg")
    assert go("good", number=5) == 0
    assert go.rounds == [3, 5]  # type: ignore[attr-defined]


def test_a_ratio_not_reached_is_exit_1(go: Go) -> None:
    assert go("slow") == 1


def test_what_cannot_be_measured_here_is_left_out_of_many(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("good", "not_here") == 0
    assert "bench not_here: left out: no source here" in capsys.readouterr().err
    with pytest.raises(CannotError):
        go("not_here")
    with pytest.raises(UsageError, match="no such bench; choose from good, slow"):
        go("nothing")


def test_on_amd_the_benches_boot_with_svm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every bench makes its machines by Subject.make, which knows the processor's vendor."""
    facts = (PROJECT / "tests/unit/data/hosts/amd-nested.json").read_text()
    monkeypatch.setattr(host, "gather", lambda: load(facts))
    chosen = run._backend("boot", "auto")
    spec = Spec(tmp_path, Drive(tmp_path / "disk"))
    access = Access(tmp_path / "key", "ssh-ed25519 AAAA", "root")
    command = subject.Subject("FreeBSD", spec, access, "", chosen).make(spec).command()
    assert "+svm" in command[command.index("-cpu") + 1]
    for module in (boots, phases):
        assert "machines.make(" not in Path(module.__file__ or "").read_text()


def _recorded(
    name: str, seconds: tuple[float, ...], *, backend: str = "bochs", count: int = 2
) -> None:
    folder = runs_dir() / name
    folder.mkdir(parents=True)
    found = tuple(
        Check(
            f"test_x.py::test_{number}",
            "it holds",
            "passed",
            False,
            took_s,
            evidence=Evidence(count=count, seconds=took_s / 2),
        )
        for number, took_s in enumerate(seconds)
    )
    stages = (StageResult("checks", "ok", sum(seconds) / 2, ""),)
    store.save(Report("15.1", backend, False, "series x", "2026-01-01", folder, stages, found, {}))


@pytest.fixture
def no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder of runs."""
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))


@pytest.mark.usefixtures("no_runs")
def test_a_bench_without_a_guest_looks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stand-in is built, and no backend chosen, to compare two recorded runs."""
    asked: list[object] = []
    monkeypatch.setattr(where, "machine", dict)
    monkeypatch.setattr(run, "_find", lambda *words: asked.append(words))
    with pytest.raises(CannotError, match="there are no two"):
        run.run(["checks"], "15.1", "auto", 0, as_json=False)
    assert asked == []
    with pytest.raises(AttributeError):
        run.run(["guests"], "15.1", "auto", 0, as_json=False)
    assert asked == [("guests", "auto", "15.1")]


@pytest.mark.usefixtures("no_runs")
def test_the_last_run_is_compared_with_the_comparable_one_before() -> None:
    with pytest.raises(CannotError, match="there are no two"):
        checks.recorded()
    _recorded("20260101T000000Z-verify", (4.0, 2.0, 9.0), count=6)
    _recorded("20260102T000000Z-verify", (1.0,), backend="kvm")
    with pytest.raises(CannotError, match="there are no two"):
        checks.recorded()
    _recorded("20260103T000000Z-verify", (1.0, 2.0), count=3)
    found = checks.recorded()
    assert [ratio.value for ratio in found.ratios] == [0.5]
    medians = {sample.name: sample.median for sample in found.samples}
    assert medians["before: all checks"] == 6.0
    assert medians["last: from first to last"] == 1.5
    assert (medians["before: commands a check"], medians["last: commands a check"]) == (6.0, 3.0)
    assert medians["last: a command"] == 0.25
    assert "20260103T000000Z-verify; before: 20260101T000000Z-verify" in found.notes[0]


@pytest.mark.usefixtures("no_runs")
def test_one_guest_is_compared_with_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.run.shards.how_many", lambda *_: 2)
    asked: list[list[str]] = []

    def run_it(command: list[str], *_: Any, **__: Any) -> SimpleNamespace:
        asked.append(command)
        count = int(command[-1])
        folder = runs_dir() / f"run-{len(asked)}"
        folder.mkdir(parents=True)
        stages = (StageResult("checks", "ok", 180.0 / count, ""),)
        check = Check("t::x", "it holds", "passed", False, 1.0)
        store.save(Report("15.1", "bochs", False, "x", "t", folder, stages, (check,), {}))
        return SimpleNamespace(code=0, stdout=json.dumps({"run_dir": str(folder)}))

    monkeypatch.setattr("harness.process.run", run_it)
    whom: Any = SimpleNamespace(
        record=SimpleNamespace(release="15.1"), backend="bochs", name="FreeBSD 15.1"
    )
    found = checks.guests(whom, 1, lambda _: None)
    assert [command[-2:] for command in asked] == [["--guests", "1"], ["--guests", "2"]]
    assert [(ratio.value, ratio.held) for ratio in found.ratios] == [(2.0, True)]
    monkeypatch.setattr("harness.process.run", lambda *_, **__: SimpleNamespace(code=1, stdout=""))
    with pytest.raises(CannotError, match="exited with 1"):
        checks.guests(whom, 1, lambda _: None)


@pytest.mark.usefixtures("no_runs")
def test_some_variants_in_one_guest_are_compared_with_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.run.shards.how_many", lambda *_: 3)
    asked: list[list[str]] = []

    real = process.run

    def run_it(command: list[str], *more: Any, **named: Any) -> Any:
        if "--guests" not in command:
            return real(command, *more, **named)
        asked.append(command)
        seconds = 120.0 / int(command[-1])
        return SimpleNamespace(code=0, stdout=json.dumps({"seconds": seconds}))

    monkeypatch.setattr("harness.process.run", run_it)
    whom: Any = SimpleNamespace(
        record=SimpleNamespace(release="15.1"), backend="bochs", name="FreeBSD 15.1"
    )
    found = checks.mutation(whom, 2, lambda _: None)
    assert [command[-2:] for command in asked] == [["--guests", it] for it in ("3", "1", "3", "1")]
    assert asked[0].count("--only") == 12
    assert [(ratio.value, ratio.held) for ratio in found.ratios] == [(3.0, True)]
    whom.record = None
    with pytest.raises(CannotError, match="inv bench mutation needs a prepared FreeBSD"):
        checks.mutation(whom, 1, lambda _: None)
