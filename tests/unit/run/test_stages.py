"""The stages of a run, each made of the value of the one before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeGuest
from faketree import diff, mail, make_tree

from harness import host
from harness.bhyve import vmm, vmm_module
from harness.build import builder
from harness.errors import CannotError, PatchError, UsageError
from harness.guest import snapshot
from harness.image import obtain, store
from harness.machine import Backend
from harness.probe import run as probe
from harness.run import stages, tested
from harness.run.options import Options
from harness.run.session import Session
from harness.series import load
from harness.series.load import Series


class Run:
    """A session in which only the machine, the compiler and the module are played."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.tree = make_tree(folder / "src", {"sys/x.h": "x\n"})
        self.patch = folder / "mine.patch"
        self.patch.write_bytes(mail(diff(folder, {"sys/x.h": "x\n"}, {"sys/x.h": "y\n"})))
        self.reads = 0
        self.did: list[str] = []
        self.built: list[Series | None] = []
        self.record: Any = SimpleNamespace(
            release="15.1", source=self.tree, sysroot=None, uname="FreeBSD x", system="", kernel=(),
            disk=folder / "disk", disk_sha256="0", access=None,
        )  # fmt: skip
        read = load.load_series

        def load_series(*given: Any) -> Series:
            self.reads += 1
            return read(*given)

        monkeypatch.setenv("HARNESS_CACHE", str(folder / "cache"))
        monkeypatch.setattr(load, "load_series", load_series)
        monkeypatch.setattr(obtain, "require_known", lambda _release: None)
        monkeypatch.setattr(store, "source", self._source)
        monkeypatch.setattr(host, "gather", SimpleNamespace)
        monkeypatch.setattr(host, "identity", lambda *_a: {})
        decided = host.Decision("tcg", Backend("tcg"), "played")
        monkeypatch.setattr(host, "decide", lambda *_a: self._does("choose", decided))
        result = SimpleNamespace(reason="played")
        monkeypatch.setattr(probe, "run_probe", lambda *_a, **_k: self._does("prove", result))
        monkeypatch.setattr(obtain, "obtain", lambda *_a, **_k: self._does("image", self.record))
        monkeypatch.setattr(builder, "build", self._build)
        monkeypatch.setattr(tested, "require_difference", lambda *_a: None)
        monkeypatch.setattr(snapshot, "bring_up", self._boot)
        monkeypatch.setattr(vmm, "compile_runner", lambda *_a: Path("runner"))
        monkeypatch.setattr(vmm, "use_runner", lambda *_a: None)
        monkeypatch.setattr(vmm_module, "load", self._load)
        monkeypatch.setattr(vmm_module, "invariants_differ", lambda *_a: "")

    def _does(self, what: str, gives: Any) -> Any:
        self.did.append(what)
        return gives

    def _source(self, _release: str) -> Path:
        if self.record.source is None or ("image" not in self.did and not self.known):
            raise CannotError("none was imported")
        return self.tree

    known = True

    def _build(self, _src: Path, _root: object, series: Series | None, *_a: Any, **_k: Any) -> Any:
        self.did.append("build")
        self.built.append(series)
        path = self.folder / "vmm.ko"
        path.write_bytes(b"")
        return SimpleNamespace(
            library=None, tool=None, programs=(), cached=True, not_built=(), drift=(), untested=(),
            module=path,
            build_id=f"{len(self.built):032}", series=series.topic if series else None,
        )  # fmt: skip

    def _boot(self, *_a: Any, **_k: Any) -> Any:
        guest: Any = FakeGuest()
        guest.machine.forward = "127.0.0.1:1"
        guest.machine.command = list
        return self._does("boot", guest), "booted"

    def _load(self, _guest: object, build: Any) -> Any:
        self.did.append("load")
        return SimpleNamespace(
            path="/vmm.ko", virtualizes=True, refusal="", build=build, kernel_build_id=""
        )

    def session(self, **options: Any) -> Session:
        (self.folder / "run").mkdir(exist_ok=True)
        return Session(Options(**options), self.folder / "run")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return Run(monkeypatch, tmp_path)


def test_the_series_is_read_once(run: Run) -> None:
    """And what was read is what is built and what the checks see."""
    with run.session(series=(run.patch,)) as session:
        bench = session.up()
        assert run.reads == 1
        assert bench.series is run.built[0]
        assert bench.series is not None
        # A change during the run is no part of it.
        run.patch.write_text("no patch at all")
        assert session.series(run.tree) is bench.series
        assert bench.build.series == "mine"


def test_a_series_that_is_wrong_costs_no_boot(run: Run) -> None:
    run.patch.write_text("no patch at all")
    with run.session(series=(run.patch,)) as session, pytest.raises(PatchError):
        session.up()
    assert run.did == []
    with run.session(series=(run.folder / "absent",)) as session, pytest.raises(UsageError):
        session.up()
    assert run.did == []


def test_a_source_that_came_with_the_image_decides_on_the_names_in_a_patch(run: Run) -> None:
    """It was not there when the series was read first."""
    run.known = False
    with run.session(series=(run.patch,)) as session:
        session.up()
    assert run.reads == 2


def test_the_stages_in_their_order(run: Run) -> None:
    with run.session(series=(run.patch,)) as session:
        bench = session.up()
    assert run.did == ["choose", "prove", "image", "build", "build", "boot", "load"]
    assert [stage.name for stage in session.stages] == list(stages.STAGES[:-1])
    assert bench.stock_build is not None
    assert bench.running is bench.build


@pytest.mark.parametrize("alone", [True, False])
def test_where_both_are_tried_stock_comes_first(run: Run, alone: bool) -> None:
    with run.session(series=(run.patch,), alone=alone) as session:
        bench = session.up(lambda built: built.first)
        assert bench.running is (bench.build if alone else bench.stock_build)
        bench.use(bench.build)
        assert bench.running is bench.build
    assert [stage.name for stage in session.stages][5:] == (
        ["load", "load"] if alone else ["load stock", "load"]
    )


def test_nothing_is_built_where_no_module_is_wanted(run: Run) -> None:
    run.record.source = None
    with run.session(module=False) as session:
        bench = session.up()
    assert run.did == ["choose", "prove", "image", "boot"]
    assert bench.module is None
    assert run.reads == 0


def test_without_a_source_the_run_ends_before_a_boot(run: Run) -> None:
    run.record.source = None
    with (
        run.session(stock=True) as session,
        pytest.raises(CannotError, match=r"without a source tree to build from; run \./inv"),
    ):
        session.up()
    assert run.did == ["choose", "prove", "image"]


def test_what_needs_a_sysroot_says_so_in_one_way(run: Run) -> None:
    imaged = stages.Imaged(Backend("tcg"), run.record)
    with pytest.raises(CannotError, match=r"^it is so, which needs a sysroot; .*--sysroot DIR"):
        imaged.sysroot("it is so")
    run.record.sysroot = run.folder
    assert imaged.sysroot("it is so") == run.folder


def test_the_values_are_frozen_and_have_nothing_optional_in_their_chain() -> None:
    for value in (
        stages.Chosen, stages.Proven, stages.Imaged, stages.Built, stages.Booted, stages.Loaded
    ):  # fmt: skip
        assert dataclasses.fields(value)
        params: Any = vars(value)["__dataclass_params__"]
        assert params.frozen
