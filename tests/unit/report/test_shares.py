"""Where the time of a run went."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.guest.transcript import Evidence
from harness.report import EMPTY_COMMAND, Check, Report, StageResult, html, shares, text

STAGES = (
    StageResult("build", "ok", 7.0, ""),
    StageResult("boot", "ok", 4.0, ""),
    StageResult("load", "ok", 6.0, ""),
)


def a_run(folder: Path, **properties: str) -> Report:
    asked = Evidence(count=5, seconds=8.0)
    checks = tuple(
        Check(f"t::{number}", "it holds", "passed", False, 10.0, evidence=asked)
        for number in range(6)
    )
    return Report("15.1", "bochs", False, "x", "t", folder, STAGES, checks, properties)


def test_the_shares_add_up(tmp_path: Path) -> None:
    found = shares(a_run(tmp_path, **{EMPTY_COMMAND: "0.2"}))
    assert (found.emulator_s, found.build_s, found.commands) == (10.0, 7.0, 30)
    assert found.ssh_s == pytest.approx(6.0)
    assert found.guest_s == pytest.approx(42.0)
    assert found.here_s == pytest.approx(12.0)


@pytest.mark.parametrize("properties", [{}, {EMPTY_COMMAND: "soon"}])
def test_without_the_measurement_ssh_is_not_separated(
    tmp_path: Path, properties: dict[str, str]
) -> None:
    found = shares(a_run(tmp_path, **properties))
    assert found.ssh_s is None
    assert "SSH" not in str(found)
    assert found.guest_s == pytest.approx(48.0)


def test_terminal_and_page_show_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = a_run(tmp_path, **{EMPTY_COMMAND: "0.2"})
    text.show(report)
    words = "emulator 10.0 s (boot and load), build 7.0 s; checks: 30 commands, SSH 6.0 s"
    assert words in capsys.readouterr().out
    assert words in html.render(report)
