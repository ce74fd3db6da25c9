"""Unit tests in the guest for parts of bhyve(8) that need no virtual machine.

A part is one C file of the source tree under test.  It is compiled together with the tests of
guest_src/bhyveunit, which stand in for the rest of bhyve, and run in FreeBSD; the results come as
TAP.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.bhyve import unit_case
from harness.bhyve.unit_case import Case
from harness.build.builder import Build
from harness.build.guest_programs import compile_program
from harness.errors import GuestError
from harness.guest.freebsd import Guest
from harness.probe import tap
from harness.series.load import Series
from harness.series.staging import staged

SOURCES = Path(__file__).parent / "guest_src" / "bhyveunit"
_FOLDER = "usr.sbin/bhyve"
# The files are in one folder; in 14 bhyve's files for amd64 are among the others.
_HEADER_FOLDERS = (_FOLDER, f"{_FOLDER}/amd64")
_BY_FOLDER = re.compile(rb'^(\s*#\s*include\s*")amd64/', re.M)
# The kernel's ACPI headers that bhyve's headers include.
_ACPICA_FOLDERS = ("sys/contrib/dev/acpica/include", "sys/contrib/dev/acpica/include/platform")
_ACPICA = re.compile(rb"#include[ \t]+<contrib/dev/acpica/include/(?:platform/)?([^>/]+)>")
_BESIDE = re.compile(rb'(#include[ \t]+")(?!acpica_)')
# ... and of its virtio, whose headers have names that bhyve's have, too.
_VIRTIO_FOLDERS = ("sys/dev/virtio", "sys/dev/virtio/pci")
_VIRTIO = re.compile(rb"#include[ \t]+<dev/virtio/(?:pci/)?([^>/]+)>")
# The tree's own warnings are not what is tested here.
_FLAGS = ("-Wno-error", "-Wno-unused-parameter", "-Wno-pointer-sign")


@dataclass(frozen=True)
class Part:
    """A part: its file in the tree, its libraries, and whether its tests simulate the I/O ports."""

    name: str
    file: str
    ports: bool = False
    libraries: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """The project's own source files of its program."""
        return (f"test_{self.name}.c", "unit.c", *(("ports.c",) if self.ports else ()))


PARTS = (
    Part("iov", "iov.c"),
    Part("e820", "e820.c"),
    Part("fwcfg", "qemu_fwcfg.c", ports=True),
    Part("fwctl", "fwctl.c", ports=True),
    Part("xmsr", "xmsr.c"),
    Part("ps2kbd", "ps2kbd.c"),
    Part("uart", "uart_emul.c"),
    Part("virtio", "virtio.c"),
    Part("mem", "mem.c"),
    Part("config", "config.c", libraries=("nv",)),
)


def find(part: Part, tree: Path) -> str | None:
    """The path of the part in the tree; None if the tree does not have it."""
    for folder in reversed(_HEADER_FOLDERS):
        if (tree / folder / part.file).is_file():
            return f"{folder}/{part.file}"
    return None


def concerns(series: Series) -> bool:
    """Whether a series can change the parts, because it touches bhyve or a header."""
    return any(path.startswith(f"{_FOLDER}/") or path.endswith(".h") for path in series.touched)


def compile_part(
    part: Part, build: Build, tree: Path, series: Series | None, sysroot: Path
) -> Path:
    """The program that tests a part with the series applied.

    Raises PatchError if it does not compile, so that it cannot be tested on its own.
    """
    with _gathered(part, tree, series) as folder:
        return compile_program(
            build,
            [folder / name for name in part.sources],
            sysroot=sysroot,
            name=f"bhyveunit-{part.name}",
            libraries=("pthread", *part.libraries),
            flags=_FLAGS,
        )


@contextmanager
def _gathered(part: Part, tree: Path, series: Series | None) -> Iterator[Path]:
    """A folder with our sources, bhyve's headers, and the part itself as part.h."""
    place = find(part, tree)
    assert place is not None
    with tempfile.TemporaryDirectory(prefix="vmm-part-") as name:
        folder = Path(name)
        _gather(folder, tree, place)
        if series is not None:
            with staged(series, tree) as (changed, _):
                _gather(folder, changed, place)
        for source in SOURCES.iterdir():
            (folder / source.name).write_bytes(source.read_bytes())
        yield folder


def _gather(folder: Path, tree: Path, place: str) -> None:
    for headers in _HEADER_FOLDERS:
        for header in sorted((tree / headers).glob("*.h")):
            _copy(header, folder / header.name)
    # The headers get other names, because bhyve has an acpi.h too.
    for headers in _ACPICA_FOLDERS:
        for header in sorted((tree / headers).glob("*.h")):
            target = folder / f"acpica_{header.name}"
            _copy(header, target)
            target.write_bytes(_BESIDE.sub(rb"\1acpica_", target.read_bytes()))
    for headers in _VIRTIO_FOLDERS:
        for header in sorted((tree / headers).glob("*.h")):
            _copy(header, folder / f"kernel_{header.name}")
    if (tree / place).is_file():
        _copy(tree / place, folder / "part.h")


def _copy(source: Path, target: Path) -> None:
    text = _BY_FOLDER.sub(rb"\1", source.read_bytes())
    text = _VIRTIO.sub(rb'#include "kernel_\1"', text)
    target.write_bytes(_ACPICA.sub(rb'#include "acpica_\1"', text))


def run(guest: Guest, program: str) -> tuple[Case, ...]:
    """Run a part's program in the guest; GuestError if its report is incomplete."""
    result = guest.run([program], guest.deadline(120))
    report = tap.parse(result.stdout)
    if report.problem:
        raise GuestError(f"{program}: {report.problem}", detail=result.describe())
    return tuple(map(unit_case.of, report.tests))
