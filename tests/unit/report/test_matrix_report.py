"""One report of what several machines left: whole folders, cut ones, and hostile ones."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from harness import report
from harness.cli import report_commands
from harness.errors import UsageError
from harness.report import Cell, Check, Matrix, Report, StageResult, matrix_store
from harness.report import merge as merging
from harness.report.matrix import GRAVEST_FIRST, WORDS, gravest

EVIL = "\x1b[31m::error::<script>alert(1)</script> ]]> \u202e"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))


def check(outcome: str = "passed", name: str = "test_x.py::test_y", **more: Any) -> Check:
    return Check(name, "what it says", outcome, False, 0.25, **more)  # type: ignore[arg-type]


def left(folder: Path, *checks: Check, **more: Any) -> Report:
    """A run's folder as a runner leaves it."""
    folder.mkdir(parents=True)
    known: dict[str, Any] = {
        "release": "15.1",
        "backend": "bochs",
        "stock": False,
        "series": "series meminfo",
        "started_at": "2026-01-01T00:00:00+00:00",
        "run_dir": folder,
        "stages": (StageResult("host", "ok", 0.5, ""), StageResult("checks", "ok", 2.0, "")),
        "checks": checks or (check(),),
        "properties": {"processor": "intel"},
    }
    made = Report(**{**known, **more})
    report.save(made)
    return made


def merge(tmp_path: Path, *names: str, planned: tuple[Cell, ...] = ()) -> Matrix:
    target = tmp_path / "merged"
    target.mkdir()
    return merging.merge([tmp_path / name for name in names], planned, target)


def test_what_runners_left_becomes_one_report_with_a_column_each(tmp_path: Path) -> None:
    left(tmp_path / "a" / "runs" / "1-verify")
    (tmp_path / "a" / "runs" / "latest").symlink_to("1-verify")
    # An upload that follows the link has the same report twice.
    left(tmp_path / "b" / "runs" / "latest", check("failed", message="why"), backend="bochs as AMD")
    left(tmp_path / "b" / "runs" / "x", check("failed", message="why"), backend="bochs as AMD")
    text = (tmp_path / "b" / "runs" / "latest" / "report.json").read_text()
    (tmp_path / "b" / "runs" / "x" / "report.json").write_text(text)
    left(tmp_path / "c", check("failed"), stock=True)
    planned = (
        Cell("15.1", "bochs", "intel"),
        Cell("15.1", "auto", "amd"),
        Cell("14.5", "bochs", "intel"),
        Cell("14.5", "kvm", named=False),
    )
    found = merge(tmp_path, "a", "b", "c", planned=planned)
    assert found.labels == (
        "15.1 bochs Intel",
        "15.1 bochs AMD",
        "15.1 bochs Intel stock",
        "14.5 bochs Intel",
        "14.5 kvm",
    )
    assert [cell.exit_code for cell in found.cells] == [0, 1, 1, 3, 3]
    assert found.exit_code == 1
    assert found.cells[3].not_run == "no report came from this job"
    again = matrix_store.load(found.run_dir)
    assert (again.labels, again.verdict, again.exit_code) == (
        found.labels,
        found.verdict,
        found.exit_code,
    )
    assert again.rows == found.rows
    suites = ET.parse(found.run_dir / "junit.xml").getroot().findall("testsuite")  # noqa: S314
    assert [suite.get("name") for suite in suites] == [
        "15.1 bochs Intel: stages",
        "15.1 bochs Intel: checks",
        "15.1 bochs AMD: stages",
        "15.1 bochs AMD: checks",
        "15.1 bochs Intel stock: stages",
        "15.1 bochs Intel stock: checks",
        "14.5 bochs Intel",
        "14.5 kvm",
    ]
    assert sum(int(suite.get("failures", "0")) for suite in suites) == 2


