"""Wrong variants of vmmls, each with one fault: one look at a host full of trouble finds it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import series_source as source
from vmmls_host import (
    EACCES,
    EIO,
    ENOENT,
    ENOTTY,
    GIB,
    ME,
    MIB,
    QUIET,
    TOTALS,
    Host,
    created,
    memory,
    plain_vm,
    started,
    vmmls,
)

FAULTS = {
    "opens for writing": (
        "	fd = open(path, O_RDONLY | O_CLOEXEC);",
        "	fd = open(path, O_RDWR);",
    ),
    "forgets the module": ('modfind("vmm") == -1', "0"),
    "forgets what is gone": ("error == ENOENT || error == ENXIO || ", "error == ENXIO || "),
    "forgets what is dead": ("error != 0 && fstat(fd, &sb) != 0", "fstat(fd, &sb) > 0"),
    "takes all errors for the end": (
        "error != 0 && fstat(fd, &sb) != 0",
        "error != 0 && fstat(fd, &sb) < 1",
    ),
    "waits for who is being changed": ("	else if (errno != EBUSY)", "	else if (errno != 0)"),
    "forgets who may not": (" && error != EACCES", ""),
    "mixes wired and resident": (
        '"{en:wired/%ju}", vm->memory.wired',
        '"{en:wired/%ju}", vm->memory.resident',
    ),
    "mixes low and high": ("		    vm->memory.lowmem);", "		    vm->memory.highmem);"),
    "shows device memory": ("	    vm->memory.sysmem);", "	    vm->memory.devmem);"),
    "halted before created": ("if (CPU_EMPTY(&active))", "if (false)"),
    "halted is any": ("CPU_SUBSET(&halted, &active)", "!CPU_EMPTY(&halted)"),
    "stopped is any": ("CPU_SUBSET(&debug, &active)", "!CPU_EMPTY(&debug)"),
    "counts sockets": (
        "topology.sockets * topology.cores * topology.threads",
        "topology.sockets",
    ),
    "says what it does not know": (
        "	if (vm->memory_known)\n		xo_emit(encode",
        "	xo_emit(encode",
    ),
    "goes below zero": ("	if (held >= host->allocated && host->total > held)\n	", ""),
    "device memory is free": (
        "	held = host->allocated + host->device;",
        "	held = host->allocated;",
    ),
    "locale decides": ("VIS_OCTAL | VIS_WHITE", "VIS_OCTAL"),
    "prints names raw": (
        "	    vm->label, vm->owner, vcpus,",
        "	    vm->name, vm->owner, vcpus,",
    ),
    "does not sort": ("	if (list.nvms != 0)\n		qsort", "	if (false)\n		qsort"),
    "looks not into directories": (
        "		} else if (S_ISDIR(sb.st_mode))\n",
        "		} else if (false)\n",
    ),
    "drops the last": (
        "i < list->nvms; i++) {\n		if (list->vms[i].wanted)\n			vm_print",
        "i + 1 < list->nvms; i++) {\n		if (list->vms[i].wanted)\n			vm_print",
    ),
    "reads a directory halfway": ("size - len > sizeof(struct dirent)", "len >= 0"),
    "reads a directory from where it was": ("lseek(fd, 0, SEEK_SET) == -1", "false"),
    "an error is none": (
        '			xo_warn("%s", vm->label);\n			exitcode = 1;\n',
        '			xo_warn("%s", vm->label);\n',
    ),
    "hides an unknown name": (
        "		free(label);\n		exitcode = 1;\n	}\n}",
        "		free(label);\n	}\n}",
    ),
    "writes to nobody": ("	if (xo_finish() < 0)", "	if (xo_finish() < -1)"),
    "leaks a name": ("		free(list->vms[i].name);\n", ""),
    "leaks a path": (
        "	error = fd == -1 ? errno : 0;\n	free(path);",
        "	error = fd == -1 ? errno : 0;",
    ),
}


def _rows(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def _wrong_list(host: Host, program: Path) -> bool:
    """Whether a host with VMs of every kind is listed wrongly, as text or as JSON."""
    host.add("z", [memory(5 * GIB, GIB, 2 * GIB, 3 * GIB, 2 * GIB), "cpus 2 2 1 3 2 0"])
    host.add("a b/c\033", plain_vm(MIB))
    host.add("halted", started(MIB, 1, 1, 0))
    host.add("stopped", started(MIB, 3, 0, 3))
    host.add("half", started(MIB, 3, 0, 1))
    host.add("busy", [*plain_vm(MIB), "busy"])
    host.add("gone", [f"open {ENOENT}"])
    host.add("dead", [*plain_vm(MIB), f"dead 3 {ENOTTY}"])
    host.add("theirs", [f"open {EACCES}"])
    rows = [
        [*created("a\\040b/c\\033", MIB), str(MIB), "0"],
        ["busy", ME, "1", "created", *["-"] * 5],
        ["half", ME, "2", "running", str(MIB), "0", "0", str(MIB), "0"],
        ["halted", ME, "2", "halted", str(MIB), "0", "0", str(MIB), "0"],
        ["stopped", ME, "2", "stopped", str(MIB), "0", "0", str(MIB), "0"],
        ["theirs", ME, "-", "-", *["-"] * 5],
        ["z", ME, "4", "running", *map(str, (5 * GIB, GIB, 2 * GIB, 3 * GIB, 2 * GIB))],
    ]
    env = {"SHIM_TOTAL": "8192", "SHIM_ALLOCATED": "4096", "SHIM_DEVICE": "8192"}
    text = host.run("-Hpv", env={**env, "ASAN_OPTIONS": "detect_leaks=1"}, program=program)
    if (text.returncode, text.stderr, _rows(text.stdout)) != (0, "", rows):
        return True
    try:
        answers = [
            json.loads(host.run("--libxo=json", env={**env, **more}, program=program).stdout)["vmm"]
            for more in ({}, {"SHIM_DEVICE": "1024"})
        ]
    except ValueError:
        return True
    frees = [answer["free"] for answer in answers]
    first, second, *_ = answers[0]["virtual-machine"]
    return (
        frees != [0, 3072]
        or (first["wired"], first["resident"]) != (0, 0)
        or "memory" in second
        or answers[0]["virtual-machine"][-1]["wired"] != GIB
    )


def _wrong_failure(host: Host, program: Path) -> bool:
    """Whether a wrong figure is reported."""
    bad = Host(host.folder / "bad")
    bad.add("bad", [f"fail 1 {EIO}"])
    failing = bad.run("-H", program=program)
    if failing.returncode != 1 or not failing.stderr.startswith("vmmls: bad: "):
        return True
    codes = [
        host.run("nope", program=program).returncode,
        host.run("gone", program=program).returncode,
        host.run(env={**TOTALS, "SHIM_MODULE": "0"}, program=program).returncode,
    ]
    with open("/dev/full", "w") as full:
        written = subprocess.run(
            [program],
            cwd=host.folder,
            env={**QUIET, **TOTALS},
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    return codes != [1, 1, 1] or written.returncode != 1


def unhappy(program: Path, folder: Path) -> bool:
    """Whether one look at a host full of trouble goes wrong."""
    host = Host(folder)
    if _wrong_list(host, program) or _wrong_failure(host, program):
        return True
    many = Host(folder / "many")
    wanted = sorted(f"vm{i:04}-{'x' * 150}" for i in range(600))
    for name in wanted:
        many.add(name, plain_vm(MIB))
    return [row[0] for row in _rows(many.run("-H", program=program).stdout)] != wanted


def test_one_look_passes_on_the_series_itself(tmp_path: Path) -> None:
    assert not unhappy(vmmls("15.1"), tmp_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_one_look_finds_each_fault(fault: str, tmp_path: Path) -> None:
    old, new = FAULTS[fault]
    program = source.compile_vmmls("15.1", source.mutant(source.VMMLS, old, new))
    assert unhappy(program, tmp_path)
