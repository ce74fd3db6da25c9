"""The workbench with its guest in a keeper, so that the guest can outlive this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness import defaults, keeper, progress
from harness.build.builder import Build
from harness.deadline import Deadline
from harness.errors import GuestError
from harness.guest.freebsd import Guest
from harness.image import store
from harness.run.session import Options, Workbench


class _InKeeper(Workbench):
    """A workbench whose machine is run by a keeper, under the name `kept_as`."""

    keeper_record: keeper.Record

    def use(self, build: Build, stage: str = "load") -> None:
        """Load a module, and report it to the keeper."""
        keeper.set_module(self.keeper_record)
        super().use(build, stage)
        assert self.guest is not None
        running = [kld.address for kld in self.guest.klds() if kld.name == "vmm.ko"]
        keeper.set_module(
            self.keeper_record,
            module=f"{build.series or 'stock'}, build id {build.build_id[:16]}",
            module_file=str(build.symbols or build.module) if running else "",
            module_address=running[0] if running else 0,
            kernel_file=str(self._symbols().kernel or ""),
        )

    def _end_machine(self, guest: Guest) -> None:
        """Close the connection; the keeper decides whether the machine ends."""
        guest.machine.stop(Deadline.after(1))


class AttachedWorkbench(_InKeeper):
    """The workbench for a guest that is already up; closing it does not end the guest.

    `up` builds, connects and loads; options that are not in `changes` are those that the guest was
    started with.
    """

    def __init__(self, record: keeper.Record, **changes: Any) -> None:
        super().__init__(replace(options_of(record), module=True, **changes), record.run_dir)
        self.keeper_record = record

    @property
    def backend(self) -> str:
        """The backend that the guest was started in."""
        return self.keeper_record.backend

    def steps(self) -> list[Callable[[], None]]:
        """The steps that remain."""
        return [self.find_image, self.make, self.boot, self.load]

    def find_image(self) -> None:
        """The image that the guest was started from; CannotError without a source tree."""
        self.record = store.find(self.options.release)
        store.source(self.options.release)

    def boot(self) -> None:
        """Connect to the guest; GuestError if it is broken."""
        with progress.stage("guest", self.stages) as step:
            self.guest = keeper.attach(self.keeper_record)
            step.note = f"{self.keeper_record.name}, up since {self.keeper_record.began_at}"


class PersistentSession(_InKeeper):
    """Like Workbench, but after `keep` the guest stays when this is closed, under `name`.

    Before that it ends with this process, however the process ends.
    """

    def __init__(self, options: Options, run_dir: Path, name: str = defaults.GUEST) -> None:
        super().__init__(options, run_dir)
        self.name = name
        self._starter: keeper.Starter | None = None
        self._reserved = False
        self._kept = False

    def up(self) -> None:
        """Do every step, in order; UsageError if a guest of that name already exists."""
        self._reserve()
        for step in self.steps():
            if self._starter is None:
                under_way = step.__name__.replace("_", " ")
                keeper.save(replace(self.keeper_record, note=under_way, backend=self.backend))
            step()

    def _reserve(self) -> None:
        self.keeper_record = keeper.reserve(
            self.name,
            self.run_dir,
            what=f"FreeBSD {self.options.release}",
            options=to_data(self.options),
        )
        self._reserved = True

    def boot(self) -> None:
        """Let a keeper boot the machine, and connect; GuestError if it does not come up."""
        if self._starter is not None:
            # The guest before this one broke, and this one replaces it.
            self._starter.end()
            self._reserve()
        self._starter = keeper.Starter(self.keeper_record, self.bench())
        self.keeper_record, properties = self._starter.follow(self.stages)
        self.properties.update(properties)
        self.guest = keeper.attach(self.keeper_record)

    def bench(self) -> keeper.Bench:
        """The workbench for the keeper's process, with the results of the steps done so far."""
        bench = Workbench(self.options, self.run_dir)
        bench.decision, bench.record, bench.breaks = self.decision, self.record, self.breaks
        return bench

    def keep(self) -> keeper.Record | None:
        """Let the guest stay; returns its record, or None if there is no guest.

        Call it before the workbench is closed; `ways_in` says how to enter the guest afterwards.
        """
        self.collect_panic()
        now = keeper.load(self.name) if self._starter is not None else None
        if self._starter is None or now is None or not now.alive or now.emulator is None:
            return None
        self._starter.release()
        self._kept = True
        return now

    def close(self) -> None:
        """End the guest unless it should stay."""
        try:
            super().close()
        finally:
            if self._starter is not None and not self._kept:
                self._starter.end()
            elif self._starter is None and self._reserved:
                keeper.forget(self.name)
            self._reserved = False


def options_of(record: keeper.Record) -> Options:
    """The options that a guest was started with."""
    data = dict(record.options)
    try:
        return Options(**{**data, "series": tuple(map(Path, data.pop("series", ())))})
    except TypeError as error:
        raise GuestError(
            f"guest {record.name} was started by another version of the project; ./inv down "
            f"--name {record.name} ends it"
        ) from error


def to_data(options: Options) -> dict[str, Any]:
    """The options as data for JSON."""
    return {**asdict(options), "series": [str(path) for path in options.series]}


def ways_in(record: keeper.Record) -> str:
    """One line that says how to enter a guest and how to end it."""
    name = "" if record.name == defaults.GUEST else f" --name {record.name}"
    doors = ("ssh", "console") if record.stage == "ready" else ("console",)
    enter = " or ".join(f"./inv {door}{name}" for door in doors)
    return f"{enter} enters it, ./inv down{name} ends it"
