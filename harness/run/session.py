"""The one way through: from this machine to a guest that runs the module under test.

`verify` and the pytest plugin both walk it; each step is a stage with a name, a time and a note,
and each can be the last, with a reason.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shlex
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from harness import defaults, files, host, log, machine, progress
from harness.bhyve import vmm
from harness.build import builder, features, in_guest
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError, UsageError, WorkbenchError
from harness.guest import panic_report, snapshot
from harness.guest.freebsd import Access, Guest
from harness.image import obtain, prepare, store
from harness.image.model import ImageRecord
from harness.probe import run
from harness.report import NOT_TESTED
from harness.run import tested
from harness.series import load as patches

T = TypeVar("T")

STAGES = ("host", "probe", "image", "build", "boot", "load", "checks")

_MEMORY_BYTES = 1 << 30
_GOODBYE_S = 10.0


@dataclass(frozen=True)
class Options:
    """What is to be tested, where.

    `series` names a folder of patches, or is empty for the topic's own; `stock` leaves it out.
    `topic` says whose checks to run besides those that any vmm.ko must hold; empty for none.
    `offline` fetches nothing, `full` runs the checks that take minutes too; without `module`
    nothing is built or loaded.
    `side_by_side` runs the checks on the stock module first, in the same guest; `go_on` brings a
    guest that broke up again, for the checks that are left; `only` is a pytest -k expression.
    `builder` says who builds the module: host, guest (FreeBSD's own compiler, in a guest made for
    it), or auto, which is the host where that has a compiler.
    `coverage` builds a module that counts which of its lines ran.
    `guests` is in how many guests at once the checks run; 0 for what this machine has room for.
    `cpu_vendor` is intel or amd; empty for what the backend has (Intel in Bochs).
    """

    release: str = defaults.RELEASE
    backend: str = "auto"
    stock: bool = False
    series: tuple[Path, ...] = ()
    topic: str = defaults.TOPIC
    offline: bool = False
    full: bool = False
    cold: bool = False
    module: bool = True
    side_by_side: bool = False
    go_on: bool = False
    only: str = ""
    builder: str = "auto"
    cpu_vendor: str = ""
    coverage: bool = False
    guests: int = 0

    def __post_init__(self) -> None:
        if self.stock and self.series:
            raise UsageError(
                "--stock is the stock module alone, without patches; leave out --series or --stock"
            )
        if self.stock and self.side_by_side:
            raise UsageError(
                "--stock is the stock module alone; leave out --stock or --side-by-side"
            )
        in_guest.require_known(self.builder)
        if self.coverage and self.builder == "guest":
            raise UsageError("--coverage needs the compiler of this machine; leave out --builder")


class Workbench:
    """A run: its folder, its stages so far, and in the end a guest with the module loaded.

    Use it as a context manager: leaving it ends the machine.
    """

    def __init__(self, options: Options, run_dir: Path) -> None:
        self.options = options
        self.run_dir = run_dir
        self.stages: list[progress.Stage] = []
        self.properties: dict[str, str] = {}
        self.decision: host.Decision | None = None
        self.record: ImageRecord | None = None
        self.build: builder.Build | None = None
        """What is tested; `running` is whose module is loaded."""
        self.stock_build: builder.Build | None = None
        self.running: builder.Build | None = None
        self.vmtool: Path | None = None
        self.guest: Guest | None = None
        self.loaded: vmm.Loaded | None = None
        self.vmm: vmm.Vmm | None = None
        self.panic: panic_report.Panic | None = None
        self.breaks = 0
        """How often the guest broke and was brought up again."""

    @property
    def backend(self) -> str:
        """The chosen backend; empty before one was chosen."""
        return self.decision.name if self.decision else ""

    def up(self) -> None:
        """Every step, in order."""
        for step in self.steps():
            step()

    def steps(self) -> list[Callable[[], None]]:
        """What `up` does, in order."""
        steps = [self.choose, self.prove, self.find_image, self.make, self.boot, self.load]
        without = () if self.options.module else (self.make, self.load)
        return [step for step in steps if step not in without]

    def choose(self) -> None:
        """Choose the backend; CannotError when none does what was asked."""
        obtain.require_known(self.options.release)
        with progress.stage("host", self.stages) as step:
            facts = host.gather()
            self.decision = host.decide(facts, self.options.backend, self.options.cpu_vendor)
            backend = self.decision.require()
            step.note = f"{backend}: {self.decision.reason}"
            self.properties["backend reason"] = self.decision.reason
            self.properties["processor"] = backend.vendor
            self.properties.update(host.identity(facts, backend.name))

    def prove(self) -> None:
        """Run the bare-metal probe there; CannotError when the backend does not virtualize.

        TCG was never said to: what it lacks is noted, and the run goes on to what needs no VM.
        """
        decision = _given(self.decision, "choose")
        backend = decision.require()
        with progress.stage("probe", self.stages) as step:
            result = run.run_probe(backend, run_dir=self.run_dir / "probe")
            step.note = result.reason
            self.properties["probe"] = result.reason
            if machine.traits(backend.name).virtualizes:
                result.require()

    def find_image(self) -> None:
        """Find the prepared image, or fetch and prepare the official one; else CannotError."""
        with progress.stage("image", self.stages) as step:
            self.record = obtain.obtain(
                self.options.release,
                backend=_given(self.decision, "choose").require().name,
                offline=self.options.offline,
                live=step.live,
            )
            if self.record.source is None and self.options.module:
                raise CannotError(
                    f"FreeBSD {self.options.release} was imported without a source tree to build "
                    f"from; run {store.trees_line(self.options.release, src=True)}"
                )
            step.note = " ".join(self.record.uname.split()[:3:2])
            self.properties["image"] = self.record.uname
            self.properties["image sha256"] = self.record.disk_sha256

    def make(self) -> None:
        """Build module, library and tools; PatchError when the series does not."""
        record = _given(self.record, "find_image")
        source = _given(record.source, "find_image")
        with progress.stage("build", self.stages) as step:
            series = load_series(self.options, source)
            wanted = features_of(self.options.topic)
            self.build = builder.build(
                source,
                record.sysroot,
                series,
                self.options.release,
                progress=step.live,
                in_guest=self._guest_builder(record),
                coverage=self.options.coverage,
                wanted=wanted,
            )
            stock = None
            # Somebody's own series is compared with stock, although stock is not to be checked.
            if self.options.side_by_side or (series and self.options.series):
                stock = builder.build(
                    source,
                    record.sysroot,
                    None,
                    self.options.release,
                    progress=step.live,
                    in_guest=self._guest_builder(record),
                    coverage=self.options.coverage,
                    wanted=wanted,
                )
            if self.options.side_by_side:
                self.stock_build = stock
            if series is not None and series.patches:
                self._report_series(series, self.build)
                tested.require_difference(series, self.build, stock)
            self._compile_tools(self.build)
            made = "cached" if self.build.cached else f"{self.build.warnings} warnings"
            missing = "".join(f"; no {name}: {why}" for name, why in self.build.not_built)
            missing += f"; {len(self.build.drift)} hunks moved" if self.build.drift else ""
            step.note = f"{series.topic if series else 'stock'}, {made}{missing}"
            self.properties["module build id"] = self.build.build_id
            self.properties["module sha256"] = files.sha256_file(self.build.module)
            self.properties["series sha256"] = series.digest if series else "none"

    def _report_series(self, series: patches.Series, build: builder.Build) -> None:
        """Say what a reader of the verdict must know: what was left out, moved, not tested."""
        for note in (*series.notes, *build.drift):
            progress.say(f"note: {note}")
        if series.notes:
            self.properties["beside the series"] = "; ".join(series.notes)
        if build.drift:
            self.properties["hunks that moved"] = "; ".join(build.drift)
        if missed := tested.untested(build):
            self.properties[NOT_TESTED] = f"{len(missed)} files of the patch: {tested.few(missed)}"

    def _compile_tools(self, build: builder.Build) -> None:
        """Compile the checks' helper against a build's library, where there is one."""
        self.vmtool = None
        if build.library is not None:
            sysroot = _given(_given(self.record, "find_image").sysroot, "sysroot")
            self.vmtool = vmm.compile_vmtool(build, sysroot)

    @property
    def guest_dir(self) -> Path:
        """The machine's folder; each one that follows one that broke has its own."""
        return self.run_dir / (f"guest-{self.breaks + 1}" if self.breaks else "guest")

    def _guest_builder(self, record: ImageRecord) -> in_guest.GuestBuilder | None:
        # For a guest that was up before nothing was decided; TCG builds on any machine.
        decision = self.decision
        return in_guest.choose(
            self.options.builder,
            record,
            decision.require() if decision else machine.Backend("tcg"),
            self.run_dir / "builder",
        )

    @property
    def spec(self) -> machine.Spec:
        """What the machine is made of."""
        record = _given(self.record, "find_image")
        return machine.Spec(
            run_dir=self.guest_dir,
            drive=machine.Drive(record.disk),
            memory_bytes=_MEMORY_BYTES,
            cpus=machine.traits(self.backend).processors,
            name=f"FreeBSD {record.release}",
        )

    def make_machine(self, spec: machine.Spec | None = None) -> machine.Machine:
        """The machine that `boot` starts, not started."""
        decision = _given(self.decision, "choose")
        return machine.make(decision.require(), spec or self.spec)

    def boot(self) -> None:
        """Resume the machine or start it, and wait for SSH; GuestError when it does not come up."""
        record = _given(self.record, "find_image")
        with progress.stage("boot", self.stages) as step:

            @contextlib.contextmanager
            def attend(guest: Guest) -> Iterator[None]:
                # Known from the start: a panic on the way up is looked into, too.
                self.guest = guest
                with following(step, lambda: _last_line(guest.machine)):
                    yield

            self.guest, how = snapshot.bring_up(
                self.make_machine,
                self.spec,
                Access(
                    record.private_key, record.host_key, record.login_user, prepare.ANNOUNCEMENT
                ),
                record.disk_sha256,
                cold=self.options.cold,
                attend=attend,
            )
            step.note = f"{how}; SSH on {self.guest.machine.forward}"
            self.properties["boot"] = how
            self.properties["machine"] = shlex.join(self.guest.machine.command())

    def load(self) -> None:
        """Load the module that comes first: where both are tried, the stock one."""
        self.use(self.stock_build or _given(self.build, "make"))

    def use(self, build: builder.Build, stage: str = "load") -> None:
        """Load a build's module, in place of the one that is loaded, and prove that it is ours.

        CannotError where it loaded but the processor does not virtualize, unless TCG was asked for,
        which never does; then the checks that need VMs are not run.
        """
        guest = _given(self.guest, "boot")
        name = "load stock" if build is self.stock_build else stage
        with progress.stage(name, self.stages) as step:
            self._compile_tools(build)
            self.running = build
            self.loaded = vmm.load(guest, build)
            self.properties["kernel build id"] = guest.sysctl("kern.build_id") or "unknown"
            step.note = f"build id {build.build_id[:16]}, from {self.loaded.path}"
            if warning := vmm.invariants_differ(guest, build):
                step.note += f"; {warning}"
                self.properties["invariants"] = warning
            if not self.loaded.virtualizes:
                refusal = (
                    f"vmm.ko loaded, but this processor cannot virtualize: {self.loaded.refusal}"
                )
                if guest.machine.traits.virtualizes:
                    raise CannotError(refusal)
                step.note += f"; {refusal}"
            self.vmm = vmm.Vmm(guest, self.loaded, build, self.vmtool)

    def restart_guest(self, *, load: bool = True) -> None:
        """After the guest broke: another machine with a fresh disk, the same module loaded.

        Without `load` there is no module in it yet.  Whoever holds `guest` and `vmm` goes on with
        the same objects.  A panic's story stays in the folder of the machine that had it; `panic`
        is the next one's.
        """
        guest, bhyve = _given(self.guest, "boot"), self.vmm
        self.collect_panic()
        guest.disconnect()
        self._end_machine(guest)
        # What was given up is the machine that has gone.
        guest.given_up = ""
        self.breaks += 1
        self.panic = None
        self.boot()
        fresh = _given(self.guest, "boot")
        fresh.disconnect()
        guest.machine, self.guest = fresh.machine, guest
        guest.enter()
        if load:
            self.use(_given(self.running, "load"))
            if bhyve is not None:
                bhyve.__dict__.update(vars(self.vmm))
                self.vmm = bhyve

    def collect_panic(self) -> panic_report.Panic | None:
        """The report of a panic, if there was one; collected once, in panic.txt and panic.json.

        To be called while the machine still stands; a debugger in it is asked.
        """
        guest = self.guest
        if self.panic is None and guest is not None and guest.machine.panicked:
            scale = guest.machine.traits.time_scale
            self.panic = panic_report.collect(guest.machine.console, self._symbols(), scale)
            if self.panic is not None:
                progress.say(f"panic: {self.panic.summary}")
                folder = self.guest_dir if self.breaks else self.run_dir
                progress.say(
                    f"panic: the whole story is in {panic_report.save(self.panic, folder)}"
                )
        return self.panic

    def _symbols(self) -> panic_report.Symbols:
        """What has line numbers of the module and the kernel that run."""
        module = self.running.symbols if self.running else None
        if self.record is not None and self.record.sysroot is not None:
            kernel = self.record.sysroot / panic_report.KERNEL_SYMBOLS
            with contextlib.suppress(WorkbenchError):
                if builder.read_build_id(kernel) == self.properties.get("kernel build id"):
                    return panic_report.Symbols(module, kernel)
        return panic_report.Symbols(module)

    def close(self) -> None:
        """End the machine; its overlay goes with it, its logs stay."""
        if self.guest is None:
            # Interrupted before there was a machine, maybe while its overlay was made.
            self._remove_overlays()
            return
        try:
            # Worth having, not worth waiting for: the guest may hang, or be a panicked one.
            alive = self.guest.machine.pid and self.guest.connected and not self.guest.given_up
            if self.loaded is not None and alive:
                with contextlib.suppress(GuestError, OSError):
                    text = self.guest.must(["dmesg"], Deadline.after(_GOODBYE_S))
                    files.write_atomic(self.guest_dir / "dmesg.txt", text)
            self.guest.disconnect()
            self.collect_panic()
        finally:
            self._end_machine(self.guest)

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


