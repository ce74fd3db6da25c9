"""What a run is said to have shown: statuses, exit codes, JUnit, and a harmless table."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness import report
from harness.progress import Stage
from harness.report import Check, Report, StageResult

EVIL = "bad \x1b[31m\x00\x07 \ud800\ufffe ]]> <&\" 'é\U0001f41e\ttab"


def check(outcome: str, of_patch: bool = True, **more: str) -> Check:
    return Check("test_x.py::test_y", "what it says", outcome, of_patch, 0.25, **more)  # type: ignore[arg-type]


def run(*checks: Check, **more: object) -> Report:
    known: dict[str, object] = {
        "release": "15.1",
        "backend": "bochs",
        "stock": False,
        "series": "series meminfo",
        "started_at": "2026-01-01T00:00:00+00:00",
        "run_dir": Path("run"),
        "stages": (StageResult("host", "ok", 0.5, "bochs: emulated"),),
        "checks": checks,
        "properties": {"module build id": "abc"},
    }
    return Report(**{**known, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stock", "of_patch", "outcome", "status", "words", "code"),
    [
        (False, True, "passed", "ok", "", 0),
        (False, True, "failed", "FAILED", "why", 1),
        (False, True, "error", "FAILED", "why", 1),
        (False, True, "skipped", "not run", "why", 3),
        (False, False, "passed", "ok", "", 0),
        (False, False, "failed", "FAILED", "why", 1),
        (True, False, "passed", "ok", "", 0),
        (True, False, "failed", "FAILED", "why", 1),
        (True, False, "skipped", "not run", "why", 3),
        (True, True, "failed", "ok", "fails without the patch, as it must", 0),
        (True, True, "passed", "FAILED", "passes without the patch, so it proves nothing", 1),
        (True, True, "error", "FAILED", "why", 1),
        (True, True, "skipped", "not run", "why", 3),
    ],
)
def test_what_an_outcome_means(
    stock: bool, of_patch: bool, outcome: str, status: str, words: str, code: int
) -> None:
    one = check(outcome, of_patch, message="why" if outcome != "passed" else "")
    result = run(one, stock=stock)
    assert result.status(one) == (status, words)
    assert result.exit_code == code
    case = ET.fromstring(report.junit(result)).findall("testsuite")[1].find("testcase")  # noqa: S314
    assert case is not None
    assert [child.tag for child in case] == {
        "ok": [],
        "FAILED": ["failure"],
        "not run": ["skipped"],
    }[status]


def test_the_exit_code_says_the_gravest() -> None:
    passed, failed, skipped = check("passed"), check("failed"), check("skipped")
    assert run(passed, failed, skipped).exit_code == 1
    assert run(passed, skipped).exit_code == 3
    assert run().exit_code == 3
    broke = run(failed, error="the guest panicked", error_exit_code=4)
    assert broke.exit_code == 4
    assert broke.verdict.endswith("no verdict: the guest panicked")


def test_the_verdict_counts() -> None:
    checks = (check("passed"), check("failed"), check("skipped"), check("passed", False))
    assert run(*checks).verdict == (
        "series meminfo, FreeBSD 15.1 in bochs: 2 of 4 checks ok, 1 FAILED, 1 not run"
    )
    assert run(*checks, stock=True).verdict == (
        "the stock module, FreeBSD 15.1 in bochs: 2 of 4 checks ok (1 of the patch's 3 fail "
        "without it, as they must), 1 FAILED, 1 not run"
    )


def test_junit_is_well_formed_whatever_was_said() -> None:
    evil = dataclasses.replace(check("failed", message=EVIL, detail=EVIL), name=EVIL, title=EVIL)
    stages = (
        StageResult("build", "failed", 1.5, EVIL),
        StageResult("boot", "not run", 0.0, ""),
    )
    result = run(evil, check("skipped", message=EVIL), stages=stages, properties={"uname": EVIL})
    top = ET.fromstring(report.junit(result))  # noqa: S314
    first, second = top.findall("testsuite")
    assert top.tag == "testsuites"
    assert (first.get("name"), second.get("name")) == ("stages", "checks")
    for suite, tests, failures, errors, skipped in ((first, 2, 0, 1, 1), (second, 2, 1, 0, 1)):
        counts = {"tests": tests, "failures": failures, "errors": errors, "skipped": skipped}
        assert {key: int(suite.get(key, "-1")) for key in counts} == counts
        assert float(suite.get("time", "-1")) >= 0
        assert suite.get("timestamp") == "2026-01-01T00:00:00+00:00"
        known = {entry.get("name"): entry.get("value") for entry in suite.iter("property")}
        assert known["release"] == "15.1"
        assert known["stock"] == "false"
        assert "é\U0001f41e\ttab" in (known["uname"] or "").replace(" tab", "\ttab")
    for case in top.iter("testcase"):
        assert case.get("classname")
        assert case.get("name")
        assert float(case.get("time", "-1")) >= 0
    failure = second.find("testcase/failure")
    assert failure is not None
    assert "]]> <&\" 'é" in (failure.text or "")
    error = first.find("testcase/error")
    assert error is not None
    assert (error.get("message") or "").startswith("bad ")


def test_save_writes_both_files_and_all_the_data(tmp_path: Path) -> None:
    report.save(run(check("failed", message="why"), run_dir=tmp_path))
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["exit_code"] == 1
    assert data["checks"][0]["status"] == "FAILED"
    assert data["stages"][0]["name"] == "host"
    assert ET.parse(tmp_path / "junit.xml").getroot().tag == "testsuites"  # noqa: S314
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "junit.xml",
        "report.html",
        "report.json",
    ]


def test_what_a_guest_said_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    stages = (StageResult("boot", "failed", 1.0, "\x1b[2J note"),)
    report.show(
        run(check("failed", message="\x1b[31mwhy", detail="line\n\x1b]0;title\x07"), stages=stages)
    )
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\x07" not in said
    for words in ("FAILED", "what it says", "?[31mwhy", "--- test_x.py::test_y", "verdict: series"):
        assert words in said


def test_stages_that_were_planned_and_did_not_run() -> None:
    ran = [Stage("host", 0.5, "ok", "n"), Stage("extra", 1.0, "failed")]
    results = report.stage_results(ran, ("host", "build", "boot"))
    assert [(stage.name, stage.outcome) for stage in results] == [
        ("host", "ok"),
        ("extra", "failed"),
        ("build", "not run"),
        ("boot", "not run"),
    ]


@pytest.mark.parametrize(
    ("of_patch", "outcome", "on_stock", "status", "code"),
    [
        (True, "passed", "failed", "ok", 0),
        (True, "passed", "passed", "FAILED", 1),
        (True, "passed", "error", "ok", 0),
        (True, "failed", "failed", "FAILED", 1),
        (False, "passed", "failed", "ok", 0),
        (False, "passed", "passed", "ok", 0),
        (False, "failed", "failed", "as stock", 0),
        (False, "failed", "passed", "FAILED", 1),
        (False, "failed", "error", "FAILED", 1),
        (False, "error", "error", "as stock", 0),
        (False, "error", "failed", "FAILED", 1),
    ],
)
def test_beside_the_stock_module(
    of_patch: bool, outcome: str, on_stock: str, status: str, code: int
) -> None:
    """What stock gets wrong too is not the series' fault; what it does too proves no patch."""
    one = check(outcome, of_patch, on_stock=on_stock, message="why", stock_message="stock's why")
    result = run(one)
    assert result.side_by_side
    assert result.status(one)[0] == status
    if status == "as stock":
        assert "stock's why" in result.status(one)[1]
    assert result.exit_code == code


