"""Loading our vmm.ko in a guest, and the proof that it is ours and works."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.build.builder import Build
from harness.errors import CannotError, GuestError, PatchError
from harness.files import sha256_file
from harness.guest.freebsd import Guest
from harness.machine.models import BOCHS_RUNS
from harness.release import major_of

HOME = "/var/tmp/vmm-workbench"  # noqa: S108  (in the guest, which is ours alone)
CONTROL = "/dev/vmmctl"
"""The device through which VMs are made since FreeBSD 15."""
_MAX_VCPUS = 4
# Bochs (2.7 and 3.0) loses interrupts that the processor should deliver to a guest by itself, and
# in 2.7 VM entries fail then.  With this setting vmm.ko delivers them.
_WITHOUT_APICV = "hw.vmm.vmx.cap.virtual_interrupt_delivery=0"

# The messages of vmm.ko if the processor lacks something that it needs.
_HARDWARE = re.compile(r"^(?:vmx_modinit|vmx_init|svm_init|amdvi|SVM|VMX|ept_init|npt)\b.*", re.I)


@dataclass(frozen=True)
class LoadedModule:
    """A loaded module: its path in the guest, and the proof that it is ours.

    `virtualizes` says whether VMs can be made: whether /dev/vmmctl exists, on a release that has
    it.  If not, `refusal` is the module's own reason.
    """

    path: str
    build_id: str
    sha256: str
    virtualizes: bool
    refusal: str


def load(guest: Guest, build: Build) -> LoadedModule:
    """Copy the module in, load it by absolute path, and prove that it is the loaded one.

    Raises PatchError if the kernel refuses the module, GuestError if another vmm stays loaded.  It
    is no error if the module loads but the processor cannot virtualize: see
    `LoadedModule.virtualizes`.
    """
    # Two builds may have the same module but different libraries or programs.
    home = f"{HOME}/{build.key[:16]}"
    remote = f"{home}/vmm.ko"
    guest.must(["mkdir", "-p", home])
    if any(kld.name == "vmm.ko" for kld in guest.klds()):
        guest.must(["kldunload", "vmm"])
    running = guest.number("kern.osreldate")
    if major_of(running) != major_of(build.osversion) or running < build.osversion:
        raise CannotError(
            f"the guest runs FreeBSD {running}, the source tree is {build.osversion}: the kernel "
            "must be of the same major release and at least as new; give the tree that the image "
            "was built from (--src)"
        )
    digest = sha256_file(build.module)
    if guest.run(["sha256", "-q", remote]).stdout.strip() != digest:
        guest.put(build.module, remote)
        arrived = guest.must(["sha256", "-q", remote]).strip()
        if arrived != digest:
            raise GuestError(f"{remote} arrived as {arrived}, not as {digest}")
    # By default a VM may have as many vCPUs as the guest has CPUs, which may be one.
    guest.must(["kenv", f"hw.vmm.maxcpu={_MAX_VCPUS}"])
    if guest.machine.backend in BOCHS_RUNS:
        guest.must(["kenv", _WITHOUT_APICV])
    mark = guest.machine.console.mark
    result = guest.run(["kldload", remote], guest.deadline(30))
    said = [line.strip() for line in guest.machine.console.since(mark).splitlines() if line.strip()]
    hardware = next((line for line in said if _HARDWARE.match(line)), "")
    if not result.ok:
        if hardware:
            return LoadedModule(remote, build.build_id, digest, virtualizes=False, refusal=hardware)
        raise PatchError(
            f"the guest's kernel refuses the module: {result.stderr.strip() or 'no reason given'}",
            detail="\n".join(said[-15:]),
        )
    # The kernel remembers the path it loaded from; the file there is byte for byte what was built.
    loaded = [kld for kld in guest.klds() if kld.name == "vmm.ko"]
    if [kld.path for kld in loaded] != [remote]:
        raise GuestError(f"loaded {remote}, but the kernel runs {loaded}")
    there = not has_control_device(build) or guest.exists(CONTROL)
    reason = hardware or f"{CONTROL} is missing"
    return LoadedModule(
        remote, build.build_id, digest, virtualizes=there, refusal="" if there else reason
    )


def has_control_device(build: Build) -> bool:
    """Whether this release's vmm makes VMs through /dev/vmmctl.

    FreeBSD 14 makes them through a sysctl, and loads the module only if the processor virtualizes.
    """
    headers = (build.include / folder / "vmm_dev.h" for folder in ("machine", "dev/vmm"))
    texts = (it.read_text(errors="replace") for it in headers if it.is_file())
    return any("VMMCTL_VM_CREATE" in text for text in texts)


def invariants_differ(guest: Guest, build: Build) -> str:
    """A message if kernel and module differ in INVARIANTS; empty if they do not.

    The kernel's answer is the feature's sysctl (sys/kern/init_main.c).
    """
    kernel = guest.sysctl("kern.features.invariants") == "1"
    if kernel == build.invariants:
        return ""
    with_, without = ("the kernel", "the module") if kernel else ("the module", "the kernel")
    return (
        f"{with_} was built with INVARIANTS, {without} without: their structures may differ; "
        "import the image again (./inv image.import), which records the kernel's configuration if "
        "the kernel has it (INCLUDE_CONFIG_FILE)"
    )
