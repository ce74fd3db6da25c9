"""Loading our vmm.ko in a guest, and the proof that it is ours and works."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from harness.build.builder import Build
from harness.errors import CannotError, GuestError, PatchError
from harness.files import sha256_file
from harness.guest.freebsd import Guest, parse_kldstat
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


# $0 the build's folder in the guest, then tunables for the module.  Prints sysctls, those that do
# not exist left out, and the digest of the module that is there already.
_READY = r"""
mkdir -p "$0" || exit
if kldstat -q -n vmm.ko; then kldunload vmm || exit; fi
for tunable; do kenv "$tunable" >/dev/null || exit; done
sysctl -i -e kern.osreldate kern.build_id kern.features.invariants
if [ -e "$0/vmm.ko" ]; then echo "sha256=$(sha256 -q "$0/vmm.ko")"; fi
"""
_LOADED = 'kldstat -v || exit; if [ -e "$0" ]; then echo "$0 is there"; fi'


@dataclass(frozen=True)
class LoadedModule:
    """A loaded module: its path in the guest, and the proof that it is ours.

    `virtualizes` says whether VMs can be made: whether /dev/vmmctl exists, on a release that has
    it.  If not, `refusal` is the module's own reason.  The last two are about the kernel: its build
    id (empty if it does not say) and whether it was built with INVARIANTS.
    """

    path: str
    build_id: str
    sha256: str
    virtualizes: bool
    refusal: str
    kernel_build_id: str = ""
    kernel_invariants: bool = False


def load(guest: Guest, build: Build) -> LoadedModule:
    """Copy the module in, load it by absolute path, and prove that it is the loaded one.

    Raises PatchError if the kernel refuses the module, GuestError if another vmm stays loaded.  It
    is no error if the module loads but the processor cannot virtualize: see
    `LoadedModule.virtualizes`.
    """
    # Two builds may have the same module but different libraries or programs.
    home = f"{HOME}/{build.key[:16]}"
    remote = f"{home}/vmm.ko"
    # By default a VM may have as many vCPUs as the guest has CPUs, which may be one.
    tunables = [f"hw.vmm.maxcpu={_MAX_VCPUS}"]
    if guest.machine.backend in BOCHS_RUNS:
        tunables.append(_WITHOUT_APICV)
    lines = guest.must(["/bin/sh", "-c", _READY, home, *tunables]).splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    try:
        running = int(found["kern.osreldate"])
    except (KeyError, ValueError) as error:
        raise GuestError(
            f"the guest does not say which FreeBSD it runs: {' '.join(lines)[:100]!r}"
        ) from error
    if major_of(running) != major_of(build.osversion) or running < build.osversion:
        raise CannotError(
            f"the guest runs FreeBSD {running}, the source tree is {build.osversion}: the kernel "
            "must be of the same major release and at least as new; give the tree that the image "
            "was built from (--src)"
        )
    # `put` counts the bytes, and SSH detects a change on the way, so the digest is not computed
    # again in the guest.  A file that was there may be anybody's.
    digest = sha256_file(build.module)
    if found.get("sha256") != digest:
        guest.put(build.module, remote)
    mark = guest.machine.console.mark
    result = guest.run(["kldload", remote], guest.deadline(30))
    said = [line.strip() for line in guest.machine.console.since(mark).splitlines() if line.strip()]
    hardware = next((line for line in said if _HARDWARE.match(line)), "")
    loaded = partial(
        LoadedModule,
        remote,
        build.build_id,
        digest,
        kernel_build_id=found.get("kern.build_id", ""),
        kernel_invariants=found.get("kern.features.invariants") == "1",
    )
    if not result.ok:
        if hardware:
            return loaded(virtualizes=False, refusal=hardware)
        raise PatchError(
            f"the guest's kernel refuses the module: {result.stderr.strip() or 'no reason given'}",
            detail="\n".join(said[-15:]),
        )
    # The kernel remembers the path it loaded from; the file there is byte for byte what was built.
    now = guest.must(["/bin/sh", "-c", _LOADED, CONTROL])
    klds = [kld for kld in parse_kldstat(now) if kld.name == "vmm.ko"]
    if [kld.path for kld in klds] != [remote]:
        raise GuestError(f"loaded {remote}, but the kernel runs {klds}")
    there = not has_control_device(build) or f"{CONTROL} is there" in now
    return loaded(virtualizes=there, refusal="" if there else hardware or f"{CONTROL} is missing")


def has_control_device(build: Build) -> bool:
    """Whether this release's vmm makes VMs through /dev/vmmctl.

    FreeBSD 14 makes them through a sysctl, and loads the module only if the processor virtualizes.
    """
    headers = (build.include / folder / "vmm_dev.h" for folder in ("machine", "dev/vmm"))
    texts = (it.read_text(errors="replace") for it in headers if it.is_file())
    return any("VMMCTL_VM_CREATE" in text for text in texts)


def invariants_differ(loaded: LoadedModule, build: Build) -> str:
    """A message if kernel and module differ in INVARIANTS; empty if they do not.

    The kernel's answer is the feature's sysctl (sys/kern/init_main.c).
    """
    kernel = loaded.kernel_invariants
    if kernel == build.invariants:
        return ""
    with_, without = ("the kernel", "the module") if kernel else ("the module", "the kernel")
    return (
        f"{with_} was built with INVARIANTS, {without} without: their structures may differ; "
        "import the image again (./inv image.import), which records the kernel's configuration if "
        "the kernel has it (INCLUDE_CONFIG_FILE)"
    )
