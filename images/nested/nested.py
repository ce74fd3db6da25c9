"""A Linux with KVM, to run the tests of the KVM backend on a machine without KVM.

QEMU emulates a processor with SVM (TCG does not emulate VMX); a Debian kernel boots on it and loads
kvm_amd.  It runs this machine's own Python with this project, and this machine's own QEMU with KVM,
as on hardware.  Its disk has all files at the same paths as here, so that nothing must be
installed: programs with the libraries that they load, Python with the packages that the project
needs, the project, and the stand-in guest, which boots there.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.metadata
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from harness import debian as harness_debian
from harness import files, process
from harness.deadline import Deadline
from harness.errors import CannotError

# The stand-in's modules, in whatever way this file was loaded.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "standin"))
import build as standin
import cpio
import debian

HERE = Path(__file__).resolve().parent

MODULES = ("virtio_pci", "virtio_blk", "kvm_amd", "kvm_intel", "virtio_rng")
CPU = "EPYC,+svm,+npt"
# With two processors it hangs at times.  KVM's first virtual machine, and the end of its last one,
# have the kernel rewrite a jump in its scheduler, with a breakpoint there meanwhile.  In QEMU 7.2,
# a processor that runs there just then may go on with what TCG made of the breakpoint, although
# the code is as it should be: it takes that exception for ever, with its run queue locked, and the
# other one waits for the lock.
PROCESSORS = 1
MEMORY_BYTES = 2 << 30
APPEND = (
    "console=ttyS0,115200 panic=-1 quiet loglevel=4 tsc=reliable no_timer_check "
    "random.trust_cpu=on mitigations=off"
)
DISK_BYTES = 1 << 30

EMULATOR = ("qemu-system-x86_64", "qemu-img")
_PROGRAMS = (*EMULATOR, "setpriv")
# Firmware that QEMU loads for the project's machines.
_ROMS = (
    "bios-256k.bin",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "efi-virtio.rom",
    "vgabios-stdvga.bin",
)
_PROJECT = ("harness", "images", "tests", "patches/meminfo/unit", "pyproject.toml", "tasks.py")
_UNUSED = shutil.ignore_patterns(
    "test", "tests", "idlelib", "site-packages", "ensurepip", "tkinter"
)


@dataclass(frozen=True)
class Nested:
    """The kernel and the first file system, which contains the drivers."""

    kernel: Path
    initrd: Path


def build(cache: Path | None = None) -> Nested:
    """The kernel with its drivers, from Debian packages, built if it is not in `cache` yet.

    Raises CannotError if the packages cannot be found or downloaded.
    """
    cache = cache or files.cache_dir() / "nested"
    recipe = hashlib.sha256()
    for path in (
        HERE / "nested.py",
        HERE / "init",
        *sorted((HERE.parent / "standin").glob("*.py")),
    ):
        recipe.update(path.read_bytes())
    folder = cache / recipe.hexdigest()[:16]
    with files.locked(cache / "lock", "building the Linux with KVM"):
        if not (folder / "initrd").exists():
            _build_into(folder, cache)
    return Nested(folder / "vmlinuz", folder / "initrd")


def _build_into(folder: Path, cache: Path) -> None:
    packages = [
        package
        for package in debian.resolve(cache)
        if package.startswith(("busybox-static=", "linux-image-", "linux-modules-"))
    ]
    with tempfile.TemporaryDirectory(dir=cache) as work, files.atomic_dir(folder) as out:
        root = Path(work) / "root"
        debian.unpack(packages, cache, root)
        kernel = standin.only(root, "boot/vmlinuz-*")
        shutil.copyfile(kernel, out / "vmlinuz")
        busybox = standin.first(root, "bin/busybox", "usr/bin/busybox").read_bytes()
        found = drivers(root, kernel, MODULES)
        if "kvm_amd" not in found:
            raise CannotError(f"the Linux with KVM: {packages[-1]} has no module kvm_amd")
        (out / "busybox").write_bytes(busybox)
        (out / "initrd").write_bytes(first_file_system(busybox, HERE / "init", found))


def drivers(root: Path, kernel: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The modules by name, with those that they need, in the order in which they load."""
    release = kernel.name.removeprefix("vmlinuz-")
    return dict(standin.modules(root, release, names))


