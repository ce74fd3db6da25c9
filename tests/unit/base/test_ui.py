"""What users see while a command is working."""

from __future__ import annotations

import os
import re
import sys

import pexpect
import pytest

from harness import progress

# As pytest does while it runs checks: both names for standard error lead elsewhere.
SCRIPT = """
import os, sys, time
from harness import progress
with progress.past_capture(), progress.stage("checks") as step:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stderr = open(os.devnull, "w")
    step.live("7/9 test_x  the guest's last line")
    time.sleep(0.5)
    progress.say("a line of its own")
    time.sleep(0.5)
"""


def test_a_terminal_shows_stage_time_and_last_line_even_if_standard_error_is_captured() -> None:
    seen = pexpect.spawn(
        sys.executable,
        ["-c", SCRIPT],
        encoding="utf-8",
        dimensions=(24, 100),
        # A terminal that can move its cursor, whatever this runs in.
        env={**os.environ, "TERM": "xterm"},
    )
    seen.expect(pexpect.EOF, timeout=20)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.before or "")
    assert re.search(r"checks 0:00:0\d 7/9 test_x  the guest's last line", text)
    assert "a line of its own" in text
    assert re.search(r"checks: ok after \d", text)


def test_without_a_terminal_each_stage_is_two_lines(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.past_capture(), progress.stage("boot") as step:
        step.live("not shown")
        step.note = "SSH"
    assert re.fullmatch(r"boot \.\.\.\nboot: ok after 0\.0 s: SSH\n", capfd.readouterr().err)


def test_stages_can_be_shown_elsewhere(capfd: pytest.CaptureFixture[str]) -> None:
    reported: list[tuple[str, str, str]] = []
    with progress.reported_to(lambda *what: reported.append(what)), progress.stage("boot") as step:
        step.live("a line")
        progress.say("said")
        progress.say_detail("a story")
        step.note = "up"
    assert reported == [
        ("begin", "boot", ""),
        ("live", "a line", ""),
        ("say", "said", ""),
        ("detail", "a story", ""),
        ("end", "ok", "up"),
    ]
    progress.say("here again")
    assert capfd.readouterr().err == "here again\n"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("::error::x", ": :error::x"),
        ("  ::add-mask::x", "  : :add-mask::x"),
        ("a\n\t::set-output name=a::b", "a\n\t: :set-output name=a::b"),
        (
            "a fold may come anywhere::warning file=a::b",
            "a fold may come anywhere: :warning file=a::b",
        ),
        ("\x1b[0m::group::x", "?[0m: :group::x"),
        ("::STOP-commands::x", ": :STOP-commands::x"),
        ("x ##[error]y", "x # #[error]y"),
        ("##vso[task.setvariable]y", "# #vso[task.setvariable]y"),
        ("##teamcity[message]", "# #teamcity[message]"),
        (
            "\r\x1b[0Ksection_start:1:a[collapsed=true]\r\x1b[0K",
            "??[0Ksection_start:1:a[collapsed=true]??[0K",
        ),
        ("test_a.py::TestB::test_c[1]", "test_a.py::TestB::test_c[1]"),
        ("std::vector # [1] ## x", "std::vector # [1] ## x"),
    ],
)
def test_nothing_that_is_said_gives_orders(said: str, shown: str) -> None:
    """Neither to a terminal nor to the CI system whose log it ends up in."""
    assert progress.clean(said) == shown
    assert "\n" not in progress.printable(said)


def test_a_table_gives_no_orders_wherever_it_folds(capsys: pytest.CaptureFixture[str]) -> None:
    for width in range(100, 180):
        progress.table(("what", "is"), [("x" * 3, "y" * width + "::add-mask::secret")])
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.strip().startswith("::")]


def test_an_interrupt_has_a_word_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        progress.past_capture(),
        progress.stage("checks") as step,
    ):
        raise KeyboardInterrupt
    assert (step.outcome, step.note) == ("failed", "interrupted")
