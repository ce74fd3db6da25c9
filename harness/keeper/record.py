"""The records of guests that stay: a file for each in `guests/` of the runs folder.

A process is identified by its number and by its start time, counted since the host's boot, so that
neither a reused number nor a changed clock causes confusion.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import checked, files, surroundings
from harness.deadline import Deadline
from harness.errors import CannotError, UsageError
from harness.files import runs_dir
from harness.machine.forward import Forward

STARTING, READY, BROKEN, ENDED = "starting", "ready", "broken", "ended"

NO_MODULE: dict[str, str | int] = {"module": "", "module_file": "", "module_address": 0}
MODULE_FIELDS = (*NO_MODULE, "kernel_file")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STEP_S = 0.05


def module_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record for the loaded module; ValueError if they have the wrong type."""
    changes = {name: message[name] for name in MODULE_FIELDS if name in message}
    checked.convert(_Module, changes)
    return changes


@dataclass(frozen=True)
class _Module:
    module: str = ""
    module_file: str = ""
    module_address: checked.Address = 0
    kernel_file: str = ""


@dataclass(frozen=True)
class Process:
    """A process of this host; `started` has the clock ticks since the host's boot, and the boot's
    id.
    """

    pid: checked.Pid
    started: checked.Line

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this number now; None if there is none, or only a zombie."""
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = _BOOT_ID.read_text().strip()
        except (OSError, ValueError):
            return None
        return None if state in "ZX" else cls(pid, f"{fields[18]} of {boot}")

    @property
    def alive(self) -> bool:
        """Whether exactly this process still runs."""
        return Process.of(self.pid) == self

    @property
    def stopped(self) -> bool:
        """Whether it was stopped by a signal (SIGSTOP), so that it cannot answer."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to exactly this process."""
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(self.pid)
            try:
                # From here on the number cannot be reused by another process.
                if self.alive:
                    signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)

    def wait_gone(self, deadline: Deadline) -> bool:
        """Wait until it has ended; returns whether it has."""
        while self.alive:
            if deadline.expired:
                return False
            time.sleep(_STEP_S)
        return True


@dataclass(frozen=True)
class Record:
    """A guest by name: its keeper, its state, and how to connect to it.

    `stage` is `starting` (`note` says what is in progress), `ready`, `broken` (`note` says how; the
    machine still exists) or `ended`.  `module` describes the loaded module; the paths of its file
    and the kernel's, both with symbols, are known once a module was loaded.  `boots` counts its
    boots; `options` are those of its workbench, if it has one.  With `ssh_private` the port is in
    the emulator's own network.
    """

    name: str
    run_dir: Path
    owner: Process
    stage: str = STARTING
    note: str = ""
    what: str = ""
    backend: str = ""
    machine_dir: str = ""
    emulator: Process | None = None
    ssh_port: checked.Port | None = None
    ssh_private: bool = False
    user: checked.MaybeUser = ""
    private_key: checked.Line = ""
    host_key: checked.Line = ""
    announces: str = ""
    module: str = ""
    module_file: str = ""
    module_address: checked.Address = 0
    kernel_file: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    boots: checked.Count = 0
    began_at: checked.Moment = ""
    exit_code: int | None = None
    powered_off: bool = False

    @property
    def alive(self) -> bool:
        """Whether its keeper still runs."""
        return self.stage != ENDED and self.owner.alive

    @property
    def state(self) -> str:
        """The stage; `lost` if its keeper has ended without ending the guest."""
        return self.stage if self.stage == ENDED or self.owner.alive else "lost"

    @property
    def forward(self) -> Forward | None:
        """The address of its sshd, as `Machine.forward`."""
        if self.ssh_port is None:
            return None
        emulator = self.emulator.pid if self.emulator is not None and self.emulator.alive else 0
        return Forward(self.ssh_port, emulator if self.ssh_private else None)

    @property
    def guest_dir(self) -> Path:
        """The folder of the machine's own files: console, emulator's log, overlay."""
        return Path(self.machine_dir) if self.machine_dir else self.run_dir / "guest"

    def to_data(self) -> dict[str, Any]:
        """For --json."""
        data = dataclasses.asdict(self)
        return {**data, "run_dir": str(self.run_dir), "state": self.state, "alive": self.alive}


def check_name(name: str) -> str:
    """Returns `name`; UsageError unless it is short and a valid file name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name}: a name has 1 to 40 letters, digits, dots, dashes and "
            f"underscores, and "
            "begins with a letter or digit"
        )
    return name


def _file(name: str) -> Path:
    return _folder() / f"{check_name(name)}.json"


def load(name: str) -> Record | None:
    """The record of a guest, or None; CannotError if it cannot be read."""
    path = _file(name)
    try:
        record = checked.decode(Record, path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CannotError(f"{path}: cannot be read ({error}); remove it") from error
    if record.name != name:
        raise CannotError(f"{path}: it is about {record.name!r}; remove it")
    return record


def save(record: Record) -> None:
    """Write a record, completely or not at all."""
    path = _file(record.name)
    data = {**dataclasses.asdict(record), "run_dir": str(record.run_dir)}
    files.write_atomic(path, json.dumps(data, indent=2) + "\n", mode=0o600)


def forget(name: str) -> None:
    """Remove a record."""
    _file(name).unlink(missing_ok=True)


def names() -> list[str]:
    """The names that have a record."""
    # A file whose name no guest can have is not a record.
    found = (path.stem for path in _folder().glob("*.json"))
    return sorted(name for name in found if _NAME.fullmatch(name))


def _folder() -> Path:
    return runs_dir() / "guests"


def find(name: str) -> Record:
    """The record of a guest that is up now.

    Raises UsageError if there is none, CannotError if its keeper was killed.
    """
    record = load(name)
    if record is None or record.stage == ENDED:
        how = f" ({record.note})" if record and record.note else ""
        others = [other for other in names() if other != name]
        have = f"; there is {', '.join(others)} (--name)" if others else ""
        raise UsageError(f"no guest named {name} is up{how}; ./inv up starts one{have}")
    if not record.owner.alive:
        raise CannotError(
            f"guest {name}: its keeper has ended, and the guest with it; its logs are "
            f"in {record.run_dir}; ./inv up starts another"
        )
    return record


def reserve(name: str, run_dir: Path, **more: Any) -> Record:
    """Write a record that says that this process starts `name`; an ended guest's is replaced.

    Raises UsageError if a guest of that name is up.
    """
    path = _file(name)
    owner = Process.of(os.getpid())
    if owner is None:
        raise surroundings.no_proc()
    with files.locked(path.with_suffix(".lock"), f"guest {name}", timeout_s=30):
        try:
            old = load(name)
        except CannotError:
            old = None
        if old is not None and old.alive:
            raise UsageError(
                f"guest {name} is {old.stage} already, its keeper is process "
                f"{old.owner.pid}; end it "
                f"(./inv down --name {name}) or take another --name"
            )
        if old is not None:
            clean(old)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = Record(name, run_dir, owner, began_at=now, **more)
        save(record)
    return record


def clean(record: Record) -> None:
    """Remove what an ended guest left: its record, its overlay, an emulator without a keeper.

    The logs stay.
    """
    if record.emulator is not None:
        record.emulator.signal(signal.SIGKILL)
        record.emulator.wait_gone(Deadline.after(10))
    for overlay in record.guest_dir.glob("overlay.*"):
        overlay.unlink(missing_ok=True)
    forget(record.name)
