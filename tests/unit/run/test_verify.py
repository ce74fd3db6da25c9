"""`verify` from end to end, with a fake guest: always a report, and the right exit code."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import pexpect
import pytest
from faketree import diff, mail
from verified import CHECKS, Run, outcomes, status
from verified import folders as folders
from verified import run as run

from harness import report
from harness.errors import UsageError
from harness.files import PROJECT
from harness.run import verify
from harness.run.options import Options


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


def test_each_check_is_reported_when_it_ends(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
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


def test_a_terminal_shows_the_current_check_while_pytest_captures(tmp_path: Path) -> None:
    (tmp_path / "test_slow.py").write_text(
        "import pathlib, time\n"
        "def test_slow():\n"
        "    while not pathlib.Path('seen').exists(): time.sleep(0.05)\n"
    )
    script = """
import types, sys, pytest
from pathlib import Path
from harness import progress
from harness.run import pytest_run
progress.err = progress.console(stderr=True)
bench = types.SimpleNamespace(
    run_dir=Path(), stages=[], properties={}, stock_build=None, guest=None, breaks=0,
    options=types.SimpleNamespace(full=True, only="", topic_name="", topic="", stock=False))
try:
    pytest_run.run_checks(bench, Path("test_slow.py"), checks := [])
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


def test_the_users_own_pytest_settings_leave_nothing_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k test_holds")
    assert len(run().checks) == 3


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
