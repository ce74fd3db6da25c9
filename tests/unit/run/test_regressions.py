"""`inv mutation --regressions` with a fake guest: bugs, right patches, and what is no catch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from variants import Played, write_checks

from harness import progress
from harness.errors import CannotError, PatchError, UsageError
from harness.run import regression_data, regression_table, regressions
from harness.run.options import Options

CHECKS = """
import pytest
from harness.errors import GuestPanic, GuestRebooted, MachineDied

@pytest.fixture
def atf():
    raise OSError("atf-c is not installed")

def test_cannot_run(vmm, atf):
    pass

def test_fails_on_stock(vmm):
    assert False, "a known fault"

@pytest.mark.patch
def test_claim_of_a_series(vmm):
    assert False, "no series is loaded"

def test_general(vmm, workbench):
    assert vmm.variant != "01-wrong"
    assert (workbench.series is None) == (vmm.variant == "stock")
    patches = workbench.series.patches if workbench.series else ()
    assert [it.path.stem for it in patches] in (
        [], [vmm.variant.removeprefix("right-")]
    )

@pytest.mark.beside
def test_same_as_stock(vmm, workbench):
    assert workbench.stock_build.name == "stock"
    assert vmm.variant != "02-beside"

def test_breaks(vmm):
    if vmm.variant == "03-panics":
        raise GuestPanic("the guest panicked: page fault")
    if vmm.variant == "07-reboots":
        raise GuestRebooted("it rebooted by itself")
    if vmm.variant == "08-dies":
        raise MachineDied("bochs exited with 1")
"""

DIFF = "diff --git a/vmm.c b/vmm.c\n--- a/vmm.c\n+++ b/vmm.c\n@@ -1 +1 @@\n-a\n+b\n"
Run = Callable[..., regression_data.Result]


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all of them."""
    return write_checks(tmp_path_factory.mktemp("checks"), CHECKS)


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    """The fake workbench, with an Intel processor."""
    played = Played(monkeypatch, regressions, tmp_path / "runs")
    played.guest.answers["sysctl -n hw.model"] = (0, "Intel(R) Core(TM)\n", "")
    return played


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder of patches."""
    folder = tmp_path / "patches"
    (folder / "right").mkdir(parents=True)
    return folder


@pytest.fixture
def put(folder: Path) -> Callable[..., None]:
    """Write a patch into the folder, with a header or without."""

    def write(name: str, head: str = "", body: str = "") -> None:
        mail = f"From: a <a@b>\n{head}\n{body}\n---\n" if head else ""
        (folder / f"{name}.patch").write_text(mail + DIFF)

    return write


@pytest.fixture
def run(played: Played, checks: Path, folder: Path) -> Run:
    """Run it over the folder."""

    def go(*only: str, **settings: Any) -> regression_data.Result:
        return regressions.regressions(Options(), folder, only, tests=checks, guests=1, **settings)

    return go


def verdicts(result: regression_data.Result) -> dict[str, tuple[str, str]]:
    return {
        it.name: (it.verdict, ", ".join(name.rpartition("::")[2] for name in it.caught_by))
        for it in result.results
    }


def test_the_guest_of_a_bug_that_was_caught_is_not_used_again(
    run: Run, put: Callable[..., None], played: Played
) -> None:
    """For instance, the size of the host's descriptor tables outlives the module."""
    put("01-wrong")
    put("04-missed")
    run("01-wrong", at_least=0)
    caught_boots = played.bench.boots
    run("04-missed", at_least=0)
    assert (caught_boots, played.bench.boots) == (2, 1)


def test_bugs_are_caught_and_right_patches_hold(
    run: Run, put: Callable[..., None], played: Played
) -> None:
    put("01-wrong", "Subject: vmm: a bug\nYear: 2019\nArea: PIT\n", "The timer drifts.\nMuch.")
    put("02-beside")
    put("03-panics")
    put("04-missed")
    put("right/01-right", "Subject: vmm: a refactoring\n")
    result = run(at_least=75)
    assert verdicts(result) == {
        "right-01-right": ("held", ""),
        "01-wrong": ("caught", "test_general"),
        "02-beside": ("caught", "test_same_as_stock"),
        "03-panics": ("caught", "test_breaks, a panic"),
        "04-missed": ("MISSED", ""),
    }
    assert result.rate == 75
    assert result.exit_code == 0
    assert result.verdict == (
        "3 of 4 bugs caught (75 %); 1 of 1 right patches held; missed: 04-missed"
    )
    first = result.results[1]
    assert (first.title, first.year, first.area) == ("vmm: a bug", "2019", "PIT")
    assert first.does == "The timer drifts. Much."
    # Once at first, after each bug that a check caught, and after the panic.
    assert played.bench.boots == 4
    data = json.loads((result.run_dir / "regressions.json").read_text())
    assert data["rate"] == 75
    assert data["processor"] == "Intel"
    assert run(at_least=76).exit_code == 1


def test_a_reboot_and_the_emulators_end_are_catches(
    run: Run, put: Callable[..., None], played: Played
) -> None:
    put("07-reboots")
    put("08-dies")
    put("09-missed")
    result = run()
    assert verdicts(result) == {
        "07-reboots": ("caught", "test_breaks, a reboot"),
        "08-dies": ("caught", "the emulator's end, twice"),
        "09-missed": ("MISSED", ""),
    }
    assert result.results[1].why == "bochs exited with 1"
    # Once at first, after the reboot, and after each end of the emulator.
    assert played.bench.boots == 4


