"""`inv verify` with the stand-in for FreeBSD, for tests that break in on it: a program of its own.

    python interrupted.py STAGE LOCK DISK KEY HOST-KEY

Everything is real but for what needs FreeBSD; STAGE is the one that takes for ever.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness import files, progress, report
from harness import machine as machines
from harness.build import bmake
from harness.cli import program
from harness.deadline import Deadline
from harness.guest.freebsd import Access, Guest
from harness.machine import Drive, Spec
from harness.run import verify
from harness.run.session import Options, Workbench

stage, lock, disk, key, host_key = sys.argv[1:]
TEST = "def test_a(guest):\n    guest.run(['sleep', '{}'])\n"
MAKEFILE = "all:\n\tsleep {}\n"


def seconds(name: str) -> str:
    return "600" if stage == name else "0"


class Bench(Workbench):
    def find_image(self) -> None:
        # Another run holds the lock, if that is the stage.
        with progress.stage("image", self.stages), files.locked(Path(lock), "using the image"):
            pass

    def make(self) -> None:
        with progress.stage("build", self.stages):
            (self.run_dir / "share").mkdir()
            (self.run_dir / "share" / "sys.mk").touch()
            (self.run_dir / "Makefile").write_text(MAKEFILE.format(seconds("build")))
            make = bmake.Make("nothing", self.run_dir, ("all",), ())
            log = self.run_dir / "build.log"
            bmake.run(make, self.run_dir, log, lambda _line: None)

    def boot(self) -> None:
        with progress.stage("boot", self.stages):
            spec = Spec(self.run_dir / "guest", Drive(Path(disk)), memory_bytes=384 << 20)
            self.guest = Guest(machines.make("tcg", spec), Access(Path(key), host_key))
            self.guest.machine.start(Deadline.after(30))
            self.guest.wait_ready(Deadline.after(200))

    def load(self) -> None:
        with progress.stage("load", self.stages):
            assert self.guest is not None
            self.guest.run(["sleep", seconds("load")])


@program.run_task
def main() -> int:
    program.end_on_signals()
    tests = files.runs_dir() / "checks"
    tests.mkdir(exist_ok=True)
    (tests / "test_sleep.py").write_text(TEST.format(seconds("checks")))
    # The name that verify looks up is replaced for the life of this process.
    vars(verify)["Workbench"] = Bench
    result = verify.verify(Options(backend="tcg", stock=True), tests)
    report.show(result)
    return result.exit_code


main()
