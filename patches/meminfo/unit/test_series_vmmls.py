"""vmmls, compiled here: a folder stands in for /dev/vmm, and files in it for VMs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import series_source as source
from hypothesis import given, settings
from hypothesis import strategies as st

MIB, GIB = 1 << 20, 1 << 30
HIGH = 4 * GIB
ENOENT, EIO, ENXIO, EBADF, EACCES, ENOTDIR, EINVAL, ENOTTY = 2, 5, 6, 9, 13, 20, 22, 25
EX_USAGE, EX_NOINPUT, EX_UNAVAILABLE, EX_IOERR = 64, 66, 69, 74
TOTALS = {"SHIM_TOTAL": str(16 * GIB), "SHIM_ALLOCATED": str(4 * GIB + 512 * MIB)}

# Looking for leaks takes longer than all else; the fuzzer and the faults below do it.
QUIET = {**os.environ, "POSIXLY_CORRECT": "1", "ASAN_OPTIONS": "detect_leaks=0"}

vmmls = functools.cache(source.compile_vmmls)


def seg(ident: int, length: int, name: str = "-") -> str:
    return f"seg {ident} {length} {name}"


def mapping(gpa: int, length: int, ident: int) -> str:
    return f"map {gpa} {length} {ident}"


def plain_vm(size: int) -> list[str]:
    """A VM as bhyve sets it up: one segment, split at 3 GiB."""
    low = min(size, 3 * GIB)
    lines = [seg(0, size), mapping(0, low, 0)]
    return lines if size == low else [*lines, mapping(HIGH, size - low, 0)]


@dataclass(frozen=True)
class Host:
    """A folder with a stand-in for /dev/vmm, and the release whose vmmls looks at it."""

    folder: Path
    release: str = "15.1"

    def add(self, name: str | bytes, lines: Iterable[str]) -> None:
        raw = os.fsencode(name)
        path = os.path.join(os.fsencode(self.folder), b"vm", raw)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write("".join(line + "\n" for line in lines).encode())

    def run(
        self,
        *args: str | bytes,
        env: Mapping[str, str] | None = None,
        program: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program or vmmls(self.release), *args],
            cwd=self.folder,
            env={**QUIET, **(TOTALS if env is None else env)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def rows(self, *args: str | bytes, **kwargs: Any) -> list[list[str]]:
        result = self.run("-Hp", *args, **kwargs)
        assert (result.returncode, result.stderr) == (0, "")
        return [line.split("\t") for line in result.stdout.splitlines()]

    def json(self, *args: str | bytes, **kwargs: Any) -> dict[str, Any]:
        result = self.run("--libxo=json", *args, **kwargs)
        assert (result.returncode, result.stderr) == (0, "")
        answer: dict[str, Any] = json.loads(result.stdout)["vmm"]
        return answer


@pytest.fixture(params=source.RELEASES)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    return Host(tmp_path, request.param)


def test_for_people(host: Host) -> None:
    host.add("win", plain_vm(512 * MIB))
    host.add("web/front", plain_vm(4 * GIB))
    result = host.run()
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "NAME         MEMORY    LOWMEM   HIGHMEM\n"
        "web/front      4.0G      3.0G      1.0G\n"
        "win            512M      512M        0B\n"
        "\n"
        "Total: 16G  Allocated: 4.5G  Free: 12G\n"
    )


def test_exact_for_people(host: Host) -> None:
    host.add("win", plain_vm(512 * MIB))
    first, row, _, last = host.run("-p").stdout.splitlines()
    assert first.split() == ["NAME", "MEMORY", "LOWMEM", "HIGHMEM"]
    assert row.split() == ["win", "536870912", "536870912", "0"]
    assert last == "Total: 17179869184  Allocated: 4831838208  Free: 12348030976"


def test_for_scripts_and_programs(host: Host) -> None:
    host.add("b", plain_vm(5 * GIB))
    host.add("a", plain_vm(MIB))
    assert host.rows() == [
        ["a", str(MIB), str(MIB), "0"],
        ["b", str(5 * GIB), str(3 * GIB), str(2 * GIB)],
    ]
    assert host.run("-H").stdout == "a\t1.0M\t1.0M\t0B\nb\t5.0G\t3.0G\t2.0G\n"
    assert host.json() == {
        "virtual-machine": [
            {"name": "a", "memory": MIB, "lowmem": MIB, "highmem": 0},
            {"name": "b", "memory": 5 * GIB, "lowmem": 3 * GIB, "highmem": 2 * GIB},
        ],
        "total": 16 * GIB,
        "allocated": 4 * GIB + 512 * MIB,
        "free": 16 * GIB - 4 * GIB - 512 * MIB,
    }


def test_no_vm(host: Host) -> None:
    result = host.run()
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.split("\n") if line] == ["NAME", "Total:"]
    assert host.rows() == []
    assert host.json()["virtual-machine"] == []
    (host.folder / "vm").mkdir()
    assert host.rows() == []


def test_no_module(host: Host) -> None:
    host.add("stale", ["fail 0 5"])
    # libxo closes what it did not open, and JSON stays valid.
    for args, stdout in (([], ""), (["-p"], ""), (["stale"], ""), (["--libxo=json"], "{ }\n")):
        result = host.run(*args, env={"SHIM_MODULE": "0"})
        assert (result.returncode, result.stdout) == (EX_UNAVAILABLE, stdout)
        assert result.stderr == "vmmls: the vmm module is not loaded\n"


@pytest.mark.parametrize(
    "env", [{}, {"SHIM_TOTAL": "1"}, {"SHIM_ALLOCATED": "1"}], ids=["neither", "one", "other"]
)
def test_a_module_that_keeps_no_account(host: Host, env: dict[str, str]) -> None:
    host.add("a", plain_vm(MIB))
    result = host.run("-p", env=env)
    assert result.returncode == EX_UNAVAILABLE
    assert result.stderr.startswith("vmmls: the vmm module does not report memory: ")
    assert result.stdout.splitlines()[1].split()[:2] == ["a", str(MIB)]
    assert result.stdout.splitlines()[-1] == "Total: -  Allocated: -  Free: -"
    answer = json.loads(host.run("--libxo=json", env=env).stdout)
    assert set(answer["vmm"]) == {"virtual-machine"}


def test_overcommitted_and_enormous(host: Host) -> None:
    env = {"SHIM_TOTAL": "4096", "SHIM_ALLOCATED": str((1 << 64) - 4096)}
    assert host.json(env=env) | {"virtual-machine": []} == {
        "virtual-machine": [],
        "total": 4096,
        "allocated": (1 << 64) - 4096,
        "free": 0,
    }
    assert host.run(env=env).stdout.endswith("Total: 4.0K  Allocated: 8.0E  Free: 0B\n")


@pytest.mark.parametrize("args", [["-x"], ["-Hq"], ["--libxo=nonsense"]])
def test_bad_use(host: Host, args: list[str]) -> None:
    result = host.run(*args)
    assert (result.returncode, result.stdout) == (EX_USAGE, "")
    if not args[0].startswith("--"):
        assert result.stderr.endswith("usage: vmmls [--libxo] [-Hp] [name ...]\n")


def test_output_that_cannot_be_written_is_a_failure(host: Host) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [vmmls(host.release)],
            cwd=host.folder,
            env={**QUIET, **TOTALS},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == EX_IOERR
    assert result.stderr.startswith("vmmls: stdout: ")


def test_device_memory_is_not_counted(host: Host) -> None:
    bootrom = 8 if host.release == "15.1" else 1
    lines = [
        *plain_vm(64 * MIB),
        seg(bootrom, 16 * MIB, "bootrom"),
        seg(bootrom + 1, 16 * MIB, "framebuffer"),
        mapping(HIGH - 16 * MIB, 16 * MIB, bootrom),
        mapping(3 * GIB, 16 * MIB, bootrom + 1),
    ]
    host.add("uefi", lines)
    assert host.rows() == [["uefi", str(64 * MIB), str(64 * MIB), "0"]]


def test_numa_domains_add_up(tmp_path: Path) -> None:
    host = Host(tmp_path)
    lines = [seg(i, GIB) for i in range(8)]
    lines += [mapping(i * GIB + (GIB if i > 2 else 0), GIB, i) for i in range(8)]
    host.add("numa", lines)
    assert host.rows() == [["numa", str(8 * GIB), str(3 * GIB), str(5 * GIB)]]


def test_what_straddles_4_gib_is_split(host: Host) -> None:
    host.add("odd", [seg(0, 2 * GIB), mapping(3 * GIB, 2 * GIB, 0)])
    assert host.rows() == [["odd", str(2 * GIB), str(GIB), str(GIB)]]


def test_unmapped_memory_is_held_all_the_same(host: Host) -> None:
    host.add("early", [seg(0, GIB)])
    host.add("empty", [])
    assert host.rows() == [["early", str(GIB), "0", "0"], ["empty", "0", "0", "0"]]


def test_a_mapping_at_the_end_of_the_address_space_ends(host: Host) -> None:
    host.add("end", [seg(0, GIB), mapping((1 << 64) - 4096, 4096, 0), mapping(0, 4096, 0)])
    assert host.rows() == [["end", str(GIB), "4096", "4096"]]


def test_names_as_arguments(host: Host) -> None:
    for name in ("a", "b", "c", "d/e"):
        host.add(name, plain_vm(MIB))
    assert [row[0] for row in host.rows("d/e", "b", "b")] == ["b", "d/e"]
    result = host.run("-Hp", "b", "nope\033[2J", "d", "")
    assert result.returncode == EX_NOINPUT
    assert result.stdout.startswith("b\t")
    assert result.stdout.count("\n") == 1
    assert result.stderr.splitlines() == [
        f"vmmls: {name}: no such virtual machine" for name in ("nope\\033[2J", "d", "")
    ]


@pytest.mark.parametrize("name", ["../secret", "./a", "/a", "a/", "//a"])
def test_an_argument_is_a_name_and_no_path(host: Host, name: str) -> None:
    host.add("a", plain_vm(MIB))
    (host.folder / "secret").write_text("seg 0 4096 -\n")
    result = host.run("-H", name)
    assert (result.returncode, result.stdout) == (EX_NOINPUT, "")


def test_without_permission_the_name_is_shown(host: Host) -> None:
    host.add("mine", plain_vm(MIB))
    host.add("theirs", [f"open {EACCES}"])
    assert host.rows() == [["mine", str(MIB), str(MIB), "0"], ["theirs", "-", "-", "-"]]
    assert host.json()["virtual-machine"][1] == {"name": "theirs"}


@pytest.mark.parametrize("error", [ENOENT, ENXIO])
def test_gone_at_open_is_left_out(host: Host, error: int) -> None:
    host.add("gone", [f"open {error}"])
    host.add("here", plain_vm(MIB))
    assert [row[0] for row in host.rows()] == ["here"]
    result = host.run("-H", "gone")
    assert (result.returncode, result.stdout) == (EX_NOINPUT, "")
    assert result.stderr == "vmmls: gone: no such virtual machine\n"


@pytest.mark.parametrize("count", range(8))
def test_gone_between_two_questions_is_left_out(host: Host, count: int) -> None:
    host.add("gone", [*plain_vm(5 * GIB), f"fail {count} {ENXIO}"])
    assert host.rows() == []


@pytest.mark.parametrize("count", [0, 1, 3, 6])
@pytest.mark.parametrize("error", [EBADF, EIO, ENOTDIR, ENOTTY])
def test_a_dead_node_with_a_successor_is_asked_again(host: Host, error: int, count: int) -> None:
    """15.1 says ENOTTY when the node dies after it was opened; the name may be there again."""
    host.add("again", [*plain_vm(5 * GIB), f"dead {count} {error} 2"])
    assert host.rows() == [["again", str(5 * GIB), str(3 * GIB), str(2 * GIB)]]


@pytest.mark.parametrize(
    "lines", [[f"open {EIO}"], [f"fail 0 {EIO}"], [f"fail 1 {EINVAL}"], [f"fail 0 {ENOTTY}"]]
)
def test_other_errors_are_named_and_the_rest_is_listed(host: Host, lines: list[str]) -> None:
    host.add("bad\t", [*plain_vm(MIB), *lines])
    host.add("good", plain_vm(MIB))
    result = host.run("-Hp")
    assert result.returncode == EX_IOERR
    assert result.stderr.startswith("vmmls: bad\\011: ")
    assert result.stdout == f"bad\\011\t-\t-\t-\ngood\t{MIB}\t{MIB}\t0\n"


def test_what_was_found_twice_is_listed_once(host: Host) -> None:
    """A VM that goes and comes again while the directory is read has two entries there."""
    host.add("one", plain_vm(MIB))
    host.add("two", plain_vm(MIB))
    result = host.run("-Hp", env={**TOTALS, "SHIM_TWICE": "1"})
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == ["one", "two"]


def test_what_is_no_device_is_no_vm(host: Host) -> None:
    host.add("a", plain_vm(MIB))
    (host.folder / "vm" / "link").symlink_to("a")
    (host.folder / "vm" / "empty").mkdir()
    os.mkfifo(host.folder / "vm" / "fifo")
    assert [row[0] for row in host.rows()] == ["a"]


def test_a_thousand(host: Host) -> None:
    for i in range(1000):
        host.add(f"vm{i}", plain_vm((i + 1) * MIB))
    rows = host.rows()
    assert [row[0] for row in rows] == sorted(f"vm{i}" for i in range(1000))
    assert sum(int(row[1]) for row in rows) == MIB * 1000 * 1001 // 2


def test_vms_come_and_go_meanwhile(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.add("rock", plain_vm(MIB))
    stop = threading.Event()

    def churn(worker: int) -> None:
        while not stop.is_set():
            for i in range(20):
                host.add(f"d{worker}/{i}/vm", plain_vm(MIB))
            for i in range(20):
                (tmp_path / "vm" / f"d{worker}" / str(i) / "vm").unlink()
                (tmp_path / "vm" / f"d{worker}" / str(i)).rmdir()
            (tmp_path / "vm" / f"d{worker}").rmdir()

    threads = [threading.Thread(target=churn, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            names = [vm["name"] for vm in host.json()["virtual-machine"]]
            assert "rock" in names
            assert names == sorted(names)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def escaped(name: bytes) -> str:
    """vis(3) with VIS_OCTAL | VIS_WHITE, in the C locale."""
    return "".join(chr(b) if 0x20 < b < 0x7F and b != 0x5C else f"\\{b:03o}" for b in name)


components = st.binary(min_size=1, max_size=20).filter(
    lambda b: not {0, 0x2F} & set(b) and b not in (b".", b"..")
)
names = st.lists(components, min_size=1, max_size=3).map(b"/".join)
segments = st.dictionaries(
    st.integers(0, 10),
    st.tuples(st.integers(1, 1 << 24).map(lambda n: n << 12), st.booleans()),
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(
    vms=st.dictionaries(names, segments, max_size=6),
    release=st.sampled_from(source.RELEASES),
    data=st.data(),
)
def test_any_names_and_any_memory(
    vms: dict[bytes, dict[int, tuple[int, bool]]], release: str, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder), release)
        expected: dict[bytes, list[str]] = {}
        for name, all_segments in vms.items():
            known = {i: s for i, s in all_segments.items() if i < source.SEGMENTS[release]}
            lines: list[str] = []
            gpa = memory = low = high = 0
            for ident, (length, device) in known.items():
                gpa += data.draw(st.integers(0, 1 << 21)) << 12
                lines += [seg(ident, length, "dev" if device else "-"), mapping(gpa, length, ident)]
                if not device:
                    memory += length
                    low += max(0, min(gpa + length, HIGH) - gpa)
                    high += max(0, gpa + length - max(gpa, HIGH))
                gpa += length
            with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                host.add(name, lines)
                expected[name] = [escaped(name), str(memory), str(low), str(high)]
        wanted = [expected[name] for name in sorted(expected)]
        assert host.rows() == wanted
        as_text = [list(map(str, vm.values())) for vm in host.json()["virtual-machine"]]
        assert as_text == wanted
        assert not re.search(r"[^ -~\n]", host.run().stdout)
        if expected:
            name = data.draw(st.sampled_from(sorted(expected)))
            assert host.rows("--", name) == [expected[name]]


FAULTS = {
    "opens for writing": ("O_RDONLY", "O_RDWR"),
    "forgets the module": ('modfind("vmm") == -1', "0"),
    "counts device memory": ("VM_MEMSEG_NAME(&seg) == NULL ? seg.len : 0", "seg.len"),
    "knows only domain 0": ("for (segid = 0;; segid++)", "for (segid = 0; segid < 1; segid++)"),
    "forgets what is gone": ("error == ENOENT || error == ENXIO", "error == ENOENT"),
    "forgets what is dead": ("#define	TRIES			3", "#define	TRIES			1"),
    "adds up over tries": ("	vm->memory = vm->lowmem = vm->highmem = 0;\n", ""),
    "forgets who may not": (" && error != EACCES", ""),
    "splits at 3 GiB": ("(4ULL * 1024", "(3ULL * 1024"),
    "does not split": ("low = MIN(map.len, HIGHMEM_BASE - map.gpa)", "low = map.len"),
    "prints what it finds": (
        "stravis(&label, name, VIS_OCTAL | VIS_WHITE) == -1",
        "(label = strdup(name)) == NULL",
    ),
    "does not sort": (
        "	if (list->nvms != 0)\n		qsort(list->vms, list->nvms, "
        "sizeof(list->vms[0]), vm_compare);\n",
        "",
    ),
    "sorts backwards": (
        "(strcmp(vma->name, vmb->name))",
        "(strcmp(vmb->name, vma->name))",
    ),
    "never ends": ("		if (end <= gpa)\n			break;\n", ""),
    "free below zero": ("} else if (host->total > host->allocated)", "} else"),
    "an unknown name is fine": ("		label = escape(*names);\n", "		continue;\n"),
    "a full disk is fine": ("xo_finish() < 0", "xo_finish() < -1"),
    "leaks": ("	free(vm->label);\n", ""),
    "lists twice": ("&list->vms[i]) == 0)", "&list->vms[i]) > 1)"),
    "leaks descriptors": ("		(void)close(fd);\n", ""),
}


def unhappy(program: Path, folder: Path) -> bool:
    """Does one look at a host with everything on it find anything wrong with this vmmls?"""
    host = Host(folder)
    if not (folder / "vm").exists():
        host.add("z", plain_vm(5 * GIB))
        host.add("gone", [f"fail 2 {ENXIO}"])
        host.add("again", [*plain_vm(5 * GIB), f"dead 9 {ENOTTY} 1"])
        host.add("theirs", [f"open {EACCES}"])
        host.add("numa\033", [seg(0, GIB), seg(7, GIB), mapping(0, GIB, 0), mapping(HIGH, GIB, 7)])
        host.add("rom", [seg(8, MIB, "rom"), mapping(HIGH - MIB, MIB, 8)])
        host.add("end", [seg(0, GIB), mapping((1 << 64) - 4096, 4096, 0), mapping(0, 4096, 0)])
        host.add("odd", [seg(0, 3 * GIB), mapping(5 * GIB // 2, 3 * GIB, 0)])
        for i in range(100):
            host.add(f"many{i:02}", [])
    expected = [
        f"again\t{5 * GIB}\t{3 * GIB}\t{2 * GIB}",
        f"end\t{GIB}\t4096\t4096",
        *(f"many{i:02}\t0\t0\t0" for i in range(100)),
        f"numa\\033\t{2 * GIB}\t{GIB}\t{GIB}",
        f"odd\t{3 * GIB}\t{3 * GIB // 2}\t{3 * GIB // 2}",
        "rom\t0\t0\t0",
        "theirs\t-\t-\t-",
        f"z\t{5 * GIB}\t{3 * GIB}\t{2 * GIB}",
    ]
    overcommitted = {"SHIM_TOTAL": "1", "SHIM_ALLOCATED": "2"}
    limited = ["prlimit", "--nofile=32", "timeout", "2", str(program)]
    shell = ["sh", "-c", '"$@" >/dev/full', "sh", *limited]
    env = {**os.environ, **overcommitted, "POSIXLY_CORRECT": "1"}

    def run(argv: list[str], **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, cwd=folder, env=env | more, capture_output=True, text=True, check=False
        )

    listed = run([*limited, "-Hp"])
    programs = run([*limited, "--libxo=json"])
    return not (
        (listed.returncode, listed.stdout.splitlines()) == (0, expected)
        and programs.returncode == 0
        and json.loads(programs.stdout)["vmm"]["free"] == 0
        and run([*limited, "-Hp"], SHIM_TWICE="1").stdout.splitlines() == expected
        and run(limited, SHIM_MODULE="0").returncode == EX_UNAVAILABLE
        and run([*limited, "nope"]).returncode == EX_NOINPUT
        and run(shell).returncode == EX_IOERR
    )


def test_one_look_passes_on_the_series_itself(tmp_path: Path) -> None:
    assert not unhappy(vmmls("15.1"), tmp_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_one_look_finds_each_fault(fault: str, tmp_path: Path) -> None:
    old, new = FAULTS[fault]
    program = source.compile_vmmls("15.1", source.mutant(source.VMMLS, old, new))
    assert unhappy(program, tmp_path)


@pytest.mark.parametrize("release", source.RELEASES)
def test_fuzz(release: str, tmp_path: Path) -> None:
    count = os.environ.get("SERIES_FUZZ_COUNT", "250")
    result = subprocess.run(
        [source.compile_fuzzer(release), "1", count],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
