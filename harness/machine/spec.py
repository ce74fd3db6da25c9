"""The parts of a virtual computer, and the properties of the backend that it runs in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Traits:
    """The properties of a backend.

    `time_scale` is the factor for limits written for native speed; `virtualizes` says whether
    guests should have VMX or SVM (the probe proves it); `saves` whether a running machine can be
    saved and resumed; `can_be_asked` whether the emulator ends by itself when it is asked to.
    `processors` is the number that a run's guest gets.
    """

    backend: str
    time_scale: float
    virtualizes: bool
    saves: bool = False
    can_be_asked: bool = True
    processors: int = 2


@dataclass(frozen=True)
class Drive:
    """A disk: `path` is never written to; the guest's writes go to the run folder."""

    path: Path
    format: str = "raw"


@dataclass(frozen=True)
class Spec:
    """The configuration of a machine.

    `run_dir` gets its console log, overlay and emulator log. `cpu` is the emulator's own name for a
    model (None: the backend's default), `accel` QEMU's own text about how it runs the guest's code
    (empty: the backend's). `ssh` asks for a network card whose guest port 22 is forwarded
    (`Machine.forward`); `network_out` lets the guest reach the outside; then its emulator has no
    network of its own. `debug_exit` gives QEMU the port by which a bare-metal program ends it with
    an exit code (Bochs has one of its own for that). `savable` says that the machine may be saved
    later, which must be known when it starts. `resume_from` is a folder that `Machine.save` filled:
    the machine continues from that state instead of booting, and only reads the folder. `second` is
    another raw disk, which the guest can only read. `screen` asks for a graphics card if there
    would be none, so that `Machine.screen` shows something.
    """

    run_dir: Path
    drive: Drive
    memory_bytes: int = 1 << 30
    cpus: int = 1
    cpu: str | None = None
    accel: str = ""
    ssh: bool = True
    network_out: bool = False
    debug_exit: bool = False
    name: str = "guest"
    savable: bool = False
    resume_from: Path | None = None
    second: Drive | None = None
    screen: bool = False

    @property
    def console_log(self) -> Path:
        """Every byte the guest sent over its serial line."""
        return self.run_dir / "console.log"

    @property
    def emulator_log(self) -> Path:
        """The emulator's own output."""
        return self.run_dir / "emulator.log"