def load_series(options: Options, tree: Path | None = None) -> patches.Series | None:
    """The series to build, read for `tree` where there is one, or None for the stock module."""
    if options.stock:
        return None
    if options.series:
        where = options.series if len(options.series) > 1 else options.series[0]
        return patches.require_patches(patches.load_series(where, options.release, tree))
    return patches.require_patches(patches.load_series(options.topic, options.release, tree))


def features_of(topic: str) -> features.Features:
    """What a topic wants built otherwise than a release is."""
    return features.read(patches.PATCHES / topic) if topic else features.Features()


def new_run_dir(what: str) -> Path:
    """A fresh folder runs/TIME-WHAT, 0700; `runs/latest` points at it."""
    root = files.runs_dir()
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    for number in range(1000):
        name = f"{now}-{what}" + (f"-{number}" if number else "")
        try:
            (root / name).mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise CannotError(
                f"{root / name}: {error.strerror}; set HARNESS_RUNS to a folder that can be written"
            ) from error
        pointer = root / f".latest.{os.getpid()}"
        with contextlib.suppress(OSError):
            pointer.symlink_to(name)
            pointer.replace(root / "latest")
        log.to_file(root / name / "harness.log")
        return root / name
    raise UsageError(f"{root}: a thousand runs began in one second")


def _last_line(virtual: machine.Machine) -> str:
    # It has no console until it has started.
    with contextlib.suppress(RuntimeError):
        return virtual.console.last_line()
    return ""


@contextlib.contextmanager
def following(step: progress.Stage, line: Callable[[], str]) -> Iterator[None]:
    """Show `line()` beside the stage, again and again while the block runs."""
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(0.5):
            step.live(line())

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _given(value: T | None, step: str) -> T:
    if value is None:
        raise RuntimeError(f"{step} was not done")
    return value
