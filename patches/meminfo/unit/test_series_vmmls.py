"""vmmls, compiled here: a folder stands in for /dev/vmm, and files in it for VMs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
import series_source as source
from hypothesis import given, settings
from hypothesis import strategies as st
from vmmls_host import (
    EACCES,
    EBADF,
    EINVAL,
    EIO,
    ENOENT,
    ENOTDIR,
    ENOTTY,
    ENXIO,
    GIB,
    HEADER,
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


@pytest.fixture(params=source.RELEASES)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    return Host(tmp_path, request.param)


@pytest.fixture
def one(tmp_path: Path) -> Host:
    """For what does not differ from release to release."""
    return Host(tmp_path)


def test_for_people(host: Host) -> None:
    host.add("win", plain_vm(512 * MIB))
    host.add("web/front", [memory(4 * GIB, 0, 1229 * MIB), "cpus 1 2 1 3 0 0"])
    result = host.run()
    assert (result.returncode, result.stderr) == (0, "")
    pad = max(len(ME), len("OWNER"))
    assert result.stdout == (
        f"NAME       {'OWNER':{pad}}  VCPUS  STATE      MEMORY     WIRED  RESIDENT\n"
        f"web/front  {ME:{pad}}      2  running      4.0G        0B      1.2G\n"
        f"win        {ME:{pad}}      1  created      512M        0B        0B\n"
        "\n"
        "Total: 16G  Allocated: 4.5G  Device: 16M  Free: 11G\n"
    )


def test_exact_for_people(one: Host) -> None:
    one.add("win", plain_vm(512 * MIB))
    first, row, _, last = one.run("-p").stdout.splitlines()
    assert first.split() == HEADER
    assert row.split() == created("win", 512 * MIB)
    assert last == "Total: 17179869184  Allocated: 4831838208  Device: 16777216  Free: 12331253760"


def test_for_scripts_and_programs(host: Host) -> None:
    host.add("b", [memory(5 * GIB, 4 * GIB, 3 * GIB, 2 * GIB, GIB), "cpus 2 3 4 1 0 0"])
    host.add("a", plain_vm(MIB))
    assert host.rows() == [
        created("a", MIB),
        ["b", ME, "24", "running", str(5 * GIB), str(4 * GIB), str(3 * GIB)],
    ]
    assert host.run("-H", "b").stdout == f"b\t{ME}\t24\trunning\t5.0G\t4.0G\t3.0G\n"
    shared = {"owner": ME, "vcpus": 1, "state": "created"}
    b = {"name": "b", "owner": ME, "vcpus": 24, "state": "running"}
    assert host.json("-v") == {
        "virtual-machine": [
            {"name": "a", **shared}
            | {"memory": MIB, "wired": 0, "resident": 0, "lowmem": MIB, "highmem": 0},
            b
            | {"memory": 5 * GIB, "wired": 4 * GIB, "resident": 3 * GIB}
            | {"lowmem": 2 * GIB, "highmem": GIB},
        ],
        "total": 16 * GIB,
        "allocated": 4 * GIB + 512 * MIB,
        "device": 16 * MIB,
        "free": 16 * GIB - 4 * GIB - 528 * MIB,
    }
    assert "lowmem" not in host.json()["virtual-machine"][0]


def test_low_and_high_memory_on_demand(one: Host) -> None:
    one.add("big", plain_vm(5 * GIB))
    assert one.run("-v").stdout.splitlines()[0].split() == [*HEADER, "LOWMEM", "HIGHMEM"]
    assert one.rows("-v") == [[*created("big", 5 * GIB), str(3 * GIB), str(2 * GIB)]]


@pytest.mark.parametrize(
    ("active", "halted", "debug", "state"),
    [
        (0, 0, 0, "created"),
        (0b11, 0, 0, "running"),
        (0b11, 0b01, 0b10, "running"),
        (0b11, 0b11, 0, "halted"),
        (0b11, 0b11, 0b11, "halted"),
        (0b11, 0, 0b11, "stopped"),
        (0b11, 0b01, 0b111, "stopped"),
        (0b01, 0b10, 0b10, "running"),
    ],
)
def test_the_state_is_that_of_all_vcpus(
    one: Host, active: int, halted: int, debug: int, state: str
) -> None:
    one.add("a", started(MIB, active, halted, debug))
    assert one.rows()[0][2:4] == ["2", state]


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
        assert (result.returncode, result.stdout) == (1, stdout)
        assert result.stderr == "vmmls: the vmm module is not loaded\n"


@pytest.mark.parametrize("known", [(), ("SHIM_TOTAL",), ("SHIM_ALLOCATED", "SHIM_TOTAL")])
def test_a_module_that_keeps_no_account(one: Host, known: tuple[str, ...]) -> None:
    one.add("a", plain_vm(MIB))
    env = {name: TOTALS[name] for name in known}
    result = one.run("-p", env=env)
    assert result.returncode == 1
    assert result.stderr.startswith("vmmls: the vmm module does not report memory: ")
    assert result.stdout.splitlines()[1].split() == created("a", MIB)
    assert result.stdout.splitlines()[-1] == "Total: -  Allocated: -  Device: -  Free: -"
    answer = json.loads(one.run("--libxo=json", env=env).stdout)
    assert set(answer["vmm"]) == {"virtual-machine"}


def test_overcommitted_and_enormous(one: Host) -> None:
    env = {
        "SHIM_TOTAL": "8192",
        "SHIM_ALLOCATED": str((1 << 64) - 4096),
        "SHIM_DEVICE": "4096",
    }
    assert one.json(env=env)["free"] == 0
    assert one.run(env=env).stdout.endswith(
        "Total: 8.0K  Allocated: 8.0E  Device: 4.0K  Free: 0B\n"
    )
    # What is held is the sum of both, and it may be all there is.
    for device, free in (("4096", 4096), ("8192", 0), ("12288", 0)):
        env = {"SHIM_TOTAL": "12288", "SHIM_ALLOCATED": "4096", "SHIM_DEVICE": device}
        assert one.json(env=env)["free"] == free


@pytest.mark.parametrize("args", [["-x"], ["-Hq"], ["--libxo=nonsense"], ["-w"]])
def test_bad_use(one: Host, args: list[str]) -> None:
    result = one.run(*args)
    assert (result.returncode, result.stdout) == (1, "")
    if not args[0].startswith("--"):
        usage = "usage: vmmls [--libxo] [-Hpv] [-w seconds] [name ...]\n"
        assert result.stderr.endswith(usage)


@pytest.mark.parametrize(
    ("seconds", "why"),
    [("0", "too small"), ("-1", "too small"), ("x", "invalid"), ("9" * 12, "too large")],
)
def test_seconds_are_a_number(one: Host, seconds: str, why: str) -> None:
    result = one.run("-w", seconds)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"vmmls: -w: seconds are {why}\n"


def test_a_document_has_an_end(one: Host) -> None:
    result = one.run("--libxo=json", "-w", "1")
    assert result.returncode == 1
    assert result.stderr == "vmmls: -w: there is no end to a document\n"


def test_figures_asked_for_again_are_new(host: Host) -> None:
    """With -w the VMs, their figures and the host's are those of the moment."""
    host.add("a", plain_vm(MIB))
    (host.folder / "again.sh").write_text(
        "test -e vm/b && exit 1\n"
        "mv vm/a vm/b\n"
        "echo 'mem 2097152 0 0 0 0 0' >vm/b\n"
        "echo hw.vmm.mem_allocated=2097152 >sysctls\n"
    )
    env = {**TOTALS, "SHIM_SLEEP": "sh again.sh", "SHIM_ALLOCATED": str(MIB)}
    result = host.run("-Hp", "-w", "3", env=env)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines == [created("a", MIB), created("b", 2 * MIB)]
    (host.folder / "vm" / "b").rename(host.folder / "vm" / "a")
    (host.folder / "sysctls").unlink()
    result = host.run("-p", "-w", "3", env=env)
    first, second = (line for line in result.stdout.splitlines() if line.startswith("Total"))
    assert f"Allocated: {MIB} " in first
    assert f"Allocated: {2 * MIB} " in second


