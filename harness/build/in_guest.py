"""Builds vmm.ko with FreeBSD's own compiler and make, in a separate guest.

The source with the series applied is a tar that becomes the guest's second disk; the module comes
back over SSH, and the guest is discarded.  Library and tools are built on the host if it has a
compiler; the module is built there too, for comparison: both must export the same symbols.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from harness import debian, machine
from harness.build import kernconf, linktree, parts, targets
from harness.build.bmake import error_lines
from harness.build.job import Job, Made
from harness.deadline import Deadline
from harness.errors import CannotError, PatchError, UsageError
from harness.guest.freebsd import Guest
from harness.image.model import ImageRecord
from harness.machine.models import BOCHS_RUNS, Backend

BUILDERS = ("auto", "host", "guest")

_MEMORY_BYTES = 2 << 30
_CPUS = 2
_START_S = 30.0
_UNPACK_S = 120.0
_COMPILE_S = 900.0
_DISK_STEP_BYTES = 1 << 20
_SPARE_BYTES = 256 << 20
_OBJECTS = "amd64.amd64"

# $1 the source's disk, $2 the folder to work in, $3 the kilobytes that the build needs.
_UNPACK = r"""
set -eu
free=$(df -k /var/tmp | awk 'NR == 2 { print $4 }')
[ "$free" -ge "$3" ] || { echo "/var/tmp has $free KiB free, $3 are needed" >&2; exit 1; }
rm -rf "$2"; mkdir -p "$2/obj"
tar -xf "$1" -C "$2"
"""

# $1 that folder.  The image's own build settings are not used.
_COMPILE = r"""
set -eu
cd "$1/src/sys/modules/vmm"
export MAKEOBJDIRPREFIX="$1/obj" SRCCONF=/dev/null __MAKE_CONF=/dev/null SRC_ENV_CONF=/dev/null
exec make -m "$1/src/share/mk" -j"$(sysctl -n hw.ncpu)" SRCTOP="$1/src" SYSDIR="$1/src/sys" \
    KERNBUILDDIR="$1/options" EXPORT_SYMS=YES \
    MK_CTF=no MK_DEBUG_FILES=no MK_MAN=no MK_AUTO_OBJ=yes \
    CC="cc -ffile-prefix-map=$1/src=/usr/src -ffile-prefix-map=$1/obj=/usr/obj" all 2>&1
"""
_PLACE = "/var/tmp/vmm-workbench-build"  # noqa: S108 - in the guest, where nobody else is


@dataclass(frozen=True)
class GuestBuilder:
    """Builds modules in a guest of the image `record`; `run_dir` gets its console and logs."""

    record: ImageRecord
    backend: Backend
    run_dir: Path

    @property
    def identity(self) -> str:
        """The additional part of a build's key: the image, because its compiler is used."""
        return f"guest {self.record.disk_sha256}"

    def make(self, job: Job) -> Made:
        """Make the parts, for `builder.build`.

        Raises CannotError if the image has no compiler or the backend is too slow to compile in,
        PatchError if the source does not compile or the two modules export different symbols.
        """
        module = self._module(job)
        if not job.toolchain.version:
            include = job.work / "include"
            include.mkdir()
            why = "no compiler on this machine; run ./inv setup"
            return Made(module, None, None, include, 0, (("libvmmapi", why), ("vmmls", why)))
        made = targets.make_all(job)
        require_same_exports(module, made.module)
        # The host's file with line numbers belongs to the module that the host built.
        return dataclasses.replace(made, module=module, symbols=None)

    def _module(self, job: Job) -> Path:
        job.progress("packing the source for the guest")
        disk = pack(job)
        size = disk.stat().st_size
        spec = machine.Spec(
            run_dir=self.run_dir,
            drive=machine.Drive(self.record.disk),
            second=machine.Drive(disk),
            memory_bytes=_MEMORY_BYTES,
            cpus=_CPUS,
            name=f"FreeBSD {self.record.release} for building",
        )
        virtual = machine.make(self.backend, spec)
        record = self.record
        try:
            with virtual, Guest(virtual, record.access) as guest:
                virtual.start(Deadline.after(_START_S))
                job.progress("booting the guest to build in")
                guest.wait_ready()
                require_compiler(guest, record)
                return build_in(guest, job, size)
        finally:
            for overlay in self.run_dir.glob("overlay.*"):
                overlay.unlink(missing_ok=True)


def require_known(asked: str) -> None:
    """Raise UsageError unless --builder accepts this word."""
    if asked not in BUILDERS:
        raise UsageError(f"--builder {asked}: it must be one of {', '.join(BUILDERS)}")


def builds_in_guest(asked: str) -> bool:
    """Whether a guest builds; `auto` takes the host if it has a compiler."""
    require_known(asked)
    return asked == "guest" or (asked == "auto" and debian.clang_version() is None)


