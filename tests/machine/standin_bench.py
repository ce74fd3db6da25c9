"""The stand-in guest as a bench for a keeper; its own module, so that a process can unpickle it."""

from __future__ import annotations

from pathlib import Path

from harness import machine as machines
from harness import progress
from harness.deadline import Deadline
from harness.guest.freebsd import Access, Guest
from harness.machine import Drive, Spec


class StandinBench:
    """Boots the stand-in under TCG; `boot_s` is how long it may take."""

    def __init__(
        self, run_dir: Path, disk: Path, key: Path, host_key: str, boot_s: float = 240
    ) -> None:
        self.run_dir = run_dir
        self.properties: dict[str, str] = {"standin": "yes"}
        self.guest: Guest | None = None
        self.stages: list[progress.Stage] = []
        self.boot_s = boot_s
        self._spec = Spec(run_dir / "guest", Drive(disk), memory_bytes=384 << 20, name="stand-in")
        self._access = Access(key, host_key)

    def boot(self) -> None:
        with progress.stage("boot", self.stages) as step:
            machine = machines.make("tcg", self._spec)
            self.guest = Guest(machine, self._access)
            machine.start(Deadline.after(120))
            with progress.following(step, machine.console.last_line):
                self.guest.wait_ready(Deadline.after(self.boot_s))

    def collect_panic(self) -> None:
        """Do nothing: the report of a panic is not needed."""

    def close(self) -> None:
        if self.guest is not None:
            self.guest.disconnect()
            self.guest.machine.stop(Deadline.after(10))
