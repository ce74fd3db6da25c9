"""`inv mutation` with a fake guest: what is caught, by which check, and how the run ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from variants import Played, write_checks

from harness import progress
from harness.errors import CannotError, GuestPanic, MachineDied, PatchError, UsageError
from harness.run import mutants, mutation
from harness.run.mutants import SERIES, Mutant
from harness.run.options import Options
from harness.series import load

CHECKS = """
import pytest
from harness.errors import GuestPanic, MachineDied, WaitTimeout

def test_a(vmm):
    assert vmm.variant not in ("stock", "wrong-a")

def test_b(vmm):
    assert vmm.variant not in ("stock", "wrong-b")

@pytest.mark.minutes
def test_long(vmm):
    assert vmm.variant != "wrong-long"

@pytest.mark.parametrize("cycles", [2, pytest.param(2000, marks=pytest.mark.minutes)])
def test_wears(vmm, cycles):
    assert cycles == 2 or vmm.variant == "nobody"

@pytest.fixture
def atf():
    raise OSError("atf-c is not installed")

@pytest.mark.minutes
def test_cannot_run(vmm, atf):
    assert vmm.variant not in ("wrong-c", "wrong-a")

@pytest.mark.minutes
def test_is_skipped(vmm):
    pytest.skip("needs ATF")

def test_breaks(vmm):
    if vmm.variant == "panics":
        raise GuestPanic("the guest panicked: page fault")
    if vmm.variant == "hangs":
        raise WaitTimeout("no end within 5 s")
    if vmm.variant == "dies":
        raise MachineDied("the emulator is gone")
"""

Run = Callable[..., mutation.Result]


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all of them."""
    return write_checks(tmp_path_factory.mktemp("checks"), CHECKS)


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    """The fake workbench."""
    return Played(monkeypatch, mutation, tmp_path / "runs")


@pytest.fixture
def wrong(checks: Path) -> Callable[..., Mutant]:
    """Make a wrong variant that some checks should notice."""

    def make(name: str, *names: str) -> Mutant:
        return Mutant(
            name, f"{name} is wrong", "caught", tuple(f"{checks.name}::{it}" for it in names)
        )

    return make


@pytest.fixture
def stock(wrong: Callable[..., Mutant]) -> Mutant:
    """The variant without the series."""
    return wrong("stock", "test_a")


