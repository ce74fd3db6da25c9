"""A fake guest: what the layers above a machine see, with prepared answers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from harness import progress
from harness.deadline import Deadline
from harness.errors import GuestError, GuestPanic, PatchError
from harness.guest.freebsd import Guest
from harness.guest.kernel_messages import Complaint
from harness.guest.ssh import Result
from harness.machine import Spec, Traits
from harness.machine.spec import Drive
from harness.run.complaints import Complaints
from harness.run.options import Options


class FakeConsole:
    def __init__(self) -> None:
        self.text = ""
        self.log = Path("console.log")
        self.panic = ""

    @property
    def mark(self) -> int:
        return len(self.text)

    def since(self, mark: int) -> str:
        return self.text[mark:]

    def drain(self) -> None:
        pass

    @property
    def panicked(self) -> bool:
        return bool(self.panic)

    def tail(self, _lines: int = 15) -> str:
        return self.text[-200:]

    def last_line(self) -> str:
        return self.text

    def check_panic(self) -> None:
        if self.panic:
            raise GuestPanic(f"the guest panicked: {self.panic}", detail="its story")


class FakeMachine:
    def __init__(self, virtualizes: bool = True) -> None:
        self.console = FakeConsole()
        self.traits = Traits("fake", time_scale=1.0, virtualizes=virtualizes)
        self.spec = Spec(Path("run"), Drive(Path("disk")))
        self.ssh_port = 22
        self.backend = "fake"
        self.pid: int | None = 1
        self.error: GuestError | None = None
        self.ends_after = 0
        self.off = True
        self.stopped = False
        self.boots = 0

    @property
    def panicked(self) -> bool:
        return bool(self.console.panic)

    @property
    def exit_code(self) -> int | None:
        return None if self.pid else 0

    def check(self) -> None:
        self.console.check_panic()
        if self.error:
            raise self.error

    def wait_ended(self, _deadline: Deadline) -> int | None:
        self.ends_after -= 1
        return 0 if self.ends_after < 0 else None

    def powered_off(self) -> bool:
        return self.off

    def stop(self, _deadline: Deadline) -> None:
        self.stopped = True
        self.pid = None


Answer = tuple[int, str, str] | Callable[[], "Answer"] | Exception


class FakeGuest(Guest):
    """Answers commands by their first words; `said` is what it received."""

    def __init__(self, answers: dict[str, Answer] | None = None) -> None:
        self.machine = FakeMachine()  # type: ignore[assignment]
        self._ssh = None
        self.answers = answers or {}
        self.said: list[str] = []
        self.files: dict[str, bytes] = {}
        self.waited = 0

    @property
    def connected(self) -> bool:
        return True

    def run(
        self, command: Sequence[str], deadline: Deadline | None = None, *, stdin: bytes = b""
    ) -> Result:
        line = " ".join(command)
        self.said.append(line)
        fits = [words for words in self.answers if line.startswith(words)]
        answer: Answer = self.answers[max(fits, key=len)] if fits else (0, "", "")
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, tuple)
        return Result(line, *answer, seconds=0.1)

    def put(self, local: Path, remote: str, mode: int = 0o644) -> None:
        self.files[remote] = local.read_bytes()

    def wait_ready(self, deadline: Deadline | None = None, from_mark: int = 0) -> None:
        self.waited += 1

    def dmesg(self, _deadline: Deadline | None = None) -> list[str]:
        self.machine.check()
        console: Any = self.machine.console
        return ["old line", *console.text.splitlines()]


def bench(guest: FakeGuest | None = None) -> SimpleNamespace:
    """A workbench whose guest is up, as the pytest plugin wants it."""
    guest = guest or FakeGuest()

    def clean() -> None:
        guest.said.append("destroy all")

    properties: dict[str, str] = {}
    heard = Complaints(properties)
    heard.loading(cast(Any, guest.machine.console))

    def hear(mark: int) -> tuple[Complaint, ...]:
        return heard.hear(guest, mark, made.on_stock)

    made = SimpleNamespace(
        guest=guest,
        vmm=SimpleNamespace(guest=guest, create=lambda *_a: None, destroy_all=clean),
        vmtool=Path("vmtool"),
        loaded=SimpleNamespace(virtualizes=True, refusal=""),
        backend="fake",
        stock_build=None,
        series=None,
        breaks=0,
        options=Options(),
        stages=[],
        properties=properties,
        panic=None,
        run_dir=Path("run"),
        complaints=heard,
        hear=hear,
        on_stock=False,
    )
    return made


class FailingBench:
    """A workbench for a keeper whose boot fails in one of several ways."""

    def __init__(self, run_dir: Path, how: str) -> None:
        self.run_dir = run_dir
        self.how = how
        self.properties: dict[str, str] = {}
        self.guest: Guest | None = None

    def boot(self) -> None:
        with progress.stage("boot"):
            if self.how == "raise":
                raise PatchError("no such luck", detail="its story")
            if self.how == "wait":
                time.sleep(60)
            os.kill(os.getpid(), signal.SIGKILL if self.how == "die" else signal.SIGSTOP)

    def collect_panic(self) -> None:
        """There is none."""

    def close(self) -> None:
        """Nothing was started."""
