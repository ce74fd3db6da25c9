"""Variants in a fake guest: only their names are built, loaded and judged."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeGuest

from harness.bhyve import vmm, vmm_module
from harness.build import builder
from harness.errors import PatchError
from harness.machine import Backend
from harness.run import mutants, trial_guests
from harness.run.options import Options
from harness.run.session import Session
from harness.run.stages import Booted, Imaged
from harness.run.workbench import Workbench


def write_checks(folder: Path, text: str) -> Path:
    """A file of checks with a name of its own: pytest, in this process, knows modules by name."""
    path = folder / f"test_{uuid.uuid4().hex}.py"
    path.write_text(text)
    return path


class Played:
    """Stands for the workbench of `module`, and for building and loading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, runs: Path) -> None:
        self.guest = FakeGuest()
        self.bench: Any = None
        self.unbuilt: set[str] = set()
        self.unapplied: set[str] = set()
        self.refused: set[str] = set()
        self.unvirtual: set[str] = set()
        self.loaded: list[str] = []
        self.series: Any = lambda: SimpleNamespace(release="15.1", topic="meminfo", patches=())
        monkeypatch.setenv("HARNESS_RUNS", str(runs))
        monkeypatch.setenv("HARNESS_CACHE", str(runs.with_name("cache")))
        outer = self

        class PlayedSession(Session):
            """Finds a fake image and boots the fake guest."""

            def __init__(self, asked: Options, run_dir: Path) -> None:
                super().__init__(asked, run_dir)
                self.boots = 0
                self.backend = "fake"
                outer.bench = self

            def to_image(self) -> Imaged:
                record: Any = SimpleNamespace(
                    kernel=(),
                    source=Path("src"),
                    sysroot=Path("sysroot"),
                    release=self.options.release,
                )
                return Imaged(Backend("tcg"), record)

            def series(self, tree: Path | None = None) -> Any:
                return outer.series()

            def resumes(self, imaged: Imaged) -> bool:
                return False

            def boot(self, imaged: Imaged) -> Booted:
                self.boots += 1
                return Booted(imaged, outer.guest)

            def replace_machine(self, booted: Booted) -> None:
                outer.guest.answers.pop("/bin/sh", None)
                self.boots += 1

            def close(self) -> None: ...

        class PlayedWorkbench(Workbench):
            def restart_guest(self, *, load: bool = True) -> None:
                assert not load, "the variant that broke the guest is not loaded again"
                self.session.replace_machine(self.booted)

        monkeypatch.setattr(module, "Session", PlayedSession)
        monkeypatch.setattr(trial_guests, "Workbench", PlayedWorkbench)

        monkeypatch.setattr(mutants, "_parts", lambda made: made)
        monkeypatch.setattr(builder, "build", self._build)
        monkeypatch.setattr(mutants, "compile_vmtool", lambda *_a: Path("vmtool"))
        for place in (mutants, module):
            monkeypatch.setattr(place, "staged", self._staged, raising=False)
        monkeypatch.setattr(vmm, "compile_runner", lambda *_a: Path("runner"))
        monkeypatch.setattr(vmm, "use_runner", lambda *_a: None)
        monkeypatch.setattr(vmm_module, "load", self._load)
        monkeypatch.setattr(
            vmm, "Vmm", lambda _guest, loaded, *_a: SimpleNamespace(variant=loaded.name)
        )

    def _staged(self, series: Any, *_a: Any) -> contextlib.AbstractContextManager[Any]:
        if _name(series) in self.unapplied:
            raise PatchError("vmm.c: hunk 1 does not fit")
        return contextlib.nullcontext((Path("tree"), ()))

    def _build(self, _src: Path, _root: Path, series: Any, *_a: Any, **_k: Any) -> Any:
        name = _name(series)
        if name in self.unbuilt:
            raise PatchError("vmm.c:7: error: undeclared", detail="the compiler's lines")
        return SimpleNamespace(name=name, cached=True)

    def _load(self, _guest: FakeGuest, made: SimpleNamespace) -> SimpleNamespace:
        self.loaded.append(made.name)
        if made.name in self.refused:
            raise PatchError("the guest's kernel refuses the module: Exec format error")
        virtualizes = made.name not in self.unvirtual
        return SimpleNamespace(virtualizes=virtualizes, refusal="no /dev/vmmctl", name=made.name)


def _name(series: Any) -> str:
    """Which variant a series is: its last patch's, or the series itself."""
    if series is None:
        return "stock"
    name = str(series.topic).rpartition("+")[2]
    return "series" if name == "meminfo" else name
