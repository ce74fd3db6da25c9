"""The kernel's account of guest memory, compiled here: numbers, limits, tunables, and threads."""

from __future__ import annotations

import errno
import functools
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import series_source as source
from hypothesis import example, given, settings
from hypothesis import strategies as st

PHYSICAL = 16 << 30
U64 = 1 << 64
PAGE = 4096
FIGURES = ("mem_allocated", "mem_device", "mem_total", "mem_free")
NAMES = (*FIGURES, "mem_limit")

by_release = pytest.mark.parametrize("release", source.RELEASES)


@functools.cache
def driver(release: str = "15.1") -> Path:
    return source.compile_ledger("ledger_driver.c", source.ASAN, release=release)


def ask(
    program: Path, commands: list[str], env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    # What was not given up when the driver ends is no leak.
    quiet = {"ASAN_OPTIONS": "detect_leaks=0"}
    text = "".join(command + "\n" for command in commands)
    return subprocess.run(
        [program],
        input=text,
        env={**os.environ, **quiet, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def answers(
    commands: list[str], env: Mapping[str, str] | None = None, release: str = "15.1"
) -> list[str]:
    result = ask(driver(release), commands, env)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def get(name: str, room: int = 8) -> str:
    return f"get hw.vmm.{name} {room}"


def put(name: str, value: int, length: int = 8, root: int = 1) -> str:
    return f"set hw.vmm.{name} {value} {length} {root}"


@dataclass
class Model:
    """What the numbers mean, said a second time."""

    limit: int = 0
    objects: dict[int, tuple[int, bool]] = field(default_factory=dict)
    made: int = 0

    def held(self, sysmem: bool) -> int:
        return sum(size for size, system in self.objects.values() if system == sysmem)

    @property
    def numbers(self) -> dict[str, int]:
        allocated, device = self.held(True), self.held(False)
        total = self.limit or PHYSICAL
        free = max(0, total - allocated - device)
        return dict(zip(NAMES, (allocated, device, total, free, self.limit), strict=True))

    def alloc(self, size: int, sysmem: bool) -> str:
        if self.held(True) + self.held(False) + size > (self.limit or U64 - 1):
            return str(errno.ENOMEM)
        self.objects[self.made] = (size, sysmem)
        self.made += 1
        return f"0 {self.made - 1}"

    def set_limit(self, value: int) -> str:
        if value >= U64 // 2:
            return str(errno.EINVAL)
        self.limit = value
        return "0"


sizes = st.one_of(
    st.integers(1, 64).map(lambda n: n * PAGE),
    st.integers(1, 16).map(lambda n: n << 30),
    st.integers(1, (U64 - 1) // PAGE).map(lambda n: n * PAGE),
)
limits = st.one_of(st.just(0), st.integers(1, 4 * PAGE), sizes, st.integers(0, U64 - 1))
operations = st.one_of(
    st.tuples(st.just("sysmem"), sizes),
    st.tuples(st.just("devmem"), sizes),
    st.tuples(st.just("die"), st.integers(0, 1 << 20)),
    st.tuples(st.just("limit"), limits),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(operations, max_size=25), st.sampled_from(source.RELEASES))
@example([("sysmem", 1 << 63)], "15.1")
def test_numbers_are_what_they_mean(steps: list[tuple[str, int]], release: str) -> None:
    model = Model()
    commands: list[str] = []
    expected: list[str] = []
    for kind, value in steps:
        if kind in ("sysmem", "devmem"):
            commands.append(f"alloc {value} {int(kind == 'sysmem')}")
            expected.append(model.alloc(value, kind == "sysmem"))
        elif kind == "limit":
            commands.append(put("mem_limit", value))
            expected.append(model.set_limit(value))
        elif model.objects:
            number = sorted(model.objects)[value % len(model.objects)]
            del model.objects[number]
            commands.append(f"die {number}")
            expected.append("0")
        for name, figure in model.numbers.items():
            commands.append(get(name))
            expected.append(f"0 {figure}")
        commands += ["busy", "swap"]
        held = model.held(True) + model.held(False)
        expected += [str(int(held != 0)), str(held)]
    assert answers(commands, release=release) == expected


def test_memory_is_charged_to_users_and_may_be_refused() -> None:
    commands = ["alloc 8192 1", "swap", "busy", get("mem_allocated")]
    assert answers(commands, {"SHIM_NO_SWAP": "1"}) == [str(errno.ENOMEM), "0", "0", "0 0"]


def test_without_a_pager_type_there_is_no_memory() -> None:
    result = ask(driver(), ["alloc 4096 1", get("mem_allocated"), "unload"], {"SHIM_NO_TYPE": "1"})
    assert result.stdout.splitlines() == [str(errno.ENXIO), "0 0", "0"]
    assert result.stderr == "vmm: no pager type is left, VMs get no memory\n"


def test_the_module_can_be_unloaded_when_nobody_has_memory() -> None:
    program = ["alloc 4096 1", "alloc 8192 0", "die 0", "busy", "die 1", "busy", "unload"]
    assert answers(program) == ["0 0", "0 1", "0", "1", "0", "0", "0"]
    result = ask(driver(), [*program[:3], "unload"])
    assert "unloaded while an object has its pager type" in result.stderr


def test_a_refusal_is_reported_once_a_second() -> None:
    commands = [put("mem_limit", PAGE), *["alloc 8192 0"] * 3]
    result = ask(driver(), ["user 1001", *commands])
    assert result.stdout.splitlines() == ["0", "0", *["12"] * 3]
    assert result.stderr == "vmm: pid 1, uid 1001: hw.vmm.mem_limit leaves no 8192 bytes\n"


def test_on_main_each_user_has_a_limit() -> None:
    limit = put("mem_user_limit", 3 * PAGE)
    commands = ["user 7", "alloc 4096 1", limit, "alloc 8192 0", "alloc 4096 1", "user 8"]
    commands += ["alloc 12288 1", "alloc 4096 0", "die 2", "alloc 12288 0"]
    result = ask(driver("main"), commands)
    said = ["0", "0 0", "0", "0 1", "12", "0", "0 2", "12", "0", "0 3"]
    assert result.stdout.splitlines() == said
    assert result.stderr == "vmm: pid 1, uid 7: hw.vmm.mem_user_limit leaves no 4096 bytes\n"
    # Both limits hold, and the first that is met is named.
    commands = [limit, put("mem_limit", PAGE), "alloc 8192 1", get("mem_total"), "alloc 4096 1"]
    result = ask(driver("main"), commands)
    assert result.stdout.splitlines() == ["0", "0", "12", f"0 {PAGE}", "0 0"]
    assert "hw.vmm.mem_limit leaves no" in result.stderr
    assert answers([put("mem_user_limit", 1, root=0)], release="main") == [str(errno.EPERM)]
    tuned = {"hw.vmm.mem_user_limit": "8k"}
    assert answers([get("mem_user_limit"), get("mem_total")], tuned, "main") == [
        "0 8192",
        f"0 {PHYSICAL}",
    ]


def test_only_the_limit_is_writable_and_only_by_root() -> None:
    for name in FIGURES:
        assert answers([put(name, 1)]) == [str(errno.EPERM)]
    assert answers([put("mem_limit", PAGE, root=0), get("mem_limit")]) == [str(errno.EPERM), "0 0"]


@pytest.mark.parametrize("length", [0, 4, 9])
def test_a_write_of_another_width_changes_nothing(length: int) -> None:
    commands = [put("mem_limit", PAGE, length=length), get("mem_limit")]
    assert answers(commands) == [str(errno.EINVAL), "0 0"]


def test_a_reader_with_too_little_room_gets_an_error() -> None:
    assert answers([get(name, room=4) for name in NAMES]) == [str(errno.ENOMEM)] * 5


@pytest.mark.parametrize(
    ("tunable", "limit"),
    [
        ("8589934592", 8 << 30),
        ("8g", 8 << 30),
        ("8G", 8 << 30),
        ("0x1000", PAGE),
        ("0", 0),
    ],
)
def test_the_tunable_is_the_limit(tunable: str, limit: int) -> None:
    tuned = {"hw.vmm.mem_limit": tunable}
    assert answers([get("mem_limit"), get("mem_total")], tuned) == [
        f"0 {limit}",
        f"0 {limit or PHYSICAL}",
    ]


@pytest.mark.parametrize("tunable", ["", "-1", "junk", "12abc", "8q", "9223372036854775808t"])
@by_release
def test_a_tunable_that_is_no_size_is_ignored_and_said_so(tunable: str, release: str) -> None:
    commands = [get("mem_limit"), get("mem_total")]
    result = ask(driver(release), commands, {"hw.vmm.mem_limit": tunable})
    assert result.stderr == "vmm: hw.vmm.mem_limit is not a size, ignored\n"
    assert result.stdout.splitlines() == ["0 0", f"0 {PHYSICAL}"]


def test_without_a_tunable_nothing_is_said() -> None:
    result = ask(driver(), [get("mem_limit")])
    assert (result.stdout, result.stderr) == ("0 0\n", "")


def stress(source_file: Path | None, flags: tuple[str, ...], rounds: int) -> str:
    """Empty if all went well, else what went wrong."""
    program = source.compile_ledger("ledger_stress.c", flags, source_file)
    result = subprocess.run(
        [program, str(rounds)], capture_output=True, text=True, timeout=120, check=False
    )
    return "" if result.returncode == 0 else result.stderr or f"exit code {result.returncode}"


@pytest.mark.parametrize(
    ("flags", "rounds"), [(source.TSAN, 5_000), (source.PLAIN, 20_000)], ids=["tsan", "plain"]
)
def test_threads_never_see_what_was_never_true(flags: tuple[str, ...], rounds: int) -> None:
    assert stress(None, flags, rounds) == ""


# Each command with its answer.
SCRIPT = {
    "alloc 8192 1": "0 0",
    put("mem_limit", PAGE): "0",
    get("mem_free"): "0 0",
    "alloc 4096 0": "12",
    get("mem_allocated"): "0 8192",
    put("mem_limit", 5 * PAGE): "0",
    "alloc 4096  0": "0 1",
    get("mem_free", 9): "0 8192",
    get("mem_device"): "0 4096",
    "alloc 12288 0": "12",
    "alloc 8192  0": "0 2",
    get("mem_free", 10): "0 0",
    get("mem_device", 9): "0 12288",
    put("mem_limit", U64 - 1): "22",
    get("mem_total"): "0 20480",
    "swap": "20480",
    "die 0": "0",
    get("mem_allocated", 9): "0 0",
    "busy": "1",
    "die 1": "0",
    "die 2": "0",
    get("mem_device", 10): "0 0",
    "unload": "0",
}

LOCK = "	mtx_lock(&vmm_acct_mtx);\n"
UNLOCK = "	mtx_unlock(&vmm_acct_mtx);\n"
ADD = "	else if (sysmem)\n		vmm_acct_allocated += len;\n"
OVER = "held + len > vmm_acct_limit"


def section(function: str) -> str:
    """What a function does under the lock, with the lock."""
    text = (source.tree("15.1") / source.ACCT).read_text()
    text = text[text.index(f"\n{function}(") :]
    return text[text.index(LOCK) : text.index(UNLOCK) + len(UNLOCK)]


def unlocked(function: str) -> tuple[str, str]:
    """A fault: the same without the lock."""
    text = section(function)
    return text, text.replace(LOCK, "").replace(UNLOCK, "")


def reserve_with(old: str, new: str) -> tuple[str, str]:
    """A fault in what vmm_acct_reserve() does under the lock."""
    text = section("vmm_acct_reserve")
    assert old in text
    return text, text.replace(old, new)


FAULTS = {
    "reserves without the lock": unlocked("vmm_acct_reserve"),
    "releases without the lock": unlocked("vmm_acct_release"),
    "reads without the lock": unlocked("sysctl_vmm_mem"),
    "sets the limit without the lock": unlocked("vmm_acct_set_limit"),
    "lets go of the lock between look and leap": reserve_with(
        ADD,
        f"{UNLOCK}{LOCK}	if (error == 0 && limit == NULL && sysmem)\n"
        "		vmm_acct_allocated += len;\n	else if (sysmem)\n		;\n",
    ),
    "adds in two steps": reserve_with(
        ADD,
        "	else if (sysmem) {\n		vmm_acct_allocated += len / 4;\n"
        f"{UNLOCK}{LOCK}		vmm_acct_allocated += len - len / 4;\n	}}\n",
    ),
    "forgets to unlock": (
        "	busy = vmm_acct_allocated != 0 || vmm_acct_device != 0;\n"
        "	mtx_unlock(&vmm_acct_mtx);",
        "	busy = vmm_acct_allocated != 0 || vmm_acct_device != 0;",
    ),
    "limit is off by one": (OVER, "held + len >= vmm_acct_limit"),
    "a lowered limit underflows": (OVER, "len > vmm_acct_limit - held"),
    "the limit is for system memory alone": (
        "	held = vmm_acct_allocated + vmm_acct_device;\n	if (len",
        "	held = vmm_acct_allocated;\n	if (len",
    ),
    "device memory is not counted": (
        "		vmm_acct_device += len;\n",
        "		vmm_acct_device += 0 * len;\n",
    ),
    "device memory is system memory": (
        "charge->sysmem = sysmem;",
        "charge->sysmem = sysmem = true;",
    ),
    "device memory is free": (
        "	held = vmm_acct_allocated + vmm_acct_device;\n	total",
        "	held = vmm_acct_allocated;\n	total",
    ),
    "free goes below zero": ("total > held ? total - held : 0", "total - held"),
    "any limit goes": ("	if (limit > INT64_MAX)\n		return (EINVAL);\n", ""),
    "the tunable comes before the mutex": ("CTLFLAG_RWTUN | CTLFLAG_NOFETCH", "CTLFLAG_RWTUN"),
    "the start comes before the mutex": (
        "SYSINIT(vmm_acct, SI_SUB_DRIVERS",
        "SYSINIT(vmm_acct, SI_SUB_TUNABLES",
    ),
    "needs Giant": (
        "CTLTYPE_U64 | CTLFLAG_RD | CTLFLAG_MPSAFE, NULL, VMM_ACCT_FREE",
        "CTLTYPE_U64 | CTLFLAG_RD, NULL, VMM_ACCT_FREE",
    ),
    "total is free": ("		value = total;", "		value = total - held;"),
    "nothing is released": ("	*sum -= len;\n", ""),
    "the swap pager is forgotten": ("	swappagerops.pgo_dealloc(object);\n", ""),
    "released before the swap pager is done": (
        "	swappagerops.pgo_dealloc(object);\n",
        "	vmm_acct_release(charge->len, charge->sysmem);\n"
        "	charge->len = 0;\n	object->un_pager.swp.swp_priv = NULL;\n",
    ),
    "an object without a charge": ("	object->un_pager.swp.swp_priv = charge;\n", ""),
    "a refusal by the swap pager is not undone": (
        "		vm_object_deallocate(object);	/* releases the charge */\n",
        "",
    ),
    "nobody is charged": ("NULL, curthread->td_ucred, len", "NULL, NULL, len"),
    "unloads while a thread is inside": (
        "		VM_OBJECT_WLOCK(charge->object);\n		VM_OBJECT_WUNLOCK(charge->object);\n",
        "",
    ),
    "what was released is freed at once": (
        "	SLIST_INSERT_HEAD(&vmm_acct_released, charge, link);\n",
        "",
    ),
    "is never busy": ("	return (busy);", "	return (false && busy);"),
    "keeps the pager type": (
        "		vm_pager_free_dyn_type(vmm_pager_type);",
        "		vmm_pager_type = -1;",
    ),
}


TRIES = 10


def unhappy(source_file: Path | None) -> str:
    """The errors that the script or the threads find in the accounting, or nothing."""
    program = source.compile_ledger("ledger_driver.c", source.PLAIN, source_file)
    result = ask(program, list(SCRIPT), {"hw.vmm.mem_limit": "1g"})
    found = result.stdout.splitlines()
    if result.returncode != 0 or found != list(SCRIPT.values()):
        return result.stderr or str(found)
    refused = ask(program, ["alloc 4096 1", "busy"], {"SHIM_NO_SWAP": "1"})
    if refused.stdout.splitlines() != ["12", "0"]:
        return refused.stderr or refused.stdout
    return stress(source_file, source.TSAN, 3000)


def test_the_checks_pass_on_the_series_itself() -> None:
    assert unhappy(None) == ""


@pytest.mark.parametrize("fault", FAULTS)
def test_the_checks_find_each_fault(fault: str) -> None:
    old, new = FAULTS[fault]
    path = source.mutant(source.ACCT, old, new)
    # On a busy machine the threads may miss each other; a fault that is never found still fails.
    assert any(unhappy(path) for _ in range(TRIES))
