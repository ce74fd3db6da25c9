"""Persistent guests, without a real one: records, which are alive, and the keeper's protocol."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import FailingBench

from harness import keeper, progress
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, Interrupted, PatchError, UsageError, WaitTimeout
from harness.files import PROJECT, runs_dir
from harness.keeper import wire
from harness.keeper.record import Process, Record


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT / "tests" / "unit" / "support"))
    return tmp_path / "runs"


@pytest.fixture
def sleeper() -> Iterator[Process]:
    """A live process that belongs to no guest."""
    with subprocess.Popen(["sleep", "60"]) as child:
        found = Process.of(child.pid)
        assert found is not None
        yield found
        child.kill()


def reserve(name: str = "one") -> Record:
    run_dir = runs_dir() / f"run-{name}"
    (run_dir / "guest").mkdir(parents=True, exist_ok=True)
    return keeper.reserve(name, run_dir)


def test_a_process_is_identified_by_more_than_its_number(sleeper: Process) -> None:
    assert sleeper.alive
    other = Process(sleeper.pid, "1 of another boot")
    assert not other.alive
    other.signal(signal.SIGKILL)
    assert not sleeper.wait_gone(Deadline.after(0.2))
    sleeper.signal(signal.SIGSTOP)
    assert sleeper.alive
    sleeper.signal(signal.SIGKILL)
    # Nobody has waited for it yet: what remains of it is no process that lives.
    assert sleeper.wait_gone(Deadline.after(5))
    assert not sleeper.stopped


def test_a_name_is_taken_once() -> None:
    first = reserve()
    assert keeper.load("one") == first
    assert first.alive
    with pytest.raises(
        UsageError, match=r"guest one is starting already, .*\./inv down --name one"
    ):
        reserve()
    assert reserve("two").alive
    assert keeper.names() == ["one", "two"]
    keeper.forget("one")
    assert reserve().began_at


def test_what_a_killed_keeper_left_is_cleared_away(sleeper: Process) -> None:
    old = reserve()
    overlay = old.guest_dir / "overlay.qcow2"
    overlay.write_text("")
    (old.guest_dir / "console.log").write_text("kept")
    gone = Process(old.owner.pid, "1 of another boot")
    keeper.save(dataclasses.replace(old, owner=gone, stage=keeper.READY, emulator=sleeper))
    lost = keeper.load("one")
    assert lost is not None
    assert (lost.state, lost.alive) == ("lost", False)
    with pytest.raises(CannotError, match="guest one: its keeper has ended"):
        keeper.find("one")
    assert reserve().alive
    assert sleeper.wait_gone(Deadline.after(5))
    assert not overlay.exists()
    assert (old.guest_dir / "console.log").exists()


def test_an_emulator_that_got_another_number_is_left_alone(sleeper: Process) -> None:
    old = reserve()
    gone = Process(old.owner.pid, "1 of another boot")
    keeper.save(dataclasses.replace(old, owner=gone, emulator=Process(sleeper.pid, gone.started)))
    assert keeper.down("one") == "its keeper had already ended"
    assert sleeper.alive
    assert keeper.load("one") is None


def test_what_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"no guest named one is up; \./inv up starts one"):
        keeper.find("one")
    with pytest.raises(UsageError, match="no guest named one is up"):
        keeper.down("one")
    ended = dataclasses.replace(reserve("two"), stage=keeper.ENDED, note="it powered itself off")
    keeper.save(ended)
    with pytest.raises(UsageError, match="it powered itself off"):
        keeper.find("two")
    with pytest.raises(UsageError, match=r"there is two \(--name\)"):
        keeper.find("one")
    assert keeper.down("two") == "it powered itself off"
    assert keeper.names() == []


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "x" * 41, "a b", "é"])
def test_invalid_names(name: str) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        keeper.load(name)


def test_a_damaged_record_is_said_and_replaced() -> None:
    reserve()
    path = runs_dir() / "guests" / "one.json"
    path.write_text('{"name": "one"')
    with pytest.raises(CannotError, match=r"one\.json: cannot be read .*remove it"):
        keeper.load("one")
    assert reserve().alive


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[dict[str, object] | None], Record]]:
    """A record whose keeper gives one answer, or none, to whatever is asked."""
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    owner = Process.of(os.getpid())
    assert owner is not None
    listener = wire.listen(folder)
    held: list[socket.socket] = []

    def start(answer: dict[str, object] | None) -> Record:
        def serve() -> None:
            connection, _ = listener.accept()
            held.append(connection)
            wire.receive(connection)
            if answer is not None:
                wire.send(connection, answer)

        threading.Thread(target=serve, daemon=True).start()
        return Record("one", folder, owner)

    yield start
    for connection in (listener, *held):
        connection.close()


def test_a_long_path_is_no_obstacle(answering: Callable[..., Record]) -> None:
    record = answering({"it": "is"})
    assert len(str(record.run_dir)) > 200
    assert wire.call(record, "status") == {"it": "is"}


def test_a_keeper_that_refuses_or_keeps_silent(answering: Callable[..., Record]) -> None:
    with pytest.raises(CannotError, match="guest one: not today"):
        wire.call(answering({"refused": "not today"}), "status")
    record = answering(None)
    with pytest.raises(WaitTimeout, match=r"did not answer within 0 s; \./inv down --name one"):
        wire.call(record, "status", timeout_s=0.2)
    (record.run_dir / "keeper.sock").unlink()
    with pytest.raises(CannotError, match="does not accept the request"):
        wire.call(record, "status")


def test_what_fails_in_the_keeper_fails_here() -> None:
    record = reserve()
    starter = keeper.Starter(record, FailingBench(record.run_dir, "raise"))
    stages: list[progress.Stage] = []
    with pytest.raises(PatchError, match="no such luck") as caught:
        starter.follow(stages)
    assert caught.value.detail == "its story"
    assert [(stage.name, stage.outcome) for stage in stages] == [("boot", "failed")]
    starter.end()
    assert keeper.load("one") is None
    assert "begin boot" in (record.run_dir / "keeper.log").read_text()


@pytest.mark.parametrize(
    ("how", "said"), [("die", "its keeper was killed by SIGKILL"), ("stop", "was stopped by a")]
)
def test_a_keeper_that_breaks_is_noticed(how: str, said: str) -> None:
    record = reserve()
    starter = keeper.Starter(record, FailingBench(record.run_dir, how))
    with pytest.raises(GuestError, match=said):
        starter.follow([])
    starter.end()
    assert keeper.load("one") is None
    assert not starter.alive


def test_a_keeper_ends_with_who_started_it() -> None:
    record = reserve()
    starter = keeper.Starter(record, FailingBench(record.run_dir, "wait"))
    while (now := keeper.load("one")) is not None and now.owner == record.owner:
        pass
    assert now is not None
    starter.end()
    assert not now.owner.alive
    assert keeper.load("one") is None


def test_down_ends_what_is_coming_up() -> None:
    record = reserve()
    starter = keeper.Starter(record, FailingBench(record.run_dir, "wait"))
    downs: list[str] = []

    def down() -> None:
        while (now := keeper.load("one")) is not None and now.owner == record.owner:
            pass
        downs.append(keeper.down("one"))

    other = threading.Thread(target=down)
    other.start()
    with pytest.raises(Interrupted, match="guest one was ended"):
        starter.follow([])
    starter.end()
    other.join()
    assert downs == ["ended at once"]


def test_a_module_of_another_kind_is_not_taken_down() -> None:
    """A record with it could not be read again, and its guest not be ended."""
    message = {"module": "stock", "module_address": 4096, "owner": 1, "stage": "ended"}
    assert keeper.record.module_fields(message) == {"module": "stock", "module_address": 4096}
    others: list[dict[str, object]] = [
        {"module": [1]}, {"module_address": "x"}, {"module_address": -1}, {"kernel_file": None},
    ]  # fmt: skip
    for other in others:
        with pytest.raises(ValueError, match=r"module|kernel"):
            keeper.record.module_fields(other)


def test_records_of_other_versions_are_read(sleeper: Process) -> None:
    """Without what is newer, and with what was given up since or comes later."""
    record = reserve("old")
    path = runs_dir() / "guests" / "old.json"
    data = json.loads(path.read_text())
    for newer in ("announces", "ssh_private", "boots", "powered_off", "module_address"):
        data.pop(newer, None)
    path.write_text(json.dumps({**data, "of_tomorrow": {"any": "kind"}}))
    found = keeper.load("old")
    assert found is not None
    assert (found.name, found.run_dir, found.owner) == (record.name, record.run_dir, record.owner)
    path.write_text("{}")
    with pytest.raises(CannotError, match=r"old\.json: cannot be read .*; remove it"):
        keeper.load("old")
