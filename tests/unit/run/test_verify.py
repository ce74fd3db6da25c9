"""`verify` from end to end, with a fake guest: always a report, and the right exit code."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import sys
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pexpect
import pytest
from fakes import FakeGuest
from fakes import bench as fake_bench
from faketree import diff, mail

from harness import keeper, progress, report
from harness.errors import CannotError, GuestError, PatchError, UsageError, WorkbenchError
from harness.files import PROJECT
from harness.guest.panic_report import Panic
from harness.machine import Backend
from harness.report import Report
from harness.run import session, verify
from harness.run.options import Options
from harness.run.stages import STAGES, Chosen, Proven

CHECKS = '''
import pytest
from harness.errors import MachineDied, WaitTimeout

def test_holds(guest):
    """the first holds"""

@pytest.mark.patch
def test_of_the_patch(guest):
    """the second fails"""
    assert guest is None

@pytest.mark.patch
def test_takes_too_long(guest):
    """the third is broken off"""
    raise WaitTimeout("no end within 5 s")
'''


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HARNESS_RUNS", "HARNESS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    project = tmp_path / "project"
    unit = project / "patches" / "meminfo" / "unit"
    unit.mkdir(parents=True)
    (unit / "test_series_x.py").write_text("def test_series(): pass\n")
    monkeypatch.setattr(verify, "PROJECT", project)


Run = Callable[..., Report]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run verify over a bench that is up, or whose `up` raises; the guest is `run.guest`."""

    def go(
        text: str = CHECKS,
        stops: BaseException | None = None,
        keep_as: str = "",
        checks: Path | None = None,
        **options: Any,
    ) -> Report:
        # A name of its own: pytest runs in this process, which knows the other modules by name.
        tests = tmp_path / "project" / f"test_{uuid.uuid4().hex}.py"
        tests.write_text(text)
        played = fake_bench(FakeGuest())

        class Bench:
            guest: Any
            loaded: Any
            breaks: int
            run_dir: Path
            stages: list[progress.Stage]

            def __init__(self, asked: Options, run_dir: Path, name: str = "") -> None:
                self.__dict__.update(vars(played), run_dir=run_dir, options=asked, stages=[])
                self.build = "series"
                self.stock_build = "stock" if asked.side_by_side else None
                self.loaded.path = self.running = self.stock_build or self.build
                topic = asked.series[0].stem if asked.series else asked.topic_name
                self.series = None if asked.stock else SimpleNamespace(topic=topic)

            def restart_guest(self) -> None:
                self.guest.machine.console.panic = ""
                self.breaks += 1

            def use(self, build: str) -> None:
                self.loaded.path = self.running = build

            def up(self, before_boot: Callable[[Any], str]) -> Bench:
                built = SimpleNamespace(first=self.stock_build or self.build)
                assert stops or before_boot(built) == built.first
                with progress.stage("host", self.stages):
                    pass
                if stops:
                    with progress.stage("build", self.stages):
                        raise stops
                return self

            def keep(self) -> keeper.Record:
                assert not played.guest.machine.stopped
                return keeper.Record(keep_as, self.run_dir, keeper.record.Process(1, ""), "ready")

            def __enter__(self) -> Bench:
                return self

            def __exit__(self, *_exc: object) -> None:
                if played.guest.machine.panicked:
                    self.panic = Panic(played.guest.machine.console.panic, ())
                played.guest.machine.stop(None)

        if keep_as:
            monkeypatch.setattr(verify, "PersistentSession", Bench)
        else:
            monkeypatch.setattr(verify, "Session", Bench)
        if checks is not None:
            monkeypatch.setattr(verify, "CHECKS", checks)
        result = verify.verify(Options(**{"guests": 1, **options}), checks or tests, keep_as)
        assert played.guest.machine.stopped
        assert ET.parse(result.run_dir / "junit.xml").getroot().tag == "testsuites"  # noqa: S314
        saved = json.loads((result.run_dir / "report.json").read_text())
        assert saved["exit_code"] == result.exit_code
        assert (saved["panic"] is None) == (result.panic is None)
        return result

    return go