def test_what_does_not_pass_on_stock_catches_nothing(run: Run, put: Callable[..., None]) -> None:
    put("04-missed")
    result = run()
    assert verdicts(result) == {"04-missed": ("MISSED", "")}
    names = {name.rpartition("::")[2] for name in result.outside_baseline}
    assert names == {"test_cannot_run", "test_fails_on_stock"}
    assert result.exit_code == 1


def test_without_a_baseline_nothing_is_measured(
    run: Run, put: Callable[..., None], played: Played
) -> None:
    played.unvirtual.add("stock")
    put("01-wrong")
    with pytest.raises(CannotError, match="virtual machines cannot be made here"):
        run()


def test_a_patch_that_does_not_apply_or_build_is_no_catch(
    run: Run, put: Callable[..., None], played: Played
) -> None:
    for name in ("01-wrong", "05-stale", "06-broken"):
        put(name)
    played.unapplied.add("05-stale")
    played.unbuilt.add("06-broken")
    result = run()
    assert verdicts(result) == {
        "01-wrong": ("caught", "test_general"),
        "05-stale": ("DOES NOT APPLY", ""),
        "06-broken": ("DOES NOT BUILD", ""),
    }
    assert "vmm.c:7: error: undeclared" in result.results[2].why
    assert result.rate == 100
    assert result.exit_code == 5
    assert played.loaded == ["stock", "01-wrong"]


def test_a_right_patch_over_which_a_check_fails(
    run: Run, put: Callable[..., None], checks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("right/wrong")
    put("01-wrong")
    monkeypatch.setattr(
        "harness.bhyve.vmm.Vmm",
        lambda _g, loaded, *_a: type(
            "V", (), {"variant": "01-wrong" if "right" in loaded.name else loaded.name}
        )(),
    )
    result = run()
    assert verdicts(result)["right-wrong"] == ("WRONGLY CAUGHT", "test_general")
    assert result.exit_code == 1
    assert "0 of 1 right patches held" in result.verdict


def test_what_is_about_the_other_processor_is_not_run(
    run: Run, put: Callable[..., None], played: Played
) -> None:
    put("01-wrong", "Subject: b\nProcessor: AMD\n")
    put("02-beside", "Subject: b\nProcessor: any\n")
    result = run()
    assert verdicts(result)["01-wrong"] == ("not run", "")
    assert result.results[0].why == "the bug is about AMD, but this guest's processor is Intel"
    assert result.rate == 100
    played.guest.answers["sysctl -n hw.model"] = (0, "AMD FX(tm)-4100\n", "")
    assert verdicts(run())["01-wrong"] == ("caught", "test_general")


def test_some_can_be_chosen(run: Run, put: Callable[..., None]) -> None:
    put("01-wrong")
    put("02-beside")
    assert list(verdicts(run("02-beside"))) == ["02-beside"]
    with pytest.raises(UsageError, match=r"--only 9: .* has 01-wrong, 02-beside"):
        run("9")


def test_a_bad_folder_is_named(tmp_path: Path, put: Callable[..., None], folder: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        regression_data.load(tmp_path / "none")
    with pytest.raises(UsageError, match=r"there is no \*\.patch in it"):
        regression_data.load(folder)
    put("01-wrong", "Subject: b\nProcessor: ARM\n")
    with pytest.raises(
        PatchError, match=r"01-wrong\.patch: Processor: ARM: it must be Intel, AMD or any"
    ):
        regression_data.load(folder)
    (folder / "01-wrong.patch").write_text("nothing\n")
    with pytest.raises(PatchError, match="there is no diff in it"):
        regression_data.load(folder)


def test_a_table_for_people(
    run: Run, put: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    put("01-wrong", "Subject: vmm: a [bold] bug\n")
    put("04-missed")
    regressions.show(run())
    said = capsys.readouterr().out
    assert "vmm: a [bold] bug" in said
    assert "not in the baseline: " in said
    assert "verdict: 1 of 2 bugs caught (50 %); missed: 04-missed" in said
    assert progress.clean(said) == said


def test_the_page_gets_the_table_of_its_processor(
    run: Run, put: Callable[..., None], tmp_path: Path
) -> None:
    put("01-wrong", "Subject: vmm: a|b\nYear: 2019\nArea: PIT\n", "It drifts.")
    put("04-missed")
    put("right/01-right", "Subject: vmm: a refactoring\nYear: 2020\n")
    page = tmp_path / "page.md"
    begin, end = regression_table.marks("Intel")
    other, its_end = regression_table.marks("AMD")
    page.write_text(f"# Bugs\n\n{begin}\nold\n{end}\n\n{other}\nkept\n{its_end}\nend\n")
    regression_table.update(page, run())
    text = page.read_text()
    assert text.startswith(f"# Bugs\n\n{begin}\n\nFreeBSD 15.1, Intel, fake: 1 of 2 bugs caught")
    assert text.endswith(f"{end}\n\n{other}\nkept\n{its_end}\nend\n")
    assert "old" not in text
    (row,) = (line for line in text.splitlines() if line.startswith(r"| vmm: a\|b |"))
    assert r"| vmm: a\|b | 2019 | PIT | It drifts. | `test_" in row
    assert "::test_general` |" in row
    assert "| 04-missed |  |  |  | MISSED |" in text
    assert "| vmm: a refactoring | 2020 |  | held |" in text
    page.write_text("nothing")
    with pytest.raises(UsageError, match="the table goes between them"):
        regression_table.update(page, run("04-missed"))
    with pytest.raises(UsageError, match="cannot be read"):
        regression_table.update(tmp_path / "none", run("04-missed"))
