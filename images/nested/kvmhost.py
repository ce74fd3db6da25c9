"""A Linux whose only purpose is to run one QEMU with KVM, so that KVM's guests run in Bochs.

Bochs emulates a processor with VMX, or SVM; this Linux boots on it, loads KVM and starts QEMU with
the command on its third disk; its second disk is the guest's.  harness/machine/nested.py starts it.
 The disk is made from Debian packages and this machine's own QEMU, as any user.

    python images/nested/kvmhost.py [network]

prints the path of the disk, which is made if it does not exist; without the word it has no network.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

# This project and the modules in this folder, whatever the current folder is.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "standin"))
import build as standin
import debian
import nested

from harness import files
from harness.errors import CannotError, WorkbenchError

HERE = Path(__file__).resolve().parent

# A cloud kernel has no driver for Bochs's network card, but it boots in the time that the other
# kernel needs just to unpack.
NETWORK_KERNELS = ("linux-image-amd64", "linux-image-generic")
MODULES = ("ata_piix", "sd_mod", "button", "kvm_intel", "kvm_amd")
NETWORK_MODULES = ("e1000", "crc32c_generic", "ext4")
# Modules that some kernels have built in.
_BUILT_IN = {"button", "crc32c_generic", "ext4"}
APPEND = (
    "console=ttyS0,115200 panic=-1 quiet loglevel=1 tsc=reliable no_timer_check "
    "random.trust_cpu=on mitigations=off"
)
DISK = "kvmhost.raw"
_ROOM_BYTES = 512 << 20


def build(network: bool) -> Path:
    """The disk, built unless the cache has one of this recipe and this QEMU.

    Raises CannotError if its parts cannot be found or downloaded.
    """
    cache = files.cache_dir() / "nested"
    recipe = hashlib.sha256(b"network" if network else b"")
    own = (HERE / name for name in ("nested.py", "kvmhost.py", "kvmhost_init"))
    for path in (*own, *sorted((HERE.parent / "standin").glob("*.py"))):
        recipe.update(path.read_bytes())
    for name in nested.EMULATOR:
        about = Path(shutil.which(name) or "/").stat()
        recipe.update(f"{name} {about.st_size} {about.st_mtime_ns}".encode())
    folder = cache / recipe.hexdigest()[:16]
    with files.locked(cache / "lock", "building the Linux with KVM"):
        if not (folder / DISK).exists():
            _build_into(folder, cache, network)
    return folder / DISK


def _build_into(folder: Path, cache: Path, network: bool) -> None:
    with tempfile.TemporaryDirectory(dir=cache) as name, files.atomic_dir(folder) as out:
        work = Path(name)
        root = work / "root"
        kernels = NETWORK_KERNELS if network else debian.KERNELS
        debian.unpack(debian.resolve(cache, kernels), cache, root)
        kernel = standin.only(root, "boot/vmlinuz-*")
        busybox = standin.first(root, "bin/busybox", "usr/bin/busybox").read_bytes()
        wanted = (*MODULES, *NETWORK_MODULES) if network else MODULES
        drivers = nested.drivers(root, kernel, wanted)
        if lacking := sorted(set(wanted) - _BUILT_IN - set(drivers)):
            raise CannotError(f"the Linux with KVM: {kernel.name} has no {', '.join(lacking)}")
        initrd = work / "initrd"
        initrd.write_bytes(nested.first_file_system(busybox, HERE / "kvmhost_init", drivers))
        system = nested.Root(work / "system")
        system.system(busybox)
        system.emulator(nested.EMULATOR)
        system.libraries()
        (system.folder / "run").mkdir()
        # For tests that load KVM with other settings.
        (system.folder / "usr/lib/modules").mkdir()
        for name, data in drivers.items():
            if name.startswith("kvm"):
                (system.folder / f"usr/lib/modules/{name}.ko").write_bytes(data)
        ext4 = work / "system.ext4"
        nested.make_ext4(ext4, system.folder, _ROOM_BYTES)
        begin = standin.write_disk(out / DISK, root, kernel, initrd, APPEND, _ROOM_BYTES)
        nested.copy_into(ext4, out / DISK, begin)


if __name__ == "__main__":
    try:
        print(build("network" in sys.argv[1:]))
    except WorkbenchError as error:
        sys.exit(error.message)
