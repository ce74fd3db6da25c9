"""Several runs at once: each in a process of its own, one report, one exit code."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness import host, report
from harness.cli import matrix_commands
from harness.cli.program import spread
from harness.errors import UsageError
from harness.files import PROJECT
from harness.host import Decision, Refusal
from harness.machine.models import Backend
from harness.report import Cell
from harness.run import matrix, matrix_plan
from harness.run.matrix import Asked
from harness.run.options import Options

# The process of a column with `verify` played: everything else is the real thing.
PROCESS = """
import os, signal, sys, time
sys.path[:0] = [{project!r}]
from multiprocessing.connection import Connection
from pathlib import Path
from harness import progress, report
from harness.errors import CannotError, EXIT_GUEST, UsageError
from harness.report import Check, Report, StageResult
from harness.run import matrix_cell

HERE = Path({folder!r})

def verify(options, tests, keep_as, run_dir):
    (HERE / f"began.{{options.cpu_vendor}}.{{options.stock}}").write_text(
        f"{{options.guests}} {{keep_as}} {{[str(it) for it in options.series]}}")
    script = HERE / options.cpu_vendor
    behaviour = script.read_text() if script.exists() else ""
    with progress.stage("boot") as step:
        progress.say("  1 of 2: passed, 0.1 s: test_x.py::test_y")
    if behaviour == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "refuses":
        raise UsageError("there is no such topic")
    error, code = "", 0
    try:
        if behaviour == "together":
            while len(list(HERE.glob("began.*"))) < 2:
                time.sleep(0.02)
        if behaviour == "waits":
            (HERE / "waiting").touch()
            time.sleep(600)
    except KeyboardInterrupt:
        error, code = "interrupted", 130
    if behaviour == "breaks":
        error, code = "the guest panicked: \\x1b[31m<b>", EXIT_GUEST
    checks = (
        Check("test_x.py::test_y", "it holds", "failed" if behaviour == "fails" else "passed",
              True, 0.5, "why it failed" if behaviour == "fails" else ""),
        *((Check("test_x.py::test_z", "an empty VM", "skipped", False, 0.0,
                 "does not apply: a triple fault hangs this emulator"),)
          if options.cpu_vendor == "amd" else
          (Check("test_x.py::test_z", "an empty VM", "passed", False, 0.5),)),
    )
    report.save(Report(options.release, options.backend + (" as AMD" if options.cpu_vendor == "amd"
        else ""), options.stock, "series meminfo", "2026-01-01T00:00:00+00:00", run_dir,
        (StageResult("checks", "ok", 1.5, ""),), () if error else checks,
        {{"processor": options.cpu_vendor}}, error, code))

