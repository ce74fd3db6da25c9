"""When a guest that does not come up is reported, and when it is left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import CannotError, GuestError
from harness.machine import boot_watch, vga
from harness.machine.boot_watch import BootWatch
from harness.machine.console import Console

LOADER = ["can't load 'kernel'", "", "Type '?' for a list of commands.", "OK"]


class Played:
    """A serial line, a screen and a count of resets that the test sets."""

    def __init__(self, folder: Path) -> None:
        read, self.write = os.pipe()
        self.console = Console(read, folder / "console.log")
        self.screen: list[str] = []
        self.resets = 0
        self.watch = BootWatch(
            "guest", self.console, lambda: self.screen, lambda: self.resets, lambda: "a word"
        )

    def says(self, text: str) -> None:
        mark = self.console.mark
        os.write(self.write, text.encode())
        while self.console.mark == mark:
            pass


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    monkeypatch.setattr(boot_watch, "_QUIET_S", 0.0)
    monkeypatch.setattr(boot_watch, "_EVERY_S", 0.0)
    it = Played(tmp_path)
    yield it
    os.close(it.write)
    it.console.close()


def test_a_screen_is_believed_when_it_was_the_same_twice(played: Played) -> None:
    played.screen = LOADER
    played.watch.look()
    with pytest.raises(GuestError, match="stopped at its prompt") as raised:
        played.watch.look()
    assert raised.value.detail == "\n".join(LOADER)


def test_a_screen_that_changes_is_left_alone(played: Played) -> None:
    for number in range(5):
        played.screen = [f"booting in {number}", "OK"]
        played.watch.look()


@pytest.mark.parametrize(
    "last",
    ["Loading kernel...", "OK, loading", "Booting [/boot/kernel/kernel]...", "-", "x login: root"],
)
def test_a_word_that_is_no_stop_is_waited_for(played: Played, last: str) -> None:
    played.screen = ["FreeBSD", last]
    for _ in range(3):
        played.watch.look()


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ("boot:", "first boot program found no loader"),
        ("mountroot>", "no root file system"),
        ("db>", "in its debugger"),
        ("BTX halted", "its boot program crashed"),
        ("No bootable device.", "its disk does not boot"),
        ("Missing operating system", "its disk does not boot"),
    ],
)
def test_stops_are_known_by_their_last_line(played: Played, last: str, why: str) -> None:
    played.screen = ["before", last]
    played.watch.look()
    with pytest.raises(GuestError, match=why):
        played.watch.look()


def test_a_login_on_the_screen_counts_only_where_the_serial_line_is_silent(played: Played) -> None:
    played.screen = ["FreeBSD/amd64 (ttyv0)", "login:"]
    played.says("---<<BOOT>>---\r\n")
    for _ in range(3):
        played.watch.look()


def test_a_login_on_the_screen_alone_is_the_image_s_fault(played: Played) -> None:
    played.screen = ["FreeBSD/amd64 (ttyv0)", "login:"]
    played.watch.look()
    with pytest.raises(CannotError, match="comconsole"):
        played.watch.look()


def test_while_the_serial_line_speaks_nobody_looks(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot_watch, "_QUIET_S", 3600.0)
    played.screen = LOADER
    for _ in range(3):
        played.watch.look()


def test_the_second_return_without_a_login_ends_the_wait(played: Played) -> None:
    played.resets = 1
    played.watch.look()
    played.says("FreeBSD/amd64 (ttyu0)\r\n\r\nlogin: ")
    played.resets = 2
    played.watch.look()
    played.resets = 3
    played.watch.look()
    played.resets = 4
    with pytest.raises(GuestError, match="again and again: it was reset 2 times") as raised:
        played.watch.look()
    assert raised.value.detail.startswith("a word\n")


def memory(*rows: str) -> bytes:
    text = "".join(row.ljust(vga.COLUMNS) for row in rows).ljust(vga.COLUMNS * vga.LINES)
    return b"".join(bytes([letter, 7]) for letter in text.encode("cp437"))


def test_the_text_screen_out_of_the_card_s_memory() -> None:
    assert vga.lines(memory("┌─ Welcome ─┐", "", "OK")) == ["┌─ Welcome ─┐", "", "OK"]
    assert vga.lines(memory()) == []
    assert vga.lines(memory("OK")[:-2]) == []
    # Graphics.
    assert vga.lines(bytes(range(256)) * 16) == []
