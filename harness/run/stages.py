"""The results of a run's stages: frozen values, each made from the one before.

    Chosen -> Proven -> Imaged -> Built
                               -> Booted -> Loaded (of a Booted and a Built)

A stage takes the value that it needs as its argument, so no stage checks whether another one ran.
A guest is booted only from the image; modules may be built meanwhile, and loaded one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.bhyve.vmm import Vmm
from harness.bhyve.vmm_module import LoadedModule
from harness.build.builder import Build
from harness.errors import CannotError
from harness.guest.freebsd import Guest
from harness.image import store
from harness.image.model import ImageRecord
from harness.machine import Backend
from harness.series.load import Series

STAGES = ("host", "probe", "image", "build", "boot", "load", "checks")
"""The stages of `inv verify`, by their names in its report."""


@dataclass(frozen=True)
class Chosen:
    """The backend in which machines are made."""

    backend: Backend


@dataclass(frozen=True)
class Proven:
    """A backend, and the result of the bare-metal probe in it."""

    chosen: Chosen
    found: str


@dataclass(frozen=True)
class Imaged:
    """A backend and the image that guests boot from."""

    backend: Backend
    record: ImageRecord

    @property
    def source(self) -> Path:
        """The release's source tree; CannotError if the image was imported without one."""
        if self.record.source is None:
            release = self.record.release
            raise CannotError(
                f"FreeBSD {release} was imported without a source tree to build from; run "
                f"{store.trees_line(release, src=True)}"
            )
        return self.record.source

    def sysroot(self, why: str) -> Path:
        """The release's sysroot; if there is none, CannotError whose message begins with `why`."""
        if self.record.sysroot is None:
            line = store.trees_line(self.record.release, sysroot=True)
            raise CannotError(f"{why}, which needs a sysroot; import one: {line}")
        return self.record.sysroot


@dataclass(frozen=True)
class Built:
    """The tested build: that of a series, or of the stock source if `series` is None.

    `stock` is the build without the series, if both are compared.
    """

    imaged: Imaged
    series: Series | None
    build: Build
    stock: Build | None = None

    @property
    def first(self) -> Build:
        """The build that is loaded first: the stock module if both are tried."""
        return self.stock or self.build


@dataclass(frozen=True)
class Booted:
    """A running guest of the image."""

    imaged: Imaged
    guest: Guest


@dataclass(frozen=True)
class Loaded:
    """A guest with the module of `running` loaded, which is one of the builds in `built`.

    `vmtool` is the program that makes the checks' requests; None without a sysroot to compile it.
    """

    booted: Booted
    built: Built
    running: Build
    module: LoadedModule
    vmtool: Path | None
    vmm: Vmm
