"""A finished build in the cache: its files and its manifest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection

from harness import checked, files
from harness.build import parts, targets
from harness.errors import PatchError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Build:
    """A build and its inputs.  Paths are absolute, in the cache.

    `untested` has the files of the series from which nothing was built, each with the reason;
    `reached` the names of the parts that the series changes (see parts.py); `drift` describes the
    hunks that fit only some lines away from their line numbers.
    """

    release: str
    revision: str
    osversion: int
    key: str
    folder: Path
    module: Path
    build_id: str
    library: Path | None
    tool: Path | None
    not_built: tuple[tuple[str, str], ...]
    untested: tuple[tuple[str, str], ...]
    reached: tuple[str, ...]
    drift: tuple[str, ...]
    series: str | None
    series_digest: str | None
    kernel_config: str
    invariants: bool
    compiler: str
    warnings: int
    seconds: checked.Seconds
    log: Path
    digests: tuple[tuple[str, str], ...]
    sandboxed: bool
    cached: bool

    @property
    def include(self) -> Path:
        """The folder of the patched headers, which precede the sysroot's."""
        return self.folder / "include"

    @property
    def symbols(self) -> Path | None:
        """The module with line numbers, for backtraces."""
        path = self.folder / targets.SYMBOLS
        return path if path.is_file() else None

    @property
    def programs(self) -> tuple[Path, ...]:
        """bhyve, bhyvectl and bhyveload, if the series changes them."""
        return tuple(self.folder / name for name, _ in self.digests if name in parts.PROGRAMS)

    @property
    def counting(self) -> tuple[Path, ...]:
        """The library and the programs that count their lines; none without coverage."""
        made = (self.library, self.tool, *self.programs)
        return tuple(it for it in made if it and targets.symbols_of(it).is_file())

    @property
    def files(self) -> tuple[Path | None, Path | None, Path | None]:
        """vmm.ko, libvmmapi and vmmls, as far as they were built."""
        return self.module, self.library, self.tool

    def to_data(self) -> dict[str, object]:
        """For --json: the fields, with paths as text."""
        data = dataclasses.asdict(self)
        plain = {name: str(it) if isinstance(it, Path) else it for name, it in data.items()}
        return {
            **plain,
            "not_built": dict(self.not_built),
            "untested": dict(self.untested),
            "digests": dict(self.digests),
        }


def load(folder: Path, *, cached: bool = True) -> Build | None:
    """The build in `folder`, or None if there is none or it is damaged."""
    try:
        data = checked.table((folder / MANIFEST).read_bytes())
        built = _from_manifest(folder, data, cached)
        if any(files.sha256_file(folder / name) != digest for name, digest in built.digests):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return built


def _from_manifest(folder: Path, data: dict[str, Any], cached: bool) -> Build:
    paths = {
        name: folder / str(data[name]) if data[name] else None
        for name in ("module", "library", "tool")
    }
    own = {
        "key": folder.name,
        "folder": folder,
        "log": folder / "build.log",
        "digests": sorted(data["digests"].items()),
        "cached": cached,
    }
    return checked.convert(Build, {**data, **paths, **own})


def read_build_id(file: Path) -> str:
    """The .note.gnu.build-id of an ELF file, as hex.  PatchError if it has none."""
    try:
        with file.open("rb") as stream:
            for section in ELFFile(stream).iter_sections():
                if isinstance(section, NoteSection) and section.name == ".note.gnu.build-id":
                    for note in section.iter_notes():
                        if note["n_type"] == "NT_GNU_BUILD_ID":
                            return str(note["n_desc"])
    except (OSError, ELFError) as error:
        raise PatchError(f"{file.name}: it is not a valid ELF file: {error}") from error
    raise PatchError(
        f"{file.name}: it has no build id, so it cannot be distinguished from another module"
    )
