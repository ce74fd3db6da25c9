"""The guest that a bench boots: a prepared FreeBSD if there is one, else the stand-in."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from harness import machine as machines
from harness.deadline import Deadline
from harness.files import PROJECT, runs_dir
from harness.guest import snapshot
from harness.guest.freebsd import Access, Guest
from harness.image import store
from harness.image.model import ImageRecord
from harness.machine import Drive, Machine, Spec
from harness.machine.models import Backend

_STANDIN = PROJECT / "images" / "standin" / "build.py"


@dataclass(frozen=True)
class Subject:
    """A guest that can be booted; `spec`'s run folder is a template, since each run has its own."""

    name: str
    spec: Spec
    access: Access
    image_sha256: str
    chosen: Backend
    record: ImageRecord | None = None

    @property
    def backend(self) -> str:
        """The backend's name."""
        return self.chosen.name

    def make(self, spec: Spec) -> Machine:
        """A machine that is not started yet."""
        return machines.make(self.chosen, spec)

    @contextmanager
    def up(self, *, cold: bool = False) -> Iterator[tuple[Guest, float, str]]:
        """A guest, the seconds until it answered its first command, and how it was started.

        The time includes the overlay, the emulator's start, and the digests of a snapshot.
        """
        with tempfile.TemporaryDirectory(prefix="bench-", dir=runs_dir()) as folder:
            start = time.monotonic()
            spec = replace(self.spec, run_dir=Path(folder) / "guest")
            guest, how = snapshot.bring_up(
                self.make, spec, self.access, self.image_sha256, cold=cold
            )
            took_s = time.monotonic() - start
            try:
                yield guest, took_s, how
            finally:
                guest.disconnect()
                guest.machine.stop(Deadline.after(10))

    def have_snapshot(self) -> str:
        """Make a snapshot unless there is one; returns how the guest was started."""
        with self.up() as (_, _, how):
            return how


def find(backend: Backend, release: str) -> Subject:
    """The prepared release, or the stand-in if there is none."""
    release = store.resolve(release)
    if store.has_record(release):
        record = store.find(release)
        spec = Spec(
            run_dir=Path(),
            drive=Drive(record.disk),
            cpus=machines.traits(backend.name).processors,
            name=f"FreeBSD {release}",
        )
        name = f"FreeBSD {release}"
        return Subject(name, spec, record.access, record.disk_sha256, backend, record)
    name = "standin_build"
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, _STANDIN)
        assert found is not None
        assert found.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules[name])
    standin = sys.modules[name].build()
    spec = Spec(Path(), Drive(standin.disk), memory_bytes=384 << 20, name="stand-in")
    access = Access(standin.private_key, standin.host_key)
    return Subject("the stand-in", spec, access, standin.disk.parent.name, backend)