def test_the_verdict_beside_the_stock_module(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(
        check("passed", on_stock="failed"),
        check("failed", of_patch=False, on_stock="failed"),
        check("passed", of_patch=False),
    )
    assert result.verdict == (
        "series meminfo, FreeBSD 15.1 in bochs: 2 of 3 checks ok, 1 failing on the stock module "
        "too (1 of the patch's 1 fail on the stock module)"
    )
    report.show(result)
    said = capsys.readouterr().out
    assert "on stock" in said
    assert "as stock" in said


def test_what_does_not_apply_here_is_no_gap() -> None:
    """A check of the other vendor's processor is left out of the count and of the exit code."""
    one = Check("a", "a", "passed", of_patch=False, seconds=1.0)
    other = Check("b", "b", "skipped", False, 0.0, "does not apply: rflags_tf is AMD's")
    result = run(one, other)
    assert result.exit_code == 0
    assert result.status(other) == ("n/a", "does not apply: rflags_tf is AMD's")
    assert "1 of 1 checks ok, 1 that do not apply here" in result.verdict
    assert run(one, Check("b", "b", "skipped", False, 0.0, "no sysroot")).exit_code == 3


def test_what_a_check_leaves_out_is_named_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It held, and its line says what of it the emulator cannot do."""
    figures = (("left out", "VM_RUN, as Bochs hangs in it"), ("calls", "600"))
    held = run(Check("a", "calls do no harm", "passed", False, 1.0, figures=figures))
    assert held.status(held.checks[0]) == ("ok", "left out: VM_RUN, as Bochs hangs in it")
    assert held.figures == (("calls", "", "600"),)
    assert held.exit_code == 0
    report.show(held)
    assert "left out: VM_RUN, as Bochs hangs in it" in " ".join(capsys.readouterr().out.split())