matrix_cell.verify = verify
matrix_cell.work(Connection(int(sys.argv[1])))
"""


@pytest.fixture(autouse=True)
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the played runs find how to behave, one file a processor."""
    for name in ("HARNESS_RUNS", "HARNESS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "played"
    folder.mkdir()
    script = tmp_path / "process.py"
    script.write_text(PROCESS.format(project=str(PROJECT), folder=str(folder)))
    monkeypatch.setattr(matrix, "COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr("harness.run.shards.how_many", lambda *_: 2)

    def decide(_facts: Any, asked: str, vendor: str) -> Decision:
        if asked == "kvm":
            why = Refusal("there is no /dev/kvm", "sudo modprobe kvm")
            return Decision(asked, None, f"KVM cannot be used: {why.cause}", why.remedy, why)
        return Decision(asked, Backend("bochs", vendor or "intel"), "Bochs emulates it")  # type: ignore[arg-type]

    monkeypatch.setattr(host, "gather", lambda: None)
    monkeypatch.setattr(host, "decide", decide)
    return folder


def both(**more: Any) -> report.Matrix:
    options = Options(backend="bochs", **more)
    return matrix.run(matrix.both(options), options, what="verify-both")


def test_both_processors_run_at_once_and_make_one_report(played: Path) -> None:
    for vendor in ("intel", "amd"):
        (played / vendor).write_text("together")
    found = both()
    assert found.labels == ("15.1 bochs Intel", "15.1 bochs AMD")
    assert (found.exit_code, [cell.exit_code for cell in found.cells]) == (0, [0, 0])
    assert found.verdict == (
        "series meminfo: all held in 2 of 2 runs; 15.1 bochs Intel: 2 of 2 checks ok; "
        "15.1 bochs AMD: 1 of 1 checks ok, 1 that do not apply here"
    )
    rows = {row.name: [it and it[0] for it in row.results] for row in found.rows}
    assert rows == {"test_x.py::test_y": ["ok", "ok"], "test_x.py::test_z": ["ok", "n/a"]}
    assert found.rows[1].reasons(found.labels) == (
        "15.1 bochs AMD: does not apply: a triple fault hangs this emulator",
    )
    # The room for two guests is shared: one guest in each run.
    assert (played / "began.intel.False").read_text().startswith("1 ")
    page = (found.run_dir / "report.html").read_text()
    assert "a triple fault hangs this emulator" in page
    assert 'href="15.1-bochs-amd/report.html"' in page
    assert (found.run_dir / "15.1-bochs-amd" / "report.html").exists()
    again = report.matrix_store.load(found.run_dir)
    assert (again.verdict, again.exit_code) == (found.verdict, 0)


@pytest.mark.parametrize(
    ("behaviour", "code", "words"),
    [
        ("fails", 1, "15.1 bochs AMD: 0 of 1 checks ok, 1 FAILED"),
        ("breaks", 4, "15.1 bochs AMD: no verdict: the guest panicked"),
        ("dies", 3, "1 not run (15.1 bochs AMD)"),
        ("refuses", 3, "1 not run (15.1 bochs AMD)"),
    ],
)
def test_the_half_that_breaks_decides_the_exit_code(
    played: Path, behaviour: str, code: int, words: str
) -> None:
    (played / "amd").write_text(behaviour)
    found = both()
    assert found.exit_code == code
    assert [cell.exit_code for cell in found.cells] == [0, code]
    assert words in found.verdict
    assert "all held in 1 of" in found.verdict
    page = (found.run_dir / "report.html").read_text()
    assert "\x1b" not in page
    assert "<b>" not in page.replace("<b></b>", "")
    if behaviour == "dies":
        assert "its process ended without a report" in found.cells[1].reason
    if behaviour == "refuses":
        assert found.cells[1].reason == "there is no such topic"


def test_an_interruption_ends_all_runs_and_the_report_is_written(played: Path) -> None:
    for vendor in ("intel", "amd"):
        (played / vendor).write_text("waits")

    def interrupt() -> None:
        while len(list(played.glob("began.*"))) < 2 or not (played / "waiting").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        both()
    # The processes end by themselves: nobody waits until they are killed.
    assert time.monotonic() - began < 25
    (folder,) = (played.parent / "HARNESS_RUNS").glob("*-verify-both")
    found = report.matrix_store.load(folder)
    assert found.exit_code == 130


def test_a_guest_that_stays_has_its_columns_name(played: Path) -> None:
    options = Options(backend="bochs")
    matrix.run(matrix.both(options), options, keep_as="mine")
    assert " mine-15-1-bochs-amd " in (played / "began.amd.False").read_text()
    options = Options(release="16.0-CURRENT-20260720-abcdef012345-287654", backend="bochs")
    names = [matrix.guest_name("mine", cell) for cell in matrix.both(options)]
    assert names == ["mine-16-20260720-bochs-intel", "mine-16-20260720-bochs-amd"]


def test_with_stock_each_place_has_a_run_of_its_own_without_the_series(played: Path) -> None:
    options = Options(series=(Path("/p"),), side_by_side=True)
    cells = Asked(("15.1",), ("bochs",), ("amd",), stock=True).cells(["15.1"])
    found = matrix.run(cells, options)
    assert found.labels == ("15.1 bochs AMD", "15.1 bochs AMD stock")
    assert (played / "began.amd.False").read_text().endswith("['/p']")
    assert (played / "began.amd.True").read_text().endswith("[]")


def prepare(monkeypatch: pytest.MonkeyPatch, *releases: str) -> None:
    records = [type("Record", (), {"release": it})() for it in releases]
    monkeypatch.setattr("harness.image.store.prepared", lambda: records)


def test_what_this_machine_cannot_do_is_said_and_fails_only_where_it_was_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(monkeypatch, "15.1")
    options = Options()
    cells = matrix.here(Asked(), options)
    ready = [cell.label for cell in cells if not cell.reason]
    assert ready == ["15.1 bochs Intel", "15.1 bochs AMD"]
    kvm = next(cell for cell in cells if cell.label == "15.1 kvm")
    assert kvm.reason == "KVM cannot be used: there is no /dev/kvm; sudo modprobe kvm"
    assert not kvm.named
    other = next(cell for cell in cells if cell.label == "15.0 bochs Intel")
    assert "not prepared here; ./inv image.fetch --release 15.0" in other.reason
    found = matrix.run(cells, options)
    assert found.exit_code == 0
    assert "not run" in found.verdict
    asked = matrix.run(matrix.here(Asked(backends=("kvm", "bochs")), options), options)
    assert asked.exit_code == 3
    nothing = matrix.run(matrix.here(Asked(backends=("kvm",)), options), options)
    assert (nothing.exit_code, nothing.ran) == (3, ())


def test_only_the_newest_build_of_a_snapshot_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = (f"16.0-CURRENT-2026072{day}-abcdef012345-28765{day}" for day in (0, 7))
    prepare(monkeypatch, newer, "15.1", older)
    cells = matrix.here(Asked(), Options(stock=True))
    ready = {cell.release for cell in cells if not cell.reason}
    assert ready == {newer, "15.1"}
    # It is prepared, so its column says nothing of fetching it.
    assert "16.0-CURRENT" not in {cell.release for cell in cells}
    prepare(monkeypatch, "15.1")
    cells = matrix.here(Asked(), Options(stock=True))
    missing = next(cell for cell in cells if cell.release == "16.0-CURRENT")
    assert "./inv image.fetch --release 16.0-CURRENT" in missing.reason


def test_a_release_without_a_series_is_a_gap_and_a_misspelt_one_a_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(monkeypatch, "15.1", "14.5")

    def load(options: Options) -> None:
        if options.release == "14.5":
            raise UsageError("no series for FreeBSD 14.5")

    monkeypatch.setattr(matrix, "load_series", load)
    cells = matrix.here(Asked(backends=("bochs",)), Options())
    gaps = [cell for cell in cells if cell.release == "14.5"]
    assert [(cell.reason, cell.named) for cell in gaps] == [
        ("no series for FreeBSD 14.5", False)
    ] * 2
    with pytest.raises(UsageError, match=r"no series for FreeBSD 14\.5"):
        matrix.here(Asked(("14.5", "15.1"), ("bochs",)), Options())
    with pytest.raises(UsageError, match=r"no series for FreeBSD 14\.5"):
        matrix.require_series(Options(release="14.5"))


@pytest.mark.parametrize(
    "asked",
    [
        {"backends": ("xen",)},
        {"vendors": ("via",)},
        {"releases": ("../15.1",)},
    ],
)
def test_what_does_not_exist_is_refused(asked: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(UsageError):
        Asked(**asked)  # type: ignore[arg-type]


def test_github_and_gitlab_get_the_same_jobs() -> None:
    cells = Asked(("15.1", "14.5"), (), ("both",), stock=True).cells(("15.1", "14.5"))
    options = Options(topic="", full=True)
    github = matrix_plan.plan(cells, options, "github", named=False)
    gitlab = matrix_plan.plan(cells, options, "gitlab", named=False)
    assert len(github["include"]) == len(gitlab) == 16
    assert all(isinstance(value, str) for job in gitlab for value in job.values())
    for one, other in zip(github["include"], gitlab, strict=True):
        assert {key.upper(): value for key, value in one.items() if key != "name"} == other
    assert {job["backend"]: job["optional"] for job in github["include"]} == {
        "kvm": "1",
        "bochs": "0",
    }
    assert {job["options"] for job in github["include"]} == {"--full"}


@pytest.mark.parametrize("form", matrix_plan.FORMS)
def test_a_plan_is_read_back_for_the_merge(tmp_path: Path, form: str) -> None:
    cells = Asked((), ("kvm", "bochs"), (), stock=True).cells(["15.1"])
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(matrix_plan.plan(cells, Options(topic=""), form, named=False)))
    assert [cell.key for cell in matrix_plan.read(path)] == [cell.key for cell in cells]


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, "{}", "[1]", '[{"RELEASE": "../x", "BACKEND": "kvm"}]', "\ud800", "null"],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError, match="--planned"):
        matrix_plan.read(path)


