"""A session with its guest in a keeper, so that the guest can outlive this process."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness import defaults, keeper, progress
from harness.build.builder import Build
from harness.deadline import Deadline
from harness.errors import GuestError
from harness.guest.freebsd import Guest
from harness.image import store
from harness.machine import Backend
from harness.run.options import Options
from harness.run.session import BeforeBoot, Session
from harness.run.stages import Booted, Built, Imaged, Loaded
from harness.run.workbench import Workbench


class _InKeeper(Session):
    """A session whose machine is run by a keeper, under the name in `keeper_record`."""

    keeper_record: keeper.Record

    def load(self, booted: Booted, built: Built, running: Build, stage: str = "load") -> Loaded:
        """Load a module, and report it to the keeper."""
        keeper.set_module(self.keeper_record)
        loaded = super().load(booted, built, running, stage)
        found = [kld.address for kld in booted.guest.klds() if kld.name == "vmm.ko"]
        keeper.set_module(
            self.keeper_record,
            module=f"{running.series or 'stock'}, build id {running.build_id[:16]}",
            module_file=str(running.symbols or running.module) if found else "",
            module_address=found[0] if found else 0,
            kernel_file=str(self._symbols(booted.imaged).kernel or ""),
        )
        return loaded

    def _end_machine(self, guest: Guest) -> None:
        """Close the connection; the keeper decides whether the machine ends."""
        guest.machine.stop(Deadline.after(1))


class AttachedSession(_InKeeper):
    """A session for a guest that is already up; closing it does not end the guest.

    `up` builds, connects and loads; options that are not in `changes` are those that the guest was
    started with.
    """

    def __init__(self, record: keeper.Record, **changes: Any) -> None:
        super().__init__(replace(options_of(record), module=True, **changes), record.run_dir)
        self.keeper_record = record
        self.backend = record.backend

    def to_image(self) -> Imaged:
        """The image that the guest was started from; CannotError without a source tree."""
        record = store.find(self.options.release)
        store.source(self.options.release)
        # Nothing was chosen for a guest that is up; what is built in a guest is built under TCG.
        return Imaged(Backend("tcg"), record)

    def boot(self, imaged: Imaged) -> Booted:
        """Connect to the guest; GuestError if it is broken."""
        with self.stage("guest") as step:
            self._up = Booted(imaged, keeper.attach(self.keeper_record))
            step.note = f"{self.keeper_record.name}, up since {self.keeper_record.began_at}"
        return self._up


class ToBoot:
    """What a keeper's process is given: a session of its own, as far as an image, to be booted."""

    def __init__(self, session: Session, imaged: Imaged) -> None:
        self._session = session
        self._imaged = imaged
        self.run_dir = session.run_dir
        self.properties = session.properties

    @property
    def guest(self) -> Guest | None:
        """The guest, as soon as there is one."""
        return self._session.guest

    def boot(self) -> None:
        """Bring it up: see `Session.boot`."""
        self._session.boot(self._imaged)

    def collect_panic(self) -> None:
        """See `Session.collect_panic`."""
        self._session.collect_panic()

    def close(self) -> None:
        """End the machine."""
        self._session.close()


class PersistentSession(_InKeeper):
    """Like Session, but after `keep` the guest stays when this is closed, under `name`.

    Before that it ends with this process, however the process ends.
    """

    def __init__(self, options: Options, run_dir: Path, name: str = defaults.GUEST) -> None:
        super().__init__(options, run_dir)
        self.name = name
        self._starter: keeper.Starter | None = None
        self._reserved = False
        self._kept = False

    def up(self, before_boot: BeforeBoot = lambda built: built.build) -> Workbench:
        """Do every stage, in order; UsageError if a guest of that name already exists."""
        self._reserve()
        return super().up(before_boot)

    def stage(self, name: str) -> contextlib.AbstractContextManager[progress.Stage]:
        """A stage; until there is a guest, `inv status` shows which one it is."""
        self._note(name)
        return super().stage(name)

    def _note(self, stage: str) -> None:
        if self._reserved and self._starter is None:
            keeper.save(replace(self.keeper_record, note=stage, backend=self.backend))

    def _reserve(self) -> None:
        self.keeper_record = keeper.reserve(
            self.name,
            self.run_dir,
            what=f"FreeBSD {self.options.release}",
            options=to_data(self.options),
        )
        self._reserved = True

    def boot(self, imaged: Imaged) -> Booted:
        """Let a keeper boot the machine, and connect; GuestError if it does not come up."""
        if self._starter is not None:
            # The guest before this one broke, and this one replaces it.
            self._starter.end()
            self._reserve()
        self._note("boot")
        self._starter = keeper.Starter(self.keeper_record, self.bench(imaged))
        self.keeper_record, properties = self._starter.follow(self.stages)
        self.properties.update(properties)
        self._up = Booted(imaged, keeper.attach(self.keeper_record))
        return self._up

    def bench(self, imaged: Imaged) -> keeper.Bench:
        """What the keeper's process is given to boot."""
        session = Session(self.options, self.run_dir)
        session.breaks = self.breaks
        return ToBoot(session, imaged)

    def keep(self) -> keeper.Record | None:
        """Let the guest stay; returns its record, or None if there is no guest.

        Call it before the session is closed; `ways_in` says how to enter the guest afterwards.
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