def status(result: Report) -> dict[str, str]:
    return {check.name.partition("::")[2]: result.status(check)[0] for check in result.checks}


def outcomes(result: Report) -> dict[str, str]:
    return {stage.name: stage.outcome for stage in result.stages}


def test_checks_become_a_report(run: Run) -> None:
    result = run()
    assert status(result) == {
        "test_holds": "ok",
        "test_of_the_patch": "FAILED",
        "test_takes_too_long": "FAILED",
    }
    assert result.exit_code == 1
    assert result.checks[0].title == "the first holds"
    assert "assert <" in result.checks[1].message
    assert "guest console meanwhile" in result.checks[1].detail
    assert {stage.name: stage.note for stage in result.stages}["checks"] == "3 run, 2 failed"
    assert "passed" in (result.run_dir / "pytest.log").read_text()


def test_each_check_is_told_as_it_ends(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    result = run(stock=True)
    said = capfd.readouterr().err
    for line in (
        "1 of 3: passed, ",
        "2 of 3: failed, as it must, ",
        "3 of 3: error, ",
        "::test_of_the_patch",
    ):
        assert line in said
    log = (result.run_dir / "pytest.log").read_text()
    assert "::test_of_the_patch FAILED" in log


def test_a_terminal_shows_the_check_at_hand_while_pytest_captures(tmp_path: Path) -> None:
    (tmp_path / "test_slow.py").write_text(
        "import pathlib, time\n"
        "def test_slow():\n"
        "    while not pathlib.Path('seen').exists(): time.sleep(0.05)\n"
    )
    script = """
import types, sys, pytest
from pathlib import Path
from harness import progress
from harness.run import verify
progress.err = progress.console(stderr=True)
bench = types.SimpleNamespace(
    run_dir=Path(), stages=[], properties={}, stock_build=None, guest=None, breaks=0,
    options=types.SimpleNamespace(full=True, only="", topic_name="", topic="", stock=False))
try:
    verify.run_checks(bench, Path("test_slow.py"), checks := [])
finally:
    print(checks)
"""
    child = pexpect.spawn(
        sys.executable,
        ["-c", script],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(PROJECT)},
        encoding="utf-8",
        dimensions=(24, 120),
    )
    child.expect(r"checks.*1 of 1: \S*::test_slow, \d+ s", timeout=60)
    (tmp_path / "seen").touch()
    child.expect("checks: ok after", timeout=60)
    child.expect(pexpect.EOF, timeout=60)
    child.close()
    assert child.exitstatus == 0


def test_on_the_stock_module_a_time_out_proves_nothing(run: Run) -> None:
    result = run(stock=True)
    assert status(result) == {
        "test_holds": "ok",
        "test_of_the_patch": "ok",
        "test_takes_too_long": "FAILED",
    }
    assert "no end within 5 s" in result.status(result.checks[2])[1]
    assert result.series == "stock"


BESIDE = """
import pytest

def test_of_any_module(guest):
    "any module holds it"

def test_new_fault(workbench):
    assert workbench.loaded.path == "stock"

def test_old_fault(workbench):
    assert workbench.loaded.path == "none"

@pytest.mark.beside
def test_compares(workbench):
    assert workbench.loaded.path == "series"

@pytest.mark.minutes
def test_long(guest): pass

@pytest.mark.patch
def test_of_the_patch(workbench):
    assert workbench.loaded.path == "series"
"""


def test_side_by_side(run: Run) -> None:
    """Stock first, in the same guest; what fails there too is not the series' fault."""
    result = run(BESIDE, side_by_side=True)
    assert status(result) == {
        "test_of_any_module": "ok",
        "test_new_fault": "FAILED",
        "test_old_fault": "as stock",
        "test_compares": "ok",
        "test_of_the_patch": "ok",
    }
    assert [check.on_stock for check in result.checks] == [
        "passed", "passed", "failed", "", "failed"
    ]  # fmt: skip
    assert list(outcomes(result))[1:3] == ["checks on stock", "checks"]
    assert "1 that take minutes" in result.properties["left out"]


