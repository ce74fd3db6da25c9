"""One run: from this machine to a guest that runs the tested module.

`verify`, `up`, the pytest plugin, and the commands that try one module after another all use it.
Each step is a stage with a name, a time and a note, and each can be the last one, with a reason.
The result of a stage is a value of stages.py, which the next stage takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from harness import files, host, machine, progress
from harness.bhyve import vmm, vmm_module
from harness.build import builder, in_guest
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, WorkbenchError
from harness.guest import panic_report, snapshot
from harness.guest.freebsd import Guest
from harness.guest.kernel_messages import Complaint
from harness.image import obtain, store
from harness.probe import run
from harness.report import EMPTY_COMMAND, NOT_TESTED
from harness.run import tested
from harness.run.complaints import FILE, Complaints
from harness.run.options import Options, features_of, known_source, load_series
from harness.run.stages import Booted, Built, Chosen, Imaged, Loaded, Proven
from harness.run.workbench import Workbench as Workbench
from harness.series import load as patches

_MEMORY_BYTES = 1 << 30
_GOODBYE_S = 10.0

BeforeBoot = Callable[[Built], builder.Build]
"""Called when everything is built and before the guest boots; returns the build to load first."""


class Session:
    """A run: its folder, its stages so far, and the machine that ends with it.

    Use it as a context manager: leaving the block ends the machine.
    """

    def __init__(self, options: Options, run_dir: Path) -> None:
        # From here on a snapshot's name is that of one build, also if another one arrives.
        self.options = dataclasses.replace(options, release=store.resolve(options.release))
        self.run_dir = run_dir
        self.stages: list[progress.Stage] = []
        self.properties: dict[str, str] = {}
        self.backend = ""
        """The chosen backend's name; empty before one was chosen."""
        self.panic: panic_report.Panic | None = None
        self.complaints = Complaints(self.properties)
        self.breaks = 0
        """The number of times that the guest broke and was started again."""
        self._series: tuple[Path | None, patches.Series | None] | None = None
        # The machine to end, and the module whose lines a panic's report names.
        self._up: Booted | None = None
        self._running: builder.Build | None = None
        self._running_stock = True

    def up(self, before_boot: BeforeBoot = lambda built: built.build) -> Workbench:
        """Every stage, in order.

        `before_boot` gets the builds, and returns the one to load first.
        """
        # The series is read before anything is booted, so that a misspelt name costs no boot.
        if self.options.module:
            obtain.require_known(self.options.release)
            self.series()
        imaged = self.to_image()
        if not self.options.module:
            return Workbench(self, self.boot(imaged))
        built = self.make(imaged)
        first = before_boot(built)
        booted = self.boot(imaged)
        return Workbench(self, booted, self.load(booted, built, first))

    def to_image(self) -> Imaged:
        """Do the stages before anything is built or booted."""
        return self.find_image(self.prove(self.choose()))

    def series(self, tree: Path | None = None) -> patches.Series | None:
        """The tested patches, None for the stock module; they are read once.

        Later changes of the files do not affect this run.  They are read again only for a source
        `tree` that did not exist at the first reading.
        """
        tree = tree or known_source(self.options)
        if self._series is None or self._series[0] != tree:
            self._series = (tree, load_series(self.options, tree))
        return self._series[1]

    @property
    def guest(self) -> Guest | None:
        """The guest, also while it starts; None before there is a machine."""
        return self._up.guest if self._up else None

    def stage(self, name: str) -> contextlib.AbstractContextManager[progress.Stage]:
        """A stage of this run."""
        return progress.stage(name, self.stages)

    def choose(self) -> Chosen:
        """Choose the backend; CannotError if none meets the request."""
        obtain.require_known(self.options.release)
        with self.stage("host") as step:
            facts = host.gather()
            decision = host.decide(facts, self.options.backend, self.options.cpu_vendor)
            backend = decision.require()
            self.backend = backend.name
            step.note = f"{backend}: {decision.reason}"
            self.properties["backend reason"] = decision.reason
            self.properties["processor"] = backend.vendor
            self.properties.update(host.identity(facts, backend.name))
        return Chosen(backend)

    def prove(self, chosen: Chosen) -> Proven:
        """Run the bare-metal probe there; CannotError if the backend does not virtualize.

        TCG is not expected to: its missing features are noted, and the run continues with checks
        that need no VM.
        """
        with self.stage("probe") as step:
            result = run.run_probe(chosen.backend, run_dir=self.run_dir / "probe")
            step.note = result.reason
            self.properties["probe"] = result.reason
            if machine.traits(chosen.backend.name).virtualizes:
                result.require()
        return Proven(chosen, result.reason)

    def find_image(self, proven: Proven) -> Imaged:
        """Find the prepared image, or fetch and prepare the official one; else CannotError."""
        backend = proven.chosen.backend
        with self.stage("image") as step:
            record = obtain.obtain(
                self.options.release,
                backend=backend.name,
                offline=self.options.offline,
                live=step.live,
            )
            # It may be a build that was fetched just now.
            self.options = dataclasses.replace(self.options, release=record.release)
            imaged = Imaged(backend, record)
            if self.options.module:
                # Without it nothing can be built, which must be reported before a boot.
                _ = imaged.source
            step.note = record.system
            self.properties["image"] = record.uname
            self.properties["image sha256"] = record.disk_sha256
        return imaged

    def make(self, imaged: Imaged) -> Built:
        """Build module, library and tools; PatchError if the series does not build."""
        with self.stage("build") as step:
            series = self.series(imaged.source)
            built = self._build(imaged, series, step)
            stock = None
            # A series of the user's own is compared with stock, even if stock is not checked.
            if self.options.with_stock or (series and self.options.series):
                stock = self._build(imaged, None, step)
            if series is not None and series.patches:
                self._report_series(series, built)
                tested.require_difference(series, built, stock)
            self._compile_tools(imaged, built)
            made = "cached" if built.cached else f"{built.warnings} warnings"
            missing = "".join(f"; no {name}: {why}" for name, why in built.not_built)
            missing += f"; {len(built.drift)} hunks moved" if built.drift else ""
            step.note = f"{series.topic if series else 'stock'}, {made}{missing}"
            self.properties["module build id"] = built.build_id
            self.properties["module sha256"] = files.sha256_file(built.module)
            self.properties["series sha256"] = series.digest if series else "none"
        return Built(imaged, series, built, stock if self.options.with_stock else None)

    def _build(
        self, imaged: Imaged, series: patches.Series | None, step: progress.Stage
    ) -> builder.Build:
        record = imaged.record
        return builder.build(
            imaged.source,
            record.sysroot,
            series,
            self.options.release,
            kernel=record.kernel,
            progress=step.live,
            in_guest=in_guest.choose(
                self.options.builder, record, imaged.backend, self.run_dir / "builder"
            ),
            coverage=self.options.coverage,
            wanted=features_of(self.options.topic_name),
        )

    def _report_series(self, series: patches.Series, build: builder.Build) -> None:
        """Report what a reader of the verdict must know: files left out or not tested, moved
        hunks.
        """
        for note in (*series.notes, *build.drift):
            progress.say(f"note: {note}")
        if series.notes:
            self.properties["beside the series"] = "; ".join(series.notes)
        if build.drift:
            self.properties["hunks that moved"] = "; ".join(build.drift)
        if missed := tested.untested(build):
            self.properties[NOT_TESTED] = f"{len(missed)} files of the patch: {tested.few(missed)}"

    def _compile_tools(self, imaged: Imaged, build: builder.Build) -> Path | None:
        """The checks' helper, compiled against a build's library; None without a library."""
        if build.library is None:
            return None
        sysroot = imaged.record.sysroot
        assert sysroot is not None, "a library is built with a sysroot only"
        return vmm.compile_vmtool(build, sysroot)

    @property
    def guest_dir(self) -> Path:
        """The machine's folder; each replacement of a broken machine has its own."""
        return self.run_dir / (f"guest-{self.breaks + 1}" if self.breaks else "guest")

    def spec(self, imaged: Imaged) -> machine.Spec:
        """The configuration of the machine."""
        record = imaged.record
        return machine.Spec(
            run_dir=self.guest_dir,
            drive=machine.Drive(record.disk),
            memory_bytes=_MEMORY_BYTES,
            cpus=machine.traits(imaged.backend.name).processors,
            name=f"FreeBSD {record.release}",
        )

    def make_machine(self, imaged: Imaged, spec: machine.Spec | None = None) -> machine.Machine:
        """The machine that `boot` starts, not yet started."""
        return machine.make(imaged.backend, spec or self.spec(imaged))

    def resumes(self, imaged: Imaged) -> bool:
        """Whether `boot` can probably resume a snapshot, so that several guests can do it now."""
        machine = self.make_machine(imaged)
        return not self.options.cold and snapshot.is_there(machine, imaged.record.disk_sha256)

    def boot(self, imaged: Imaged) -> Booted:
        """Resume or start the machine, and wait for SSH; GuestError if it does not come up."""
        with self.stage("boot") as step:

            @contextlib.contextmanager
            def attend(guest: Guest) -> Iterator[None]:
                # Set this at once, so that a panic during the boot is reported too.
                self._up = Booted(imaged, guest)
                with progress.following(step, lambda: _last_line(guest.machine)):
                    yield

            guest, how = snapshot.bring_up(
                lambda spec: self.make_machine(imaged, spec),
                self.spec(imaged),
                imaged.record.access,
                imaged.record.disk_sha256,
                cold=self.options.cold,
                attend=attend,
            )
            self._up = Booted(imaged, guest)
            self.complaints.booted()
            self.complaints.file = imaged.record.disk.parent / FILE
            self.complaints.symbols = lambda: self._symbols(imaged)
            step.note = f"{how}; SSH on {guest.machine.forward}"
            self.properties["boot"] = how
            self.properties["machine"] = shlex.join(guest.machine.command())
        return self._up

    def load(
        self, booted: Booted, built: Built, running: builder.Build, stage: str = "load"
    ) -> Loaded:
        """Load a build's module instead of the current one, and prove that it is ours.

        Raises CannotError if it loaded but the processor does not virtualize, unless TCG was
        chosen, which never does; then the checks that need VMs are not run.
        """
        guest = booted.guest
        with self.stage("load stock" if running is built.stock else stage) as step:
            loaded = self.bring_in(
                booted, built, running, self._compile_tools(built.imaged, running)
            )
            module = loaded.module
            self.properties["kernel build id"] = module.kernel_build_id or "unknown"
            began_s = time.monotonic()
            guest.must(["true"])
            self.properties[EMPTY_COMMAND] = f"{time.monotonic() - began_s:.3f}"
            step.note = f"build id {running.build_id[:16]}, from {module.path}"
            if warning := vmm_module.invariants_differ(module, running):
                step.note += f"; {warning}"
                self.properties["invariants"] = warning
            if not module.virtualizes:
                refusal = f"vmm.ko loaded, but this processor cannot virtualize: {module.refusal}"
                if guest.machine.traits.virtualizes:
                    raise CannotError(refusal)
                step.note += f"; {refusal}"
        return loaded

    def bring_in(
        self, booted: Booted, built: Built, running: builder.Build, vmtool: Path | None
    ) -> Loaded:
        """Load a build's module without a stage, even if the processor does not virtualize."""
        # Set this before the load, so that the report of a panic has its lines.
        self._running = running
        before, self._running_stock = (
            self._running_stock,
            built.series is None or running is built.stock,
        )
        self._use_runner(booted, running)
        console = booted.guest.machine.console
        self.complaints.loading(console)
        mark = console.mark
        module = vmm_module.load(booted.guest, running)
        # What is said about memory left behind is about the module that was unloaded.
        self.complaints.outside += self.hear(
            mark, lambda it: before if it.of_unloading else self._running_stock
        )
        bhyve = vmm.Vmm(booted.guest, module, running, vmtool)
        return Loaded(booted, built, running, module, vmtool, bhyve)

    def hear(
        self, mark: int, stock: Callable[[Complaint], bool] | None = None
    ) -> tuple[Complaint, ...]:
        """The complaints of the kernel since a `mark` of the console that are the patch's.

        Without `stock` all are of the module that is loaded.
        """
        if self._up is None:
            return ()
        return self.complaints.hear(self._up.guest, mark, stock or self._running_stock)

    def _use_runner(self, booted: Booted, running: builder.Build) -> None:
        """Let a program in the guest run its commands, if there is a sysroot to compile it."""
        sysroot = booted.imaged.record.sysroot
        if sysroot is not None and not booted.guest.runner:
            vmm.use_runner(booted.guest, vmm.compile_runner(running, sysroot))

    def replace_machine(self, booted: Booted) -> None:
        """After the guest broke: start another machine with a new disk for the same Guest object.

        Users of the guest keep their object; it is not connected yet.
        """
        guest = booted.guest
        self.collect_panic()
        guest.disconnect()
        self._end_machine(guest)
        # Commands were stopped because of the old machine, not the new one.
        guest.given_up = ""
        self.breaks += 1
        self.panic = None
        fresh = self.boot(booted.imaged).guest
        fresh.disconnect()
        guest.machine = fresh.machine
        # The new machine's disk does not have the program that runs commands.
        guest.forget_runner()
        self._up = booted

    def collect_panic(self) -> panic_report.Panic | None:
        """The report of a panic, if there was one; it is collected once, in panic.txt and
        panic.json.

        Call it while the machine still runs, because the kernel's debugger is used.
        """
        if self.panic is None and self._up is not None and self._up.guest.machine.panicked:
            virtual = self._up.guest.machine
            self.panic = panic_report.collect(
                virtual.console, self._symbols(self._up.imaged), virtual.traits.time_scale
            )
            if self.panic is not None:
                progress.say(f"panic: {self.panic.summary}")
                folder = self.guest_dir if self.breaks else self.run_dir
                progress.say(
                    f"panic: the full report is in {panic_report.save(self.panic, folder)}"
                )
        return self.panic

    def _symbols(self, imaged: Imaged) -> panic_report.Symbols:
        """The files with line numbers of the running module and kernel."""
        module = self._running.symbols if self._running else None
        if imaged.record.sysroot is not None:
            kernel = imaged.record.sysroot / panic_report.KERNEL_SYMBOLS
            with contextlib.suppress(WorkbenchError):
                if builder.read_build_id(kernel) == self.properties.get("kernel build id"):
                    return panic_report.Symbols(module, kernel)
        return panic_report.Symbols(module)

    def close(self) -> None:
        """End the machine; its overlay goes with it, its logs stay."""
        if self._up is None:
            # It was interrupted before there was a machine, perhaps while its overlay was made.
            self._remove_overlays()
            return
        guest = self._up.guest
        try:
            # This is useful but not worth a long wait, because the guest may hang or have panicked.
            alive = guest.machine.pid and guest.connected and not guest.given_up
            if self._running is not None and alive:
                with contextlib.suppress(GuestError, OSError):
                    text = guest.must(["dmesg"], Deadline.after(_GOODBYE_S))
                    files.write_atomic(self.guest_dir / "dmesg.txt", text)
            guest.disconnect()
            self.collect_panic()
        finally:
            self._end_machine(guest)

    def _end_machine(self, guest: Guest) -> None:
        guest.machine.stop(Deadline.after(10))
        self._remove_overlays()

    def _remove_overlays(self) -> None:
        for overlay in self.guest_dir.glob("overlay.*"):
            overlay.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()


def _last_line(virtual: machine.Machine) -> str:
    # There is no console before the start.
    with contextlib.suppress(RuntimeError):
        return virtual.console.last_line()
    return ""
