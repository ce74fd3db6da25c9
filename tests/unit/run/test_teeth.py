"""`teeth` with the guest played: who is caught, by what, and what becomes of the run."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeGuest
from fakes import bench as fake_bench

from harness import progress
from harness.errors import CannotError, MachineDied, PatchError
from harness.run import mutants, mutation
from harness.run.mutants import SERIES, Mutant
from harness.run.session import Options

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

def test_breaks(vmm):
    if vmm.variant == "panics":
        raise GuestPanic("the guest panicked: page fault")
    if vmm.variant == "hangs":
        raise WaitTimeout("no end within 5 s")
    if vmm.variant == "dies":
        raise MachineDied("the emulator is gone")
"""
FILE = f"test_{uuid.uuid4().hex}.py"

Run = Callable[..., mutation.Result]


def wrong(name: str, check: str) -> Mutant:
    return Mutant(name, f"{name} is wrong", "caught", (f"{FILE}::{check}",))


STOCK = wrong("stock", "test_a")
ALL = (
    SERIES,
    STOCK,
    wrong("wrong-a", "test_a"),
    wrong("wrong-b", "test_a"),
    wrong("wrong-long", "test_long"),
    wrong("panics", "test_breaks"),
    wrong("hangs", "test_breaks"),
)


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all: pytest runs in this process, which knows modules by their names."""
    path = tmp_path_factory.mktemp("checks") / FILE
    path.write_text(CHECKS)
    return path


@pytest.fixture
def run(tmp_path: Path, checks: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run teeth over some variants; `run.bench` is the workbench that was played."""
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))

    def go(chosen: tuple[Mutant, ...] = ALL, fails: Any = None, **options: Any) -> mutation.Result:
        played = fake_bench(FakeGuest())

        class Bench:
            def __init__(self, asked: Options, run_dir: Path) -> None:
                self.__dict__.update(vars(played), run_dir=run_dir, options=asked, stages=[])
                self.record = SimpleNamespace(source=Path("src"), sysroot=Path("sysroot"))
                self.boots = 0
                go.bench = self  # type: ignore[attr-defined]

            def choose(self) -> None: ...

            prove = find_image = choose

            def boot(self) -> None:
                self.boots += 1

            def revive(self) -> None:
                self.boots += 1

            def __enter__(self) -> Bench:
                return self

            def __exit__(self, *_exc: object) -> None: ...

        def build(_src: Path, _sysroot: Path, series: Any, *_a: Any, **_k: Any) -> SimpleNamespace:
            name = series.topic.rpartition("+")[2] if series else "stock"
            name = "series" if name == "meminfo" else name
            if name == fails:
                raise PatchError("vmm.c:7: error: undeclared", detail="the compiler's lines")
            return SimpleNamespace(name=name, cached=True)

        def load(_guest: FakeGuest, made: SimpleNamespace) -> SimpleNamespace:
            if made.name == "refused":
                raise PatchError("the guest's kernel refuses the module: Exec format error")
            return SimpleNamespace(virtualizes=True, refusal="", name=made.name)

        monkeypatch.setattr(mutation, "Workbench", Bench)
        monkeypatch.setattr(mutants, "_parts", lambda made: made)
        monkeypatch.setattr(mutants, "staged", lambda *_a: contextlib.nullcontext())
        monkeypatch.setattr(mutants.builder, "build", build)
        monkeypatch.setattr(mutation.vmm, "load", load)
        monkeypatch.setattr(mutants, "compile_vmtool", lambda *_a: Path("vmtool"))
        monkeypatch.setattr(
            mutation.vmm, "Vmm", lambda _g, loaded, *_a: SimpleNamespace(variant=loaded.name)
        )
        monkeypatch.setattr(mutants, "load", lambda only: chosen)
        monkeypatch.setattr(
            Mutant,
            "series",
            lambda self, base: (
                None
                if self is STOCK
                else SimpleNamespace(topic="meminfo" if self is SERIES else f"meminfo+{self.name}")
            ),
        )
        every = options.pop("every", False)
        return mutation.mutation(Options(**options), every=every, tests=checks)

    return go


