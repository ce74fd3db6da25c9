"""The input and the results of a build's parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from harness.build import kernconf
from harness.build.bmake import Progress, Toolchain
from harness.build.ccache import NONE, Ccache
from harness.build.features import Features
from harness.build.sandbox import Sandbox
from harness.series.load import Series
from harness.source_tree import SourceTree


@dataclass(frozen=True)
class Job:
    """The input of the makers: a private folder with the linked tree in `src`, and the tools.

    Everything runs in `sandbox`, where only the folder `obj` can be written to.
    """

    tree: SourceTree
    work: Path
    log: Path
    config: kernconf.KernelConfig
    toolchain: Toolchain
    sysroot: Path | None
    progress: Progress
    series: Series | None
    ccache: Ccache = NONE
    sandbox: Sandbox = field(default_factory=lambda: Sandbox(None, Path()))
    coverage: bool = False
    wanted: Features = field(default_factory=Features)

    @property
    def source(self) -> Path:
        """The linked tree."""
        return self.work / "src"

    @property
    def objects(self) -> Path:
        """The folder of make's output."""
        return self.work / "obj"

    @property
    def made(self) -> Path:
        """The folder of the results, which make cannot write to."""
        return self.work / "made"

    def inside(self, path: Path) -> str:
        """The path inside the sandbox of a path."""
        return self.sandbox.inside(path)


@dataclass(frozen=True)
class Made:
    """Files in the private folder, and the parts that were left out, with the reasons."""

    module: Path
    library: Path | None
    tool: Path | None
    include: Path
    warnings: int
    not_built: tuple[tuple[str, str], ...]
    untested: tuple[tuple[str, str], ...] = ()
    symbols: Path | None = None
    programs: tuple[Path, ...] = ()
    reached: tuple[str, ...] = ()
