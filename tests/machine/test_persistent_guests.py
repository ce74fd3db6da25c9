"""Guests that outlive their command, with the stand-in: two at once, entered and ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest
from standin_bench import StandinBench

from harness import keeper
from harness.cli import guest_commands
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, GuestPanic, UsageError
from harness.keeper.record import Process
from harness.run.options import Options
from harness.run.persistent_session import PersistentSession, ways_in
from harness.run.run_folder import new_run_dir
from harness.run.session import BeforeBoot
from harness.run.stages import Imaged
from harness.run.workbench import Workbench

ENDS_S = 120.0
CLI = [sys.executable, "-m", "harness.cli.program"]


@pytest.fixture(autouse=True, scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runs")
        patch.setenv("HARNESS_RUNS", str(folder))
        # The keeper's process finds the bench's module there.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield folder
        for name in keeper.names():
            keeper.down(name, hard=True)


class StandinSession(PersistentSession):
    """`inv up` from the boot on, with the stand-in instead of FreeBSD."""

    standin: Any

    def up(self, before_boot: BeforeBoot = lambda built: built.build) -> Workbench:
        self._reserve()
        nothing: Any = None
        return Workbench(self, self.boot(nothing))

    def bench(self, imaged: Imaged) -> StandinBench:
        it = self.standin
        return StandinBench(self.run_dir, it.disk, it.private_key, it.host_key)


def start(name: str, standin: Any) -> keeper.Starter:
    run_dir = new_run_dir(f"up-{name}")
    bench = StandinBench(run_dir, standin.disk, standin.private_key, standin.host_key)
    return keeper.Starter(keeper.reserve(name, run_dir), bench)


@pytest.fixture(scope="module")
def two(standin: Any, runs: Path) -> None:
    """Two guests, `a` and `b`, that do not end with another process any more."""
    StandinSession.standin = standin
    starter = start("a", standin)
    with StandinSession(Options(), new_run_dir("up-b"), "b") as session:
        bench = session.up()
        assert bench.guest.must(["echo", "there"]) == "there\n"
        assert bench.properties["standin"] == "yes"
        kept = session.keep()
    assert kept is not None
    assert ways_in(kept) == (
        "./inv ssh --name b or ./inv console --name b enters it, ./inv down --name b ends it"
    )
    record, _ = starter.follow([])
    assert record.stage == keeper.READY
    starter.release()


def record_of(name: str) -> keeper.Record:
    found = keeper.load(name)
    assert found is not None
    return found


def wait_for(name: str, state: str) -> keeper.Record:
    limit = Deadline.after(ENDS_S)
    while record_of(name).state != state:
        assert not limit.expired, record_of(name)
        time.sleep(0.1)
    return record_of(name)


def terminal(*arguments: str) -> pexpect.spawn[str]:
    """Run a command on a new terminal."""
    return pexpect.spawn(
        CLI[0], [*CLI[1:], *arguments], encoding="utf-8", timeout=ENDS_S, dimensions=(24, 90)
    )


@pytest.mark.usefixtures("two")
def test_commands_and_their_exit_codes(capfd: pytest.CaptureFixture[str]) -> None:
    assert guest_commands.ssh("a", ["sh", "-c", "echo out; echo err >&2; exit 7"]) == 7
    said = capfd.readouterr()
    assert (said.out, said.err) == ("out\n", "err\n")
    assert guest_commands.ssh("b", ['echo "two words" $((6*7)); kill -9 $$']) != 0
    assert capfd.readouterr().out == "two words 42\n"
    known = (record_of("a").run_dir / "known_hosts").read_text()
    assert known.startswith("[127.0.0.1]:")
    assert guest_commands.status("", json=True) == 0
    assert '"state": "ready"' in capfd.readouterr().out


@pytest.mark.usefixtures("two")
def test_other_programs_get_in_by_the_file() -> None:
    config = record_of("a").run_dir / "ssh_config"
    command = ["ssh", "-F", str(config), "a", "echo from the file"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ENDS_S, check=False)
    assert (done.stdout, done.stderr) == ("from the file\n", "")
    assert config.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("two")
def test_a_shell_on_a_terminal() -> None:
    shell = terminal("ssh", "--name", "a")
    shell.expect("# ")
    shell.sendline("stty size; exit 5")
    shell.expect("24 90")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 5


@pytest.mark.usefixtures("two")
def test_the_console_is_left_and_entered_again() -> None:
    """Input on one terminal appears on another; leaving disturbs no other terminal."""
    first, second = terminal("console", "--name", "b"), terminal("console", "--name", "b")
    for line in (first, second):
        # The earlier output, for orientation.
        line.expect("leaves it")
        line.expect("login: ")
    first.send("\r")
    first.expect("login: ")
    first.send("root\r")
    first.expect("~ # ")
    first.send("echo $((6*7)) >/dev/null; echo ans'w'er\r")
    second.expect("answer")
    for line in (first, second):
        line.send("\x1d")
        line.expect("guest b continues")
        line.expect(pexpect.EOF)
        line.close()
        assert line.exitstatus == 0
    assert record_of("b").state == keeper.READY


@pytest.mark.usefixtures("two")
def test_files_and_folders_go_both_ways(tmp_path: Path) -> None:
    folder = tmp_path / "some folder"
    folder.mkdir()
    (folder / "data").write_bytes(bytes(range(256)) * 999)
    (folder / "tool").write_text("#!/bin/sh\nexit 3\n")
    (folder / "tool").chmod(0o755)
    assert guest_commands.push("a", str(folder / "tool"), "/root") == 0
    assert guest_commands.ssh("a", ["/root/tool"]) == 3
    assert guest_commands.push("a", str(folder), "/root/there") == 0
    assert guest_commands.pull("a", "/root/there", str(tmp_path / "back")) == 0
    for name in ("data", "tool"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    assert guest_commands.pull("a", "/root/there/data", str(tmp_path)) == 0
    assert (tmp_path / "data").stat().st_size == 256 * 999
    with pytest.raises(UsageError, match="there is no such file or folder"):
        guest_commands.push("a", str(tmp_path / "nothing"), "/root")
    with pytest.raises(GuestError, match="/root/nothing"):
        guest_commands.pull("a", "/root/nothing", str(tmp_path))


@pytest.mark.usefixtures("two")
def test_the_name_is_taken_while_the_guest_is_up(standin: Any) -> None:
    with pytest.raises(UsageError, match="guest a is ready already"):
        start("a", standin)


@pytest.mark.usefixtures("two")
def test_a_workbench_whose_name_is_taken_leaves_the_guest_alone() -> None:
    with (
        pytest.raises(UsageError, match="guest b is ready already"),
        StandinSession(Options(), new_run_dir("up-b"), "b") as other,
    ):
        other.up()
    assert guest_commands.ssh("b", ["true"]) == 0


@pytest.mark.usefixtures("two")
@pytest.mark.skipif(not shutil.which("gdb"), reason="gdb is not installed: apt-get install gdb")
def test_gdb_stops_the_kernel_and_lets_it_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    commands = ["print/x $cs & 0xfff0", "detach", "quit"]
    assert guest_commands.gdb("a", "", commands) == 0
    assert "$1 = 0x10" in capfd.readouterr().out
    assert guest_commands.ssh("a", ["true"]) == 0
    assert not (record_of("a").guest_dir / "gdb.sock").exists()


@pytest.mark.usefixtures("two")
def test_z_a_guest_that_panics_is_said_to_be_broken() -> None:
    # Two users are connected at that moment, in different ways: neither waits for ever.
    with keeper.attached("a") as guest:
        with pytest.raises(GuestError, match="guest a is broken: the guest panicked"):
            guest_commands.ssh("a", ["sh", "-c", "sleep 1; echo c >/proc/sysrq-trigger; sleep 99"])
        with pytest.raises(GuestPanic, match="sysrq triggered crash"):
            guest.run(["true"])
    broken = wait_for("a", keeper.BROKEN)
    assert "sysrq triggered crash" in broken.note
    with pytest.raises(GuestError, match="guest a is broken: the guest panicked"):
        guest_commands.ssh("a", ["true"])
    ended = keeper.down("a")
    assert ended == "ended at once"
    assert not broken.owner.alive
    assert broken.emulator is not None
    assert not broken.emulator.alive


@pytest.mark.usefixtures("two")
def test_zz_a_guest_that_powers_off_by_itself() -> None:
    before = record_of("b")
    with keeper.attached("b") as guest:
        guest_commands.ssh("b", ["poweroff"])
        assert guest.machine.wait_ended(Deadline.after(ENDS_S)) == 0
        with pytest.raises(GuestError, match=r"^guest b: it powered itself off, while it was need"):
            guest.machine.check()
    ended = wait_for("b", keeper.ENDED)
    assert (ended.note, ended.powered_off) == ("it powered itself off", True)
    assert before.owner.wait_gone(Deadline.after(ENDS_S))
    with pytest.raises(UsageError, match="it powered itself off"):
        guest_commands.ssh("b", ["true"])
    assert keeper.down("b") == "it powered itself off"
    assert keeper.load("b") is None


def test_a_killed_keeper_leaves_nothing_running(standin: Any) -> None:
    starter = start("c", standin)
    limit = Deadline.after(ENDS_S)
    while not (found := emulators(starter)) and not limit.expired:
        time.sleep(0.1)
    (emulator,) = found
    record = record_of("c")
    record.owner.signal(signal.SIGKILL)
    with pytest.raises(GuestError, match="its keeper was killed by SIGKILL"):
        starter.follow([])
    assert emulator.wait_gone(Deadline.after(ENDS_S))
    assert record_of("c").state == "lost"
    with pytest.raises(CannotError, match="its keeper has ended"):
        guest_commands.ssh("c", ["true"])
    assert (record.guest_dir / "overlay.qcow2").exists()
    again = start("c", standin)
    assert not (record.guest_dir / "overlay.qcow2").exists()
    again.end()
    assert "c" not in keeper.names()


def test_a_guest_ends_with_who_asked_for_it(standin: Any) -> None:
    """The command is killed while the guest starts; otherwise nothing could end the guest any
    more.
    """
    starter = start("d", standin)
    limit = Deadline.after(ENDS_S)
    while not (found := emulators(starter)) and not limit.expired:
        time.sleep(0.1)
    record = record_of("d")
    del starter
    assert record.owner.wait_gone(Deadline.after(ENDS_S))
    assert not any(it.alive for it in found)
    assert keeper.load("d") is None


def test_a_stopped_keeper_is_ended_all_the_same(standin: Any) -> None:
    starter = start("e", standin)
    limit = Deadline.after(ENDS_S)
    while not (found := emulators(starter)) and not limit.expired:
        time.sleep(0.1)
    record = record_of("e")
    record.owner.signal(signal.SIGSTOP)
    while not record.owner.stopped:
        time.sleep(0.01)
    keeper.down("e")
    assert not record.owner.alive
    assert all(it.wait_gone(Deadline.after(ENDS_S)) for it in found)
    assert keeper.load("e") is None


@pytest.mark.soak
def test_a_guest_that_broke_is_started_again(standin: Any) -> None:
    StandinSession.standin = standin
    with StandinSession(Options(), new_run_dir("up-f"), "f") as session:
        bench = session.up()
        first = record_of("f")
        os.kill(first.emulator.pid if first.emulator else 0, signal.SIGKILL)
        with pytest.raises(GuestError, match="guest f: tcg was killed by SIGKILL, while it was"):
            bench.guest.run(["sleep", "99"])
        bench = Workbench(session, session.boot(bench.booted.imaged))
        assert bench.guest.must(["echo", "again"]) == "again\n"
        assert not first.owner.alive
    # The guest was not released, so it must not stay.
    assert keeper.load("f") is None


def emulators(starter: keeper.Starter) -> list[Process]:
    children = psutil.Process(starter.pid).children()
    found = [Process.of(child.pid) for child in children if "qemu" in child.name()]
    return [it for it in found if it is not None]
