"""The keeper as seen by other processes: they start one, follow it, and use its guest."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import machine as machines
from harness import process, progress
from harness.deadline import Deadline
from harness.errors import GuestError, MachineDied, UsageError, WorkbenchError
from harness.files import PROJECT
from harness.guest.freebsd import Access, Guest
from harness.keeper import record as records
from harness.keeper import wire
from harness.keeper.record import BROKEN, ENDED, READY, STARTING, Process, Record
from harness.keeper.server import RELEASE, Bench
from harness.machine import Drive, Machine, Spec
from harness.machine.base import tail_of
from harness.machine.console import Console

_SILENCE_S = 2.0
_GONE_S = 30.0
_SOFT_S = 25.0
_HARD_S = 10.0
_LOOK_S = 0.5


class Starter:
    """A keeper that this process started; its guest ends with this process until `release`."""

    def __init__(self, record: Record, bench: Bench) -> None:
        """Start a keeper that runs `bench` under the name of `record`, which must be reserved."""
        self._record = record
        self.log = record.run_dir / "keeper.log"
        command = (sys.executable, "-m", "harness.keeper")
        self._process, self._line = process.start_with_line(command, PROJECT, self.log)
        try:
            self._line.send((record, bench))
        except OSError:
            self._explain_end()

    def follow(self, stages: list[progress.Stage]) -> tuple[Record, dict[str, str]]:
        """Show the keeper's stages until the guest is up; returns its record and properties.

        Raises the error that occurred in the keeper, or GuestError if the keeper itself ended.
        """
        with contextlib.ExitStack() as running:
            step = progress.Stage("")
            while True:
                kind, text, more = self._hear()
                if kind == "begin":
                    step = running.enter_context(progress.stage(text, stages))
                elif kind == "live":
                    step.live(text)
                elif kind == "end":
                    step.note = more
                    if text == "ok":
                        running.close()
                elif kind == "failed":
                    raise text
                elif kind == "ready":
                    return text, more
                else:
                    (progress.say if kind == "say" else progress.say_detail)(text)

    def _hear(self) -> tuple[str, Any, Any]:
        keeper = Process.of(self._process.pid)
        try:
            while not self._line.poll(_SILENCE_S):
                if keeper is not None and keeper.stopped:
                    raise GuestError(
                        f"guest {self._record.name}: its keeper, process {keeper.pid}, was stopped "
                        "by a signal"
                    )
            kind, text, *more = self._line.recv()
        except (EOFError, OSError):
            self._explain_end()
        return kind, text, more[0] if more else ""

    def _explain_end(self) -> None:
        code = self._process.wait()
        raise GuestError(
            f"guest {self._record.name}: its keeper {machines.base.describe_exit(code)}; its log "
            f"is {self.log}",
            detail=tail_of(self.log),
        )

    @property
    def pid(self) -> int:
        """The keeper's process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the keeper still runs."""
        return self._process.poll() is None

    def release(self) -> None:
        """Release the guest, so that it stays when this process ends."""
        with contextlib.suppress(OSError):
            self._line.send(RELEASE)
        self._line.close()

    def end(self) -> None:
        """End the guest and wait for its keeper; does nothing if both have ended."""
        self._line.close()
        keeper = Process.of(self._process.pid)
        try:
            if keeper is not None and keeper.stopped:
                self._process.kill()
            self._process.wait(_GONE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        left = records.load(self._record.name)
        if left is not None and left.run_dir == self._record.run_dir:
            records.clean(left)


class Attached(Machine):
    """A machine that a keeper runs: it is used like any machine, but never ended from here."""

    def __init__(self, record: Record) -> None:
        super().__init__(Spec(record.guest_dir, Drive(Path("/")), name=record.what))
        self.record = record
        self.traits = machines.traits(record.backend)
        self.ssh_port, self.private = record.ssh_port, record.ssh_private
        line, _ = open_console(record, 0)
        log = self.spec.console_log
        self._console = Console(line.detach(), log, self._check_process, writes_log=False)

    @property
    def pid(self) -> int | None:
        return self.record.emulator.pid if self.record.emulator and not self._over else None

    @property
    def _over(self) -> bool:
        return self.console.closed

    @property
    def exit_code(self) -> int | None:
        if not self._over:
            return None
        now = self._now()
        code = now.exit_code if now is not None else None
        return code if code is not None else -signal.SIGKILL

    def _check_process(self) -> None:
        if not self._over:
            self._check_running()
            return
        self.console.check_panic()
        now = self._now()
        if now is None:
            how = "it was ended (./inv down)"
        elif now.stage == ENDED:
            how = now.note
        else:
            how = f"its keeper, process {now.owner.pid}, has ended, and the guest with it"
        raise MachineDied(
            f"guest {self.record.name}: {how}, while it was needed; the console's log is "
            f"{self.spec.console_log}",
            detail=self.console.tail(),
        )

    def _now(self) -> Record | None:
        now = records.load(self.record.name)
        return now if now is not None and now.run_dir == self.record.run_dir else None

    def command(self) -> list[str]:
        raise NotImplementedError

    def _prepare(self) -> None:
        raise NotImplementedError

    def _start_once(self, deadline: Deadline) -> None:
        raise NotImplementedError

    def powered_off(self) -> bool:
        now = self._now()
        return now is not None and now.powered_off

    def last_words(self) -> str:
        now = self._now()
        return now.note if now is not None else ""

    def wait_ended(self, deadline: Deadline) -> int | None:
        self.console.wait_closed(deadline)
        return self.exit_code

    def _quit(self, deadline: Deadline) -> None:
        raise NotImplementedError

    def stop(self, deadline: Deadline) -> None:
        """Disconnect from the machine, which continues to run."""
        self.console.close()

    def _release(self) -> None:
        raise NotImplementedError


def open_console(record: Record, past_bytes: int) -> tuple[socket.socket, bytes]:
    """The guest's serial line in both directions, preceded by up to `past_bytes` of earlier output.

    Raises CannotError and WaitTimeout like `wire.converse`.
    """
    line, answer = wire.converse(record, "console", back_bytes=past_bytes)
    past = bytearray()
    while len(past) < answer["past_bytes"]:
        data = line.recv(answer["past_bytes"] - len(past))
        if not data:
            break
        past += data
    return line, bytes(past)


def attach(record: Record) -> Guest:
    """Connect to the guest with the record `record`.

    The caller closes the machine's console (`guest.machine.stop`), which leaves the guest running.
    Raises GuestError if it is broken or does not answer.
    """
    if record.stage == BROKEN:
        raise GuestError(f"guest {record.name} is broken: {record.note}")
    access = Access(Path(record.private_key), record.host_key, record.user, record.announces)
    machine = Attached(record)
    guest = Guest(machine, access)
    try:
        if record.stage == READY:
            guest.enter()
        else:
            guest.wait_ready()
    except BaseException:
        machine.stop(Deadline.after(1))
        raise
    return guest


@contextlib.contextmanager
def attached(name: str) -> Iterator[Guest]:
    """A connection to the guest `name` during the block; the guest continues afterwards."""
    guest = attach(records.find(name))
    try:
        yield guest
    finally:
        guest.disconnect()
        guest.machine.stop(Deadline.after(1))


def set_module(record: Record, **known: str | int) -> None:
    """Report the loaded module to the keeper, as fields of the record; no fields if none is
    loaded.
    """
    wire.call(record, "module", changes={**records.NO_MODULE, **known})


@contextlib.contextmanager
def debugger(record: Record) -> Iterator[Path]:
    """The emulator's stub for gdb, a socket that exists during the block.

    Afterwards the guest continues, in whatever state the debugger left it.  Raises CannotError if
    the emulator has no stub.
    """
    target = Path(wire.call(record, "gdb", open=True)["path"])
    try:
        yield target
    finally:
        wire.call(record, "gdb", open=False)


def down(name: str, hard: bool = False, live: Callable[[str], None] = lambda _line: None) -> str:
    """End a guest, its keeper and its emulator; returns a short result.  The logs stay.

    The guest is asked to shut down unless `hard`; if it does not answer it is ended anyway.  Raises
    UsageError if there is no such guest.
    """
    record = records.load(name)
    if record is None:
        raise UsageError(f"no guest named {name} is up; ./inv status lists the guests")
    if not record.alive:
        records.clean(record)
        return record.note if record.stage == ENDED else "its keeper had already ended"
    coming_up = record.stage == STARTING and not record.boots
    with contextlib.suppress(WorkbenchError):
        if not record.owner.stopped:
            hard = hard or coming_up or record.stage == BROKEN
            wire.call(record, "down", hard=hard)
            pace = 1.0 if hard else machines.traits(record.backend).time_scale
            _wait_gone(record, Deadline.after(_SOFT_S * pace), live)
    # SIGINT comes first: a build in progress then ends its compilers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if record.owner.alive and (number == signal.SIGKILL or not record.owner.stopped):
            record.owner.signal(number)
            record.owner.wait_gone(Deadline.after(_HARD_S))
    left = records.load(name)
    if left is not None and left.run_dir == record.run_dir:
        records.clean(left)
    return "ended at once" if hard else "shut down"


def _wait_gone(record: Record, deadline: Deadline, live: Callable[[str], None]) -> None:
    while not record.owner.wait_gone(deadline.at_most(_LOOK_S)) and not deadline.expired:
        if record.owner.stopped:
            return
        with contextlib.suppress(WorkbenchError):
            live(wire.call(record, "status", timeout_s=2)["last_line"])