def test_a_plan_says_what_it_cannot_hold() -> None:
    cells = Asked(("15.1",)).cells(["15.1"])
    for options, words in (
        (Options(only="a or b"), "cannot contain blanks"),
        (Options(series=(Path("x"),)), "--series is not part"),
    ):
        with pytest.raises(UsageError, match=words):
            matrix_plan.plan(cells, options, "github", named=False)
    with pytest.raises(UsageError, match="200 of one matrix"):
        matrix_plan.plan(cells * 100, Options(), "gitlab", named=False)
    with pytest.raises(UsageError, match="no such CI engine"):
        matrix_plan.plan(cells, Options(), "jenkins", named=False)


def test_a_plan_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    matrix_commands.plan(Asked(("15.1",), (), (), stock=True), Options(), "github")
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out)["include"][0]["options"] == ""


def test_a_plan_warns_about_a_release_that_no_runner_can_fetch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Runners may have imported it; a release that does not exist is most often a typing error."""
    matrix_commands.plan(Asked(("15.1", "15.9"), (), (), stock=False), Options(), "github")
    told = capsys.readouterr()
    assert "15.9" in json.loads(told.out)["include"][-1]["name"]
    (warning,) = told.err.splitlines()
    assert warning.startswith("warning: --release 15.9: there is no manifest for it (only for ")
    with pytest.raises(UsageError, match="--release"):
        matrix_commands.plan(Asked(("../x",), (), (), stock=False), Options(), "github")


def test_the_folders_of_a_shell_pattern_are_all_merged() -> None:
    given = ["inv", "matrix", "--merge", "a", "b", "c", "--json"]
    wanted = ["inv", "matrix", "--merge", "a", "--merge", "b", "--merge", "c", "--json"]
    assert spread(given) == wanted
    assert spread(["inv", "matrix", "--plan"]) == ["inv", "matrix", "--plan"]


def test_a_run_that_may_choose_is_found_again() -> None:
    ran = Cell("15.1", "bochs", "amd")
    assert ran.does(Cell("15.1", "auto"))
    assert ran.does(Cell("15.1", "bochs", ""))
    assert not ran.does(Cell("15.1", "bochs", "intel"))
    assert not ran.does(dataclasses.replace(ran, stock=True))
