"""The serial line: nothing is lost, a panic is seen, and no wait outlives its reason."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import socket
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness import limits
from harness.deadline import Deadline
from harness.errors import GuestError, GuestPanic, MachineDied, WaitTimeout
from harness.machine.console import Console
from harness.machine.panic_watch import PanicWatch

FREEBSD = (
    b"login: panic: vm_fault failed\r\ncpuid = 0\r\ntime = 1\r\n"
    b"KDB: stack backtrace:\r\n#0 0xffffffff80b at kdb_backtrace+0x5d\r\nUptime: 1m\r\n"
)


class Line:
    """Both ends: `far` is the guest's."""

    def __init__(self, console: Console, far: socket.socket) -> None:
        self.console = console
        self.far = far

    def says(self, data: bytes) -> None:
        """The guest says something, and it has arrived."""
        mark = self.console.mark
        self.far.sendall(data)
        until = time.monotonic() + 5
        while self.console.mark < mark + len(data) and time.monotonic() < until:
            time.sleep(0.002)

    def later(self, seconds: float, data: bytes = b"") -> threading.Timer:
        """The guest says something in a while, or hangs up."""
        timer = threading.Timer(seconds, lambda: self.far.sendall(data) if data else self.hang_up())
        timer.start()
        return timer

    def hang_up(self) -> None:
        self.far.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    near, far = socket.socketpair()
    console = Console(near.detach(), tmp_path / "console.log")
    with far:
        yield Line(console, far)
        console.close()


@contextlib.contextmanager
def quick(limit_s: float = 20.0) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < limit_s


def test_every_byte_is_in_the_log(line: Line) -> None:
    data = bytes(range(256)) * 100
    line.says(data)
    line.far.sendall(b"the last words")
    line.console.close()
    assert line.console.log.read_bytes() == data + b"the last words"


