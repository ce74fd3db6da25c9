"""The pytest plugin when the guest breaks, hangs, or cannot be started."""

from __future__ import annotations

import dataclasses
import os

import pytest
from fakes import FakeGuest
from plugged import SUPPORT, Brought, brought_up, run
from plugged import guest as guest

from harness.errors import CannotError, GuestError, GuestPanic, MachineDied
from harness.run.session import Session


def test_a_guest_that_cannot_be_brought_up_ends_pytest_with_its_code(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_self: object) -> None:
        raise GuestPanic("the guest panicked: early", detail="its story")

    monkeypatch.setenv("HARNESS_RUNS", str(pytester.path / "runs"))
    monkeypatch.setattr(Session, "up", fails)
    result = run(pytester, "def test_a(guest): pass", None)
    assert result.ret == 4
    result.stdout.fnmatch_lines(["*the guest panicked: early*"])


@pytest.mark.parametrize(
    "breaks",
    [
        "raise MachineDied('qemu was killed by SIGKILL')",
        "guest.machine.error = MachineDied('qemu was killed by SIGKILL'); assert 0",
        "guest.machine.error = MachineDied('qemu was killed by SIGKILL')",
    ],
    ids=["tells", "fails", "passes"],
)
def test_a_broken_machine_skips_what_comes_after_it(
    pytester: pytest.Pytester, guest: FakeGuest, breaks: str
) -> None:
    result = run(
        pytester,
        f"""
        from harness.errors import MachineDied
        def test_before(guest): pass
        def test_breaks(guest): {breaks}
        def test_after(guest): raise AssertionError("never run")
        def test_of_others(): pass
        """,
        guest,
    )
    outcomes = result.parseoutcomes()
    assert outcomes["skipped"] == 1
    assert outcomes["passed"] == (3 if "; " not in breaks and "raise" not in breaks else 2)
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 1
    result.stdout.fnmatch_lines(
        ["*not run, because the machine broke before: qemu was killed by SIGKILL*"]
    )
    assert "never run" not in result.stdout.str()


def test_a_guest_that_hangs_is_a_broken_machine(
    pytester: pytest.Pytester, guest: FakeGuest
) -> None:
    """Or each later test would wait for its own time-out."""
    result = run(
        pytester,
        """
        from harness.errors import WaitTimeout
        def test_hangs(guest):
            def hang(*_): raise WaitTimeout("no answer within 20 s")
            guest.dmesg = hang
            raise WaitTimeout("`x` did not end")
        def test_after(guest): pass
        """,
        guest,
    )
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["*broke before: it has not answered since test_hangs: `x` did not end*"]
    )


def test_where_no_guest_can_be_had_tests_are_skipped(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "def test_a(guest): pass\ndef test_b(vm): pass\ndef test_c(): pass"
    error = CannotError("FreeBSD 15.1 is not here; run ./inv image.fetch")
    result = brought_up(pytester, monkeypatch, text, error=error)
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["*there can be no FreeBSD guest here*run ./inv image.fetch*"])
    assert brought_up(pytester, monkeypatch, text, "--vmm-insist", error=error).ret == 3


