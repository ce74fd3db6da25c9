"""The process of a keeper: it starts a guest, owns its connections, and ends it.

An emulator dies with the thread that started it, so that nothing is left when a run is killed.  A
guest that should outlive its command therefore needs a process of its own.  Until that command
calls `release`, the guest ends with the command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from harness import files, progress, surroundings
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, GuestPanic, Interrupted, WorkbenchError
from harness.guest.freebsd import Guest
from harness.keeper import openssh, wire
from harness.keeper import record as records
from harness.keeper.record import BROKEN, ENDED, READY, STARTING, Process, Record
from harness.machine import Machine
from harness.machine.base import describe_exit
from harness.machine.console import Console

RELEASE = "release"
_TICK_S = 0.2
_SOFT_NATIVE_S = 10.0
_DMESG_S = 10.0
_DEBUGGER_S = 5.0
_END_S = 2.0
_CHUNK_BYTES = 1 << 16
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Bench(Protocol):
    """The object that a keeper runs: it can be pickled, starts a guest and ends it."""

    run_dir: Path
    properties: dict[str, str]

    @property
    def guest(self) -> Guest | None:
        """The guest; None until there is one."""

    def boot(self) -> None:
        """Start the guest; WorkbenchError if it does not come up."""

    def collect_panic(self) -> object:
        """Record the facts about a panic, while the machine still runs."""

    def close(self) -> None:
        """End the machine and remove its temporary files."""


class _EndNow(BaseException):
    """The guest is to be ended immediately."""


class Keeper:
    """One guest, from its boot to its end.  `run` belongs to the process's main thread."""

    def __init__(self, line: Connection[Any, Any], record: Record, bench: Bench) -> None:
        self._line = line
        self._line_lock = threading.Lock()
        self._record = record
        self._record_lock = threading.Lock()
        self._bench = bench
        self._released = False
        self._past = ""
        self._well: dict[str, Any] | None = None
        self._decided = threading.Event()
        self._ended = threading.Event()
        self._asked_soft = threading.Event()
        self._streams: list[threading.Thread] = []

    def run(self) -> None:
        """Start the guest, run it, and end it."""
        for number in _SIGNALS:
            signal.signal(number, self._end_now)
        listener = None
        ended_by_itself = False
        try:
            owner = Process.of(os.getpid())
            if owner is None:
                raise surroundings.no_proc()
            self._update(owner=owner, note="boot")
            listener = wire.listen(self._record.run_dir)
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            threading.Thread(target=self._hear_starter, daemon=True).start()
            if self._come_up():
                ended_by_itself = self._hold()
        except _EndNow:
            self._send("failed", Interrupted(f"guest {self._record.name} was ended"))
        except WorkbenchError as error:
            self._send("failed", error)
        finally:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            with contextlib.suppress(WorkbenchError, OSError):
                self._bench.close()
            if not ended_by_itself:
                records.clean(dataclasses.replace(self._record, emulator=None))
            self._ended.set()
            if listener is not None:
                listener.close()
            until = time.monotonic() + _END_S
            for stream in self._streams:
                stream.join(max(0.0, until - time.monotonic()))

    def report(self, kind: str, text: str, more: str) -> None:
        """Send this process's progress to its log, and to the process that started it."""
        if kind != "live":
            now = time.strftime("%H:%M:%S", time.gmtime())
            sys.stderr.write(
                f"{now} {kind} {progress.clean(text)} {progress.clean(more)}".rstrip() + "\n"
            )
        self._send(kind, text, more)

    # --- the main thread

    def _end_now(self, _number: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise _EndNow

    def _come_up(self) -> bool:
        """Start the guest; returns whether there is a machine to run afterwards."""
        try:
            self._bench.boot()
        except WorkbenchError as error:
            guest = self._bench.guest
            there = guest is not None and guest.machine.pid is not None
            if there:
                self._update(stage=BROKEN, note=error.message, **self._way_in())
            self._send("failed", error)
            self._decided.wait()
            return there and self._released
        self._update(stage=READY, note="", boots=1, **self._way_in())
        # A full disk must not end the guest.
        with contextlib.suppress(OSError):
            openssh.write_config(self._record)
        self._send("ready", self._record, self._bench.properties)
        return True

    def _way_in(self) -> dict[str, Any]:
        guest = self._guest()
        machine, access = guest.machine, guest.access
        return {
            "what": machine.spec.name,
            "backend": machine.backend,
            "machine_dir": str(machine.spec.run_dir),
            "emulator": Process.of(machine.pid) if machine.pid else None,
            "ssh_port": machine.ssh_port,
            "ssh_private": machine.private,
            "user": access.user,
            "private_key": str(access.private_key),
            "host_key": access.host_key,
            "announces": access.announces,
        }

    def _guest(self) -> Guest:
        if self._bench.guest is None:
            raise CannotError("the machine was not started yet")
        return self._bench.guest

    def _hold(self) -> bool:
        """Run the guest until it should end or has ended; returns whether it ended by itself."""
        guest = self._guest()
        guest.disconnect()
        machine = guest.machine
        mark, boots = machine.console.mark, machine.boots
        while not self._asked_soft.wait(_TICK_S):
            if machine.boots != boots:
                boots = machine.boots
                # The guest's last output and its reset arrive on different ways: look for a panic
                # first.
                time.sleep(_TICK_S)
                self._note_health(machine)
                self._note_boot(machine.console)
            mark = self._listen_for_sshd(machine.console, mark)
            if machine.exit_code is not None:
                self._note_end(machine)
                return True
            self._note_health(machine)
        self._end_softly(guest)
        return False

    def _note_boot(self, console: Console) -> None:
        """The guest boots again: a panic before that belongs to the previous boot."""
        console.forget_panic()
        changes = {"boots": self._record.boots + 1, **records.NO_MODULE}
        if self._record.announces:
            changes |= {"stage": STARTING, "note": "rebooting"}
        self._update(**changes)

    def _listen_for_sshd(self, console: Console, mark: int) -> int:
        """Notice on the console that the guest is up again."""
        data, behind = console.read_from(mark, _CHUNK_BYTES)
        whole = data if len(data) == _CHUNK_BYTES else data[: data.rfind(b"\n") + 1]
        if self._record.announces and self._record.announces.encode() in whole:
            self._update(stage=READY, note=self._past)
        return behind - len(data) + len(whole)

    def _note_health(self, machine: Machine) -> None:
        """Collect a panic once; a stopped emulator may be continued."""
        try:
            machine.check()
        except GuestPanic as panic:
            if self._record.stage != BROKEN:
                self._update(stage=BROKEN, note=panic.message)
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                self._past = f"it panicked at {now} and came up again; see {self._record.run_dir}"
                # While the process that started this one exists, it collects a panic itself.
                if self._released:
                    self._bench.collect_panic()
        except GuestError as error:
            if self._well is None:
                self._well = {"stage": self._record.stage, "note": self._record.note}
                self._update(stage=BROKEN, note=error.message)
        else:
            if self._well is not None:
                self._update(**self._well)
                self._well = None

    def _note_end(self, machine: Machine) -> None:
        code = machine.exit_code or 0
        off = machine.powered_off()
        words = machine.last_words().splitlines()
        how = "it powered itself off" if off else f"{machine.backend} {describe_exit(code)}"
        if words and not off:
            how += f": {words[-1]}"
        self._update(stage=ENDED, note=how, exit_code=code, powered_off=off, emulator=None)

    def _end_softly(self, guest: Guest) -> None:
        if self._record.stage != READY:
            return
        self._update(note="shutting down")
        try:
            guest.enter(guest.deadline(_SOFT_NATIVE_S))
            with contextlib.suppress(GuestError, OSError):
                text = guest.must(["dmesg"], Deadline.after(_DMESG_S))
                files.write_atomic(self._record.guest_dir / "dmesg.txt", text)
            guest.shut_down(guest.deadline(_SOFT_NATIVE_S))
        except GuestError as error:
            progress.say(f"it did not shut down by itself: {error.message}")

    # --- other threads

    def _update(self, **changes: Any) -> None:
        with self._record_lock:
            self._record = dataclasses.replace(self._record, **changes)
            # A full disk must not end the guest: the keeper still answers requests.
            with contextlib.suppress(OSError):
                records.save(self._record)

    def _send(self, *message: object) -> None:
        # The process that started this one may have ended; after `release` it should.
        with self._line_lock, contextlib.suppress(OSError):
            self._line.send(message)

    def _hear_starter(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._released = self._line.recv() == RELEASE
        self._decided.set()
        if not self._released:
            os.kill(os.getpid(), signal.SIGTERM)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                stream = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._streams = [it for it in self._streams if it.is_alive()] + [stream]
                stream.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError, ValueError, TypeError):
            asked = wire.receive(connection)
            try:
                self._answer(connection, asked)
            except WorkbenchError as error:
                wire.send(connection, {"refused": error.message})

    def _answer(self, connection: socket.socket, asked: dict[str, Any]) -> None:
        request = asked.get("request")
        if request == "status":
            guest = self._bench.guest
            last = ""
            with contextlib.suppress(RuntimeError):
                last = guest.machine.console.last_line() if guest else ""
            wire.send(connection, {**self._record.to_data(), "last_line": last})
        elif request == "down":
            wire.send(connection, {})
            if asked.get("hard"):
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self._asked_soft.set()
        elif request == "module":
            self._update(**records.module_fields(asked["changes"]))
            wire.send(connection, {})
        elif request == "gdb":
            machine = self._guest().machine
            limit = Deadline.after(_DEBUGGER_S)
            if asked.get("open"):
                wire.send(connection, {"path": str(machine.open_debugger(limit))})
            else:
                machine.close_debugger(limit)
                wire.send(connection, {})
        elif request == "console":
            self._pass_on(connection, int(asked.get("back_bytes", 0)))
        else:
            raise CannotError(
                f"its keeper does not know the request `{request}`; it runs an older version"
            )

    def _pass_on(self, connection: socket.socket, back_bytes: int) -> None:
        """Pass on the serial line to another reader, with `back_bytes` of earlier output, and their
        input.
        """
        try:
            console = self._guest().machine.console
        except RuntimeError as error:
            raise CannotError("the machine was not started yet") from error
        mark = max(0, console.mark - back_bytes)
        past, mark = console.read_from(mark, back_bytes)
        wire.send(connection, {"past_bytes": len(past)})
        connection.sendall(past)
        gone = threading.Event()

        def typed() -> None:
            with contextlib.suppress(OSError, WorkbenchError):
                while data := connection.recv(4096):
                    console.send(data)
            gone.set()

        threading.Thread(target=typed, daemon=True).start()
        while not gone.is_set():
            data, mark = console.read_from(mark, _CHUNK_BYTES)
            if data:
                connection.sendall(data)
            elif console.closed:
                # A reader that sees the end of the line looks for the reason, so it must be
                # recorded first.
                self._ended.wait(_END_S)
                break
            else:
                console.wait_bytes(mark, Deadline.after(_TICK_S))
        connection.shutdown(socket.SHUT_RDWR)


def main(arguments: list[str]) -> None:
    """`python -m harness.keeper FD`: FD is the socket to the process that started this one."""
    os.umask(0o077)
    line: Connection[Any, Any] = Connection(int(arguments[0]))
    record, bench = line.recv()
    keeper = Keeper(line, record, bench)
    with progress.reported_to(keeper.report):
        keeper.run()
