"""Collects the facts about this machine, all at the same time and with a time limit.

All other programs are started together and share one limit, so the total time is that of the
slowest.
"""

from __future__ import annotations

import contextlib
import grp
import os
import platform
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from harness import debian, files, surroundings
from harness.deadline import Deadline
from harness.errors import WorkbenchError
from harness.host import kvm as kvm_device
from harness.host.facts import Cpu, Emulator, Folder, HostFacts, Kvm, Processor
from harness.machine import bochs_packages, bochs_program

# On an emulated machine a program may take many seconds to start.  A real one answers in tenths of
# a second, so the full limit is only used if a program hangs.
_LIMIT_S = 20.0
# The time to read an answer that has already arrived when the limit is over.
_COLLECT_S = 0.5
# Bochs's options by the names of their answers, in the order of parse_bochs's arguments.
_BOCHS_ASKED = {"bochs models": ("--help", "cpu"), "bochs options": ("--help",)}
_VERSION = re.compile(r"\d+(?:\.\d+)*")
# The settings of KVM that explain an answer: without EPT or unrestricted guest in the host, a guest
# has none either.
_PARAMETERS = {
    "kvm_intel": ("nested", "ept", "unrestricted_guest"),
    "kvm_amd": ("nested", "npt"),
}


def gather() -> HostFacts:
    """Examine this machine: takes under a second, or _LIMIT_S if a device or a tool hangs.

    Raises CannotError without /proc.
    """
    surroundings.require_proc()
    deadline = Deadline.after(_LIMIT_S)
    device = kvm_device.start()
    bochs = _bochs()
    questions = {name: _ask(command) for name, command in _commands().items()}
    if bochs.path and not bochs.problem:
        questions |= {
            name: _ask(bochs.program.command(*options), bochs.program.environment)
            for name, options in _BOCHS_ASKED.items()
        }
    lacking = debian.missing()
    cpu = parse_cpuinfo(_read("/proc/cpuinfo"))
    cache, runs = _folder(files.cache_dir), _folder(files.runs_dir)
    memory = available_memory_bytes()
    # The device is asked first, so that a hanging tool does not look as if KVM did not answer.
    found = kvm_device.finish(device, deadline.remaining_s)
    answers = {name: _answer(child, deadline) for name, child in questions.items()}
    return HostFacts(
        cpu=cpu,
        kvm=replace(make_kvm(found, _modules(Path("/sys/module"))), **device_group()),
        emulators=_emulators(answers, bochs),
        tools={
            name: version_in(answer)
            for name, answer in answers.items()
            if name not in {"qemu-system-x86_64", *_BOCHS_ASKED}
        },
        packages_missing=lacking.packages,
        packages_line=lacking.line if lacking.packages else "",
        cache=cache,
        runs=runs,
        memory_available_bytes=memory,
        python_version=platform.python_version(),
        surroundings=surroundings.look(),
    )


@dataclass(frozen=True)
class _Bochs:
    """The Bochs that would run, if any; `problem` says why a named one cannot run."""

    program: bochs_program.Bochs
    path: str = ""
    problem: str = ""


def _bochs() -> _Bochs:
    try:
        program = bochs_program.locate()
    except WorkbenchError as error:
        named = bochs_program.Bochs(os.environ.get(bochs_program.VARIABLE, ""))
        return _Bochs(named, named.path, error.message)
    if program.private:
        return _Bochs(program, program.path)
    return _Bochs(program, shutil.which("bochs", path=debian.search_path()) or "")


def _commands() -> dict[str, list[str]]:
    """The commands that ask the installed tools for their versions."""
    clang = debian.clang_version()
    commands = {
        "qemu-system-x86_64": ["--version"],
        "bmake": ["-f", os.devnull, "-V", "MAKE_VERSION"],
        "git": ["--version"],
        "gcc": ["-dumpfullversion"],
        "make": ["--version"],
        "mandoc": [],
    }
    if clang is not None:
        # One LLVM release contains all three, so only one of them is asked.
        commands[f"clang-{clang}"] = ["--version"]
    return {
        name: [path, *options] if options else []
        for name, options in commands.items()
        if (path := shutil.which(name, path=debian.search_path()))
    }


def _ask(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str] | None:
    if not command:
        return None
    # Not by process.run: all programs are started before any answer is read.
    with contextlib.suppress(OSError):
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    return None


def _answer(child: subprocess.Popen[str] | None, deadline: Deadline) -> str:
    if child is None:
        return ""
    try:
        answer, _ = child.communicate(timeout=max(_COLLECT_S, deadline.remaining_s))
    except subprocess.TimeoutExpired:
        child.kill()
        return ""
    return answer


def version_in(answer: str) -> str:
    """The first version number in a program's output, or an empty text."""
    match = _VERSION.search(answer)
    return match.group() if match else ""


