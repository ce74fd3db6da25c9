"""A guest that broke is replaced, and the objects that refer to it go on working."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeGuest

from harness.run.options import Options
from harness.run.session import Session
from harness.run.stages import Booted, Built, Imaged, Loaded
from harness.run.workbench import Workbench


class PlayedSession(Session):
    """Boots fake guests."""

    def boot(self, imaged: Imaged) -> Booted:
        self._up = Booted(imaged, FakeGuest())
        return self._up

    def load(self, booted: Booted, built: Built, running: Any, stage: str = "load") -> Loaded:
        bhyve: Any = SimpleNamespace(loaded=f"{running} in {self.guest_dir.name}")
        return Loaded(booted, built, running, bhyve.loaded, None, bhyve)

    def _end_machine(self, guest: object) -> None:
        guest.machine.stop(None)  # type: ignore[attr-defined]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    monkeypatch.setattr(FakeGuest, "enter", lambda _self: None)
    session = PlayedSession(Options(), tmp_path)
    imaged: Any = "an image"
    mine: Any = "mine"
    made = Workbench(session, session.boot(imaged))
    made.load(Built(imaged, None, mine), mine)
    return made


def test_the_same_guest_in_another_machine(bench: Workbench) -> None:
    guest, bhyve = bench.guest, bench.vmm
    first = guest.machine
    for number in (2, 3):
        bench.restart_guest()
        assert bench.guest is guest
        assert guest.machine is not first
        assert first.stopped  # type: ignore[attr-defined]
        assert bench.vmm is bhyve
        assert str(bhyve.loaded) == f"mine in guest-{number}"
        first = guest.machine
    assert bench.breaks == 2


def test_without_a_module(bench: Workbench) -> None:
    """For callers that know that the module breaks the guest."""
    bench.restart_guest(load=False)
    assert bench.module is None


def test_one_that_was_left_is_asked_again(bench: Workbench) -> None:
    """A restart outside of pytest, as the trials of real bugs do it."""
    bench.guest.given_up = "it broke: the guest panicked"
    bench.restart_guest(load=False)
    assert bench.guest.given_up == ""


def test_an_interrupt_before_there_is_a_machine_leaves_no_overlay(tmp_path: Path) -> None:
    session = Session(Options(), tmp_path)
    (tmp_path / "guest").mkdir()
    (tmp_path / "guest" / "overlay.qcow2").touch()
    session.close()
    assert list((tmp_path / "guest").iterdir()) == []
