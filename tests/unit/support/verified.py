"""Runs of `verify` with a fake guest."""

from __future__ import annotations

import json
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeGuest
from fakes import bench as fake_bench

from harness import keeper, progress
from harness.guest.panic_report import Panic
from harness.report import Report
from harness.run import pytest_run, verify
from harness.run.options import Options

CHECKS = '''
import pytest
from harness.errors import MachineDied, WaitTimeout

def test_holds(guest):
    """the first holds"""

@pytest.mark.patch
def test_of_the_patch(guest):
    """the second fails"""
    assert guest is None

@pytest.mark.patch
def test_takes_too_long(guest):
    """the third is broken off"""
    raise WaitTimeout("no end within 5 s")
'''


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HARNESS_RUNS", "HARNESS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    project = tmp_path / "project"
    unit = project / "patches" / "meminfo" / "unit"
    unit.mkdir(parents=True)
    (unit / "test_series_x.py").write_text("def test_series(): pass\n")
    for module in (pytest_run, verify):
        monkeypatch.setattr(module, "PROJECT", project)


Run = Callable[..., Report]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run verify over a bench that is up, or whose `up` raises; the guest is `run.guest`."""

    def go(
        text: str = CHECKS,
        stops: BaseException | None = None,
        keep_as: str = "",
        checks: Path | None = None,
        **options: Any,
    ) -> Report:
        # A name of its own: pytest runs in this process, which knows the other modules by name.
        tests = tmp_path / "project" / f"test_{uuid.uuid4().hex}.py"
        tests.write_text(text)
        played = fake_bench(FakeGuest())

        class Bench:
            guest: Any
            loaded: Any
            breaks: int
            run_dir: Path
            stages: list[progress.Stage]

            def __init__(self, asked: Options, run_dir: Path, name: str = "") -> None:
                self.__dict__.update(vars(played), run_dir=run_dir, options=asked, stages=[])
                self.build = "series"
                self.stock_build = "stock" if asked.side_by_side else None
                self.loaded.path = self.running = self.stock_build or self.build
                topic = asked.series[0].stem if asked.series else asked.topic_name
                self.series = None if asked.stock else SimpleNamespace(topic=topic)

            def restart_guest(self) -> None:
                self.guest.machine.console.panic = ""
                self.breaks += 1

            def use(self, build: str) -> None:
                self.loaded.path = self.running = build

            def up(self, before_boot: Callable[[Any], str]) -> Bench:
                built = SimpleNamespace(first=self.stock_build or self.build)
                assert stops or before_boot(built) == built.first
                with progress.stage("host", self.stages):
                    pass
                if stops:
                    with progress.stage("build", self.stages):
                        raise stops
                return self

            def keep(self) -> keeper.Record:
                assert not played.guest.machine.stopped
                return keeper.Record(keep_as, self.run_dir, keeper.record.Process(1, ""), "ready")

            def __enter__(self) -> Bench:
                return self

            def __exit__(self, *_exc: object) -> None:
                if played.guest.machine.panicked:
                    self.panic = Panic(played.guest.machine.console.panic, ())
                played.guest.machine.stop(None)

        if keep_as:
            monkeypatch.setattr(verify, "PersistentSession", Bench)
        else:
            monkeypatch.setattr(verify, "Session", Bench)
        if checks is not None:
            monkeypatch.setattr(pytest_run, "CHECKS", checks)
        result = verify.verify(Options(**{"guests": 1, **options}), checks or tests, keep_as)
        assert played.guest.machine.stopped
        assert ET.parse(result.run_dir / "junit.xml").getroot().tag == "testsuites"  # noqa: S314
        saved = json.loads((result.run_dir / "report.json").read_text())
        assert saved["exit_code"] == result.exit_code
        assert (saved["panic"] is None) == (result.panic is None)
        return result

    return go


def status(result: Report) -> dict[str, str]:
    return {check.name.partition("::")[2]: result.status(check)[0] for check in result.checks}


def outcomes(result: Report) -> dict[str, str]:
    return {stage.name: stage.outcome for stage in result.stages}
