"""Logging in on a serial line, with a guest that follows a script: real shells, fake prompts."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, GuestPanic
from harness.guest import serial_login
from harness.guest.serial_login import SerialLogin
from harness.machine.console import Console

BOOT = b"Copyright (c) 1992-2026 The FreeBSD Project.\r\n"
PROMPT = b"\r\nFreeBSD/amd64 (host) (ttyu0)\r\n\r\nlogin: "


class Far:
    """The guest's end: what it says, what it hears, and the shell it may start."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.heard: list[str] = []

    def says(self, data: bytes) -> None:
        os.write(self.fd, data)

    def hears(self, echo: bool = True) -> str:
        """One line that is typed."""
        data = b""
        while not data.endswith(b"\r"):
            data += os.read(self.fd, 1)
        if echo:
            self.says(data + b"\n")
        self.heard.append(data.decode().rstrip("\r"))
        return self.heard[-1]

    def shell(self, noise: bytes = b"") -> None:
        """/bin/sh on a terminal of its own, as a login gives it; `noise` comes before its words."""
        master, slave = pty.openpty()
        with subprocess.Popen(
            ["/bin/sh", "+E", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={"PS1": "# ", "PATH": os.environ["PATH"]},
        ) as child:
            os.close(slave)
            with contextlib.suppress(OSError):
                while child.poll() is None:
                    for fd in select.select([master, self.fd], [], [], 0.1)[0]:
                        data = os.read(fd, 4096)
                        if fd == master and noise:
                            data = noise + data
                        os.write(self.fd if fd == master else master, data)
            child.kill()
        os.close(master)


Guest = Callable[[Callable[[Far], None]], SerialLogin]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Guest]:
    master, slave = pty.openpty()
    tty.setraw(slave)
    console = Console(master, tmp_path / "log")
    threads: list[threading.Thread] = []

    def start(script: Callable[[Far], None]) -> SerialLogin:
        def run() -> None:
            with contextlib.suppress(OSError):
                script(Far(slave))

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return SerialLogin(console, "root", "secret")

    yield start
    console.close()
    with contextlib.suppress(OSError):
        os.close(slave)
    for thread in threads:
        thread.join(timeout=5)


def soon(limit_s: float = 20) -> Deadline:
    return Deadline.after(limit_s)


def test_a_login_without_a_password(play: Guest) -> None:
    def guest(far: Far) -> None:
        far.says(BOOT + PROMPT)
        assert far.hears() == "root"
        far.says(b"Welcome to FreeBSD!\r\n")
        far.shell()

    login = play(guest)
    login.log_in(soon())
    assert login.run("echo one; echo 'two  three'", soon()) == "one\ntwo  three"
    login.run("cd /; umask 022", soon())
    assert login.run("pwd", soon()) == "/"
    with pytest.raises(GuestError, match=r"`\(exit 127\)` on the serial line exited with 127"):
        login.run("(exit 127)", soon())


def test_a_password_is_given_when_it_is_asked_for(play: Guest) -> None:
    passwords: list[str] = []

    def guest(far: Far) -> None:
        far.says(BOOT + PROMPT)
        far.hears()
        far.says(b"Password:")
        passwords.append(far.hears(echo=False))
        far.shell()

    play(guest).log_in(soon())
    assert passwords == ["secret"]


@pytest.mark.parametrize("asks", [True, False])
def test_a_login_that_is_refused(play: Guest, asks: bool) -> None:
    def guest(far: Far) -> None:
        far.says(BOOT + PROMPT)
        far.hears()
        if asks:
            far.says(b"Password:")
            far.hears(echo=False)
        far.says(b"\r\nLogin incorrect\r\nlogin: ")
        time.sleep(1)

    start = time.monotonic()
    with pytest.raises(
        CannotError, match=r"refuses root on its serial line.*images/freebsd-RELEASE.toml"
    ):
        play(guest).log_in(soon(60))
    assert time.monotonic() - start < 40


def test_a_prompt_that_kernel_messages_broke_is_asked_for_again(
    play: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial_login, "_RESEND_S", 0.5)

    def guest(far: Far) -> None:
        far.says(BOOT + PROMPT + b"vtnet0: link state changed to UP\r\nda0: attached")
        assert far.hears() == ""
        far.says(PROMPT)
        assert far.hears() == "root"
        far.shell()

    play(guest).log_in(soon())


def test_the_loader_is_not_disturbed(play: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key would stop its countdown."""
    monkeypatch.setattr(serial_login, "_RESEND_S", 0.3)
    keys: list[bytes] = []

    def guest(far: Far) -> None:
        far.says(b"FreeBSD/x86 bootstrap loader\r\nHit [Enter] to boot immediately\r\n")
        if select.select([far.fd], [], [], 1.2)[0]:
            keys.append(os.read(far.fd, 10))
        far.says(BOOT + PROMPT)
        far.hears()
        far.shell()

    play(guest).log_in(soon())
    assert keys == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", r"nothing came over the serial line.*boot_serial"),
        (BOOT + b"Starting cron.\r\n", r"shows no login prompt.*getty.*ttyu0"),
    ],
)
def test_a_line_without_a_prompt(
    play: Guest, monkeypatch: pytest.MonkeyPatch, said: bytes, words: str
) -> None:
    monkeypatch.setattr(serial_login, "_RESEND_S", 0.4)
    with pytest.raises(CannotError, match=words):
        play(lambda far: far.says(said)).log_in(soon(1))


def test_a_panic_while_it_boots_ends_the_wait(play: Guest) -> None:
    with pytest.raises(GuestPanic, match="panic: no init"):
        play(lambda far: far.says(BOOT + b"panic: no init\r\n")).log_in(soon(60))


def test_kernel_messages_between_the_words(play: Guest) -> None:
    def guest(far: Far) -> None:
        far.says(BOOT + PROMPT)
        far.hears()
        far.shell(noise=b"pid 12 (x): trap\r\n")

    login = play(guest)
    login.log_in(soon())
    assert "out" in login.run("echo out", soon()).splitlines()


def test_a_line_longer_than_a_terminal_takes_is_not_sent(play: Guest) -> None:
    def guest(far: Far) -> None:
        far.says(BOOT + PROMPT)
        far.hears()
        far.shell()

    login = play(guest)
    login.log_in(soon())
    with pytest.raises(ValueError, match="too long for a terminal"):
        login.run("echo " + "x" * 220, soon())
    assert login.run("echo " + "x" * 190, soon()) == "x" * 190
