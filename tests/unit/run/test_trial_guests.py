"""Variants in several guests: who tries what, and what happens if a guest's process ends."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from variants import Played

from harness.files import PROJECT
from harness.run import mutants, mutation, trial_guests
from harness.run.mutants import SERIES, Mutant
from harness.run.options import Options
from harness.run.related import related

# A further guest's process with a fake guest: everything but the guest is real.
PROCESS = """
import os, sys
sys.path[:0] = [{project!r}, {support!r}, {here!r}]
from multiprocessing.connection import Connection
from pathlib import Path
import pytest
from variants import Played
from harness.run import trial_guests

with pytest.MonkeyPatch.context() as patch:
    played = Played(patch, trial_guests, Path({here!r}) / "runs")
    if {broken!r}:
        def boot(self, imaged):
            raise trial_guests.WorkbenchError("nothing boots here")
        trial_guests.Session.boot = boot
    trial_guests._work(Connection(int(sys.argv[1])))
"""

# Every process waits in its first check until all guests have begun one.
CHECKS = """
import os, signal, time, pytest
from pathlib import Path
HERE = Path({folder!r})
PARENT = {parent}

@pytest.fixture(autouse=True)
def everybody(request, vmm):
    ran = HERE / f"{{vmm.variant}} {{request.node.name}} {{os.getpid()}}"
    ran.touch()
    (HERE / f"pid.{{os.getpid()}}").touch()
    while len(list(HERE.glob("pid.*"))) < {guests}:
        time.sleep(0.02)

@pytest.mark.parametrize("number", range(6))
def test_each(vmm, number):
    if vmm.variant == "ends" and os.getpid() != PARENT:
        os.kill(os.getpid(), signal.SIGKILL)
    assert vmm.variant != f"wrong-{{number}}"
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run mutation in two guests; returns the result and what ran: variant, check, process."""
    import os

    def go(
        *names: str, held: tuple[str, ...] = (), broken: bool = False
    ) -> tuple[mutation.Result, list[list[str]]]:
        Played(monkeypatch, mutation, tmp_path / "runs")
        script = tmp_path / "process.py"
        support = str(PROJECT / "tests" / "unit" / "support")
        script.write_text(
            PROCESS.format(project=str(PROJECT), support=support, here=str(tmp_path), broken=broken)
        )
        ran = tmp_path / "ran"
        ran.mkdir()
        tests = tmp_path / f"test_{uuid.uuid4().hex}.py"
        guests = 1 if broken else 2
        tests.write_text(CHECKS.format(folder=str(ran), parent=os.getpid(), guests=guests))
        monkeypatch.setattr(trial_guests, "COMMAND", (sys.executable, str(script)))
        named = (f"{tests.name}::test_each",)
        chosen = [Mutant(name, "", "caught", named) for name in names]
        chosen += [Mutant(name, "", "held") for name in held]
        monkeypatch.setattr(mutants, "load", lambda *_a, **_k: (SERIES, *chosen))

        def series(self: Mutant, _base: Any, _release: str = "") -> Any:
            from types import SimpleNamespace

            return SimpleNamespace(topic="meminfo" if self is SERIES else f"meminfo+{self.name}")

        monkeypatch.setattr(Mutant, "series", series)
        result = mutation.mutation(Options(guests=2), tests=tests)
        found = [it.name.split() for it in ran.iterdir() if not it.name.startswith("pid.")]
        return result, found

    return go


def test_two_guests_share_the_baseline_and_try_variants(run: Any) -> None:
    result, ran = run("wrong-1", "wrong-3", held=("right",))
    assert {it.name: it.verdict for it in result.variants} == {
        "series": "held",
        "wrong-1": "caught",
        "wrong-3": "caught",
        "right": "held",
    }
    assert result.exit_code == 0
    assert [it.checks_run for it in result.variants if it.name in ("series", "right")] == [6, 6]
    # Each check ran once on correct code, and both guests took part.
    on_series = [it for it in ran if it[0] == "series"]
    assert len(on_series) == 6
    assert len({pid for _, _, pid in on_series}) == 2
    assert len([it for it in ran if it[0] == "right"]) == 6


def test_a_process_that_ends_gives_its_variant_back(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    result, ran = run("ends", "wrong-1", "wrong-2", "wrong-3")
    verdicts = {it.name: it.verdict for it in result.variants}
    assert verdicts.pop("ends") == "SURVIVED"
    assert set(verdicts.values()) == {"held", "caught"}
    # The first guest had it from the beginning, or after the other guest's process had ended.
    tried = {pid for name, _, pid in ran if name == "ends"}
    if len(tried) > 1:
        said = capsys.readouterr().err
        assert "guest 2: its process ended; see guest-2/process.log" in said


def test_a_guest_that_does_not_boot_is_named_and_the_other_does_its_work(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    result, ran = run("wrong-1", held=("right",), broken=True)
    assert result.exit_code == 0
    assert len({pid for _, _, pid in ran}) == 1
    assert "guest 2: nothing boots here" in capsys.readouterr().err


def test_what_looks_at_a_file() -> None:
    assert related(["sys/amd64/vmm/io/vatpit.c"]) == ("test_vmunit.py::test_vmunit[timer.",)
    assert (
        related(["sys/amd64/vmm/vmm_instruction_emul.c"])[0] == "test_vmunit.py::test_vmunit[emul."
    )
    assert related(["usr.sbin/bhyve/iov.c"])[0] == "test_bhyveunit.py"
    assert related(["README"]) == ()
