"""A program that runs `inv verify` with the stand-in instead of FreeBSD, for tests that interrupt
it.

    python interrupted.py STAGE LOCK DISK KEY HOST-KEY

Everything is real except the parts that need FreeBSD; STAGE is the stage that never ends.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from harness import files, report
from harness import machine as machines
from harness.build import bmake
from harness.cli import program
from harness.deadline import Deadline
from harness.guest.freebsd import Access, Guest
from harness.machine import Drive, Spec
from harness.run import verify
from harness.run.options import Options
from harness.run.session import Session
from harness.run.stages import Booted, Built, Imaged, Loaded, Proven

stage, lock, disk, key, host_key = sys.argv[1:]
TEST = "def test_a(guest):\n    guest.run(['sleep', '{}'])\n"
MAKEFILE = "all:\n\tsleep {}\n"


def seconds(name: str) -> str:
    return "600" if stage == name else "0"


class Interrupted(Session):
    def find_image(self, proven: Proven) -> Imaged:
        # If that is the stage, another run holds the lock.
        with self.stage("image"), files.locked(Path(lock), "using the image"):
            record: Any = None
            return Imaged(proven.chosen.backend, record)

    def make(self, imaged: Imaged) -> Built:
        with self.stage("build"):
            (self.run_dir / "share").mkdir()
            (self.run_dir / "share" / "sys.mk").touch()
            (self.run_dir / "Makefile").write_text(MAKEFILE.format(seconds("build")))
            make = bmake.Make("nothing", self.run_dir, ("all",), ())
            log = self.run_dir / "build.log"
            bmake.run(make, self.run_dir, log, lambda _line: None)
            build: Any = None
            return Built(imaged, None, build)

    def boot(self, imaged: Imaged) -> Booted:
        with self.stage("boot"):
            spec = Spec(self.run_dir / "guest", Drive(Path(disk)), memory_bytes=384 << 20)
            guest = Guest(machines.make("tcg", spec), Access(Path(key), host_key))
            self._up = Booted(imaged, guest)
            guest.machine.start(Deadline.after(120))
            guest.wait_ready(Deadline.after(200))
            return self._up

    def load(self, booted: Booted, built: Built, running: Any, stage: str = "load") -> Loaded:
        with self.stage(stage):
            booted.guest.run(["sleep", seconds("load")])
            nothing: Any = None
            return Loaded(booted, built, running, nothing, None, nothing)


@program.run_task
def main() -> int:
    program.end_on_signals()
    tests = files.runs_dir() / "checks"
    tests.mkdir(exist_ok=True)
    (tests / "test_sleep.py").write_text(TEST.format(seconds("checks")))
    # Replace the name that verify looks up, in this process only.
    vars(verify)["Session"] = Interrupted
    result = verify.verify(Options(backend="tcg", stock=True), tests)
    report.show(result)
    return result.exit_code


main()