def test_what_a_run_left_out_is_named_with_its_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check held in both; in one of them the emulator cannot do a part of it."""
    left(tmp_path / "a", check())
    part = (("left out", "VM_RUN, in which Bochs hangs"),)
    left(tmp_path / "b", check(figures=part), properties={"processor": "amd"})
    found = merge(tmp_path, "a", "b")
    (row,) = found.rows
    assert row.held
    said = "15.1 bochs AMD: left out: VM_RUN, in which Bochs hangs"
    assert row.reasons(found.labels) == (said,)
    assert said in (tmp_path / "merged" / "report.html").read_text()
    report.show_matrix(found)
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_job_that_ran_twice_has_two_columns(tmp_path: Path) -> None:
    left(tmp_path / "a", check("failed", message="by chance"))
    left(tmp_path / "b", started_at="2026-01-02T00:00:00+00:00")
    found = merge(tmp_path, "a", "b")
    assert found.labels == ("15.1 bochs Intel", "15.1 bochs Intel #2")
    assert (found.exit_code, found.cells[1].slug) == (1, "15.1-bochs-intel-2")
    assert (found.run_dir / "15.1-bochs-intel-2" / "report.html").exists()


def test_what_a_job_says_of_itself_stands_where_its_report_would(tmp_path: Path) -> None:
    left(tmp_path / "ran")
    for name, verdict in (
        ("skipped", "skipped: no kvm on this machine\n"),
        ("ended", f"verdict: no verdict: the setup failed {EVIL}\n"),
        ("empty", ""),
    ):
        (tmp_path / name).mkdir()
        if verdict:
            (tmp_path / name / "verdict.txt").write_text(verdict)
            (tmp_path / name / "job.txt").write_text(
                "release=15.1\nbackend=kvm\ncpu_vendor=\nstock=0\n"
            )
    found = merge(tmp_path, "ran", "skipped")
    assert (found.labels[1], found.cells[1].not_run) == ("15.1 kvm", "no kvm on this machine")
    assert found.exit_code == 0
    (tmp_path / "merged").rename(tmp_path / "before")
    found = merge(tmp_path, "ran", "ended", "empty")
    assert found.labels[1:] == ("15.1 kvm", "empty")
    assert "the setup failed" in found.cells[1].not_run
    assert "\x1b" not in found.cells[1].not_run
    assert found.cells[2].not_run == "there is no report in its folder"
    assert found.exit_code == 3


def hostile(folder: Path, kind: str) -> None:
    folder.mkdir()
    path = folder / "report.json"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a link":
        path.symlink_to("/etc/passwd")
    elif kind == "a folder":
        path.mkdir()
    elif kind == "too long":
        with path.open("wb") as stream:
            stream.truncate((64 << 20) + 1)
    elif kind == "cut":
        path.write_text('{"release": "15.1", "backend": ')
    elif kind == "deep":
        path.write_text("[" * 200_000)
    elif kind == "not text":
        path.write_bytes(bytes(range(256)))
    elif kind == "out of its folder":
        left(folder / "x", release="../../../escaped")
    elif kind == "no backend of ours":
        left(folder / "x", backend="../../x")
    else:
        path.write_text(kind)


KINDS = (
    "a pipe",
    "a link",
    "a folder",
    "too long",
    "cut",
    "deep",
    "not text",
    "out of its folder",
    "no backend of ours",
    "{}",
    "null",
    '{"cells": []}',
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_folder_is_a_column_that_was_not_run(tmp_path: Path, kind: str) -> None:
    left(tmp_path / "good")
    hostile(tmp_path / "bad", kind)
    found = merge(tmp_path, "good", "bad")
    assert len(found.cells) == 2
    assert found.cells[0].exit_code == 0
    assert found.cells[1].not_run
    assert found.exit_code == 3
    names = {path.name for path in found.run_dir.iterdir()}
    assert names == {"matrix.json", "junit.xml", "report.html", "15.1-bochs-intel"}
    assert not list(tmp_path.parent.glob("*escaped*"))


def test_what_a_report_says_does_nothing_to_the_page_nor_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left(
        tmp_path / "a",
        check("failed", f"test_x.py::{EVIL}", message=EVIL, detail=EVIL),
        series=EVIL,
        properties={EVIL: EVIL, "processor": EVIL},
        error_detail=EVIL,
    )
    found = merge(tmp_path, "a")
    page = (found.run_dir / "report.html").read_text()
    assert "<script" not in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)
    report.show_matrix(found)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "::error::" not in out


def test_an_error_is_never_a_success(tmp_path: Path) -> None:
    """Whatever exit code a report gives beside its error."""
    for code in (0, 77, -1):
        folder = tmp_path / f"code{code}"
        left(folder, error="it ended", error_exit_code=code)
    found = merge(tmp_path, "code0", "code77", "code-1")
    assert [cell.exit_code for cell in found.cells] == [3, 3, 3]
    assert found.exit_code == 3


def test_a_folder_with_a_junit_file_alone_is_read_too(tmp_path: Path) -> None:
    left(
        tmp_path / "a",
        check(),
        check("failed", "test_x.py::a", message="why", detail="lines"),
        check("failed", "test_x.py::b", on_stock="failed", stock_message="the same"),
        check("skipped", "test_x.py::c", message="does not apply: AMD"),
        check("skipped", "test_x.py::d", message="nothing there"),
        backend="bochs as AMD",
        properties={"processor": "amd", "left out": "3 that take minutes left out"},
    )
    whole = report.load(tmp_path / "a")
    (tmp_path / "a" / "report.json").unlink()
    found = merge(tmp_path, "a")
    (cell,) = found.cells
    assert cell.label == "15.1 bochs AMD"
    assert cell.report is not None
    assert cell.report.exit_code == whole.exit_code == 1
    for status in ("ok", "FAILED", "as stock", "n/a", "not run"):
        assert cell.report.count(status) == whole.count(status) == 1
    assert cell.report.stages[1].seconds == 2.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<testsuites/>",
        "<!DOCTYPE x [<!ENTITY a 'b'>]><testsuites>&a;</testsuites>",
        '<?xml version="1.0" encoding="utf-16"?><testsuites/>',
        "<testsuites><testsuite name='stages'/><testsuite name='checks'>"
        "<testcase name='x' time='soon'/></testsuite></testsuites>",
        "<testsuites><testsuite name='stages'/><testsuite name='checks'>"
        "<testcase name='x' time='1e99'/></testsuite></testsuites>",
    ],
)
def test_a_junit_file_of_somebody_else_is_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "junit.xml").write_text(text)
    found = merge(tmp_path, "a")
    assert found.cells[0].report is None
    assert found.exit_code == 3


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left(tmp_path / "a" / "1")
    left(tmp_path / "a" / "2", started_at="2026-01-02")
    monkeypatch.setattr(merging, "MERGED_REPORTS", 1)
    with pytest.raises(UsageError, match="more than 1 reports"):
        merge(tmp_path, "a")
    monkeypatch.setattr(merging, "MERGED_FILES", 3)
    with pytest.raises(UsageError, match="more than 3 files"):
        merging.merge([tmp_path / "a"], (), tmp_path / "merged")
    with pytest.raises(UsageError, match="there is no such folder"):
        merging.merge([tmp_path / "nowhere"], (), tmp_path / "merged")


def test_a_matrix_of_a_machine_brings_its_gaps_along(tmp_path: Path) -> None:
    left(tmp_path / "a" / "15.1-bochs-intel")
    gap = Cell("15.1", "kvm", reason="nesting is off", named=False)
    ran = dataclasses.replace(
        Cell.of(report.load(tmp_path / "a" / "15.1-bochs-intel")), folder="15.1-bochs-intel"
    )
    matrix_store.save(Matrix((ran, gap), "2026-01-01T00:00:00+00:00", tmp_path / "a"))
    found = merge(tmp_path, "a")
    assert sorted(found.labels) == ["15.1 bochs Intel", "15.1 kvm"]
    assert found.exit_code == 0


@pytest.mark.parametrize("folder", ["../a", "/etc", "", ".."])
def test_a_matrix_names_no_folder_but_its_own(tmp_path: Path, folder: str) -> None:
    left(tmp_path / "a")
    (tmp_path / "m").mkdir()
    cell = {"release": "15.1", "backend": "bochs", "folder": folder}
    (tmp_path / "m" / "matrix.json").write_text(json.dumps({"cells": [cell]}))
    assert matrix_store.load(tmp_path / "m").cells[0].report is None


def test_the_gravest_exit_code_is_that_of_all() -> None:
    assert [gravest(codes) for codes in ([], [0, 0], [0, 3], [3, 1], [1, 5], [5, 4], [4, 130])] == [
        0, 0, 3, 1, 5, 4, 130
    ]  # fmt: skip
    assert gravest([99]) == 3
    assert set(WORDS) == set(GRAVEST_FIRST)


def test_the_last_report_may_be_of_several_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left(tmp_path / "runs" / "1-verify")
    left(tmp_path / "a")
    target = tmp_path / "runs" / "2-matrix"
    target.mkdir()
    merging.merge([tmp_path / "a"], (), target)
    report_commands.show("", False, False)
    assert "2-matrix" in capsys.readouterr().out
    report_commands.show("2-matrix/15.1-bochs-intel", False, True)
    assert json.loads(capsys.readouterr().out)["release"] == "15.1"
    report_commands.show_list(True)
    listed = json.loads(capsys.readouterr().out)
    assert [one["run"] for one in listed] == ["2-matrix", "1-verify"]
