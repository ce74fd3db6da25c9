"""The pytest plugin with a fake guest: what a failure shows, and which tests it leaves alone."""

from __future__ import annotations

import pytest
from fakes import FakeGuest
from fakes import bench as fake_bench
from plugged import Brought, brought_up, run
from plugged import guest as guest

from harness.run import plugin

pytest_plugins = ["pytester"]


def test_others_tests_are_left_in_peace(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No guest is brought up, not even for a mark of the same name."""

    def never(*_arguments: object) -> None:
        raise AssertionError("a guest was brought up")

    monkeypatch.setattr(plugin, "Session", never)
    monkeypatch.setattr(plugin, "new_run_dir", never)
    result = run(
        pytester,
        """
        import pytest
        def test_passes(): pass
        @pytest.mark.tools
        @pytest.mark.vtx
        def test_marked(): pass
        def test_fails(): assert 0
        """,
        None,
    )
    result.assert_outcomes(passed=2, failed=1)
    assert "meanwhile" not in result.stdout.str()


def test_others_tests_stay_in_peace_when_a_guest_is_up(
    pytester: pytest.Pytester, guest: FakeGuest
) -> None:
    guest.machine.console.panic = "x"  # type: ignore[attr-defined]
    result = run(pytester, "def test_a(): pass\ndef test_b(): assert 0", guest)
    result.assert_outcomes(passed=1, failed=1)
    assert "meanwhile" not in result.stdout.str()


def test_fixtures_are_the_bench_s(pytester: pytest.Pytester, guest: FakeGuest) -> None:
    result = run(
        pytester,
        """
        def test_a(guest, machine, vmm, workbench):
            assert guest is workbench.guest and machine is guest.machine and vmm is workbench.vmm
        """,
        guest,
    )
    result.assert_outcomes(passed=1)


def test_a_failure_shows_the_guests_output_during_the_test(
    pytester: pytest.Pytester, guest: FakeGuest
) -> None:
    guest.machine.console.text = "said before\n"  # type: ignore[attr-defined]
    result = run(
        pytester,
        """
        def test_fails(guest):
            guest.machine.console.text += "lock order \\x1b[31mreversal\\n"
            assert 0
        def test_fails_in_silence(guest):
            assert 0
        """,
        guest,
    )
    result.assert_outcomes(failed=2)
    said = result.stdout.str()
    first, second = said.split("test_fails_in_silence", 1)
    console, _, dmesg = first.partition("guest dmesg meanwhile")
    assert "lock order reversal" in console.partition("guest console meanwhile")[2]
    assert "reversal" in dmesg
    assert "said before" not in said
    assert second.count("(nothing)") == 2


def test_the_first_test_shows_it_too(
    pytester: pytest.Pytester, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own set-up brings the guest up, where nobody has done that before."""

    class Bench:
        def __init__(self, *_arguments: object) -> None:
            self.__dict__.update(vars(fake_bench(guest)))

        def up(self) -> Bench:
            guest.machine.console.text = "booted\n"  # type: ignore[attr-defined]
            return self

        def __enter__(self) -> Bench:
            return self

        def __exit__(self, *_exc: object) -> None:
            pass

    monkeypatch.setattr(plugin, "Session", Bench)
    monkeypatch.setattr(plugin, "new_run_dir", lambda _what: pytester.path)
    text = "def test_a(guest):\n guest.machine.console.text += 'news\\n'\n assert 0"
    result = run(pytester, text, None)
    said = result.stdout.str()
    assert "news" in said.partition("guest console meanwhile")[2]
    assert "booted" not in said


def test_what_the_guest_lacks_skips_in_words(pytester: pytest.Pytester, guest: FakeGuest) -> None:
    brought = Brought(guest)
    brought.bench.loaded.virtualizes = False
    brought.bench.loaded.refusal = "vmx_modinit: no VMX"
    brought.bench.vmtool = None
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.vtx
        def test_vtx(guest): raise AssertionError
        @pytest.mark.tools
        def test_tools(guest): raise AssertionError
        def test_neither(guest): pass
        """
    )
    result = pytester.runpytest_inprocess("-rs", plugins=[brought])
    result.assert_outcomes(skipped=2, passed=1)
    result.stdout.fnmatch_lines(
        ["*vmx_modinit: no VMX*", "*./inv image.import --release * --sysroot *"]
    )


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        (["a", "b"], ["a", "b", "c"], ["c"]),
        (["a", "b"], ["a", "b"], []),
        (["a", "b", "c"], ["b", "c", "d"], ["d"]),
        (["a", "b"], ["x", "y"], ["x", "y"]),
        ([], ["a"], ["a"]),
        (["a"], [], []),
        (["a", "a"], ["a", "a", "a"], ["a"]),
    ],
)
def test_new_lines(before: list[str], after: list[str], news: list[str]) -> None:
    assert plugin.new_lines(before, after) == news


def test_marks_say_what_a_test_needs(pytester: pytest.Pytester, guest: FakeGuest) -> None:
    text = """
        import pytest
        @pytest.mark.freebsd("15.0")
        def test_old_enough(guest): pass
        @pytest.mark.freebsd("16.0")
        def test_too_new(guest): pass
        @pytest.mark.freebsd
        def test_says_nothing(guest): pass
        @pytest.mark.beside
        def test_beside(guest): pass
        @pytest.mark.minutes
        def test_long(guest): pass
        """
    result = run(pytester, text, guest)
    # The caller brought the guest up and chooses the time limits.
    result.assert_outcomes(passed=2, skipped=2, errors=1)
    for words in (
        "compares with the stock module: inv verify",
        "does not apply: needs FreeBSD 16.0 or newer; this",
    ):
        result.stdout.fnmatch_lines([f"*{words}*"])


def test_the_rules_about_a_series_hold_here_too(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
        def test_a(workbench):
            assert [path.name for path in workbench.options.series] == ["mine.patch"]
            assert workbench.options.topic_name == ""
            assert workbench.options.with_stock
        """
    result = brought_up(pytester, monkeypatch, text, "--vmm-series", "mine.patch")
    result.assert_outcomes(passed=1)


def test_options_that_do_not_go_together_are_one_line(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = ("--vmm-series", "mine.patch", "--vmm-stock")
    result = brought_up(pytester, monkeypatch, "def test_a(guest): pass", *wrong)
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*leave out --series or --stock*"])
    assert "Traceback" not in result.stdout.str()


def test_what_takes_minutes_is_left_out(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
        import pytest
        def test_short(guest): pass
        @pytest.mark.minutes
        def test_long(guest): pass
        """
    result = brought_up(pytester, monkeypatch, text)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*takes minutes in an emulator: --vmm-full runs it*"])
    brought_up(pytester, monkeypatch, text, "--vmm-full").assert_outcomes(passed=2)


def test_on_stock_a_claim_of_the_patch_must_fail(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
        import pytest
        @pytest.mark.patch
        def test_claim(guest): assert 0
        @pytest.mark.patch
        def test_proves_nothing(guest): pass
        def test_any(guest): pass
        @pytest.mark.patch
        def test_of_others(): pass
        """
    result = brought_up(pytester, monkeypatch, text, "--vmm-stock")
    result.assert_outcomes(xfailed=1, failed=1, passed=2)
    result.stdout.fnmatch_lines(["*needs the patch, and the stock module is loaded*"])


def test_what_cannot_be_carried_out_is_not_run(pytester: pytest.Pytester, guest: FakeGuest) -> None:
    """It is not the patch's fault: a sysroot without ATF, say."""
    text = """
        import pytest
        from harness.errors import CannotError
        @pytest.fixture
        def programs(guest): raise CannotError("the sysroot lacks atf-c.h")
        def test_a(guest): raise CannotError("the sysroot lacks atf-c.h")
        def test_b(programs): pass
        """
    result = run(pytester, text, guest)
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*the sysroot lacks atf-c.h"])
