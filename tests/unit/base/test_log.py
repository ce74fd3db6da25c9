"""A run's log: everything at debug level, a line for each record, and no trouble from it."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import log, process, progress
from harness.files import PROJECT


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Removes every log handler that the test attached."""
    before = {name: list(logging.getLogger(name).handlers) for name in log.NAMES}
    levels = {name: logging.getLogger(name).level for name in log.NAMES}
    yield
    for name in log.NAMES:
        logging.getLogger(name).handlers[:] = before[name]
        logging.getLogger(name).setLevel(levels[name])


def test_what_is_said_and_run_is_in_the_log(tmp_path: Path) -> None:
    log.to_file(tmp_path / "harness.log")
    with progress.stage("a stage"):
        progress.say("a line")
    process.run(["echo", "from a program"])
    logging.getLogger("paramiko.transport").debug("from a library")
    text = (tmp_path / "harness.log").read_text()
    for words in ("a stage: begins", "a stage: ok after", "a line", "from a program", "a library"):
        assert words in text
    assert (tmp_path / "harness.log").stat().st_mode & 0o777 == 0o600


def test_a_record_takes_one_line_and_steers_no_terminal() -> None:
    # Not logged: pytest would keep it, and cannot send such a character between its workers.
    record = logging.LogRecord("x", logging.INFO, "", 0, "one\ntwo\x1b[31m\udcff", None, None)
    assert log._OneLine("%(message)s").format(record) == r"one\x0atwo\x1b[31m\xdcff"


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    log.to_file(tmp_path / "no" / "such" / "folder")
    progress.say("the run goes on")


def test_v_shows_it_live() -> None:
    command = [sys.executable, "-m", "harness.cli.program"]
    plain = subprocess.run(
        [*command, "patch.list"], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    live = subprocess.run(
        [*command, "-v", "image.list"], cwd=PROJECT, check=False, capture_output=True, text=True
    )
    assert "harness." not in plain.stderr
    assert live.returncode == 0


def test_a_full_disk_is_not_shown_for_each_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "harness.log").symlink_to("/dev/full")
    log.to_file(tmp_path / "harness.log")
    logging.getLogger("harness").warning("a line that finds no room")
    assert "Traceback" not in capfd.readouterr().err