def first_file_system(busybox: bytes, init: Path, modules: Mapping[str, bytes]) -> bytes:
    """An initramfs with busybox, the drivers and the first process."""
    archive = cpio.Archive()
    for name in ("bin", "dev", "proc", "sys", "disk", "lib/modules"):
        archive.folder(name)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox, 0o755)
    archive.file("init", init.read_bytes(), 0o755)
    for position, (name, data) in enumerate(modules.items()):
        archive.file(f"lib/modules/{position:02}-{name}.ko", data, 0o644)
    return archive.closed()


# --- the disk


def make_disk(target: Path, nested: Nested, script: str, extra: Iterable[Path]) -> None:
    """An ext4 disk with all files for the tests, and `script` for its shell.

    `extra` are files and folders of this machine that get the same path there.  Raises CannotError
    if a file is missing here.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        root = Root(Path(work))
        root.system((nested.kernel.parent / "busybox").read_bytes())
        root.python()
        root.emulator()
        for path in (*(files.PROJECT / name for name in _PROJECT), *extra):
            root.copy(path)
        root.libraries()
        (root.folder / "l1").mkdir()
        (root.folder / "l1/run").write_text(script)
        make_ext4(target, root.folder, DISK_BYTES)


def make_ext4(target: Path, folder: Path, size_bytes: int) -> None:
    """An ext4 file system with the contents of `folder`, made without special rights."""
    target.unlink(missing_ok=True)
    command = [_system_program("mke2fs"), "-q", "-t", "ext4", "-O", "^has_journal"]
    _run([*command, "-d", str(folder), str(target), f"{size_bytes >> 10}k"])


def copy_into(source: Path, target: Path, at_bytes: int) -> None:
    """Write a file with holes into another one, from `at_bytes` on; its holes stay holes."""
    with source.open("rb") as stream, target.open("r+b") as out:
        at = 0
        while chunk := stream.read(1 << 20):
            if chunk.strip(b"\0"):
                out.seek(at_bytes + at)
                out.write(chunk)
            at += len(chunk)


class Root:
    """A folder that becomes a machine's root: files have the same paths as on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._elf: set[Path] = set()

    def system(self, busybox: bytes) -> None:
        """The folders of every system, and a shell with the usual programs."""
        for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "var/tmp", "root"):
            (self.folder / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.folder / name).symlink_to(f"usr/{name}")
        for name in ("dev", "proc", "sys", "tmp"):
            (self.folder / name).mkdir()
        (self.folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (self.folder / "etc/group").write_text("root:x:0:\n")
        (self.folder / "etc/hosts").write_text("127.0.0.1 localhost\n")
        program = self.folder / "usr/bin/busybox"
        program.write_bytes(busybox)
        program.chmod(0o755)
        for name in ("sh", "env", "mount", "umount", "stty", "cat", "sleep", "true", "uname"):
            (self.folder / "usr/bin" / name).symlink_to("busybox")

    def copy(self, path: Path) -> None:
        """Copy a file or a folder; a symbolic link stays one, and its target is copied too."""
        there = self._there(path)
        if os.path.lexists(there):
            return
        if path.is_symlink():
            there.symlink_to(path.readlink())
            self.copy(path.parent / path.readlink())
        elif path.is_dir():
            shutil.copytree(
                path,
                there,
                symlinks=True,
                ignore=_UNUSED if path == _stdlib() else None,
                copy_function=_place,
            )
            self._elf |= {it for it in path.rglob("*.so*") if it.is_file()}
            # An emulated processor would take long to compile what was never imported here.
            compileall.compile_dir(there, ddir=str(path), quiet=2)
        elif path.is_file():
            _place(path, there)
            self._elf.add(path)
        else:
            raise CannotError(f"the Linux with KVM: {path} is not there")

    def _there(self, path: Path) -> Path:
        there = self.folder / str(path.absolute()).lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        return there

    def python(self) -> None:
        """Copy this Python, its library, and the packages that the project and its tests need."""
        self.copy(Path(sys.executable))
        self.copy(_stdlib())
        if sys.prefix != sys.base_prefix:
            self.copy(Path(sys.prefix) / "pyvenv.cfg")
        for name in sorted(_distributions()):
            for file in importlib.metadata.distribution(name).files or ():
                path = Path(str(file.locate()))
                if path.is_file() and "site-packages" in path.parts:
                    self.copy(path)

    def emulator(self, programs: Iterable[str] = _PROGRAMS) -> None:
        """Copy this machine's QEMU, the programs that start it, and the firmware that it loads."""
        for name in programs:
            found = shutil.which(name)
            if found is None:
                raise CannotError(f"{name} is not installed; run ./inv setup")
            self.copy(Path(found))
        folders = [Path(it) for it in _run(["qemu-system-x86_64", "-L", "help"]).split()]
        for rom in _ROMS:
            place = next((it / rom for it in folders if (it / rom).exists()), None)
            if place is None:
                raise CannotError(f"the Linux with KVM: QEMU has no {rom} in {folders}")
            there = self._there(folders[0] / rom)
            shutil.copyfile(place, there)

    def libraries(self) -> None:
        """Copy the libraries that these programs load, as the loader finds them here."""
        programs = sorted(it for it in self._elf if _is_elf(it))
        for line in _run(["ldd", *map(str, programs)], may_fail=True).splitlines():
            words = line.split()
            path = words[2] if len(words) > 2 and words[1] == "=>" else words[0] if words else ""
            if path.startswith("/") and not path.endswith(":"):
                there = self._there(Path(path))
                if not there.exists():
                    shutil.copy2(path, there)


def _place(source: str | Path, target: str | Path) -> None:
    """Link a file to a second path if that is allowed, otherwise copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _is_elf(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"


def _distributions() -> set[str]:
    """The packages that the project needs to run, and their own dependencies."""
    found: set[str] = set()

    def add(name: str) -> None:
        if name in found:
            return
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                add(needed.name)

    for needed in _required():
        add(needed)
    return found


def _required() -> Iterator[str]:
    import tomllib

    with (files.PROJECT / "pyproject.toml").open("rb") as stream:
        for text in tomllib.load(stream)["project"]["dependencies"]:
            yield Requirement(text).name


def _run(command: list[str], may_fail: bool = False) -> str:
    done = process.run(command)
    if not done.ok and not may_fail:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.code}"]
        raise CannotError(f"the Linux with KVM: {command[0]} failed: {said[-1]}")
    return done.stdout


def _system_program(name: str) -> str:
    """The path of a system program: an ordinary user's PATH lacks the system's folders."""
    return shutil.which(name, path=harness_debian.search_path()) or name


# --- the machine


def pytest_script(tests: Iterable[str], cache: Path, sector: Path) -> str:
    """The script for the shell there: runs these tests, with KVM as their emulator.

    `cache` is the folder of the project's cache with the stand-in, `sector` the boot sector that
    the tests boot.
    """
    environment = {
        "PATH": "/usr/bin:/usr/sbin",
        "HOME": "/root",
        "HARNESS_CACHE": str(cache),
        "HARNESS_RUNS": "/root/runs",
        "HARNESS_TEST_QEMU": "kvm amd",
        "HARNESS_TEST_SECTOR": str(sector),
        "HARNESS_TEST_RESULTS": "/dev/ttyS1",
        "PYTHONPATH": str(files.PROJECT / "tests/machine"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    # No limit in there ends a slow test, because this machine may be busy.
    options = ["-o", "timeout=0", "-q", "--tb=short", "-rN", "--color=no", "-p", "no:cacheprovider"]
    options += ["-p", "no:xdist", "-p", "kvm_results"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    lines = ["stty -F /dev/ttyS1 raw -echo", f"cd {shlex.quote(str(files.PROJECT))}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return "\n".join([*lines, shlex.join(command), ""])


def run(
    nested: Nested, folder: Path, script: str, extra: Iterable[Path], deadline: Deadline
) -> None:
    """Boot, run `script`, and wait for the end: console's output and results are in `folder`.

    Raises CannotError if QEMU does not run, or runs for too long.
    """
    disk = folder / "disk.ext4"
    make_disk(disk, nested, script, extra)
    try:
        done = process.run(
            command_line(nested, disk, folder / "console", folder / "results"), deadline
        )
    finally:
        disk.unlink()
    if not done.ok:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.code}"]
        raise CannotError(f"the Linux with KVM: QEMU failed: {said[-1]}")


def command_line(nested: Nested, disk: Path, console: Path, results: Path) -> list[str]:
    """QEMU's arguments: the first serial line is the console, the second what the tests report."""
    return [
        # It ends with the process that started it, however that ends.
        "setpriv", "--pdeathsig=KILL", "--",
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        *("-machine", "q35", "-accel", "tcg", "-cpu", CPU, "-smp", str(PROCESSORS)),
        *("-m", f"{MEMORY_BYTES >> 20}M", "-kernel", str(nested.kernel)),
        *("-initrd", str(nested.initrd), "-append", APPEND),
        *("-drive", f"if=none,id=disk,file={disk},format=raw,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"),
        *("-serial", f"file:{console}", "-serial", f"file:{results}"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
    ]  # fmt: skip