def choose(asked: str, record: ImageRecord, backend: Backend, run_dir: Path) -> GuestBuilder | None:
    """The guest that builds, or None for the host.

    If the run is in Bochs, the building guest uses TCG.  Raises UsageError for another word.
    """
    if not builds_in_guest(asked):
        return None
    return GuestBuilder(record, Backend("tcg") if backend.name in BOCHS_RUNS else backend, run_dir)


def require_compiler(guest: Guest, record: ImageRecord) -> None:
    """Raise CannotError unless the guest has a compiler, a linker and make."""
    lacks = [tool for tool in ("cc", "ld", "make") if not guest.run(["which", tool]).ok]
    if lacks:
        raise CannotError(
            f"--builder guest: the image of FreeBSD {record.release} ({record.origin}) has no "
            f"{', '.join(lacks)}; use --builder host, or import one with the base system's compiler"
        )


def build_in(guest: Guest, job: Job, source_bytes: int) -> Path:
    """Build the module in a guest that has the packed source as its last disk."""
    # Its last disk is the added one: vtbd1, whatever the name of the first one is.
    disk = max(guest.must(["sysctl", "-n", "kern.disks"]).split())
    job.progress("unpacking the source in the guest")
    need_kib = (source_bytes + _SPARE_BYTES) >> 10
    guest.script(_UNPACK, f"/dev/{disk}", _PLACE, str(need_kib), deadline=guest.deadline(_UNPACK_S))
    job.progress("building vmm.ko in the guest")
    done = guest.script(_COMPILE, _PLACE, deadline=guest.deadline(_COMPILE_S), check=False)
    with job.log.open("a", encoding="utf-8") as log:
        log.write(done.stdout + f"(in the guest, exit code {done.exit_code})\n")
    if not done.ok:
        shown = error_lines(done.stdout.splitlines(), f"{_PLACE}/src")
        first = shown[0].strip() if shown else "no message"
        raise PatchError(f"vmm.ko does not build in the guest: {first}", detail="\n".join(shown))
    remote = f"{_PLACE}/obj{_PLACE}/src/{_OBJECTS}/{parts.PARTS[parts.MODULE].folder}/vmm.ko"
    local = job.work / "guest" / "vmm.ko"
    local.parent.mkdir()
    guest.ssh.get(remote, local, guest.deadline())
    return local


def pack(job: Job) -> Path:
    """Write the source with the series applied, and the kernel's options, as a tar for a disk."""
    options = job.work / "guest-options"
    options.mkdir()
    kernconf.write_headers(job.config, options)
    disk = job.work / "source.tar"
    # The guest gets the files that the linked tree links to; the tree's own odd links are left out.
    with tarfile.open(disk, "w", dereference=True) as tar:
        tar.add(options, "options")
        for path in _files(job.source):
            with contextlib.suppress(FileNotFoundError):
                tar.add(path, f"src/{path.relative_to(job.source)}", recursive=False)
    # The size of a disk is a multiple of a sector.
    files_bytes = disk.stat().st_size
    os.truncate(disk, -(-files_bytes // _DISK_STEP_BYTES) * _DISK_STEP_BYTES)
    return disk


def _files(top: Path) -> Iterable[Path]:
    skipped = {str(top / path) for path in linktree.SKIPPED}
    for root, folders, names in os.walk(top, followlinks=True):
        folders[:] = [name for name in sorted(folders) if os.path.join(root, name) not in skipped]
        yield from (Path(root, name) for name in sorted(names))


def exports(module: Path) -> frozenset[str]:
    """The names of the symbols that a module exports; PatchError if it is not an ELF file."""
    try:
        with module.open("rb") as stream:
            return frozenset(
                symbol.name
                for section in ELFFile(stream).iter_sections()
                if isinstance(section, SymbolTableSection)
                for symbol in section.iter_symbols()
                if symbol["st_info"]["bind"] in ("STB_GLOBAL", "STB_WEAK")
                and symbol["st_shndx"] != "SHN_UNDEF"
            )
    except ELFError as error:
        raise PatchError(f"{module.name}: it is not a valid ELF file: {error}") from error


def require_same_exports(guests: Path, hosts: Path) -> None:
    """Raise PatchError unless the guest's module and the host's export the same symbols."""
    ours, theirs = exports(hosts), exports(guests)
    if ours != theirs:
        only = ", ".join(sorted(ours - theirs)[:5]) or "none"
        more = ", ".join(sorted(theirs - ours)[:5]) or "none"
        raise PatchError(
            f"vmm.ko built in the guest and on the host export different symbols: only "
            f"the "
            f"host's has {only}; only the guest's has {more}"
        )