def test_a_broken_guest_is_started_again_on_request(
    pytester: pytest.Pytester, guest: FakeGuest
) -> None:
    brought = Brought(guest)
    brought.bench.options = dataclasses.replace(brought.bench.options, go_on=True)

    def restart_guest() -> None:
        guest.machine.console.panic = ""  # type: ignore[attr-defined]
        guest.machine.console.text = ""  # type: ignore[attr-defined]
        guest.given_up = ""

    brought.bench.restart_guest = restart_guest
    pytester.makepyfile(
        """
        def test_dies(guest): guest.machine.console.panic = "sleeping thread"
        def test_after(guest): pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", plugins=[brought])
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*the guest panicked: sleeping thread*"])


def test_a_guest_that_does_not_come_back(pytester: pytest.Pytester, guest: FakeGuest) -> None:
    brought = Brought(guest)
    brought.bench.options = dataclasses.replace(brought.bench.options, go_on=True)

    def restart_guest() -> None:
        raise MachineDied("no memory")

    brought.bench.restart_guest = restart_guest
    pytester.makepyfile(
        """
        def test_dies(guest): guest.machine.console.panic = "sleeping thread"
        def test_b(guest): pass
        def test_c(guest): pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rs", plugins=[brought])
    result.assert_outcomes(passed=1, errors=1, skipped=2)
    result.stdout.fnmatch_lines(["*did not come back: no memory*"])


# What other plugins do to checks: each file of tests brings one along as its conftest.
REPEATS = """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    '''Twice what failed; the first time is not counted, as pytest-rerunfailures does it.'''
    for last in (False, True):
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        again = not last and any(report.failed for report in reports)
        for report in reports:
            if again and report.failed:
                report.outcome = "rerun"
            item.ihook.pytest_runtest_logreport(report=report)
        item._initrequest()
        if not again:
            return True
"""


@pytest.mark.parametrize("restarted", [False, True])
def test_a_guest_that_broke_is_no_success_by_being_repeated(
    pytester: pytest.Pytester, guest: FakeGuest, restarted: bool
) -> None:
    pytester.makeconftest(REPEATS)
    pytester.makepyfile(
        """
        from harness.errors import MachineDied
        tries = []
        def test_breaks(guest):
            tries.append(1)
            if len(tries) == 1:
                raise MachineDied("qemu was killed by SIGKILL")
        def test_after(guest): pass
        """
    )
    brought = Brought(guest)
    brought.bench.options = dataclasses.replace(brought.bench.options, go_on=restarted)

    def restart_guest() -> None:
        guest.given_up = ""

    brought.bench.restart_guest = restart_guest
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", plugins=[brought])
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*the guest broke under this check before: qemu was killed*"])


def test_a_guest_that_broke_is_no_success_even_without_a_report(
    pytester: pytest.Pytester, guest: FakeGuest
) -> None:
    """A plugin that forgets failures altogether."""
    pytester.makeconftest(
        """
        import pytest
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            report.outcome = "passed"
            return report
        """
    )
    text = """
        from harness.errors import MachineDied
        def test_breaks(guest):
            raise MachineDied("qemu was killed by SIGKILL")
        """
    result = run(pytester, text, guest)
    assert result.ret == 4
    result.stdout.fnmatch_lines(["the guest broke: test_breaks: qemu was killed by SIGKILL"])


@pytest.mark.parametrize("error", ["GuestPanic('it panicked')", "WaitTimeout('it hung')"])
def test_expected_to_fail_is_not_expected_to_break_the_guest(
    pytester: pytest.Pytester, guest: FakeGuest, error: str
) -> None:
    result = run(
        pytester,
        f"""
        import pytest
        from harness.errors import GuestPanic, WaitTimeout
        @pytest.mark.xfail(reason="needs the patch", strict=True)
        def test_breaks(guest):
            raise {error}
        @pytest.mark.xfail(reason="needs the patch", strict=True)
        def test_fails(guest):
            assert 0
        """,
        guest,
    )
    outcomes = result.parseoutcomes()
    assert (result.ret, outcomes["failed"]) == (1, 1)
    assert outcomes.get("xfailed", 0) + outcomes.get("skipped", 0) == 1


def test_clean_up_asks_nothing_of_a_guest_that_broke(
    pytester: pytest.Pytester, guest: FakeGuest
) -> None:
    text = """
        from harness.errors import WaitTimeout
        def test_holds(guest, vm): pass
        def test_hangs(guest, vm, vmm):
            def hang(*_): raise WaitTimeout("no answer within 20 s")
            guest.dmesg = hang
            raise WaitTimeout("`x` did not end")
        """
    result = run(pytester, text, guest)
    result.assert_outcomes(passed=1, failed=1)
    assert guest.said.count("destroy all") == 1
    assert guest.given_up == "it broke: it has not answered since test_hangs: `x` did not end"
    with pytest.raises(GuestError, match=r"no more commands are sent to the guest: it broke"):
        _ = guest.ssh


def test_clean_up_after_an_interrupt_asks_nothing(
    pytester: pytest.Pytester, guest: FakeGuest
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pytester, "def test_a(guest, vm): raise KeyboardInterrupt", guest)
    assert "destroy all" not in guest.said
    assert guest.given_up == "the run was interrupted"


UNREACHABLE = """
from harness.errors import CannotError
from harness.run import plugin

class Bench:
    def __init__(self, *_): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def up(self): raise CannotError("no image of FreeBSD 15.1; run ./inv image.fetch")

plugin.Session = Bench
plugin.new_run_dir = lambda _what: None
"""


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("insist", [True, False])
def test_no_guest_is_a_reason_and_an_exit_code_with_workers_too(
    pytester: pytest.Pytester, workers: str, insist: bool
) -> None:
    pytest.importorskip("xdist")
    pytester.makeconftest(UNREACHABLE)
    pytester.makepyfile("def test_a(guest): pass\ndef test_b(guest): pass")
    how = ["-p", "no:cacheprovider", "-rs", "-n", workers, *(["--vmm-insist"] if insist else [])]
    result = pytester.runpytest_subprocess(*how)
    said = result.stdout.str() + result.stderr.str()
    assert result.ret == (3 if insist else 0)
    assert "INTERNALERROR" not in said
    assert "no image of FreeBSD 15.1; run ./inv image.fetch" in said


def test_a_guest_that_broke_in_a_worker_is_no_success(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xdist")
    pytester.makeconftest(
        """
        import pytest
        from fakes import FakeGuest, bench
        from harness.run import plugin

        def pytest_configure(config):
            if hasattr(config, "workerinput"):
                config.stash[plugin.WORKBENCH] = bench(FakeGuest())

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            report.outcome = "passed"
            return report
        """
    )
    pytester.makepyfile(
        "from harness.errors import MachineDied\n"
        "def test_a(guest): raise MachineDied('qemu was killed')\ndef test_b(): pass"
    )
    monkeypatch.setenv("PYTHONPATH", f"{SUPPORT}:{os.environ.get('PYTHONPATH', '')}")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-n", "2")
    assert result.ret == 4
    result.stdout.fnmatch_lines(["the guest broke: test_a: qemu was killed"])