def test_the_module_may_be_unloaded_during_the_listing(one: Host) -> None:
    """With -w the listing ends when there is nothing to list."""
    result = one.run("-w", "1", env={**TOTALS, "SHIM_SLEEP": "false"})
    assert result.stdout.count("NAME") == 1


def test_output_that_cannot_be_written_is_a_failure(one: Host) -> None:
    for args in ([], ["-w", "1"]):
        with open("/dev/full", "w") as full:
            result = subprocess.run(
                [vmmls(one.release), *args],
                cwd=one.folder,
                env={**QUIET, **TOTALS, "SHIM_SLEEP": "true"},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
        assert result.returncode == 1
        assert result.stderr.startswith("vmmls: stdout: ")


def test_names_as_arguments(host: Host) -> None:
    for name in ("a", "b", "c", "d/e"):
        host.add(name, plain_vm(MIB))
    assert [row[0] for row in host.rows("d/e", "b", "b")] == ["b", "d/e"]
    result = host.run("-Hp", "b", "nope\033[2J", "d", "")
    assert result.returncode == 1
    assert result.stdout.startswith("b\t")
    assert result.stdout.count("\n") == 1
    assert result.stderr.splitlines() == [
        f"vmmls: {name}: no such virtual machine" for name in ("nope\\033[2J", "d", "")
    ]


@pytest.mark.parametrize("name", ["../secret", "./a", "/a", "a/", "//a"])
def test_an_argument_is_a_name_and_no_path(one: Host, name: str) -> None:
    one.add("a", plain_vm(MIB))
    (one.folder / "secret").write_text("mem 1 2 3 4 5 6\n")
    result = one.run("-H", name)
    assert (result.returncode, result.stdout) == (1, "")


def test_without_permission_the_name_is_shown(host: Host) -> None:
    host.add("mine", plain_vm(MIB))
    host.add("theirs", [f"open {EACCES}"])
    assert host.rows() == [created("mine", MIB), ["theirs", ME, "-", "-", "-", "-", "-"]]
    assert host.json()["virtual-machine"][1] == {"name": "theirs", "owner": ME}


def test_who_is_being_changed_is_shown_without_sizes(host: Host) -> None:
    """The memory's lock is held for minutes while a VM is wired; vmmls does not wait."""
    host.add("wiring", [*started(GIB), "busy"])
    assert host.rows("-v") == [["wiring", ME, "2", "running", *["-"] * 5]]
    assert host.json()["virtual-machine"] == [
        {"name": "wiring", "owner": ME, "vcpus": 2, "state": "running"}
    ]


@pytest.mark.parametrize("error", [ENOENT, ENXIO, ENOTDIR, EBADF, EINVAL, EIO])
def test_gone_at_open_is_left_out(host: Host, error: int) -> None:
    host.add("gone", [f"open {error}"])
    host.add("here", plain_vm(MIB))
    assert [row[0] for row in host.rows()] == ["here"]
    result = host.run("-H", "gone")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "vmmls: gone: no such virtual machine\n"


@pytest.mark.parametrize("count", range(5))
@pytest.mark.parametrize("error", [ENXIO, EBADF, EIO, ENOTTY])
def test_gone_between_two_questions_is_left_out(host: Host, error: int, count: int) -> None:
    """15.1 says ENOTTY when the node dies after it was opened; whatever is there again now."""
    host.add("gone", [*started(5 * GIB), f"dead {count} {error}"])
    assert host.rows() == []


def test_gone_with_its_last_answer_is_listed(one: Host) -> None:
    one.add("last", [*started(MIB), f"dead 5 {ENOTTY}"])
    assert [row[0] for row in one.rows()] == ["last"]


@pytest.mark.parametrize(
    "lines", [["open 24"], [f"fail 0 {EIO}"], [f"fail 2 {EINVAL}"], [f"fail 4 {ENOTTY}"]]
)
def test_other_errors_are_named_and_the_rest_is_listed(host: Host, lines: list[str]) -> None:
    host.add("bad\t", [*plain_vm(MIB), *lines])
    host.add("good", plain_vm(MIB))
    result = host.run("-Hp")
    assert result.returncode == 1
    assert result.stderr.startswith("vmmls: bad\\011: ")
    bad, good = (line.split("\t") for line in result.stdout.splitlines())
    assert bad[:2] == ["bad\\011", ME]
    assert bad[4:] == ["-"] * 3
    assert good == created("good", MIB)


def test_a_directory_that_cannot_be_read_is_named(one: Host) -> None:
    if os.getuid() == 0:
        pytest.skip("root reads every directory")
    one.add("d/a", plain_vm(MIB))
    one.add("b", plain_vm(MIB))
    (one.folder / "vm" / "d").chmod(0)
    result = one.run("-Hp")
    (one.folder / "vm" / "d").chmod(0o700)
    assert result.returncode == 1
    assert result.stderr.startswith("vmmls: /dev/vmm/d: ")
    assert result.stdout.startswith("b\t")


def test_what_is_no_device_is_no_vm(host: Host) -> None:
    host.add("a", plain_vm(MIB))
    (host.folder / "vm" / "link").symlink_to("a")
    (host.folder / "vm" / "empty").mkdir()
    os.mkfifo(host.folder / "vm" / "fifo")
    assert [row[0] for row in host.rows()] == ["a"]


def test_thousands(host: Host) -> None:
    """More names than fit into what is read of a directory at first, and long ones."""
    for i in range(2000):
        host.add(f"vm{i}-{'x' * (i % 100)}", plain_vm((i + 1) * MIB))
    rows = host.rows()
    assert [row[0] for row in rows] == sorted(f"vm{i}-{'x' * (i % 100)}" for i in range(2000))
    assert sum(int(row[4]) for row in rows) == MIB * 2000 * 2001 // 2


def test_vms_may_change_during_the_listing(tmp_path: Path) -> None:
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
sizes = st.integers(0, (1 << 64) - 1)
figures = st.tuples(sizes, sizes, sizes, sizes, sizes)


@settings(max_examples=50, deadline=None)
@given(
    vms=st.dictionaries(names, figures, max_size=6),
    release=st.sampled_from(source.RELEASES),
    data=st.data(),
)
def test_any_names_and_any_memory(
    vms: dict[bytes, tuple[int, int, int, int, int]], release: str, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder), release)
        expected: dict[bytes, list[str]] = {}
        for name, (sysmem, wired, resident, low, high) in vms.items():
            with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                host.add(name, [memory(sysmem, wired, resident, low, high)])
                row = [escaped(name), ME, 1, "created", sysmem, wired, resident, low, high]
                expected[name] = list(map(str, row))
        wanted = [expected[name] for name in sorted(expected)]
        assert host.rows("-v") == wanted
        as_text = [list(map(str, vm.values())) for vm in host.json("-v")["virtual-machine"]]
        assert as_text == wanted
        assert not re.search(r"[^ -~\n]", host.run().stdout)
        if expected:
            name = data.draw(st.sampled_from(sorted(expected)))
            assert host.rows("-v", "--", name) == [expected[name]]


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
