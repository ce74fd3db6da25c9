"""Access to a guest that stays up: a shell or a command over SSH, and the serial line.

OpenSSH's client does the former.  It ignores the user's own set-up: their keys,
agent, settings and known hosts are not meant for a guest.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator, Sequence

from harness import progress
from harness.errors import CannotError, GuestError, UsageError
from harness.keeper import BROKEN, STARTING, Record, find, load, open_console, openssh
from harness.machine.console import clean_lines

OPENSSH = "ssh"

_LOOK_S = 0.5
_SSH_FAILED = 255
_CHUNK_BYTES = 1 << 16
_DETACH = b"\x1d"
_DETACH_NAME = "Ctrl-]"
_LINE_BYTES = 200


def ssh_command(
    record: Record, command: Sequence[str], *, terminal: bool
) -> tuple[list[str], dict[str, str]]:
    """OpenSSH's client for this guest, with its host key pinned in the run's folder.

    The second value is what it needs in its environment.
    """
    words = [OPENSSH, "-F", "none", "-t" if terminal else "-T", "-p", str(record.ssh_port)]
    options, environment = openssh.options(record)
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    # What follows the dashes is no option, whatever a record says the user is called.
    words += ["--", f"{record.user}@127.0.0.1", *([_line(command)] if command else [])]
    return words, environment


def _line(command: Sequence[str]) -> str:
    """What the guest's shell gets: one word is a line for it, several are quoted as they came."""
    return command[0] if len(command) == 1 else shlex.join(command)


def ssh(record: Record, command: Sequence[str]) -> int:
    """A shell in the guest, or one command with the exit code it had there.

    Both of this process's ends are the command's; a terminal is given to a shell, and to a command
    that is started from one.  Raises GuestError when the guest cannot be reached, CannotError
    where OpenSSH's client is not installed.
    """
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if shutil.which(OPENSSH) is None:
        raise CannotError(
            "OpenSSH's client is not installed; ./inv setup installs it (Debian's openssh-client)"
        )
    words, more = ssh_command(record, command, terminal=terminal)
    process = subprocess.Popen(words, env={**os.environ, **more})
    while True:
        # Ctrl-C reaches the client too, and what it means is decided there.
        with contextlib.suppress(KeyboardInterrupt):
            try:
                code = process.wait(_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                # The client would wait for ever: nothing tells it that its guest has gone.
                _check(record, process)
    if code == _SSH_FAILED:
        # Its own failure or the command's code, ssh does not say; a guest that is gone explains it.
        _check(record, process)
    return code if code >= 0 else 128 - code


def _check(entered: Record, process: subprocess.Popen[bytes]) -> None:
    """GuestError, and the end of `process`, when the guest is not any more what was entered."""
    now = load(entered.name)
    if now is None or not now.alive or now.run_dir != entered.run_dir:
        how = f"has ended: {now.note}" if now is not None and now.note else "has ended"
    elif now.stage == BROKEN:
        how = f"is broken: {now.note}; ./inv console --name {now.name} enters it"
    elif now.boots != entered.boots or now.stage == STARTING:
        how = "was rebooted"
    else:
        return
    process.terminate()
    process.wait()
    raise GuestError(f"guest {entered.name} {how}")


def way_in(name: str) -> Record:
    """The record of a guest that can be entered over SSH.

    Raises UsageError when there is none, CannotError while it comes up, GuestError when it broke.
    """
    record = find(name)
    if record.stage == STARTING:
        raise CannotError(
            f"guest {name} is still coming up ({record.note}); ./inv console shows what it says"
        )
    if record.stage == BROKEN:
        raise GuestError(f"guest {name} is broken: {record.note}; ./inv console enters it")
    return record


def console(record: Record, past_lines: int) -> None:
    """The serial line on this terminal, after its last lines; Ctrl-] leaves it, the guest goes on.

    What came before is shown without what steers a terminal, or this one would answer it, and the
    guest take that for something typed.  Raises UsageError without a terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "the console wants a terminal; ./inv logs --follow shows the serial line without one"
        )
    line, past = open_console(record, past_lines * _LINE_BYTES)
    with line:
        progress.say(f"[{record.name}'s serial line; {_DETACH_NAME} leaves it, the guest goes on]")
        shown = clean_lines(past.decode("utf-8", "replace"))[-past_lines:]
        # The cursor is left where the guest has it, behind a prompt as often as not.
        end = {b"\n": "\n", b" ": " "}.get(past[-1:], "")
        sys.stdout.write("\n".join(shown) + end)
        sys.stdout.flush()
        with _raw(True):
            left = _talk(line)
    progress.say("")
    progress.say(f"[left; guest {record.name} goes on]" if left else "[the serial line closed]")


def _talk(line: socket.socket) -> bool:
    """Until the key that leaves (True) or the line's end (False)."""
    while True:
        ready, _, _ = select.select([line.fileno(), 0], [], [])
        if line.fileno() in ready:
            data = line.recv(_CHUNK_BYTES)
            if not data:
                return False
            _write_out(data)
        if 0 in ready:
            typed = os.read(0, 4096)
            before, key, _ = typed.partition(_DETACH)
            if before:
                line.sendall(before)
            if key or not typed:
                return True


def _write_out(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


@contextlib.contextmanager
def _raw(terminal: bool) -> Iterator[None]:
    """The terminal passes every key on while the block runs."""
    if not terminal:
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
