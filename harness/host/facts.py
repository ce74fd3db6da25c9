"""The facts about a machine as data, and their form in files.

`./inv doctor --json` prints these facts under "facts", and the unit tests read them back from such
files: if a host is judged wrongly, its user can send the facts, and they become a test.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.machine.models import BOCHS_RUNS
from harness.surroundings import Surroundings

KVM_INTEL = "kvm_intel"
KVM_AMD = "kvm_amd"


@dataclass(frozen=True)
class Processor:
    """A processor as its software sees it: the host's, or the one that KVM would give a guest.

    `leaf1_ecx` is CPUID 1 ECX, `ext1_ecx` 8000_0001 ECX, `svm_edx` 8000_000A EDX (SDM volume 2,
    CPUID; APM volume 3, appendix E); `msrs` the existing VMX capability registers, by index
    (SDM volume 3, appendix A).
    """

    leaf1_ecx: int = 0
    ext1_ecx: int = 0
    svm_edx: int = 0
    msrs: Mapping[int, int] = field(default_factory=dict)

    @property
    def vmx(self) -> bool:
        """Whether it announces VMX."""
        return bool(self.leaf1_ecx >> 5 & 1)

    @property
    def svm(self) -> bool:
        """Whether it announces SVM."""
        return bool(self.ext1_ecx >> 2 & 1)


@dataclass(frozen=True)
class Cpu:
    """The host's own processor, from /proc/cpuinfo."""

    vendor: str = ""
    model: str = ""
    vmx: bool = False
    svm: bool = False
    hypervisor: bool = False
    count: int = 1
    architecture: str = "x86_64"


@dataclass(frozen=True)
class Kvm:
    """/dev/kvm and the layer below it.

    Errors are errno names, empty if there was none.  `modules` are the kernel modules whose name
    begins with kvm, `built_in` those that are built into the kernel; `parameters` some of their
    settings (`kvm_intel.nested`: "Y").  `guest` is the processor that a guest would get; None if
    KVM was not asked or did not answer.  `group` is the group whose members may open the device,
    with its number; `member`: the user is one by the system's files, though not yet in this
    session.
    """

    present: bool = False
    device: bool = False
    open_error: str = ""
    api_version: int | None = None
    create_vm_error: str = ""
    msrs_error: str = ""
    problem: str = ""
    modules: tuple[str, ...] = ()
    built_in: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    guest: Processor | None = None
    group: str = "kvm"
    group_id: int = 0
    member: bool = False

    @property
    def kind(self) -> str:
        """The layer below: "Intel", "AMD", "software (NAME)" or "unknown"."""
        if KVM_INTEL in self.modules:
            return "Intel"
        if KVM_AMD in self.modules:
            return "AMD"
        others = [name for name in self.modules if name != "kvm"]
        return f"software ({', '.join(others)})" if others else "unknown"


@dataclass(frozen=True)
class Emulator:
    """An installed emulator; `cpu_models` is empty if it does not list them quickly.

    Only for Bochs: `debugger` says whether it runs in its own debugger ("always", "on request",
    "never", or empty if unknown), `unpacked` which other versions are in the cache.
    """

    path: str = ""
    version: str = ""
    cpu_models: tuple[str, ...] = ()
    problem: str = ""
    debugger: str = ""
    unpacked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Image:
    """A prepared image in the cache, and whether its source tree and sysroot are there."""

    release: str
    source: bool = False
    sysroot: bool = False


@dataclass(frozen=True)
class Folder:
    """A folder that the workbench writes to; `free_bytes` is None if it cannot be used."""

    path: str = ""
    free_bytes: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class HostFacts:
    """All facts that decide what this machine can do.

    `emulators` and `tools` have the installed ones by command name (a tool's text is its version,
    or empty); `packages_missing` are Debian's names of missing packages, and `packages_line` the
    command that installs them.  `sandbox` describes the sandbox for builds, `sandbox_refusal` why
    there is none; both are empty if not examined.  `network_refusal` says why an emulator gets no
    network of its own (None: not examined; empty: it gets one).
    """

    cpu: Cpu = field(default_factory=Cpu)
    kvm: Kvm = field(default_factory=Kvm)
    emulators: Mapping[str, Emulator] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    packages_missing: tuple[str, ...] = ()
    packages_line: str = ""
    cache: Folder = field(default_factory=Folder)
    runs: Folder = field(default_factory=Folder)
    memory_available_bytes: int = 0
    python_version: str = ""
    images: tuple[Image, ...] = ()
    sandbox: str = ""
    sandbox_refusal: str = ""
    network_refusal: str | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)
    about: str = ""


def identity(facts: HostFacts, backend: str) -> dict[str, str]:
    """The names of this machine and the backend's emulator for a report."""
    emulator = facts.emulators.get("bochs" if backend in BOCHS_RUNS else "qemu-system-x86_64")
    return {
        "host": f"{facts.cpu.model or 'unknown processor'}, {facts.cpu.count} of them",
        "emulator": f"{emulator.path} {emulator.version}" if emulator else "unknown",
    }


def to_data(facts: HostFacts) -> dict[str, Any]:
    """The facts as data for JSON, with registers in hex."""
    return {name: _plain(name, value) for name, value in vars(facts).items()}


def _plain(name: str, value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {key: _plain(key, part) for key, part in vars(value).items()}
    if isinstance(value, Mapping):
        hexadecimal = name == "msrs"
        return {
            (hex(key) if hexadecimal else key): _plain("" if not hexadecimal else "msr", part)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain("", part) for part in value]
    if name in {"msr", "leaf1_ecx", "ext1_ecx", "svm_edx"}:
        return f"0x{value:x}"
    return value


def from_data(data: Mapping[str, Any]) -> HostFacts:
    """Facts from the data of `to_data`; missing keys get their defaults.

    Raises ValueError or TypeError for anything else.
    """
    kvm = dict(data.get("kvm", {}))
    guest = kvm.pop("guest", None)
    for name in ("modules", "built_in"):
        kvm[name] = tuple(kvm.get(name, ()))
    rest = {
        key: data[key]
        for key in (
            "tools",
            "packages_line",
            "memory_available_bytes",
            "python_version",
            "sandbox",
            "sandbox_refusal",
            "network_refusal",
            "about",
        )
        if key in data
    }
    return HostFacts(
        cpu=Cpu(**data.get("cpu", {})),
        kvm=Kvm(**kvm, guest=None if guest is None else _processor(guest)),
        emulators={
            name: Emulator(
                **{
                    **found,
                    "cpu_models": tuple(found.get("cpu_models", ())),
                    "unpacked": tuple(found.get("unpacked", ())),
                }
            )
            for name, found in data.get("emulators", {}).items()
        },
        packages_missing=tuple(data.get("packages_missing", ())),
        cache=Folder(**data.get("cache", {})),
        runs=Folder(**data.get("runs", {})),
        images=tuple(Image(**image) for image in data.get("images", ())),
        surroundings=Surroundings(**data.get("surroundings", {})),
        **rest,
    )


def _processor(data: Mapping[str, Any]) -> Processor:
    return Processor(
        leaf1_ecx=int(data.get("leaf1_ecx", "0"), 0),
        ext1_ecx=int(data.get("ext1_ecx", "0"), 0),
        svm_edx=int(data.get("svm_edx", "0"), 0),
        msrs={int(key, 0): int(value, 0) for key, value in data.get("msrs", {}).items()},
    )


def load(text: str) -> HostFacts:
    """Facts from a file's text."""
    return from_data(json.loads(text))
