"""The table of `inv doctor`: a row for each finding, and whether a full verify is possible."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from harness import progress
from harness.build import sandbox
from harness.errors import EXIT_CANNOT, EXIT_OK, WorkbenchError
from harness.files import human_bytes
from harness.host import survey
from harness.host.backend import Decision, bochs_refusal, decide, kvm_refusal
from harness.host.facts import Emulator, Folder, HostFacts, Image, Processor, to_data
from harness.host.refusal import Refusal
from harness.host.requirements import Need, lacking
from harness.image import store
from harness.image.manifest import published_releases
from harness.machine import forward
from harness.machine.models import BOCHS_MODELS

# The needs of a full verify: a run's folder with its overlay, and the memory of guest and emulator.
RUN_ROOM_BYTES = 1 << 30
CACHE_ROOM_BYTES = 1 << 30
MEMORY_BYTES = (1 << 30) + (512 << 20)

OK, WARN, MISSING = "ok", "note", "missing"
_BUILD_TOOLS = ("bmake", "make", "gcc", "git")
FASTER_BOCHS = "3.0"
"""The version that is faster than those that always run in their debugger."""
# If Bochs has these processor models, it has VMX or SVM as vmm.ko needs it.
_BOCHS_KINDS = {"VMX": {BOCHS_MODELS["intel"]}, "SVM": {"zambezi", "trinity_apu"}}
_COMPILERS = {"gcc", "cc", "clang-19"}


def gather() -> HostFacts:
    """Collect what this machine can do, and which images are prepared on it."""
    found = replace(survey.gather(), images=_prepared(), network_refusal=forward.unavailable())
    if refusal := sandbox.unavailable():
        return replace(found, sandbox_refusal=refusal)
    return replace(found, sandbox=sandbox.describe())


@dataclass(frozen=True)
class Row:
    """One finding.  `status` is "ok", "note" (a verify is possible without it) or "missing"."""

    what: str
    found: str
    evidence: str
    status: str
    remedy: str = ""

    def to_data(self) -> dict[str, str]:
        """The row for programs; the key of the remedy is `mend`, as in earlier versions."""
        data = dict(vars(self))
        data["mend"] = data.pop("remedy")
        return data


@dataclass(frozen=True)
class Verdict:
    """All rows, the backend that auto takes, and the rows that prevent a full verify."""

    rows: tuple[Row, ...]
    decision: Decision
    facts: HostFacts

    @property
    def blocking(self) -> tuple[Row, ...]:
        """The rows that prevent a full verify."""
        return tuple(row for row in self.rows if row.status == MISSING)

    @property
    def exit_code(self) -> int:
        """0 if a full verify is possible, else 3."""
        return EXIT_CANNOT if self.blocking else EXIT_OK

    @property
    def closing(self) -> str:
        """The last line: the backend and the reason, or why there is none."""
        decision = self.decision
        if decision.backend is None:
            line = f"no backend: {decision.reason}"
        else:
            line = f"auto takes {decision.backend}: {decision.reason}"
        if not self.blocking:
            return line
        reasons = ", ".join(row.what for row in self.blocking)
        return f"{line}\na full verify is not possible yet: {reasons}"

    def to_data(self) -> dict[str, Any]:
        """All data for programs."""
        return {
            "possible": not self.blocking,
            "backend": self.decision.name or None,
            "reason": self.decision.reason,
            "blocking": [row.what for row in self.blocking],
            "rows": [row.to_data() for row in self.rows],
            "facts": to_data(self.facts),
        }


def show(verdict: Verdict) -> None:
    """Print the table and the last line for people."""
    cells = [
        (
            row.what,
            row.status,
            "\n".join(filter(None, (row.found, row.evidence, _arrow(row.remedy)))),
        )
        for row in verdict.rows
    ]
    progress.table(("what", "status", "found, its evidence, and the remedy"), cells)
    progress.out.print(verdict.closing, markup=False)


def _arrow(remedy: str) -> str:
    return f"-> {remedy}" if remedy else ""


def examine(facts: HostFacts) -> Verdict:
    """Judge the facts, row by row."""
    decision = decide(facts)
    rows = (
        _cpu(facts),
        _device(facts),
        *_guest(facts),
        *_emulators(facts),
        _backend(decision),
        _tools(facts),
        *_sandbox(facts),
        *_network(facts),
        *_room(facts),
        _python(facts),
        _images(facts),
    )
    return Verdict(rows, decision, facts)


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _cpu(facts: HostFacts) -> Row:
    cpu = facts.cpu
    shown = (
        " and ".join(name for name, flag in (("VMX", cpu.vmx), ("SVM", cpu.svm)) if flag)
        or "neither VMX nor SVM"
    )
    place = ", in a virtual machine" if cpu.hypervisor else ""
    # This is never "missing": Bochs needs nothing of the processor, and KVM has a row of its own.
    return Row(
        "processor",
        f"{cpu.vendor or 'unknown'}, {cpu.count} in use{place}: {shown}",
        f"/proc/cpuinfo: {cpu.model}; flags vmx {_yes(cpu.vmx)}, svm {_yes(cpu.svm)}, "
        f"hypervisor {_yes(cpu.hypervisor)}",
        OK if cpu.vmx or cpu.svm else WARN,
    )


def _device(facts: HostFacts) -> Row:
    kvm = facts.kvm
    if not kvm.present:
        found = "not there"
    elif kvm.open_error:
        found = f"there, not openable: {kvm.open_error}"
    elif kvm.problem or not kvm.device:
        found = f"present, but {kvm.problem or 'no device node'}"
    else:
        found = f"usable, beneath it: {kvm.kind}"
    settings = ", ".join(f"{name}={text}" for name, text in sorted(kvm.parameters.items()))
    evidence = (
        f"API {kvm.api_version if kvm.api_version is not None else '-'}; "
        f"modules {', '.join(kvm.modules) or '-'}"
    )
    if settings:
        evidence += f"; {settings}"
    if kvm.create_vm_error:
        evidence += f"; KVM_CREATE_VM {kvm.create_vm_error}"
    refusal = kvm_refusal(facts) if kvm.guest is None or kvm.create_vm_error else None
    return Row(
        "/dev/kvm", found, evidence, WARN if refusal else OK, refusal.remedy if refusal else ""
    )


def _guest(facts: HostFacts) -> list[Row]:
    """Compare the features that a guest of KVM would get with those that vmm.ko requires."""
    guest = facts.kvm.guest
    if guest is None:
        return []
    refusal = kvm_refusal(facts)
    remedy = refusal.remedy if refusal else ""
    cpuid = (
        f"KVM_GET_SUPPORTED_CPUID: 1 ECX 0x{guest.leaf1_ecx:x}, 8000_0001 ECX 0x{guest.ext1_ecx:x}"
    )
    if not guest.vmx and not guest.svm:
        return [Row("nesting under KVM", "neither VMX nor SVM for a guest", cpuid, WARN, remedy)]
    rows = []
    lacks = lacking(guest)
    if guest.vmx:
        rows.append(Row("nesting under KVM", "VMX for a guest", cpuid, OK))
        rows.append(_vmx_capabilities(guest))
    else:
        rows.append(Row("nesting under KVM", "SVM for a guest", cpuid, OK))
        found = "nested paging and NRIP save" if not lacks else "vmm.ko requires more"
        evidence = f"8000_000A EDX 0x{guest.svm_edx:x}"
        rows.append(Row("SVM capabilities", found, evidence, WARN if lacks else OK))
    for lack in lacks:
        if lack.need is not Need.OPTIONAL:
            rows.append(
                Row(
                    lack.name,
                    f"missing: {lack.why}; {lack.need.value}",
                    lack.evidence,
                    WARN,
                    remedy,
                )
            )
    return rows


def _vmx_capabilities(guest: Processor) -> Row:
    lacks = lacking(guest)
    required = [lack for lack in lacks if lack.need is not Need.OPTIONAL]
    optional = [lack.name for lack in lacks if lack.need is Need.OPTIONAL]
    found = f"{len(required)} required missing" if required else "everything that vmm.ko requires"
    if optional:
        found += f"; without the optional {', '.join(optional[:3])}"
        found += f" and {len(optional) - 3} more" if len(optional) > 3 else ""
    registers = ", ".join(
        f"0x{index:x}=0x{guest.msrs[index]:x}"
        for index in (0x480, 0x48B, 0x48C)
        if index in guest.msrs
    )
    evidence = f"KVM_GET_MSRS: {registers}" if registers else "KVM_GET_MSRS: nothing"
    return Row("VMX capabilities", found, evidence, WARN if required else OK)


def _emulators(facts: HostFacts) -> list[Row]:
    rows = []
    qemu = facts.emulators.get("qemu-system-x86_64")
    if qemu is None:
        remedy = "./inv setup"
        rows.append(
            Row("QEMU", "not installed", "qemu-system-x86_64: not in PATH", MISSING, remedy)
        )
    else:
        status = MISSING if qemu.problem else OK
        rows.append(Row("QEMU", qemu.problem or qemu.version, qemu.path, status))
    bochs = facts.emulators.get("bochs")
    refusal = bochs_refusal(facts)
    if bochs is None or refusal:
        cause = refusal or Refusal("not installed")
        path = bochs.path if bochs else "bochs: not in PATH"
        rows.append(Row("Bochs", cause.cause, path, WARN, cause.remedy))
    else:
        rows.append(_bochs(bochs, can_save=bool(facts.tools.keys() & _COMPILERS)))
    return rows


def _bochs(bochs: Emulator, *, can_save: bool) -> Row:
    """What the chosen Bochs can do, and how to get a faster one."""
    models = set(bochs.cpu_models)
    kinds = [kind for kind, some in _BOCHS_KINDS.items() if models & some]
    can = [f"{len(models)} processor models ({' and '.join(kinds)})" if kinds else "no VMX, no SVM"]
    can.append("saves and resumes guests" if can_save else "saves no guest without a C compiler")
    remedy = ""
    if bochs.debugger == "always":
        can.append("runs in its debugger, instruction by instruction")
        where = (
            f"HARNESS_BOCHS={FASTER_BOCHS} uses the one that is unpacked here"
            if FASTER_BOCHS in bochs.unpacked
            else f"./inv setup --bochs {FASTER_BOCHS} unpacks it next to this one (45 "
            f"MB, no root), "
            f"HARNESS_BOCHS={FASTER_BOCHS} uses it"
        )
        remedy = f"Bochs {FASTER_BOCHS} is faster by a third and more: {where}"
    elif bochs.debugger:
        can.append("runs whole traces, a third faster and more than 2.7")
    return Row("Bochs", bochs.version, f"{bochs.path}: {', '.join(can)}", OK, remedy)


def _backend(decision: Decision) -> Row:
    if decision.backend is None:
        return Row("backend", "none", decision.reason, MISSING, decision.remedy)
    return Row("backend", str(decision.backend), "the choice of auto (./inv probe tries it)", OK)


def _tools(facts: HostFacts) -> Row:
    tools = dict(facts.tools)
    compilers = [name for name in tools if name.startswith("clang-")]
    names = [*_BUILD_TOOLS, *compilers, "mandoc"]
    found = ", ".join(f"{name} {tools[name]}".rstrip() for name in names if name in tools)
    missing = [name for name in facts.packages_missing if name not in {"bochs", "bochs-term"}]
    if not missing:
        return Row("build tools", found, "Debian packages: all there", OK)
    return Row(
        "build tools",
        found or "none",
        f"missing Debian packages: {', '.join(missing)}",
        MISSING,
        f"./inv setup ({facts.surroundings.as_root(facts.packages_line)})",
    )


def _sandbox(facts: HostFacts) -> list[Row]:
    if facts.sandbox_refusal:
        evidence = "a patch's Makefiles run as you with --no-sandbox"
        cause, _, remedy = facts.sandbox_refusal.partition(": ")
        return [Row("sandbox for builds", cause, evidence, MISSING, remedy)]
    if facts.sandbox:
        return [Row("sandbox for builds", facts.sandbox, "a test sandbox was made", OK)]
    return []


def _network(facts: HostFacts) -> list[Row]:
    if facts.network_refusal is None:
        return []
    what = "way into a guest"
    if facts.network_refusal:
        evidence = f"the emulator has no network of its own: {facts.network_refusal}"
        found = "a port on 127.0.0.1, open to this machine's other users"
        return [Row(what, found, evidence, WARN, forward.namespace_remedy())]
    return [Row(what, "no port on this machine", "a test network for one emulator was made", OK)]


def _room(facts: HostFacts) -> list[Row]:
    rows = [
        _folder("room in the cache", facts.cache, CACHE_ROOM_BYTES, "HARNESS_CACHE"),
        _folder("room for runs", facts.runs, RUN_ROOM_BYTES, "HARNESS_RUNS"),
    ]
    enough = facts.memory_available_bytes >= MEMORY_BYTES
    rows.append(
        Row(
            "memory",
            f"{human_bytes(facts.memory_available_bytes)} available",
            f"a verify needs {human_bytes(MEMORY_BYTES)}",
            OK if enough else MISSING,
            "" if enough else "end other programs",
        )
    )
    return rows


def _folder(what: str, folder: Folder, needed_bytes: int, variable: str) -> Row:
    if folder.free_bytes is None:
        remedy = f"set {variable} to a folder that can be written"
        return Row(what, "no folder", folder.problem, MISSING, remedy)
    enough = folder.free_bytes >= needed_bytes
    return Row(
        what,
        f"{human_bytes(folder.free_bytes)} free",
        f"{folder.path}; a verify needs {human_bytes(needed_bytes)}",
        OK if enough else MISSING,
        "" if enough else f"free some room or set {variable} to another folder",
    )


def _python(facts: HostFacts) -> Row:
    # The launcher does not start without a Python that is new enough.
    return Row("Python", facts.python_version, "the launcher's .venv", OK)


def _prepared() -> tuple[Image, ...]:
    """The prepared images; none when the cache cannot be read."""
    try:
        records = store.prepared()
    except (WorkbenchError, OSError):
        return ()
    return tuple(
        Image(record.release, record.source is not None, record.sysroot is not None)
        for record in records
    )


def _images(facts: HostFacts) -> Row:
    # The newest release that has a manifest here.
    release = (*published_releases(), "RELEASE")[0]
    remedy = (
        f"{store.import_line(release)} (or ./inv image.fetch --release {release}, with a network)"
    )
    usable = [image.release for image in facts.images if image.source and image.sysroot]
    if usable:
        return Row("images", ", ".join(usable), "prepared, with source and sysroot", OK)
    if facts.images:
        found = ", ".join(image.release for image in facts.images)
        return Row("images", found, "prepared, but no source or sysroot", MISSING, remedy)
    return Row("images", "none prepared", f"cache: {facts.cache.path or '-'}", MISSING, remedy)
