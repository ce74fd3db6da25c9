"""Builds the stand-in guest: a small Linux on a bootable disk, from Debian packages.

The harness's own tests need a guest that boots in seconds, logs in on its serial line, answers
SSH, reboots, powers off and panics on request.  This program makes one, as any user, with `apt-get
download`: nothing is installed, and no result is committed.

The disk has GRUB in the gap before its first partition and, in that partition, the kernel and the
initramfs as plain runs of sectors; GRUB gets their numbers, so no file system is needed.  The guest
may write to a second, empty partition.  The system itself is in memory: all changes of the guest
are lost after a reboot, except on that partition.

    python images/standin/build.py [FOLDER]
"""

from __future__ import annotations

import glob
import hashlib
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from harness import files
from harness.errors import CannotError

# The modules in this folder, in whatever way this file was loaded.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import cpio
import debian

HERE = Path(__file__).resolve().parent

MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "e1000", "button", "evdev")
PROGRAMS = ("usr/sbin/dropbear", "usr/lib/openssh/sftp-server")
# With "linux" GRUB moves the kernel's whole memory area by copying bytes, which takes an emulator
# as long as the rest of the boot; the older protocol moves only the file.
GRUB_MODULES = ("biosdisk", "linux16")
HOST_LIBRARIES = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64")

APPEND = "console=ttyS0,115200 panic=-1 quiet loglevel=3 tsc=reliable random.trust_cpu=on"
SECTOR_BYTES = 512
FIRST_SECTOR = 2048
DATA_BYTES = 16 << 20


@dataclass(frozen=True)
class Standin:
    """The guest as built: a raw disk to boot from, or a kernel with its initramfs.

    `host_key` is a line as in known_hosts without the host; `private_key` lets root in.
    """

    disk: Path
    kernel: Path
    initrd: Path
    append: str
    private_key: Path
    host_key: str


def build(cache: Path | None = None) -> Standin:
    """The stand-in, built if it is not in `cache` yet (default: the project's cache).

    Raises CannotError if the packages cannot be found or downloaded, or if one is not as expected.
    """
    cache = cache or files.cache_dir() / "standin"
    folder = cache / _recipe_digest()
    with files.locked(cache / "lock", "building the stand-in guest"):
        if not (folder / "standin.json").exists():
            # Do not build again just because there are newer packages: that would need a network.
            _build_into(folder, debian.resolve(cache), cache)
        return _load(folder)


def _recipe_digest() -> str:
    names = sorted(p for p in HERE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name.relative_to(HERE)} {files.sha256_file(name)}\n".encode())
    return digest.hexdigest()[:16]


def _load(folder: Path) -> Standin:
    noted = json.loads((folder / "standin.json").read_text())
    return Standin(
        disk=folder / "disk.raw",
        kernel=folder / "vmlinuz",
        initrd=folder / "initrd",
        append=APPEND,
        private_key=folder / "id_ed25519",
        host_key=noted["host_key"],
    )


# --- the guest's files


def _build_into(folder: Path, packages: list[str], cache: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache) as work, files.atomic_dir(folder) as out:
        root = Path(work) / "root"
        debian.unpack(packages, cache, root)
        kernel = only(root, "boot/vmlinuz-*")
        shutil.copyfile(kernel, out / "vmlinuz")
        host_key, host_blob = _host_key()
        user_key = Ed25519PrivateKey.generate()
        _write_private(out / "id_ed25519", user_key)
        initrd = cpio.Archive()
        _add_system(initrd, root, kernel.name.removeprefix("vmlinuz-"))
        initrd.file("etc/dropbear/host_key", host_blob, 0o600)
        initrd.file("root/.ssh/authorized_keys", _public_line(user_key).encode() + b"\n", 0o600)
        (out / "initrd").write_bytes(initrd.closed())
        write_disk(out / "disk.raw", root, out / "vmlinuz", out / "initrd", APPEND, DATA_BYTES)
        noted = {"packages": packages, "host_key": host_key}
        (out / "standin.json").write_text(json.dumps(noted, indent=2) + "\n")