def _emulators(answers: Mapping[str, str], bochs: _Bochs) -> dict[str, Emulator]:
    found = {}
    name = "qemu-system-x86_64"
    if name in answers:
        path = shutil.which(name, path=debian.search_path()) or ""
        version = version_in(answers[name])
        problem = "" if version else "it does not run"
        found[name] = Emulator(path=path, version=version, problem=problem)
    if bochs.problem:
        found["bochs"] = Emulator(path=bochs.path, problem=bochs.problem)
    elif bochs.path:
        program = parse_bochs(bochs.path, *(answers.get(name, "") for name in _BOCHS_ASKED))
        with contextlib.suppress(WorkbenchError):
            others = tuple(v for v in bochs_packages.there() if v != program.version)
            program = replace(program, unpacked=others)
        found["bochs"] = program
    return found


def parse_bochs(path: str, reported_models: str, reported_options: str = "") -> Emulator:
    """Bochs's version and processor models, from `bochs --help cpu`, and whether it runs in its
    debugger, from `bochs --help`.
    """
    program = bochs_program.parse_help(bochs_program.Bochs(path), reported_options)
    version = re.search(r"Bochs x86 Emulator (\S+)", reported_models)
    _, _, listed = reported_models.partition("Supported CPU models:")
    models = tuple(line for line in listed.splitlines() if re.fullmatch(r"\w+", line))
    return Emulator(
        path=path,
        version=version.group(1) if version else "",
        cpu_models=models,
        problem="" if models else "it does not list its processor models",
        debugger=program.debugger.value if program.version else "",
    )


def parse_cpuinfo(text: str) -> Cpu:
    """The host's processor, from /proc/cpuinfo's first block."""
    block, _, _ = text.partition("\n\n")
    pairs = {
        name.strip(): value.strip()
        for name, colon, value in (line.partition(":") for line in block.splitlines())
        if colon
    }
    flags = set(pairs.get("flags", "").split())
    return Cpu(
        vendor=pairs.get("vendor_id", ""),
        model=pairs.get("model name", ""),
        vmx="vmx" in flags,
        svm="svm" in flags,
        hypervisor="hypervisor" in flags,
        count=len(os.sched_getaffinity(0)),
        architecture=platform.machine(),
    )


@dataclass(frozen=True)
class Modules:
    """KVM's kernel modules, which of them are built in, and their relevant settings."""

    names: tuple[str, ...] = ()
    built_in: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)


def _modules(folder: Path) -> Modules:
    """Read /sys/module; a module that was loaded has a state there."""
    with contextlib.suppress(OSError):
        names = tuple(sorted(path.name for path in folder.glob("kvm*")))
        parameters = {
            f"{module}.{name}": text
            for module in names
            for name in _PARAMETERS.get(module, ())
            if (text := _read(str(folder / module / "parameters" / name)).strip())
        }
        built_in = tuple(name for name in names if not (folder / name / "initstate").exists())
        return Modules(names, built_in, parameters)
    return Modules()


def make_kvm(found: Mapping[str, Any], modules: Modules) -> Kvm:
    """Make facts from the device's answers (see `kvm.look`) and the kernel's modules."""
    guest = None
    if "cpuid" in found:
        none = (0, 0, 0, 0)
        leaves = found["cpuid"]
        guest = Processor(
            leaf1_ecx=leaves.get("0x1", none)[2],
            ext1_ecx=leaves.get("0x80000001", none)[2],
            svm_edx=leaves.get("0x8000000a", none)[3],
            msrs={int(index, 16): value for index, value in found.get("msrs", {}).items()},
        )
    return Kvm(
        present=bool(found.get("present")),
        device=bool(found.get("device", found.get("present"))),
        open_error=found.get("open_error", ""),
        api_version=found.get("api_version"),
        create_vm_error=found.get("create_vm_error", ""),
        msrs_error=found.get("msrs_error", ""),
        problem=found.get("problem", ""),
        modules=modules.names,
        built_in=modules.built_in,
        parameters=modules.parameters,
        guest=guest,
    )


def device_group(device: Path = Path("/dev/kvm")) -> dict[str, Any]:
    """Whose members may open the device, and whether this user is one who has to log in again."""
    none = {"group": "", "group_id": 0, "member": False}
    try:
        state = device.stat()
    except OSError:
        return none
    number = state.st_gid
    if not number or state.st_mode & 0o060 != 0o060:
        return none
    try:
        group = grp.getgrgid(number)
        user = pwd.getpwuid(os.getuid())
    except KeyError:
        return {**none, "group": str(number), "group_id": number}
    listed = user.pw_name in group.gr_mem or user.pw_gid == number
    member = listed and number not in {*os.getgroups(), os.getegid()}
    return {"group": group.gr_name, "group_id": number, "member": member}


def available_memory_bytes() -> int:
    """The available memory without swapping, within this control group's limit."""
    available: int = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        # "max", a missing file and an unlimited group's huge number all mean that there is no
        # limit.
        with contextlib.suppress(ValueError):
            available = min(available, max(0, int(_read(limit)) - int(_read(used))))
    return available


def _folder(find: Callable[[], Path]) -> Folder:
    try:
        path = find()
        if not os.access(path, os.W_OK | os.X_OK):
            return Folder(problem=f"{path}: nothing can be written there")
        return Folder(path=str(path), free_bytes=shutil.disk_usage(path).free)
    except WorkbenchError as error:
        return Folder(problem=error.message)
    except OSError as error:
        return Folder(problem=str(error))


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(errors="replace")
    return ""
