"""Checks in several guests: each runs once, and a guest or a process that breaks loses one."""

from __future__ import annotations

import contextlib
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeGuest
from fakes import bench as fake_bench

from harness import progress
from harness.errors import GuestError
from harness.files import PROJECT
from harness.report import Check
from harness.run import shard_process, shards, verify
from harness.run.options import Options
from harness.run.shard_process import Order

# A further guest's process, with the guest played: everything but the guest is the real thing.
PROCESS = """
import sys
sys.path[:0] = [{project!r}, {support!r}]
from multiprocessing.connection import Connection
from fakes import FakeGuest, bench
from harness import progress
from harness.errors import GuestError
from harness.run import shard_process

class Workbench:
    def __init__(self, session, imaged):
        if "no-guest" in imaged.record:
            raise GuestError("nothing boots here")
        self.__dict__.update(vars(bench(FakeGuest())), run_dir=session.run_dir,
                             options=session.options, stages=session.stages,
                             module=None, running=None)
    def load(self, built, build):
        (self.run_dir / ("loaded " + build)).touch(exist_ok=False)
        self.loaded.path = build
        self.module = self.running = build
        self.stock_build = built.stock
    def restart_guest(self, load=True):
        self.module = self.module if load else None
        self.guest.machine.console.panic = ""
        self.breaks += 1
    def collect_panic(self): return None

shard_process.Session.boot = lambda self, imaged: imaged
shard_process.Workbench = Workbench
shard_process._work(Connection(int(sys.argv[1])))
"""

# Checks wait until as many processes as there are guests have begun one.
MANY = """
import os, time, pytest
from pathlib import Path
HERE = Path({folder!r})

@pytest.fixture(autouse=True)
def everybody():
    (HERE / f"pid.{{os.getpid()}}").touch()
    while len(list(HERE.glob("pid.*"))) < {guests}:
        time.sleep(0.02)

@pytest.mark.parametrize("number", range(12))
def test_each(guest, number):
    (HERE / f"{{number}}.{{os.getpid()}}").touch()

@pytest.mark.parametrize("number", range(5))
@pytest.mark.together("x")
def test_together(guest, number):
    (HERE / f"t{{number}}.{{os.getpid()}}").touch()
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "_WORTH_S", 0.0)
    script = tmp_path / "process.py"
    support = str(PROJECT / "tests" / "unit" / "support")
    script.write_text(PROCESS.format(project=str(PROJECT), support=support))
    monkeypatch.setattr(shard_process, "COMMAND", (sys.executable, str(script)))
    played = fake_bench(FakeGuest())
    (tmp_path / "run").mkdir()
    played.__dict__.update(
        run_dir=tmp_path / "run",
        options=Options(topic=""),
        stages=[progress.Stage("host", outcome="ok")],
        build="series",
        stock_build=None,
        built=SimpleNamespace(
            imaged=SimpleNamespace(backend=SimpleNamespace(name="fake"), record="an image"),
            build="series",
            stock=None,
        ),
        panic=None,
    )

    def restart_guest() -> None:
        played.guest.machine.console.panic = ""
        played.breaks += 1

    played.restart_guest = restart_guest
    return played


def run(bench: Any, tmp_path: Path, text: str, guests: int = 2) -> tuple[list[Check], shards.Pool]:
    tests = tmp_path / f"test_{uuid.uuid4().hex}.py"
    tests.write_text(text)
    checks: list[Check] = []
    with shards.Pool(bench, tests, guests) as pool, contextlib.suppress(GuestError):
        verify._in_all_guests(bench, tests, checks, [], pool)
    return checks, pool


def test_every_check_runs_once_and_both_guests_work(bench: Any, tmp_path: Path) -> None:
    folder = tmp_path / "ran"
    folder.mkdir()
    checks, pool = run(bench, tmp_path, MANY.format(folder=str(folder), guests=2))
    assert pool.notes == []
    assert [check.outcome for check in checks] == ["passed"] * 17
    names = [path.name.partition(".") for path in folder.iterdir() if path.name[:3] != "pid"]
    assert len(names) == len({first for first, _, _ in names}) == 17
    assert len({pid for _, _, pid in names}) == 2
    assert len({pid for first, _, pid in names if first.startswith("t")}) == 1
    assert {check.guest for check in checks} == {1, 2}
    assert len({check.name for check in checks}) == 17
    assert bench.stages[-1].note == "17 run, 0 failed; in 2 guests"


SHARED = """
import os, pytest
from pathlib import Path
HERE = Path({folder!r})