def test_what_has_arrived_is_seen_after_a_drain(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader rests after each small piece, and what comes meanwhile is not seen at once."""
    # On a busy machine the reader may not run for a second.
    monkeypatch.setattr("harness.machine.console._DRAIN_S", 60.0)
    for number in range(20):
        mark = line.console.mark
        line.far.sendall(b"x")
        line.far.sendall(b"%d\n" % number)
        line.console.drain()
        assert line.console.since(mark) == f"x{number}\n"
    line.hang_up()
    line.console.drain()


def test_expect_finds_what_comes_in_pieces(line: Line) -> None:
    talk = line.console.talk()
    line.says(b"FreeBSD/amd64 (tty")
    line.later(0.1, b"u0)\r\n\r\nlogin: ")
    assert talk.expect_any(["nothing", r"\(ttyu0\)\s+login: "], "prompt", Deadline.after(5)) == 1
    assert talk.before == "FreeBSD/amd64 "


def test_a_word_cut_in_the_middle_of_a_character(line: Line) -> None:
    talk = line.console.talk()
    word = "größe".encode()
    line.says(word[:3])
    line.later(0.1, word[3:] + b"!")
    talk.expect_any(["größe!"], "the word", Deadline.after(5))


def test_a_talk_hears_from_its_mark_on(line: Line) -> None:
    line.says(b"login: ")
    with pytest.raises(
        WaitTimeout, match="prompt: not seen on the serial line within 0 s"
    ) as raised:
        line.console.talk().expect_any(["login"], "prompt", Deadline.after(0.2))
    assert raised.value.detail == "login:"
    line.console.talk(0).expect_any(["login"], "prompt", Deadline.after(1))


def test_what_is_typed_arrives(line: Line) -> None:
    line.console.talk().sendline("root é")
    assert line.far.recv(100) == "root é\r".encode()


@pytest.mark.parametrize(
    "said",
    [
        b"\r\npanic: page fault\r\n",
        b"panic: at the very beginning\n",
        FREEBSD,
        b"# panic: behind a shell's prompt\r\ncpuid = 3\r\n",
        b"\r\n\r\nFatal trap 12: page fault while in kernel mode\r\n",
        b"\r\nFatal double fault\r\n",
        b"[ thread pid 0 tid 100000 ]\r\nStopped at kdb_enter+0x33\r\n",
        b"KDB: enter: panic\r\n",
        b"Mounting from ufs:/dev/gpt/rootfs failed with error 19.\r\n\r\nmountroot> ",
        b"\r\ndb> ",
        b"\r\nType '?' for a list of commands, 'help' for more detailed help.\r\nOK ",
        b"Enter full pathname of shell or RETURN for /bin/sh: ",
        b"[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root\r\n",
        b"login: [   99.1] Kernel panic - not syncing: sysrq triggered crash\r\n",
        b"Kernel panic - not syncing: Attempted to kill init!\r\n",
    ],
)
def test_a_panic_is_seen_however_it_is_cut(said: bytes) -> None:
    for size in (1, 2, 3, 7, 64, len(said)):
        watch = PanicWatch()
        cuts = [said[at : at + size] for at in range(0, len(said), size)]
        assert sum(watch.feed(cut) for cut in [b"booting\r\n", *cuts]) == 1
        assert watch.at is not None


@pytest.mark.parametrize(
    "said",
    [
        b"savecore[61]: reboot after panic: page fault\r\nStarting cron.\r\n",
        b"kern.sync_on_panic: 0\r\n",
        b"# grep panic: /var/log/messages\r\n",
        b"no mountroot> here\r\n",
        b"see: Fatal trap 12: is what it says\r\n",
        b"mydb> \r\n",
        b"[kernel] panicking is fun\r\n",
        b"KDB: debugger backends: ddb\r\nKDB: current backend: ddb\r\n",
        b"x" * 5000 + b"panic: behind a very long line\r\n",
    ],
)
def test_speaking_of_a_panic_is_none(said: bytes) -> None:
    for size in (1 if len(said) < 1000 else 100, 5000, len(said)):
        watch = PanicWatch()
        cuts = [said[at : at + size] for at in range(0, len(said), size)]
        assert not any(watch.feed(cut) for cut in cuts)


def test_a_panic_ends_a_wait_with_its_story(line: Line) -> None:
    talk = line.console.talk()
    line.says(b"before\r\n")
    line.later(0.2, FREEBSD)
    line.later(0.5, b"#1 0xffffffff81 at panic+0x43\r\n")
    with quick(), pytest.raises(GuestPanic, match=r"panicked: panic: vm_fault failed; ") as raised:
        talk.expect_any(["never"], "what never comes", Deadline.after(30))
    assert str(line.console.log) in raised.value.message
    assert "kdb_backtrace" in raised.value.detail
    assert "panic+0x43" in raised.value.detail
    assert "before" not in raised.value.detail
    assert line.console.panicked
    with quick(20), pytest.raises(GuestPanic):
        line.console.check_panic()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            b"/\b-\b\\\bLoading kernel...\r\n|\b/\bFailed to load kernel 'kernel'\r\n\r\n"
            b"|\b/\bcan't load 'kernel'\r\n\r\n"
            b"Type '?' for a list of commands, 'help' for more detailed help.\r\nOK ",
            "it stopped at the loader's prompt: can't load 'kernel'; ",
        ),
        (
            b"Automatic file system check failed; help!\r\n"
            b"Enter full pathname of shell or RETURN for /bin/sh: ",
            "it stopped at the prompt of single-user mode: Automatic file system check failed;",
        ),
    ],
)
def test_a_boot_that_stops_at_a_prompt_ends_a_wait_with_its_reason(
    line: Line, said: bytes, reason: str
) -> None:
    line.says(b"BIOS\r\n")
    line.later(0.1, said)
    with quick(), pytest.raises(GuestPanic, match=re.escape(reason)) as raised:
        line.console.talk().expect_any(["login:"], "login prompt", Deadline.after(60))
    assert raised.value.message.startswith("the guest did not boot, it stopped at ")


def test_a_panic_whose_output_never_ends_is_reported_too(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.machine.console._PANIC_SETTLES_S", 0.5)
    stop = threading.Event()

    def chatter() -> None:
        while not stop.wait(0.05):
            line.far.sendall(b"again\r\n")

    line.says(FREEBSD)
    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        with quick(20), pytest.raises(GuestPanic):
            line.console.check_panic()
    finally:
        stop.set()
        thread.join()


def test_a_line_that_closes_ends_a_wait(line: Line) -> None:
    line.later(0.2)
    with quick(), pytest.raises(GuestError, match="prompt: the serial line closed") as raised:
        line.console.talk().expect_any(["login"], "prompt", Deadline.after(30))
    assert not isinstance(raised.value, WaitTimeout)
    assert line.console.closed


def test_what_was_said_before_the_end_is_still_heard(line: Line) -> None:
    talk = line.console.talk(0)
    line.says(b"login: ")
    line.hang_up()
    assert line.console.wait_closed(Deadline.after(5))
    assert talk.expect_any(["login: "], "prompt", Deadline.after(1)) == 0


@pytest.mark.parametrize("hangs_up", [True, False])
def test_a_machine_that_dies_ends_a_wait_by_its_name(tmp_path: Path, hangs_up: bool) -> None:
    died = threading.Event()

    def watch() -> None:
        if died.is_set():
            raise MachineDied("qemu was killed by SIGKILL")

    near, far = socket.socketpair()
    console = Console(near.detach(), tmp_path / "log", watch)
    # The exit code comes a moment after the line's end.
    timers = [threading.Timer(0.4, died.set)]
    if hangs_up:
        timers.append(threading.Timer(0.2, far.close))
    for timer in timers:
        timer.start()
    with quick(), pytest.raises(MachineDied, match="SIGKILL"):
        console.talk().expect_any(["login"], "prompt", Deadline.after(30))
    if hangs_up:
        with quick(), pytest.raises(MachineDied):
            console.send("anybody?")
    console.close()
    far.close()


def test_sending_to_a_closed_line_says_so(line: Line) -> None:
    line.hang_up()
    assert line.console.wait_closed(Deadline.after(5))
    with pytest.raises(GuestError, match="serial line is closed"):
        line.console.send("hello\r")
    line.console.close()
    with pytest.raises(GuestError, match="serial line is closed"):
        line.console.send("hello\r")


def test_a_guest_that_reads_nothing_does_not_hold_us(line: Line) -> None:
    with quick(), pytest.raises(WaitTimeout, match="read nothing from its serial line for 1 s"):
        line.console.send("x" * 10_000_000, Deadline.after(0.6))


def test_binary_noise_is_no_trouble(line: Line) -> None:
    noise = b"\x1b[2J\x1b]0;evil\x07\xff\xfe\x00" + os.urandom(5000).replace(b"\n", b"x")
    line.says(noise + b"\r\nlogin: \x1b[31mred\x1b[0m\x07")
    assert line.console.tail(1) == "login: red"
    assert line.console.last_line() == "login: red"
    line.console.talk(0).expect_any(["login: "], "prompt", Deadline.after(5))
    assert line.console.log.read_bytes().startswith(noise)


@pytest.mark.parametrize(
    "unit", [b"a line of some length, as they come\r\n", b"no newline at all "]
)
def test_ten_megabytes_are_no_trouble(tmp_path: Path, unit: bytes) -> None:
    near, far = socket.socketpair()
    keep = 1 << 20
    console = Console(near.detach(), tmp_path / "log", keep_bytes=keep)
    talk = console.talk()
    data = unit * (10_000_000 // len(unit))
    sender = threading.Thread(target=far.sendall, args=(data + b"\r\nlogin: ",))
    with quick(30):
        sender.start()
        talk.expect_any([r"\r\nlogin: "], "prompt", Deadline.after(30))
        sender.join()
    assert console.mark == len(data) + 9
    assert len(console._data) <= keep * 1.2
    assert console.since(0).startswith(f"[{console._dropped} bytes before this are only in ")
    assert console.since(console.mark - 7) == "login: "
    far.close()
    console.close()
    assert (tmp_path / "log").stat().st_size == len(data) + 9


def test_closing_does_not_wait_for_a_flood_to_end(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    console = Console(near.detach(), tmp_path / "log")

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                far.sendall(b"y\n" * 1000)

    thread = threading.Thread(target=flood)
    thread.start()
    time.sleep(0.1)
    with quick():
        console.close()
    far.close()
    thread.join()


def test_a_pseudo_terminal_works_too(tmp_path: Path) -> None:
    """Bochs's line: its end is an error, not an empty read."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    console = Console(master, tmp_path / "log")
    os.write(slave, b"login: ")
    talk = console.talk(0)
    talk.expect_any(["login: "], "prompt", Deadline.after(5))
    talk.sendline("root")
    assert os.read(slave, 10) == b"root\r"
    os.close(slave)
    with quick(), pytest.raises(GuestError, match="closed"):
        talk.expect_any(["more"], "more", Deadline.after(30))
    console.close()
    console.close()


def test_a_log_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    """Without its log the reading thread would end, and every wait would last to its deadline."""
    near, far = socket.socketpair()
    with far, pytest.raises(FileNotFoundError):
        Console(near.detach(), tmp_path / "nowhere" / "log")


def test_consoles_leave_nothing_behind(tmp_path: Path) -> None:
    process = psutil.Process()
    before = process.num_fds(), threading.active_count()
    for number in range(10):
        near, far = socket.socketpair()
        console = Console(near.detach(), tmp_path / "log")
        if number % 2:
            far.close()
        console.close()
        far.close()
    assert (process.num_fds(), threading.active_count()) == before


def test_a_kernel_that_begins_is_counted_however_it_is_cut(line: Line) -> None:
    for _ in range(2):
        for size in (1, 5, 14, 40):
            said = b"loading\r\n---<<BOOT>>---\r\nCopyright\r\n"
            for at in range(0, len(said), size):
                line.says(said[at : at + size])
    assert line.console.boots == 8


def test_a_guest_that_never_stops_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOG_MOST_BYTES", 1000)
    log = tmp_path / "console.log"
    log.write_bytes(b"before\n")
    near, far = socket.socketpair()
    console = Console(near.detach(), log)
    with far:
        line = Line(console, far)
        for _ in range(50):
            line.says(b"x" * 99 + b"\n")
    console.wait_closed(Deadline.after(10))
    console.close()
    stored = log.read_bytes()
    assert stored.startswith(b"before\nxx")
    assert stored[1000:].strip() == b"[the log ends here: the guest has sent more than is stored]"
    assert console.mark == 5000, "what waits for the guest's words still gets all of them"
