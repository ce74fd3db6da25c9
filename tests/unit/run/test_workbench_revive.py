"""A guest that broke is replaced, and those who hold it do not notice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import FakeGuest

from harness.run.session import Options, Workbench


class Bench(Workbench):
    """Boots guests that are none."""

    def boot(self) -> None:
        self.guest = FakeGuest()

    def use(self, build: object, stage: str = "load") -> None:
        assert self.guest is not None
        self.vmm = SimpleNamespace(loaded=f"{build} in {self.guest_dir.name}")  # type: ignore[assignment]

    def _end_machine(self, guest: object) -> None:
        guest.machine.stop(None)  # type: ignore[attr-defined]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(FakeGuest, "enter", lambda _self: None)
    made = Bench(Options(), tmp_path)
    made.boot()
    made.running = "mine"  # type: ignore[assignment]
    made.use(made.running)
    return made


def test_the_same_guest_in_another_machine(bench: Bench) -> None:
    guest, bhyve = bench.guest, bench.vmm
    assert guest is not None
    first = guest.machine
    for number in (2, 3):
        bench.restart_guest()
        assert bench.guest is guest
        assert guest.machine is not first
        assert first.stopped  # type: ignore[attr-defined]
        assert bench.vmm is bhyve
        assert bhyve is not None
        assert bhyve.loaded == f"mine in guest-{number}"  # type: ignore[comparison-overlap]
        first = guest.machine
    assert bench.breaks == 2


def test_without_a_module(bench: Bench) -> None:
    """For who knows that it is the module which breaks the guest."""
    bench.restart_guest(load=False)
    assert bench.vmm is not None
    assert bench.vmm.loaded == "mine in guest"  # type: ignore[comparison-overlap]


def test_one_that_was_given_up_is_asked_again(bench: Bench) -> None:
    """For whoever restarts it outside pytest, as the trials of real bugs do."""
    assert bench.guest is not None
    bench.guest.given_up = "it broke: the guest panicked"
    bench.restart_guest(load=False)
    assert bench.guest.given_up == ""


def test_an_interrupt_before_there_is_a_machine_leaves_no_overlay(tmp_path: Path) -> None:
    bench = Workbench(Options(), tmp_path)
    (tmp_path / "guest").mkdir()
    (tmp_path / "guest" / "overlay.qcow2").touch()
    bench.close()
    assert list((tmp_path / "guest").iterdir()) == []