def only(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if not found:
        raise CannotError(f"the stand-in guest: its packages contain no {pattern}")
    return found[-1]


def first(root: Path, *places: str) -> Path:
    """The first of several possible paths at which a package has its file.

    Debian 12 and Ubuntu 24.04 have programs in bin, later ones only in usr/bin.
    """
    for place in places:
        if (root / place).exists():
            return root / place
    raise CannotError(f"the stand-in guest: its packages contain none of {', '.join(places)}")


def _host_key() -> tuple[str, bytes]:
    """A new host key: its line for known_hosts, and the file as dropbear reads it."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes_raw()
    public = key.public_key().public_bytes_raw()
    name = b"ssh-ed25519"
    blob = struct.pack(">I", len(name)) + name + struct.pack(">I", 64) + private + public
    return _public_line(key), blob


def _public_line(key: Ed25519PrivateKey) -> str:
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return line.decode()


def _write_private(path: Path, key: Ed25519PrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )


def _add_system(archive: cpio.Archive, root: Path, release: str) -> None:
    for name in (
        "bin",
        "sbin",
        "dev",
        "proc",
        "sys",
        "tmp",
        "run",
        "mnt",
        "lib",
        "var/log",
        "var/run",
    ):
        archive.folder(name)
    # Dropbear accepts no key from a folder that others could write to.
    archive.folder("root", 0o700)
    archive.folder("root/.ssh", 0o700)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", first(root, "bin/busybox", "usr/bin/busybox").read_bytes(), 0o755)
    archive.link("bin/sh", "busybox")
    for path in sorted((HERE / "root").rglob("*")):
        if path.is_file():
            mode = 0o755 if path.read_bytes().startswith(b"#!") else 0o644
            archive.file(str(path.relative_to(HERE / "root")), path.read_bytes(), mode)
    libraries: dict[str, Path] = {}
    for program in PROGRAMS:
        archive.file(program, (root / program).read_bytes(), 0o755)
        _collect_libraries(root / program, root, libraries)
    for name, path in libraries.items():
        # Every program contains the loader's absolute path; the loader finds the other libraries in
        # /lib.
        target = "lib64" if name.startswith("ld-linux") else "lib"
        archive.file(f"{target}/{name}", path.read_bytes(), 0o755)
    # The path where dropbear looks for it.
    archive.link("usr/lib/sftp-server", "openssh/sftp-server")
    for position, (name, data) in enumerate(modules(root, release, MODULES)):
        archive.file(f"lib/modules/{position:02}-{name}.ko", data, 0o644)


def _collect_libraries(program: Path, root: Path, found: dict[str, Path]) -> None:
    with program.open("rb") as stream:
        elf = ELFFile(stream)
        dynamic = elf.get_section_by_name(".dynamic")
        if not isinstance(dynamic, DynamicSection):
            raise CannotError(f"the stand-in guest: {program.name} is not a dynamic program")
        needed = [
            tag.needed  # type: ignore[attr-defined]
            for tag in dynamic.iter_tags("DT_NEEDED")
        ]
        interpreter = elf.get_section_by_name(".interp")
        if interpreter:
            needed.append(Path(interpreter.data().rstrip(b"\0").decode()).name)
    for name in needed:
        if name in found:
            continue
        places = [f"{root}{place}/{name}" for place in HOST_LIBRARIES]
        places += [f"{place}/{name}" for place in HOST_LIBRARIES]
        path = next((Path(place) for place in places if os.path.exists(place)), None)
        if path is None:
            raise CannotError(
                f"the stand-in guest: {program.name} needs {name}, which was not found"
            )
        found[name] = path
        _collect_libraries(path, root, found)


def modules(root: Path, release: str, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Kernel modules and those that they need, in the order of loading.

    Built-in modules are left out.
    """
    tree = first(root, "lib/modules", "usr/lib/modules") / release
    files_by_name = {
        p.name.split(".ko")[0].replace("-", "_"): p for p in sorted(tree.rglob("*.ko*"))
    }
    done: set[str] = set()

    def load(name: str) -> Iterator[tuple[str, bytes]]:
        name = name.replace("-", "_")
        if name in done or name not in files_by_name:
            return
        done.add(name)
        data = _decompress(files_by_name[name])
        for entry in _modinfo(data):
            if entry.startswith("depends="):
                for other in filter(None, entry.removeprefix("depends=").split(",")):
                    yield from load(other)
        yield name, data

    for wanted in names:
        yield from load(wanted)


def _decompress(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq", path], capture_output=True, check=True).stdout
    return data


def _modinfo(module: bytes) -> list[str]:
    with tempfile.TemporaryFile() as stream:
        stream.write(module)
        section = ELFFile(stream).get_section_by_name(".modinfo")
        data = section.data() if section else b""
        return [entry.decode("utf-8", "replace") for entry in data.split(b"\0")]


# --- the disk


def write_disk(
    target: Path, root: Path, kernel: Path, initrd: Path, append: str, data_bytes: int
) -> int:
    """Write a disk that boots `kernel` with `initrd`; returns the second partition's offset in
    bytes.

    `root` contains the unpacked packages, including GRUB; the second partition has `data_bytes` of
    zeros.
    """
    kernel_sectors, initrd_sectors = _sectors(kernel), _sectors(initrd)
    initrd_at = FIRST_SECTOR + kernel_sectors
    config = (
        f"linux16 (hd0){FIRST_SECTOR}+{kernel_sectors} {append}\n"
        f"initrd16 (hd0){initrd_at}+{initrd_sectors}\n"
        "boot\n"
    )
    core = _grub_core(root, config)
    if len(core) > (FIRST_SECTOR - 1) * SECTOR_BYTES:
        raise CannotError("the stand-in guest: GRUB does not fit before the first partition")
    boot_end = -(-(initrd_at + initrd_sectors) // 2048) * 2048
    data_sectors = data_bytes // SECTOR_BYTES
    table = _partition(0x83, FIRST_SECTOR, boot_end - FIRST_SECTOR, active=True)
    table += _partition(0x83, boot_end, data_sectors, active=False)
    boot = (root / "usr/lib/grub/i386-pc/boot.img").read_bytes()[:440]
    with target.open("wb") as disk:
        disk.write(boot.ljust(446, b"\0") + table.ljust(64, b"\0") + b"\x55\xaa")
        disk.write(core)
        for sector, path in ((FIRST_SECTOR, kernel), (initrd_at, initrd)):
            disk.seek(sector * SECTOR_BYTES)
            with path.open("rb") as stream:
                shutil.copyfileobj(stream, disk)
        disk.truncate((boot_end + data_sectors) * SECTOR_BYTES)
    return boot_end * SECTOR_BYTES


def _sectors(path: Path) -> int:
    return -(-path.stat().st_size // SECTOR_BYTES)


def _partition(kind: int, first: int, count: int, active: bool) -> bytes:
    no_chs = b"\xfe\xff\xff"
    head = bytes([0x80 if active else 0]) + no_chs + bytes([kind]) + no_chs
    return head + struct.pack("<II", first, count)


def _grub_core(root: Path, config: str) -> bytes:
    """GRUB's second stage with `config` in it; it must begin at sector 1."""
    libraries = [path for place in HOST_LIBRARIES for path in glob.glob(f"{root}{place}")]
    with tempfile.TemporaryDirectory() as work:
        early, core = Path(work) / "early.cfg", Path(work) / "core.img"
        early.write_text(config)
        done = subprocess.run(
            [
                root / "usr/bin/grub-mkimage",
                *("--directory", root / "usr/lib/grub/i386-pc"),
                *("--format", "i386-pc", "--prefix", "(hd0)/", "--config", early),
                *("--output", core, *GRUB_MODULES),
            ],
            env={**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CannotError("the stand-in guest: grub-mkimage failed", detail=done.stderr)
        return core.read_bytes()


if __name__ == "__main__":
    made = build(Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else None)
    print(made.disk)