def told(result: mutation.Result) -> dict[str, tuple[str, str]]:
    return {
        bite.name: (bite.verdict, ", ".join(it.rpartition("::")[2] for it in bite.caught_by))
        for bite in result.bites
    }


def test_each_variant_is_caught_and_the_right_one_holds(run: Run) -> None:
    result = run()
    assert told(result) == {
        "series": ("held", ""),
        "stock": ("caught", "test_a"),
        "wrong-a": ("caught", "test_a"),
        "wrong-b": ("caught", "test_b"),
        "wrong-long": ("caught", "test_long"),
        "panics": ("caught", "a panic"),
        "hangs": ("caught", "a hang"),
    }
    assert result.exit_code == 0
    assert result.verdict == "6 of 6 wrong variants caught, 1 of 1 right ones held"
    assert run.bench.boots == 3  # type: ignore[attr-defined]
    data = json.loads((result.run_dir / "teeth.json").read_text())
    assert data["bites"][1]["why"].startswith("AssertionError")
    assert data["exit_code"] == 0


def test_all_names_every_check_that_objects(run: Run) -> None:
    assert told(run((STOCK,), every=True)) == {"stock": ("caught", "test_a, test_b")}


def test_a_mutant_that_survives_is_a_failure(run: Run) -> None:
    result = run((SERIES, wrong("subtle", "test_a")))
    assert told(result)["subtle"] == ("SURVIVED", "")
    assert result.exit_code == 1
    assert "NOT AS THEY SHOULD BE: subtle" in result.verdict
    assert "0 of 1 wrong variants caught" in result.verdict


def test_a_right_variant_that_is_caught_is_a_failure(run: Run) -> None:
    result = run((Mutant("wrong-b", "nothing", "held"),))
    assert told(result) == {"wrong-b": ("WRONGLY CAUGHT", "test_b")}
    assert result.exit_code == 1


def test_what_takes_minutes_is_run_where_it_should_notice_or_with_full(run: Run) -> None:
    lazy = wrong("wrong-long", "test_a")
    assert told(run((lazy,)))["wrong-long"][0] == "SURVIVED"
    assert told(run((lazy,), full=True))["wrong-long"] == ("caught", "test_long")


def test_a_module_that_the_kernel_refuses_is_caught(run: Run) -> None:
    assert told(run((wrong("refused", "test_a"),))) == {
        "refused": ("caught", "the kernel's loader")
    }


def test_a_mutant_that_does_not_build_is_named(run: Run) -> None:
    with pytest.raises(PatchError, match=r"wrong-a: vmm\.c:7: error: undeclared") as caught:
        run(fails="wrong-a")
    assert caught.value.exit_code == 5
    assert caught.value.detail == "the compiler's lines"


def test_a_machine_that_dies_proves_nothing(run: Run) -> None:
    with pytest.raises(MachineDied, match="the emulator is gone"):
        run((wrong("dies", "test_breaks"),))


def test_a_right_variant_that_panics_ends_the_run(run: Run) -> None:
    with pytest.raises(mutation.GuestPanic):
        run((Mutant("panics", "nothing", "held"),))


def test_a_check_that_there_is_not_is_named(run: Run) -> None:
    with pytest.raises(CannotError, match=r"lost: pytest ended with 4; see .*pytest-lost\.log"):
        run((wrong("lost", "test_nowhere"),))


def test_a_table_for_people(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    mutation.show(run((SERIES, STOCK)))
    said = capsys.readouterr().out
    assert "held" in said
    assert "4 checks held" not in said
    assert "3 checks held" in said
    assert "verdict: 1 of 1 wrong variants caught, 1 of 1 right ones held" in said
    assert progress.clean(said) == said
