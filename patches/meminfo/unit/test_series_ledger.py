"""The kernel's ledger of guest memory, compiled here: numbers, limit, tunable, and threads."""

from __future__ import annotations

import errno
import functools
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import series_source as source
from hypothesis import given, settings
from hypothesis import strategies as st

PHYSICAL = 16 << 30
U64 = 1 << 64
PAGE = 4096
NAMES = ("mem_allocated", "mem_total", "mem_free", "mem_limit")

driver = functools.cache(lambda: source.compile_ledger("ledger_driver.c", source.ASAN))


def ask(
    program: Path, commands: list[str], tunable: str | None = None
) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ)
    if tunable is not None:
        env["hw.vmm.mem_limit"] = tunable
    text = "".join(command + "\n" for command in commands)
    return subprocess.run(
        [program], input=text, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def answers(commands: list[str], tunable: str | None = None) -> list[str]:
    result = ask(driver(), commands, tunable)
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
    held: list[int] = field(default_factory=list)

    @property
    def numbers(self) -> dict[str, int]:
        allocated, total = sum(self.held), self.limit or PHYSICAL
        free = max(0, total - allocated)
        return dict(zip(NAMES, (allocated, total, free, self.limit), strict=True))

    def reserve(self, size: int) -> int:
        if sum(self.held) + size > (self.limit or U64 - 1):
            return errno.ENOMEM
        self.held.append(size)
        return 0

    def set_limit(self, value: int) -> int:
        if value >= U64 // 2:
            return errno.EINVAL
        self.limit = value
        return 0


sizes = st.one_of(
    st.integers(1, 64).map(lambda n: n * PAGE),
    st.integers(1, 16).map(lambda n: n << 30),
    st.integers(1, (U64 - 1) // PAGE).map(lambda n: n * PAGE),
)
limits = st.one_of(st.just(0), st.integers(1, 4 * PAGE), sizes, st.integers(0, U64 - 1))
operations = st.one_of(
    st.tuples(st.just("reserve"), sizes),
    st.tuples(st.just("release"), st.integers(0, 1 << 20)),
    st.tuples(st.just("limit"), limits),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(operations, max_size=25))
def test_numbers_are_what_they_mean(steps: list[tuple[str, int]]) -> None:
    model = Model()
    commands: list[str] = []
    expected: list[str] = []
    for kind, value in steps:
        if kind == "reserve":
            commands.append(f"reserve {value}")
            expected.append(str(model.reserve(value)))
        elif kind == "limit":
            commands.append(put("mem_limit", value))
            expected.append(str(model.set_limit(value)))
        elif model.held:
            commands.append(f"release {model.held.pop(value % len(model.held))}")
            expected.append("0")
        for name, number in model.numbers.items():
            commands.append(get(name))
            expected.append(f"0 {number}")
    assert answers(commands) == expected


def test_only_the_limit_is_writable_and_only_by_root() -> None:
    for name in NAMES[:3]:
        assert answers([put(name, 1)]) == [str(errno.EPERM)]
    assert answers([put("mem_limit", PAGE, root=0), get("mem_limit")]) == [str(errno.EPERM), "0 0"]


@pytest.mark.parametrize("length", [0, 4, 9])
def test_a_write_of_another_width_changes_nothing(length: int) -> None:
    commands = [put("mem_limit", PAGE, length=length), get("mem_limit")]
    assert answers(commands) == [str(errno.EINVAL), "0 0"]


def test_a_reader_with_too_little_room_is_told() -> None:
    assert answers([get(name, room=4) for name in NAMES]) == [str(errno.ENOMEM)] * 4


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
    result = ask(driver(), [get("mem_limit"), get("mem_total")], tunable)
    assert result.stdout.splitlines() == [f"0 {limit}", f"0 {limit or PHYSICAL}"]


@pytest.mark.parametrize("tunable", ["", "-1", "junk", "12abc", "8q", "9223372036854775808t"])
def test_a_tunable_that_is_no_size_is_ignored_and_said_so(tunable: str) -> None:
    result = ask(driver(), [get("mem_limit"), get("mem_total")], tunable)
    said, *numbers = result.stdout.splitlines()
    assert said == "vmm: hw.vmm.mem_limit is not a size, ignored"
    assert numbers == ["0 0", f"0 {PHYSICAL}"]


def test_without_a_tunable_nothing_is_said() -> None:
    assert answers([get("mem_limit")]) == ["0 0"]


def test_giving_back_more_than_was_taken_is_a_panic() -> None:
    result = ask(driver(), ["reserve 4096", "release 8192"])
    assert result.returncode != 0
    assert "panic: vmm_mem_acct_release: releasing 8192 of 4096 bytes" in result.stderr


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


SCRIPT = [
    "reserve 8192",
    put("mem_limit", PAGE),
    get("mem_free"),
    "reserve 4096",
    get("mem_allocated"),
    put("mem_limit", 3 * PAGE),
    "reserve 4096",
    get("mem_free"),
    put("mem_limit", U64 - 1),
    get("mem_total"),
]
SCRIPT_ANSWERS = ["0", "0", "0 0", "12", "0 8192", "0", "0", "0 0", "22", "0 12288"]

LOCK = "	mtx_lock(&vmm_mem_mtx);\n"
UNLOCK = "	mtx_unlock(&vmm_mem_mtx);\n"
ADD = "	else\n		vmm_mem_allocated += len;\n"


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
    """A fault in what vmm_mem_acct_reserve() does under the lock."""
    text = section("vmm_mem_acct_reserve")
    assert old in text
    return text, text.replace(old, new)


FAULTS = {
    "reserves without the lock": unlocked("vmm_mem_acct_reserve"),
    "releases without the lock": unlocked("vmm_mem_acct_release"),
    "reads without the lock": unlocked("sysctl_vmm_mem"),
    "sets the limit without the lock": unlocked("vmm_mem_set_limit"),
    "lets go of the lock between look and leap": reserve_with(
        ADD, f"{UNLOCK}{LOCK}	if (error == 0)\n		vmm_mem_allocated += len;\n"
    ),
    "adds in two steps": reserve_with(
        ADD,
        "	len = error != 0 ? 0 : len;\n	vmm_mem_allocated += len / 2;\n"
        f"{UNLOCK}{LOCK}	vmm_mem_allocated += len - len / 2;\n",
    ),
    "forgets to unlock": (
        "	total = vmm_mem_total();\n	mtx_unlock(&vmm_mem_mtx);",
        "	total = vmm_mem_total();",
    ),
    "limit is off by one": ("len > ceiling - vmm_mem", "len >= ceiling - vmm_mem"),
    "a lowered limit underflows": ("vmm_mem_allocated > ceiling || ", ""),
    "free goes below zero": ("total > allocated ? total - allocated : 0", "total - allocated"),
    "any limit goes": ("	if (limit > INT64_MAX)\n		return (EINVAL);\n", ""),
    "the tunable comes before the mutex": ("CTLFLAG_RWTUN | CTLFLAG_NOFETCH", "CTLFLAG_RWTUN"),
    "the start comes before the mutex": ("SI_SUB_DRIVERS", "SI_SUB_TUNABLES"),
    "needs Giant": (
        "CTLTYPE_U64 | CTLFLAG_RD | CTLFLAG_MPSAFE, NULL, VMM_MEM_FREE",
        "CTLTYPE_U64 | CTLFLAG_RD, NULL, VMM_MEM_FREE",
    ),
    "total is free": ("		value = total;", "		value = total - allocated;"),
}


def unhappy(source_file: Path | None) -> str:
    """What the script or the threads find wrong with a ledger, or nothing."""
    program = source.compile_ledger("ledger_driver.c", source.PLAIN, source_file)
    result = ask(program, [*SCRIPT, get("mem_total")], tunable="1g")
    found = result.stdout.splitlines()
    if result.returncode != 0 or found != [*SCRIPT_ANSWERS, "0 12288"]:
        return result.stderr or str(found)
    return stress(source_file, source.TSAN, 3000)


def test_the_checks_pass_on_the_series_itself() -> None:
    assert unhappy(None) == ""


@pytest.mark.parametrize("fault", FAULTS)
def test_the_checks_find_each_fault(fault: str) -> None:
    old, new = FAULTS[fault]
    path = source.mutant(source.ACCT, old, new)
    assert unhappy(path) != ""
