"""`verify` when a stage fails, the guest breaks, or the user interrupts it."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import xml.etree.ElementTree as ET

import pytest
from verified import CHECKS, Run, outcomes, status
from verified import folders as folders
from verified import run as run

from harness import report
from harness.errors import CannotError, GuestError, PatchError, WorkbenchError
from harness.machine import Backend
from harness.report import Report
from harness.run import session, verify
from harness.run.options import Options
from harness.run.stages import STAGES, Chosen, Proven


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


def test_a_machine_that_breaks_is_started_again_on_request(run: Run) -> None:
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


def test_a_guest_that_failed_stays_if_requested(run: Run) -> None:
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


def test_a_report_that_cannot_be_written_is_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
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