def a_patch_in(folder: Path) -> None:
    """One that adds a file."""
    data = diff(folder, {}, {"sys/x.h": "x\n"})
    shutil.rmtree(folder / "repository")
    (folder / "1.patch").write_bytes(mail(data))


def test_another_series_is_not_asked_for_the_topic_s_claims(run: Run, tmp_path: Path) -> None:
    """Nor for a comparison, when there is nothing to compare with."""
    (tmp_path / "mine").mkdir()
    a_patch_in(tmp_path / "mine")
    result = run(BESIDE, series=(tmp_path / "mine",), topic="")
    assert "test_of_the_patch" not in status(result)
    assert "test_compares" not in status(result)
    assert len(result.checks) == 3


def test_a_topic_brings_its_own_checks(run: Run, tmp_path: Path) -> None:
    own = tmp_path / "project" / "patches" / "mine" / "tests"
    own.mkdir(parents=True)
    text = "import pytest\n@pytest.mark.patch\ndef test_mine(guest): pass\n"
    (own / f"test_{uuid.uuid4().hex}.py").write_text(text)
    (own.parent / "15.1").mkdir()
    a_patch_in(own.parent / "15.1")
    result = run(topic=str(own.parent))
    assert "test_mine" in status(result)
    assert "test_of_the_patch" not in status(result)


def test_only_some_checks(run: Run) -> None:
    assert list(status(run(only="holds"))) == ["test_holds"]
    result = run(only="nothing_like_this")
    assert (result.exit_code, result.error) == (2, "--only nothing_like_this: no check matches")


def test_a_fixture_that_fails_proves_nothing_either(run: Run) -> None:
    text = CHECKS.split("def test_holds")[0] + (
        "@pytest.fixture\ndef broken(): raise ValueError('x')\n"
        "@pytest.mark.patch\ndef test_a(broken, guest): pass\n"
    )
    assert status(run(text, stock=True)) == {"test_a": "FAILED"}