@pytest.fixture(scope="module")
def shared():
    (HERE / f"made.{{os.getpid()}}").touch(exist_ok=False)

@pytest.mark.parametrize("number", range(8))
def test_shared(guest, shared, number): pass

@pytest.mark.parametrize("number", range(8))
def test_alone(guest, number): pass
"""


def test_what_shares_a_fixture_of_its_file_runs_in_one_guest_and_makes_it_once(
    bench: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    checks, _ = run(bench, tmp_path, SHARED.format(folder=str(folder)))
    assert [check.outcome for check in checks] == ["passed"] * 16
    assert len(list(folder.iterdir())) == 1
    assert len({check.guest for check in checks if "shared" in check.name}) == 1


DIES = """
import os, signal, time, pytest
from pathlib import Path
PARENT, HERE = {parent}, Path({folder!r})

@pytest.mark.parametrize("number", range(8))
def test_one(guest, number):
    if os.getpid() != PARENT:
        (HERE / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    while not (HERE / "died").exists():
        time.sleep(0.02)
"""


def test_a_process_that_is_killed_loses_only_its_current_check(bench: Any, tmp_path: Path) -> None:
    import os

    checks, pool = run(bench, tmp_path, DIES.format(parent=os.getpid(), folder=str(tmp_path)))
    assert len(checks) == 8
    lost = [check for check in checks if check.outcome == "error"]
    assert len(lost) == 1
    assert "the process of guest 2 ended" in lost[0].message
    assert sum(check.outcome == "passed" for check in checks) == 7
    assert len(pool.notes) == 1


BREAKS = """
import os, pytest
from harness.errors import MachineDied

@pytest.mark.parametrize("number", range(6))
def test_one(guest, number):
    if number == 3:
        raise MachineDied("the emulator ended")
"""


def test_a_guest_that_breaks_loses_its_check_and_the_run_says_so(
    bench: Any, tmp_path: Path
) -> None:
    tests = tmp_path / f"test_{uuid.uuid4().hex}.py"
    tests.write_text(BREAKS)
    checks: list[Check] = []
    with (
        shards.Pool(bench, tests, 2) as pool,
        pytest.raises(GuestError, match=r"a guest broke, and its check with it: guest [12] broke"),
    ):
        verify._in_all_guests(bench, tests, checks, [], pool)
    assert [check.message for check in checks if check.message] == ["the emulator ended"]
    assert len(checks) == 6


def test_a_guest_that_does_not_come_up_is_named_and_the_others_do_its_work(
    bench: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "ran"
    folder.mkdir()
    bench.built.imaged.record = "no-guest"
    checks, pool = run(bench, tmp_path, MANY.format(folder=str(folder), guests=1))
    assert [check.outcome for check in checks] == ["passed"] * 17
    assert {check.guest for check in checks} == {1}
    assert len(pool.notes) == 1
    assert pool.notes[0].startswith("guest 2: ")


SIDE_BY_SIDE = """
import os, time, pytest
from pathlib import Path
HERE = Path({folder!r})

@pytest.mark.parametrize("number", range(8))
def test_each(guest, workbench, number):
    module = str(workbench.loaded.path)
    (HERE / f"{{module}} {{number}} {{os.getpid()}}").touch()
    # Both modules are tried at the same time, in different guests.
    while len({{it.name.split()[0] for it in HERE.iterdir()}}) < 2:
        time.sleep(0.02)
    assert module == "series"
"""


def try_both(bench: Any, tmp_path: Path, folder: Path) -> list[str]:
    """Run SIDE_BY_SIDE in two guests, with both modules; the notes of the guests."""
    bench.stock_build = bench.built.stock = "stock"
    bench.loaded.path = "series"
    bench.use = lambda build: setattr(bench.loaded, "path", build)
    tests = tmp_path / f"test_{uuid.uuid4().hex}.py"
    tests.write_text(SIDE_BY_SIDE.format(folder=str(folder)))
    checks: list[Check] = []
    stock: list[Check] = []
    with shards.Pool(bench, tests, 2) as pool:
        verify._in_all_guests(bench, tests, checks, stock, pool)
    assert [check.outcome for check in checks] == ["passed"] * 8
    assert [check.outcome for check in stock] == ["failed"] * 8
    return pool.notes


def test_stock_and_series_are_tried_at_the_same_time(bench: Any, tmp_path: Path) -> None:
    folder = tmp_path / "ran"
    folder.mkdir()
    assert try_both(bench, tmp_path, folder) == []
    ran = [path.name.split() for path in folder.iterdir()]
    assert sorted(module for module, _, _ in ran) == ["series"] * 8 + ["stock"] * 8
    begun_by = {module: pid for module, _, pid in ran}
    assert len(set(begun_by.values())) == 2
    assert [stage.name for stage in bench.stages][1:] == ["checks", "checks on stock"]


@pytest.mark.parametrize("only", ["", "each"])
def test_a_further_guest_loads_its_first_module_before_it_gets_an_order(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: str
) -> None:
    """It is started before the first guest is up; if only some checks were asked for, later."""
    monkeypatch.setattr(shards, "Session", type(bench))
    bench.resumes = lambda _imaged: True
    bench.options = Options(topic="", only=only)
    bench.built.stock = "stock"
    orders = [Order(bench.built, stock=False), Order(bench.built, stock=True)]
    with shards.Pool(bench, tmp_path, 3) as pool:
        pool.start_early(bench.built.imaged, orders)
        assert sorted(pool.workers) == ([] if only else [2, 3])
        for number, module in () if only else ((2, "stock"), (3, "series")):
            loaded = bench.run_dir / f"guest-{number}" / f"loaded {module}"
            while not loaded.exists():
                assert pool.workers[number]._process.poll() is None
                time.sleep(0.02)


def test_where_one_guest_does_not_come_up_the_other_tries_both(bench: Any, tmp_path: Path) -> None:
    folder = tmp_path / "ran"
    folder.mkdir()
    (folder / "nobody 0 0").touch()
    bench.built.imaged.record = "no-guest"
    assert len(try_both(bench, tmp_path, folder)) == 1


@pytest.mark.parametrize(
    ("memory_gib", "cpus", "guests"), [(24, 2, 2), (24, 16, 15), (3, 8, 1), (1, 8, 1), (24, 0, 1)]
)
def test_how_many(memory_gib: int, cpus: int, guests: int) -> None:
    assert shards.how_many(memory_gib << 30, cpus) == guests


LOST = """
from harness.errors import MachineDied
import pytest

@pytest.mark.parametrize("number", range(4))
def test_one(guest, number):
    raise MachineDied("the emulator ended")
"""


def test_where_no_guest_comes_up_again_the_rest_is_not_run(bench: Any, tmp_path: Path) -> None:
    def restart_guest() -> None:
        raise GuestError("no more")

    bench.restart_guest = restart_guest
    bench.built.imaged.record = "no-guest"
    checks, _ = run(bench, tmp_path, LOST)
    assert len(checks) == 4
    assert sorted({check.outcome for check in checks}) == ["error", "skipped"]
