"""Both kinds of machine in a real emulator, with a boot sector as their guest."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import backends
import psutil
import pytest
from backends import QEMU, VENDOR
from ended import still_running

from harness import machine as machines
from harness.deadline import Deadline
from harness.errors import CannotError, MachineDied, WaitTimeout
from harness.files import PROJECT
from harness.machine import Drive, Machine, Spec, base, bochs_state, qemu

EVIL = 'it\'s a "disk", $HOME {x} =1'
PROMPT = r"sector\r\n> "

Made = Callable[..., Machine]


@pytest.fixture(scope="session")
def sector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest: 1 MiB with the boot sector at its beginning.

    Without a compiler (in the Linux of images/nested), HARNESS_TEST_SECTOR names the built one.
    """
    if os.environ.get("HARNESS_TEST_SECTOR"):
        return Path(os.environ["HARNESS_TEST_SECTOR"])
    folder = tmp_path_factory.mktemp("sector")
    source = Path(__file__).with_name("sector.S")
    compiling: list[str | Path] = [
        "gcc",
        "-m32",
        "-nostdlib",
        "-ffreestanding",
        "-c",
        "-o",
        "sector.o",
        source,
    ]
    linking = ["ld", "-m", "elf_i386", "-Ttext=0x7c00", "--oformat", "binary"]
    subprocess.run(compiling, cwd=folder, check=True)
    subprocess.run([*linking, "-o", "disk.img", "sector.o"], cwd=folder, check=True)
    disk = folder / "disk.img"
    os.truncate(disk, 1 << 20)
    disk.chmod(0o400)
    return disk


@pytest.fixture
def make(sector: Path, tmp_path: Path) -> Iterator[Made]:
    made: list[Machine] = []

    def build(backend: str, disk: Path = sector, run: str = "run", **more: object) -> Machine:
        spec = Spec(
            run_dir=tmp_path / run,
            drive=Drive(disk),
            **{"ssh": False, "memory_bytes": 32 << 20, **more},  # type: ignore[arg-type]
        )
        made.append(backends.make(backend, spec))
        return made[-1]

    yield build
    for machine in made:
        machine.stop(Deadline.after(5))


def boot(machine: Machine) -> None:
    machine.start(Deadline.after(120))
    machine.console.talk(0).expect_any([PROMPT], "greeting", Deadline.after(120))


def ask(machine: Machine, text: str, answer: str) -> None:
    talk = machine.console.talk()
    machine.console.send(text)
    talk.expect_any([answer], f"the answer to {text}", Deadline.after(120))


def test_a_machine_lives_and_switches_itself_off(backend: str, make: Made) -> None:
    machine = make(backend)
    assert machine.pid is None
    boot(machine)
    assert machine.backend == backend
    assert machine.pid is not None
    assert machine.exit_code is None
    assert not machine.powered_off()
    machine.check()
    ask(machine, "echo", "echo")
    assert machine.wait_ended(Deadline.after(0.1)) is None
    machine.console.send("q")
    assert machine.wait_ended(Deadline.after(120)) is not None
    assert machine.powered_off()
    assert machine.console.wait_closed(Deadline.after(2))
    machine.stop(Deadline.after(5))
    assert b"hello from the first sector" in machine.spec.console_log.read_bytes()
    assert machine.spec.run_dir.stat().st_mode & 0o777 == 0o700