@pytest.mark.parametrize("error", [GuestError("gone"), PatchError("no hunk", detail="lines")])
def test_a_stage_that_fails_ends_the_run_with_its_code(
    run: Run, error: WorkbenchError, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(stops=error)
    assert result.exit_code == error.exit_code
    assert result.error == error.message
    assert outcomes(result) == {
        "host": "ok",
        "build": "failed",
        **{name: "not run" for name in STAGES if name not in ("host", "build")},
    }
    root = ET.parse(result.run_dir / "junit.xml").getroot()  # noqa: S314
    found = root.find(".//testcase[@name='build']/error")
    assert found is not None
    assert error.message in found.get("message", "")
    said = capsys.readouterr().err
    assert error.detail in said
    assert "Traceback" not in said


def test_ctrl_c_in_a_stage(run: Run) -> None:
    result = run(stops=KeyboardInterrupt())
    assert (result.exit_code, result.error) == (130, "interrupted")


def test_ctrl_c_in_a_check_is_no_success(run: Run) -> None:
    """pytest catches it, and what had run until then may all have held."""
    text = CHECKS.partition("@pytest")[0] + "def test_b(guest): raise KeyboardInterrupt\n"
    result = run(text)
    assert result.exit_code == 130
    assert status(result)["test_holds"] == "ok"
    assert outcomes(result)["checks"] == "failed"


def test_pytest_that_ends_early_is_no_success(run: Run) -> None:
    text = CHECKS.partition("@pytest")[0] + "def test_b(guest): pytest.exit('enough', 0)\n"
    result = run(text)
    assert result.exit_code not in (0, 1)
    assert "pytest" in result.error


def test_no_check_at_all_is_no_success(run: Run) -> None:
    assert run("").exit_code == 3
    assert "ran no check" in run("import nothing_like_this").error


def test_the_users_own_pytest_settings_leave_nothing_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k test_holds")
    assert len(run().checks) == 3


def test_a_machine_that_breaks_ends_the_run_as_that(run: Run) -> None:
    text = CHECKS + (
        "def test_dies(guest): raise MachineDied('killed by SIGKILL')\n"
        "def test_later(guest): raise AssertionError('never run')\n"
    )
    result = run(text)
    assert result.exit_code == 4
    assert "killed by SIGKILL" in result.error
    assert status(result)["test_later"] == "not run"
    assert "killed by SIGKILL" in result.checks[-1].message
    assert outcomes(result)["checks"] == "failed"


def test_a_machine_that_breaks_is_brought_up_anew_on_request(run: Run) -> None:
    text = CHECKS.partition("@pytest")[0] + (
        "def test_dies(guest):\n"
        "    guest.machine.console.panic = 'first'\n"
        "def test_later(workbench):\n"
        "    assert workbench.breaks == 1\n"
        "def test_dies_last(guest): guest.machine.console.panic = 'second'\n"
    )
    result = run(text, go_on=True)
    assert status(result) == {
        "test_holds": "ok",
        "test_dies": "FAILED",
        "test_later": "ok",
        "test_dies_last": "FAILED",
    }
    assert "first" in result.checks[1].message
    assert (result.exit_code, result.error) == (1, "")
    assert "1 times" in result.properties["guest broke"]


def test_a_panic_that_no_check_sees_is_seen(run: Run) -> None:
    text = "def test_a(guest): guest.machine.console.panic = 'sleeping thread'\n"
    result = run(text)
    assert result.exit_code == 4
    assert "sleeping thread" in result.error
    assert result.panic is not None
    assert result.panic.message == "sleeping thread"


def test_no_image_and_no_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can be done without FreeBSD is done, and one message says how to get further."""

    def choose(self: session.Session) -> Chosen:
        with self.stage("host"):
            return Chosen(Backend("tcg"))

    def prove(self: session.Session, chosen: Chosen) -> Proven:
        with self.stage("probe"):
            return Proven(chosen, "played")

    monkeypatch.setattr(session.Session, "choose", choose)
    monkeypatch.setattr(session.Session, "prove", prove)
    result = verify.verify(Options(offline=True))
    assert result.exit_code == 3
    assert outcomes(result) == {
        "host": "ok",
        "probe": "ok",
        "image": "failed",
        "series C": "ok",
        **dict.fromkeys(STAGES[3:], "not run"),
    }
    assert "15.1" in result.error
    assert "image.import --release 15.1" in result.error
    assert "1 passed" in next(s.note for s in result.stages if s.name == "series C")
    root = ET.parse(result.run_dir / "junit.xml").getroot()  # noqa: S314
    skipped = [
        case.get("name") for case in root.iter("testcase") if case.find("skipped") is not None
    ]
    assert skipped == list(STAGES[3:])
    assert "Traceback" not in capsys.readouterr().err


def test_a_guest_worth_looking_into_is_kept_if_asked_for(run: Run) -> None:
    assert "kept" not in run().properties
    kept = run(keep_as="mine").properties["kept"]
    assert kept == (
        "./inv ssh --name mine or ./inv console --name mine enters it, ./inv down --name mine ends "
        "it"
    )
    assert "kept" not in run("def test_holds(): pass", keep_as="mine").properties
    assert "kept" not in run(stops=CannotError("no VMX"), keep_as="mine").properties
    assert "kept" in run(stops=GuestError("it hangs"), keep_as="mine").properties
    assert "kept" not in run(stops=KeyboardInterrupt(), keep_as="mine").properties


def test_a_report_that_cannot_be_written_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save = report.save

    def full(result: Report) -> None:
        # What `run` compares with; on a full disk there would be nothing.
        save(dataclasses.replace(result, error="not this", error_exit_code=3))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(report, "save", full)
    result = run("def test_a(guest): pass\n")
    assert result.exit_code == 3
    assert result.error.endswith("no report was written: No space left on device")
    assert [check.outcome for check in result.checks] == ["passed"]


HANGS = """
import os, signal
from harness.errors import WaitTimeout

def test_holds(guest):
    \"\"\"the first holds\"\"\"

def test_hangs(guest, vm):
    \"\"\"the second hangs\"\"\"
    guest.run(["vmtool", "run", "x"])
    {end}

def test_after(guest):
    \"\"\"the third is not begun\"\"\"
"""


def test_a_check_that_was_broken_off_is_named_with_what_it_waited_for(run: Run) -> None:
    result = run(HANGS.format(end="raise KeyboardInterrupt"))
    assert (result.exit_code, result.error) == (130, "interrupted")
    assert status(result) == {"test_holds": "ok", "test_hangs": "FAILED", "test_after": "not run"}
    hung, after = result.checks[1:]
    assert hung.outcome == "error"
    assert re.match(r"ended after \d+ s \(interrupted\)", hung.message)
    assert after.message == "not run: interrupted"


def test_a_check_that_hung_is_a_result(run: Run) -> None:
    end = "guest.dmesg = lambda *_: (_ for _ in ()).throw(WaitTimeout('no answer within 20 s'))"
    result = run(HANGS.format(end=f"{end}; raise WaitTimeout('`vmtool run x` did not end')"))
    assert result.exit_code == 4
    assert status(result) == {"test_holds": "ok", "test_hangs": "FAILED", "test_after": "not run"}
    assert "vmtool run x" in result.checks[1].message
    assert "not answered since test_hangs: `vmtool run x` did not end" in result.error


def test_no_plugin_that_is_installed_takes_part(run: Run) -> None:
    """One that deals checks out, repeats or reorders them; pytest-xdist stands for all."""
    pytest.importorskip("xdist")
    text = """
def test_alone(guest, request):
    plugins = request.config.pluginmanager
    assert not plugins.hasplugin("xdist")
    assert plugins.hasplugin("harness.run.plugin") and plugins.hasplugin("pytest_timeout")
"""
    assert run(text).exit_code == 0


MEASURES = '''
import pytest

@pytest.mark.beside
def test_ratio(guest, record_property):
    """it is as fast"""
    record_property("ratio", "1.00")

def test_speed(workbench, record_property):
    """it is measured"""
    record_property("speed", f"{4 if workbench.loaded.path == 'stock' else 5} bytes/s")
'''


@pytest.fixture
def suite(tmp_path: Path) -> str:
    """A topic without patches, whose one file of checks measures something."""
    tests = tmp_path / "project" / "patches" / "speed" / "tests"
    tests.mkdir(parents=True)
    (tests / f"test_{uuid.uuid4().hex}.py").write_text(MEASURES)
    return "speed"


def test_a_topic_without_patches_runs_on_the_stock_module_alone(
    run: Run, suite: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    general = tmp_path / "project" / "general"
    result = run(topic=suite, checks=general)
    assert "note: topic speed has no patches" in capfd.readouterr().err
    assert status(result) == {"test_speed": "ok"}
    assert result.verdict == "the stock module, topic speed, FreeBSD 15.1 in fake: 1 of 1 checks ok"
    assert result.figures == (("speed", "", "5 bytes/s"),)
    xml = (result.run_dir / "junit.xml").read_text()
    assert '<property name="speed" value="5 bytes/s" />' in xml
    report.show(result)
    assert "5 bytes/s" in capfd.readouterr().out


def test_figures_of_both_modules_stand_beside_each_other(
    run: Run, suite: str, tmp_path: Path
) -> None:
    patch = tmp_path / "x.patch"
    patch.write_text("--- a/sys/x.c\n+++ b/sys/x.c\n@@ -1 +1 @@\n-a\n+b\n")
    general = tmp_path / "project" / "general"
    result = run(topic=suite, checks=general, series=(patch,), side_by_side=True)
    assert set(result.figures) == {("ratio", "", "1.00"), ("speed", "4 bytes/s", "5 bytes/s")}
    assert result.verdict.startswith("series x, topic speed, ")
    page = (result.run_dir / "report.html").read_text()
    assert "What was measured" in page
    assert "<td>4 bytes/s</td><td>5 bytes/s</td>" in page


@pytest.mark.parametrize("options", [{"stock": True}, {"series": (Path("x.patch"),)}])
def test_a_topic_that_there_is_not_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match=r"--topic nonsense: no such topic; the topics are .*meminfo"
    ):
        verify.settle(Options(topic="nonsense", **options))


def test_nothing_stands_beside_stock_without_patches(suite: str) -> None:
    with pytest.raises(UsageError, match="topic speed has no patches to compare with"):
        verify.settle(Options(topic=suite, side_by_side=True))
