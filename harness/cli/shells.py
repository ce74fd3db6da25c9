"""Connections to a guest that stays: a shell or a command over SSH, and the serial line.

SSH uses OpenSSH's client, without the user's keys, agent, settings and known hosts, because these
are not for a guest.
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

    The second value is its additional environment.
    """
    words = [OPENSSH, "-F", "none", "-t" if terminal else "-T", "-p", str(record.ssh_port)]
    options, environment = openssh.options(record)
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    # After the dashes nothing is an option, even if the user's name in the record starts with one.
    words += ["--", f"{record.user}@127.0.0.1", *([_line(command)] if command else [])]
    return words, environment


def _line(command: Sequence[str]) -> str:
    """The line for the guest's shell: one word is used unchanged, several are quoted."""
    return command[0] if len(command) == 1 else shlex.join(command)


def ssh(record: Record, command: Sequence[str]) -> int:
    """Run a shell or one command in the guest, and return its exit code.

    The command gets this process's input and output.  A shell gets a terminal, and so does a
    command that is started from one.  Raises GuestError when the guest cannot be reached,
    CannotError where OpenSSH's client is not installed.
    """
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if shutil.which(OPENSSH) is None:
        raise CannotError(
            "OpenSSH's client is not installed; ./inv setup installs it (Debian's openssh-client)"
        )
    words, more = ssh_command(record, command, terminal=terminal)
    # Not by process.run: the client has the user's terminal.
    process = subprocess.Popen(words, env={**os.environ, **more})
    while True:
        # Ctrl-C also reaches the client, which decides what to do.
        with contextlib.suppress(KeyboardInterrupt):
            try:
                code = process.wait(_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                # The client would wait for ever, because it does not notice that its guest has
                # ended.
                _check(record, process)
    if code == _SSH_FAILED:
        # ssh uses 255 for its own failures, but a command may return it too; so look at the guest.
        _check(record, process)
    return code if code >= 0 else 128 - code


def _check(entered: Record, process: subprocess.Popen[bytes]) -> None:
    """End `process` and raise GuestError if the guest has ended, broken or been replaced."""
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
            f"guest {name} is still coming up ({record.note}); ./inv console shows its serial line"
        )
    if record.stage == BROKEN:
        raise GuestError(f"guest {name} is broken: {record.note}; ./inv console enters it")
    return record


def console(record: Record, past_lines: int) -> None:
    """Connect this terminal to the serial line, after its last lines; Ctrl-] leaves it.

    Control sequences are removed from the earlier lines: this terminal would answer them, and the
    guest would take the answers for typed text.  Raises UsageError without a terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "the console needs a terminal; ./inv logs --follow shows the serial line without one"
        )
    line, past = open_console(record, past_lines * _LINE_BYTES)
    with line:
        progress.say(
            f"[{record.name}'s serial line; {_DETACH_NAME} leaves it, and the guest continues]"
        )
        shown = clean_lines(past.decode("utf-8", "replace"))[-past_lines:]
        # The cursor stays where the guest put it, which is often behind a prompt.
        end = {b"\n": "\n", b" ": " "}.get(past[-1:], "")
        sys.stdout.write("\n".join(shown) + end)
        sys.stdout.flush()
        with _raw(True):
            left = _talk(line)
    progress.say("")
    progress.say(f"[left; guest {record.name} continues]" if left else "[the serial line closed]")


def _talk(line: socket.socket) -> bool:
    """Pass bytes on until the user leaves (True) or the serial line closes (False)."""
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
    """Make the terminal pass on every key while the block runs."""
    if not terminal:
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