def test_the_brought_disk_is_never_written_to(
    backend: str, make: Made, sector: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(sector.read_bytes())
    before = hashlib.sha256(disk.read_bytes()).digest(), disk.stat().st_mtime_ns
    with make(backend, disk) as machine:
        boot(machine)
        ask(machine, "w", "W")
        machine.console.send("q")
        machine.wait_ended(Deadline.after(120))
    assert (hashlib.sha256(disk.read_bytes()).digest(), disk.stat().st_mtime_ns) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.img", "run"]


def test_paths_may_be_odd_and_long(
    backend: str, make: Made, sector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quotes, commas, blanks and variables are special in both emulators; a socket's path may have
    108 bytes.
    """
    folder = tmp_path / ("x" * 120) / EVIL
    folder.mkdir(parents=True)
    (folder / f"{EVIL}.img").write_bytes(sector.read_bytes())
    # A relative path is relative to here, not to the emulator's folder.
    monkeypatch.chdir(folder)
    with make(backend, Path(f"{EVIL}.img"), str(folder / "run"), name='a, b="c"') as machine:
        boot(machine)


@pytest.mark.parametrize("asleep", [False, True], ids=["in a wait", "before a wait"])
def test_an_emulator_that_is_killed_ends_waits_at_once(
    backend: str, make: Made, asleep: bool
) -> None:
    machine = make(backend)
    boot(machine)
    pid = machine.pid
    assert pid is not None
    timer = threading.Timer(0 if asleep else 0.4, os.kill, (pid, signal.SIGKILL))
    timer.start()
    if asleep:
        timer.join()
    start = time.monotonic()
    with pytest.raises(MachineDied, match=rf"guest: {backend} was killed by SIGKILL") as raised:
        machine.console.talk().expect_any(["never"], "what never comes", Deadline.after(60))
    assert time.monotonic() - start < 30
    assert str(machine.spec.console_log) in raised.value.message
    assert "hello from the first sector" in raised.value.detail
    with pytest.raises(MachineDied):
        machine.check()
    assert not machine.powered_off()


def test_a_signal_from_outside_is_no_power_off(make: Made) -> None:
    """QEMU exits with 0 if a signal asks it to end."""
    machine = make(QEMU)
    boot(machine)
    assert machine.pid is not None
    os.kill(machine.pid, signal.SIGTERM)
    assert machine.wait_ended(Deadline.after(5)) == 0
    assert not machine.powered_off()


_CHILD = """
import sys, time
from pathlib import Path
from harness import machine
from harness.deadline import Deadline
drive = machine.Drive(Path(sys.argv[3]))
spec = machine.Spec(Path(sys.argv[2]), drive, 32 << 20, ssh=sys.argv[4] == "ssh")
virtual = machine.make(machine.Backend(sys.argv[1], sys.argv[5]), spec)
virtual.start(Deadline.after(120))
print(virtual.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("network", ["ssh", "none"])
def test_an_emulator_does_not_outlive_a_killed_harness(
    backend: str, network: str, sector: Path, tmp_path: Path
) -> None:
    run_dir = str(tmp_path / "run")
    command = [sys.executable, "-c", _CHILD, backend, run_dir, str(sector), network, VENDOR]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=PROJECT
    ) as child:
        assert child.stdout is not None
        said = child.stdout.readline()
        if not said.strip().isdigit():
            pytest.fail(f"the machine did not start: {said}{child.stdout.read()}")
        emulator = psutil.Process(int(said))
        child.kill()
    assert still_running([emulator]) == []


def test_the_accelerator_is_the_backend_s(make: Made) -> None:
    machine = make(QEMU)
    boot(machine)
    said = machine._qmp.execute("query-kvm", Deadline.after(5))  # type: ignore[attr-defined]
    assert said["enabled"] == (QEMU == "kvm")


def ask_stub(stub: socket.socket, packet: str) -> str:
    """The stub's answer to a request in gdb's protocol.

    It may report at any time, without a request, that the guest has stopped.
    """
    stub.sendall(b"$%s#%02x" % (packet.encode(), sum(packet.encode()) & 0xFF))
    said = b""
    while True:
        for answer in re.findall(rb"\$([^#]*)#..", said):
            if packet == "?" or not answer.startswith(b"T"):
                stub.sendall(b"+")
                return bytes(answer).decode()
        part = stub.recv(4096)
        assert part, said
        said += part


def test_gdb_s_stub_reads_the_guest_and_lets_it_go_on(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gdb: this test sends the requests that gdb would send."""
    machine = make(QEMU)
    boot(machine)
    path = machine.open_debugger(Deadline.after(120))
    # A socket's path may have 108 bytes.
    monkeypatch.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as stub:
        stub.settimeout(20)
        stub.connect(path.name)
        assert ask_stub(stub, "?").startswith(("T05", "S05", "T02", "S02"))
        assert ask_stub(stub, "m7dfe,2") == "55aa"
        assert len(ask_stub(stub, "g")) > 100
        # The guest's memory has the written value.
        assert ask_stub(stub, "M7000,2:abcd") == "OK"
        assert ask_stub(stub, "m7000,2") == "abcd"
    machine.close_debugger(Deadline.after(120))
    ask(machine, "echo", "echo")


def test_three_machines_side_by_side(make: Made) -> None:
    """Each has its own guest, and ending one does not end the others."""
    machines_here = [make(QEMU, run=f"run{number}") for number in range(3)]
    for machine in machines_here:
        machine.start(Deadline.after(120))
    for machine in machines_here:
        machine.console.talk(0).expect_any([PROMPT], "greeting", Deadline.after(120))
    first, *others = machines_here
    first.console.send("q")
    assert first.wait_ended(Deadline.after(120)) is not None
    for machine in others:
        ask(machine, "echo", "echo")


def test_a_model_that_does_not_exist_is_named_by_the_emulator(make: Made, backend: str) -> None:
    words = {QEMU: "unable to find CPU model 'nonsense'", "bochs": "cpu directive malformed"}
    machine = make(backend, cpu="nonsense")
    with pytest.raises(MachineDied, match=r"did not start: exited with 1") as raised:
        machine.start(Deadline.after(120))
    assert words[backend] in raised.value.detail
    machine.stop(Deadline.after(1))


@pytest.fixture
def shared_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that forbids network namespaces: the port is on its own loopback."""
    monkeypatch.setattr(base, "unavailable", lambda: "forbidden for this test")


@pytest.mark.usefixtures("shared_network")
def test_a_taken_port_is_not_the_end(
    backend: str, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        free_port = base.free_port
        ports = [other.getsockname()[1]]
        monkeypatch.setattr(base, "free_port", lambda: ports.pop() if ports else free_port())
        with make(backend, ssh=True) as machine:
            boot(machine)
            assert machine.ssh_port != other.getsockname()[1]
            assert str(machine.forward) == f"127.0.0.1:{machine.ssh_port}"
            with socket.create_connection(("127.0.0.1", machine.ssh_port or 0), timeout=60):
                pass


@pytest.mark.usefixtures("shared_network")
def test_a_port_that_stays_taken_is_reported(
    backend: str, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(base, "free_port", lambda: other.getsockname()[1])
        with pytest.raises(MachineDied, match=r"port|host forwarding|did not start"):
            make(backend, ssh=True).start(Deadline.after(30))


def test_an_emulator_that_is_not_installed_is_named(
    backend: str, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make(backend)
    monkeypatch.setattr(type(machine), "command", lambda _self: ["no-such-emulator"])
    monkeypatch.setattr(qemu, "command_line", lambda *_a, **_k: ["no-such-emulator"])
    with pytest.raises(CannotError, match=r"no-such-emulator is not installed; run ./inv setup"):
        machine.start(Deadline.after(5))


def test_a_disk_that_is_not_there_is_named(backend: str, make: Made, tmp_path: Path) -> None:
    with pytest.raises(CannotError, match=r"absent\.img: there is no such disk"):
        make(backend, tmp_path / "absent.img").start(Deadline.after(120))


def test_a_disk_of_another_format_is_reported(make: Made, tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    disk.write_bytes(b"not qcow2")
    spec = Spec(run_dir=tmp_path / "run", drive=Drive(disk, "qcow2"))
    with pytest.raises(CannotError, match=r"disk\.qcow2: .*not in qcow2 format"):
        backends.make(QEMU, spec).start(Deadline.after(120))
    with pytest.raises(CannotError, match=r"Bochs boots only raw disks, .*qcow2"):
        machines.make("bochs", spec)


def test_machines_leave_nothing_behind(backend: str, make: Made, tmp_path: Path) -> None:
    process = psutil.Process()

    def held() -> tuple[int, int, int]:
        return process.num_fds(), threading.active_count(), len(process.children(recursive=True))

    before = held()
    for number in range(5):
        with make(backend, run=f"run{number}", ssh=bool(number % 2)) as machine:
            machine.start(Deadline.after(120))
        with pytest.raises(MachineDied):
            make(backend, run=f"bad{number}", cpu="nonsense").start(Deadline.after(120))
    assert held() == before
    known = {"emulator.log", "console.log", "overlay.qcow2", "bochs.log", "bochsrc.txt"}
    known |= {"debugger.txt", "slirp.txt", "disk.img", "console.tty", "bios.rom", "vgabios.rom"}
    assert {path.name for path in tmp_path.glob("*/*")} <= known


def test_a_run_folder_can_be_used_again(backend: str, make: Made) -> None:
    """Files of an earlier machine there are not taken for this machine's."""
    with make(backend) as machine:
        boot(machine)
    with make(backend, cpu="nonsense") as machine, pytest.raises(MachineDied):
        machine.start(Deadline.after(120))
    with make(backend) as machine:
        boot(machine)


def devices_in_order(machine: Machine) -> list[str]:
    log = (machine.spec.run_dir / "bochs.log").read_text()
    return [line.split("'")[1] for line in log.splitlines() if "init_dev of" in line]


@pytest.mark.usefixtures("each_bochs")
def test_bochs_takes_up_a_saved_machine(make: Made, sector: Path, tmp_path: Path) -> None:
    """With a network, whose poll is a timer that is identified by its number, and so by device
    order.
    """
    state = tmp_path / f"{EVIL} state"
    state.mkdir()
    with make("bochs", run=EVIL, ssh=True, savable=True) as saved:
        boot(saved)
        ask(saved, "w", "W")
        saved.save(state, Deadline.after(120))
        if saved.pid is not None:
            ask(saved, "on", "on")
        order = devices_in_order(saved)
        needs = saved.depends_on()
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    resumed = [make("bochs", run=f"resumed {n}", ssh=True, resume_from=state) for n in (1, 2)]
    for machine in resumed:
        machine.start(Deadline.after(120))
    for machine in resumed:
        assert machine.forward is not None
        with machine.forward.connect(5):
            pass
    for machine in resumed:
        ask(machine, "back", "back")
        ask(machine, "w", "W")
        assert "sector" not in machine.console.since(0), "it booted"
        assert devices_in_order(machine) == order
        assert machine.depends_on() == needs
        machine.console.send("q")
        machine.wait_ended(Deadline.after(120))
        assert machine.powered_off()
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before
    assert make("bochs", run="less", memory_bytes=16 << 20, ssh=True).depends_on() != needs


@pytest.mark.usefixtures("each_bochs")
def test_a_save_that_is_never_answered_ends_with_the_limit_or_the_machine(
    make: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bochs gets its signal, but does not find the request."""
    monkeypatch.setattr(bochs_state, "request", lambda *_: None)
    with make("bochs", savable=True) as machine:
        boot(machine)
        with pytest.raises(WaitTimeout, match="did not save the guest within 1 s"):
            machine.save(tmp_path, Deadline.after(1))
        ask(machine, "on", "on")
        assert machine.pid is not None
        killing = threading.Timer(0.3, os.kill, (machine.pid, signal.SIGKILL))
        killing.start()
        with pytest.raises(MachineDied, match="killed by SIGKILL"):
            machine.save(tmp_path, Deadline.after(60))
        killing.join()


@pytest.mark.usefixtures("each_bochs")
def test_one_that_ends_at_once_has_run(
    make: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orderly end does not mean that a machine did not start, however soon it comes."""
    disk = tmp_path / "ends.img"
    ending = b"".join(b"\xb0" + bytes([letter]) + b"\xee" for letter in b"Shutdown")
    code = b"\xba\x00\x89" + ending + b"\xf4"
    disk.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512))
    machine = make("bochs", disk)
    spawn = machine._spawn

    def to_its_end(*arguments: Any, **more: Any) -> subprocess.Popen[bytes]:
        process = spawn(*arguments, **more)
        process.wait()
        return process

    monkeypatch.setattr(machine, "_spawn", to_its_end)
    machine.start(Deadline.after(120))
    assert machine.powered_off()
    with pytest.raises(MachineDied, match=r"the guest powered itself off \(bochs exited with"):
        machine.check()