@pytest.fixture
def run(played: Played, checks: Path, stock: Mutant, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run it over some variants."""

    def series(self: Mutant, _base: Any, _release: str) -> Any:
        if self.name == "stock":
            return None
        return SimpleNamespace(topic="meminfo" if self is SERIES else f"meminfo+{self.name}")

    monkeypatch.setattr(Mutant, "series", series)

    def go(
        *chosen: Mutant, every: bool = False, only_checks: tuple[str, ...] = (), **options: Any
    ) -> mutation.Result:
        monkeypatch.setattr(mutants, "load", lambda _folder, only, stock: (SERIES, *chosen))
        return mutation.mutation(
            Options(guests=1, **options), every=every, only_checks=only_checks, tests=checks
        )

    return go


def verdicts(result: mutation.Result) -> dict[str, tuple[str, str]]:
    return {
        it.name: (it.verdict, ", ".join(name.rpartition("::")[2] for name in it.caught_by))
        for it in result.variants
    }


def test_each_variant_is_caught_and_the_series_holds(
    run: Run, played: Played, stock: Mutant, wrong: Callable[..., Mutant]
) -> None:
    result = run(
        stock,
        wrong("wrong-a", "test_a"),
        wrong("wrong-b", "test_a"),
        wrong("wrong-long", "test_long"),
        wrong("panics", "test_breaks"),
        wrong("hangs", "test_breaks"),
    )
    assert verdicts(result) == {
        "series": ("held", ""),
        "stock": ("caught", "test_a"),
        "wrong-a": ("caught", "test_a"),
        "wrong-b": ("caught", "test_b"),
        "wrong-long": ("caught", "test_long"),
        "panics": ("caught", "test_breaks, a panic"),
        "hangs": ("caught", "test_breaks, a hang"),
    }
    assert result.exit_code == 0
    assert result.verdict == "6 of 6 wrong variants caught, 1 of 1 right ones held"
    assert played.bench.boots == 3
    data = json.loads((result.run_dir / "mutation.json").read_text())
    assert data["variants"][1]["why"].startswith("AssertionError")
    assert data["exit_code"] == 0


def test_a_check_that_cannot_run_catches_nothing(run: Run, wrong: Callable[..., Mutant]) -> None:
    """On a guest without ATF its checks fail over every variant, whatever is wrong with it."""
    result = run(wrong("wrong-c", "test_cannot_run"), wrong("wrong-a", "test_cannot_run"))
    assert verdicts(result) == {
        "series": ("WRONGLY CAUGHT", "test_cannot_run"),
        "wrong-c": ("NOT TESTED", ""),
        "wrong-a": ("caught", "test_a"),
    }
    assert result.exit_code == 1
    assert "1 of 2 wrong variants caught" in result.verdict
    assert list(result.outside_baseline.values()) == ["OSError: atf-c is not installed"]


def test_a_check_that_is_skipped_catches_nothing(run: Run, wrong: Callable[..., Mutant]) -> None:
    result = run(wrong("wrong-d", "test_is_skipped"))
    assert verdicts(result) == {"series": ("held", ""), "wrong-d": ("NOT TESTED", "")}
    assert result.exit_code == 3
    assert list(result.outside_baseline.values()) == ["needs ATF"]


def test_without_a_check_that_passes_nothing_is_judged(
    run: Run, played: Played, stock: Mutant
) -> None:
    played.unvirtual.add("series")
    with pytest.raises(CannotError, match="virtual machines cannot be made here: no /dev/vmmctl"):
        run(stock)


def test_all_names_every_check_that_fails(run: Run, stock: Mutant) -> None:
    assert verdicts(run(stock, every=True))["stock"] == ("caught", "test_a, test_b")


def test_checks_are_chosen_by_a_part_of_their_name(run: Run, wrong: Callable[..., Mutant]) -> None:
    """Those that a variant names run in any case; what was not chosen catches nothing."""
    result = run(wrong("wrong-b", "test_a"), only_checks=("::test_br",))
    assert [it.checks_run for it in result.variants] == [2, 2]
    assert verdicts(result)["wrong-b"][0] == "SURVIVED"
    result = run(wrong("wrong-b", "test_a"), only_checks=("::test_br", "test_b"))
    assert verdicts(result)["wrong-b"][0] == "caught"


def test_a_mutant_that_survives_is_a_failure(run: Run, wrong: Callable[..., Mutant]) -> None:
    result = run(wrong("subtle", "test_a"))
    assert verdicts(result)["subtle"] == ("SURVIVED", "")
    assert result.exit_code == 1
    assert "NOT AS THEY SHOULD BE: subtle" in result.verdict
    assert "0 of 1 wrong variants caught" in result.verdict


@pytest.mark.parametrize(
    ("name", "by"), [("wrong-b", "test_b"), ("panics", "test_breaks, a panic")]
)
def test_a_right_variant_that_is_caught_is_a_failure(run: Run, name: str, by: str) -> None:
    result = run(Mutant(name, "nothing", "held"))
    assert verdicts(result)[name] == ("WRONGLY CAUGHT", by)
    assert result.exit_code == 1


def test_what_takes_minutes_is_run_where_it_should_notice_or_with_full(
    run: Run, wrong: Callable[..., Mutant]
) -> None:
    lazy = wrong("wrong-long", "test_a")
    assert verdicts(run(lazy))["wrong-long"][0] == "SURVIVED"
    assert verdicts(run(lazy, full=True))["wrong-long"] == ("caught", "test_long")


def test_of_a_named_check_the_quick_forms_are_enough(
    run: Run, wrong: Callable[..., Mutant]
) -> None:
    """Its slow form, which fails here on correct code, is left out; --full runs it."""
    result = run(wrong("wrong-a", "test_wears"))
    assert not any("test_wears[2000]" in name for name in result.outside_baseline)
    result = run(wrong("wrong-a", "test_wears"), full=True)
    assert any("test_wears[2000]" in name for name in result.outside_baseline)


def test_a_module_that_the_kernel_refuses_is_caught(
    run: Run, played: Played, wrong: Callable[..., Mutant]
) -> None:
    played.refused.add("refused")
    played.unvirtual.add("useless")
    result = run(wrong("refused", "test_a"), wrong("useless", "test_a"))
    assert verdicts(result)["refused"] == ("caught", "loading")
    assert verdicts(result)["useless"] == ("caught", "loading")


def test_a_module_that_does_not_unload_is_caught_and_the_guest_started_again(
    run: Run, played: Played, wrong: Callable[..., Mutant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next variant meets a guest without what this one left behind."""
    load = played._load

    def stuck(guest: Any, made: SimpleNamespace) -> SimpleNamespace:
        if made.name == "stays":
            guest.answers["/bin/sh"] = (1, "", "vmm cannot be unloaded")
        return load(guest, made)

    monkeypatch.setattr("harness.bhyve.vmm_module.load", stuck)
    result = run(wrong("stays", "test_a"), wrong("wrong-a", "test_a"))
    assert verdicts(result)["stays"] == ("caught", "unloading")
    assert verdicts(result)["wrong-a"] == ("caught", "test_a")
    assert played.bench.boots == 2


def test_the_kernel_s_messages_about_a_variant_do_not_fail_the_next(
    run: Run, played: Played, stock: Mutant
) -> None:
    """What a leaking module says when it is unloaded is no fault of the next one."""
    run(stock)
    cleaned = [line for line in played.guest.said if "kern.msgbuf_clear=1" in line]
    # Before and after the series, and before and after the variant.
    assert len(cleaned) == 4


def test_a_mutant_that_does_not_build_is_named(
    run: Run, played: Played, wrong: Callable[..., Mutant]
) -> None:
    played.unbuilt.add("wrong-a")
    with pytest.raises(PatchError, match=r"wrong-a: vmm\.c:7: error: undeclared") as caught:
        run(wrong("wrong-a", "test_a"))
    assert caught.value.exit_code == 5
    assert caught.value.detail == "the compiler's lines"


def test_a_machine_that_dies_proves_nothing(run: Run, wrong: Callable[..., Mutant]) -> None:
    with pytest.raises(MachineDied, match="the emulator is gone"):
        run(wrong("dies", "test_breaks"))


def test_a_series_that_panics_ends_the_run(
    run: Run, checks: Path, stock: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.bhyve.vmm.Vmm", lambda *_a: SimpleNamespace(variant="panics"))
    with pytest.raises(GuestPanic):
        run(stock)


def test_a_check_that_there_is_not_is_named(run: Run, wrong: Callable[..., Mutant]) -> None:
    with pytest.raises(CannotError, match=r"pytest ended with 4; see .*pytest-series\.log"):
        run(wrong("lost", "test_nowhere"))


def test_a_table_for_people(
    run: Run, stock: Mutant, wrong: Callable[..., Mutant], capsys: pytest.CaptureFixture[str]
) -> None:
    mutation.show(run(stock, wrong("wrong-d", "test_is_skipped")))
    said = capsys.readouterr().out
    assert "4 checks held" in said
    assert "test_is_skipped does not pass on correct code, so it catches nothing" in said
    assert "verdict: 1 of 2 wrong variants caught, 1 of 1 right ones held" in said
    assert progress.clean(said) == said


def test_mutants_of_a_topic_without_patches_are_compared_with_stock(
    run: Run, played: Played, wrong: Callable[..., Mutant], monkeypatch: pytest.MonkeyPatch
) -> None:
    bases: list[Any] = []
    monkeypatch.setattr(mutation, "is_suite", lambda topic: topic == "meminfo")
    played.series = lambda: pytest.fail("it has no series")
    made = mutants.VariantBuilder

    def variant_builder(*arguments: Any) -> mutants.VariantBuilder:
        bases.append(arguments[2])
        return made(*arguments)

    monkeypatch.setattr(mutants, "VariantBuilder", variant_builder)
    result = run(wrong("wrong-a", "test_a"))
    assert bases == [None]
    assert result.verdict.startswith("1 of 1 wrong variants caught")


def test_a_topic_without_mutants_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--topic nonsense: it has no mutants .* meminfo"):
        mutation.mutation(Options(topic="nonsense"))
    assert [it.name for it in mutants.load(mutants.folder_of("benchmark"), stock=False)][:1] == [
        "series"
    ]


@pytest.mark.parametrize("topic", [it for it in load.suites() if mutants.has_some(it)])
def test_a_topic_s_mutants_name_its_checks(topic: str) -> None:
    for mutant in mutants.load(mutants.folder_of(topic), stock=False):
        for name in mutant.caught_by:
            file, _, check = name.partition("::")
            text = (load.PATCHES / topic / load.TESTS / file).read_text()
            assert f"def {check.partition('[')[0]}(" in text
            # One of several is there if its parameter is.
            assert check.rpartition("[")[2].rstrip("]") in text
