"""A running guest, as checks see it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness import machine, progress
from harness.bhyve import vmm
from harness.bhyve.vmm_module import LoadedModule
from harness.build.builder import Build
from harness.guest.freebsd import Guest
from harness.guest.kernel_messages import Complaint
from harness.guest.panic_report import Panic
from harness.image.model import ImageRecord
from harness.run.complaints import Complaints
from harness.run.options import Options
from harness.run.stages import Booted, Built, Loaded
from harness.series.load import Series

if TYPE_CHECKING:
    from harness.run.session import Session


class Workbench:
    """A running guest of a session, and its currently loaded module.

    A module may be replaced by another, and a broken machine by a new one.  The objects `guest` and
    `vmm` stay the same then.
    """

    def __init__(self, session: Session, booted: Booted, module: Loaded | None = None) -> None:
        self.session = session
        self.booted = booted
        self.module = module
        """None while no module is loaded."""

    @property
    def options(self) -> Options:
        """The options of the session."""
        return self.session.options

    @options.setter
    def options(self, options: Options) -> None:
        self.session.options = options

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.session.run_dir

    @property
    def stages(self) -> list[progress.Stage]:
        """The run's stages so far."""
        return self.session.stages

    @property
    def properties(self) -> dict[str, str]:
        """The properties of the run in its report."""
        return self.session.properties

    @property
    def backend(self) -> str:
        """The backend's name."""
        return self.session.backend

    @property
    def breaks(self) -> int:
        """The number of times that the guest broke and was started again."""
        return self.session.breaks

    @property
    def panic(self) -> Panic | None:
        """The last panic whose report was collected."""
        return self.session.panic

    @panic.setter
    def panic(self, panic: Panic | None) -> None:
        self.session.panic = panic

    @property
    def complaints(self) -> Complaints:
        """The kernel's complaints in this run."""
        return self.session.complaints

    def hear(self, mark: int) -> tuple[Complaint, ...]:
        """The kernel's complaints since a mark of the console, if the tested patch causes them."""
        return self.session.hear(mark)

    @property
    def spec(self) -> machine.Spec:
        """The configuration of the machine."""
        return self.session.spec(self.booted.imaged)

    @property
    def record(self) -> ImageRecord:
        """The image that the guest booted from."""
        return self.booted.imaged.record

    @property
    def guest(self) -> Guest:
        """The guest."""
        return self.booted.guest

    @property
    def _loaded(self) -> Loaded:
        if self.module is None:
            raise RuntimeError("no module is loaded")
        return self.module

    @property
    def built(self) -> Built:
        """The tested builds."""
        return self._loaded.built

    @property
    def build(self) -> Build:
        """The tested build; `running` is the one whose module is loaded."""
        return self.built.build

    @property
    def stock_build(self) -> Build | None:
        """The build without the series, if both are compared."""
        return self.module.built.stock if self.module else None

    @property
    def series(self) -> Series | None:
        """The tested patches; None for the stock source."""
        return self.built.series

    @property
    def running(self) -> Build:
        """The build whose module is loaded."""
        return self._loaded.running

    @property
    def loaded(self) -> LoadedModule:
        """The module that is loaded."""
        return self._loaded.module

    @property
    def vmtool(self) -> Path | None:
        """The program that makes the checks' requests; None without a sysroot to compile it."""
        return self._loaded.vmtool

    @property
    def vmm(self) -> vmm.Vmm:
        """The guest's vmm."""
        return self._loaded.vmm

    def use(self, build: Build, stage: str = "load") -> None:
        """Load another of the tested builds instead of the current one."""
        self.load(self.built, build, stage)

    def load(self, built: Built, build: Build, stage: str = "load") -> None:
        """Load a build's module instead of the current one: see `Session.load`."""
        self.module = None
        self.module = self.session.load(self.booted, built, build, stage)

    def bring_in(self, built: Built, vmtool: Path) -> None:
        """Like `load`, but without a stage, and with an already compiled program."""
        self.module = None
        self.module = self.session.bring_in(self.booted, built, built.build, vmtool)

    def restart_guest(self, *, load: bool = True) -> None:
        """After the guest broke: start another machine with a new disk, and load the same module.

        Without `load` no module is loaded.  The report of a panic stays in the folder of the
        machine that had it; `panic` is then the next one's.
        """
        guest, before = self.guest, self.module
        self.module = None
        self.session.replace_machine(self.booted)
        guest.enter()
        if load:
            if before is None:
                raise RuntimeError("no module was loaded")
            self.load(before.built, before.running)
            before.vmm.__dict__.update(vars(self.vmm))
            self.module = Loaded(
                self.booted, self.built, self.running, self.loaded, self.vmtool, before.vmm
            )

    def collect_panic(self) -> Panic | None:
        """The report of a panic, if there was one: see `Session.collect_panic`."""
        return self.session.collect_panic()
