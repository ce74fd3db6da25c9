"""Coverage: counters of a real module of one file, and what is made of them."""

from __future__ import annotations

import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from faketree import VMM_C, diff, mail, make_series, make_tree

from harness import debian, process
from harness.build import builder
from harness.build import coverage as counters
from harness.build.parts import MODULE
from harness.deadline import Deadline
from harness.errors import CannotError, GuestError
from harness.guest.transcript import Evidence
from harness.report import coverage as stored
from harness.run import coverage, plugin
from harness.series import load
from harness.series.load import Series

pytestmark = pytest.mark.skipif(
    debian.clang_version() is None, reason="clang and lld are not installed"
)

CODE = "sys/dev/vmm/vmm.c"
TWICE = VMM_C.replace("return (NUMBER);", "if (vmm_where)\n\t\treturn (2);\n\treturn (NUMBER);")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return make_tree(tmp_path / "src")


@pytest.fixture
def series(tmp_path: Path) -> Series:
    data = mail(diff(tmp_path, {CODE: VMM_C}, {CODE: TWICE}))
    return load.load_series(make_series(tmp_path / "topic", {"1.patch": data}), "15.1")


def counted(*values: int) -> array.array[int]:
    return array.array("Q", values)


def test_a_counting_module_says_where_its_counters_are(tree: Path, series: Series) -> None:
    built = builder.build(tree, None, series, "15.1", coverage=True)
    plain = builder.build(tree, None, series, "15.1")
    assert built.key != plain.key
    assert built.symbols
    found = counters.functions(built.symbols)
    assert [(it.name, it.offset_bytes, it.count) for it in found] == [("vmm_number", 0, 2)]
    with built.module.open("rb") as stream:
        elf = ELFFile(stream)
        names = {section.name for section in elf.iter_sections()}
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = {it.name: it["st_value"] for it in table.iter_symbols()}
    assert symbols[counters.END] - symbols[counters.START] == 16
    assert "__llvm_prf_cnts" in names
    assert not names & set(counters.NOT_LOADED)
    assert builder.read_build_id(built.module) == built.build_id
    assert plain.symbols
    with pytest.raises(CannotError, match="was not built for coverage"):
        counters.functions(plain.symbols)
    with pytest.raises(CannotError, match="8 bytes of counters were read, the build has 16"):
        counters.profile(found, bytes(8))


def bench_of(tmp_path: Path, tree: Path, built: builder.Build, series: Series) -> Any:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    imaged = SimpleNamespace(source=tree)
    return SimpleNamespace(
        build=built, module=None, series=series, booted=SimpleNamespace(imaged=imaged),
        run_dir=run_dir, properties={},
    )  # fmt: skip


def test_changed_lines_that_ran_and_those_that_did_not(
    tmp_path: Path, tree: Path, series: Series
) -> None:
    built = builder.build(tree, None, series, "15.1", coverage=True)
    bench = bench_of(tmp_path, tree, built, series)
    collector = coverage.Collector(bench, tmp_path)
    # The function ran three times, and never came out at the first return.
    collector.total = {MODULE: counted(3, 0)}
    collector.families["checks"] = {MODULE: counted(3, 0)}
    coverage.conclude(bench, collector)
    assert bench.properties["coverage"].startswith("1 of 2 changed lines ran; ")
    text = (bench.run_dir / "coverage.txt").read_text()
    assert f"  {CODE}: 8\n" in text
    kept = stored.load(bench.run_dir)
    assert kept is not None
    lines = {it.number: it for it in kept.changed[0].lines}
    assert lines[8] == stored.Line(8, "\t\treturn (2);", 0, changed=True)
    assert (lines[9].times, lines[9].tone, lines[9].changed) == (3, "ran", False)
    assert kept.families == (stored.Family("checks", 5, 5),)
    assert coverage.by_line((bench.run_dir / "coverage.lcov").read_text())[CODE][9] == 3


def test_nothing_that_was_read_is_said_and_is_no_failure(
    tmp_path: Path, tree: Path, series: Series
) -> None:
    bench = bench_of(
        tmp_path, tree, builder.build(tree, None, series, "15.1", coverage=True), series
    )
    collector = coverage.Collector(bench, tmp_path)
    collector.trouble = "vmm.ko: not loaded"
    coverage.conclude(bench, collector)
    said = bench.properties["coverage"]
    assert said == "not known: no counters were read: vmm.ko: not loaded"


def run_check(collector: coverage.Collector, nodeid: str, commands: int) -> None:
    """Let a check run that sends some commands to the guest."""
    item: Any = SimpleNamespace(nodeid=nodeid, stash=pytest.Stash())
    item.stash[plugin.EVIDENCE] = Evidence(count=commands)
    running = collector.pytest_runtest_protocol(item)
    next(running)
    with pytest.raises(StopIteration) as ended:
        running.send(True)
    assert ended.value.value is True


def test_counters_are_added_up_over_checks_and_loadings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = SimpleNamespace()
    module = SimpleNamespace(vmm=object(), running=built, built=SimpleNamespace(build=built))
    bench: Any = SimpleNamespace(module=module)
    collector = coverage.Collector(bench, tmp_path)
    readings = iter([counted(1, 0), counted(3, 0), counted(1, 1), counted(1, 5)])
    monkeypatch.setattr(collector, "_read", lambda _vmm: {MODULE: next(readings)})
    for name in ("tests/test_a.py::x", "tests/test_a.py::y[1]", "tests/test_b.py::z"):
        run_check(collector, name, commands=2)
        # This one looks at what the first has printed: the guest did nothing meanwhile.
        run_check(collector, name, commands=0)
    assert collector.total == {MODULE: counted(4, 1)}
    assert collector.families == {
        "a": {MODULE: counted(3, 0)},
        "b": {MODULE: counted(1, 1)},
    }
    # Another module runs: its counters, if any, are not the patch's.
    bench.module.running = SimpleNamespace()
    collector.take("a")
    assert collector.total == {MODULE: counted(4, 1)}
    bench.module.running = built

    def gone(_vmm: object) -> None:
        raise GuestError("the guest is gone")

    monkeypatch.setattr(collector, "_read", gone)
    collector.take("a")
    assert collector.total == {MODULE: counted(4, 1)}
    assert collector.trouble == "the guest is gone"


def test_lcov_s_paths_are_the_tree_s() -> None:
    lcov = (
        "SF:/usr/src/sys/dev/vmm/vmm_mem.c\nDA:1,0\nDA:2,7\nend_of_record\n"
        "SF:/usr/obj/usr/src/amd64.amd64/x/modules/vmm/machine/cpufunc.h\nDA:3,1\nend_of_record\n"
        "SF:/usr/obj/usr/src/amd64.amd64/x/modules/vmm/x86/apicvar.h\nDA:4,1\nDA:4,2\n"
        "SF:/usr/src/sys/sys/empty.h\nend_of_record\n"
    )
    assert coverage.by_line(lcov) == {
        "sys/dev/vmm/vmm_mem.c": {1: 0, 2: 7},
        "sys/amd64/include/cpufunc.h": {3: 1},
        "sys/x86/include/apicvar.h": {4: 3},
    }


def test_lines_that_changed() -> None:
    before = ["a", "b", "c", "d"]
    assert coverage.changed_lines(before, ["a", "B", "c", "x", "y", "d"]) == [2, 4, 5]
    assert coverage.changed_lines(before, ["a", "d"]) == []
    assert coverage.changed_lines([], ["a", "b"]) == [1, 2]
    assert coverage.spans([9, 3, 4, 5]) == "3-5, 9"


@pytest.mark.parametrize(
    ("nodeid", "name"),
    [
        ("tests/guest/test_vmunit.py::test_vmunit[emul.add_03]", "vmunit.emul"),
        ("tests/guest/test_vmunit.py::test_the_list_is_vmunits", "vmunit"),
        ("tests/guest/test_platform.py::test_platform[nothing]", "platform"),
        ("tests/guest/test_l2.py::test_l2_touches_its_memory[r-2.5]", "l2"),
    ],
)
def test_a_family_is_a_file_or_what_cases_name(nodeid: str, name: str) -> None:
    assert coverage.family(nodeid) == name


@pytest.mark.parametrize(
    ("path", "intel", "amd"),
    [
        ("sys/amd64/vmm/vmm.c", True, True),
        ("sys/dev/vmm/vmm_mem.c", True, True),
        ("sys/amd64/vmm/intel/vmx.c", True, False),
        ("sys/amd64/vmm/amd/svm.c", False, True),
        ("sys/amd64/vmm/amd/amdvi_hw.c", False, False),
        ("sys/amd64/vmm/intel/vtd.c", False, False),
        ("sys/amd64/vmm/io/ppt.c", False, False),
        ("sys/amd64/vmm/vmm_snapshot.c", False, False),
        ("sys/amd64/include/vmm.h", False, False),
    ],
)
def test_what_counts_for_a_processor(path: str, intel: bool, amd: bool) -> None:
    assert (coverage.scoped(path, "intel"), coverage.scoped(path, "amd")) == (intel, amd)


def test_lines_by_family_and_what_one_alone_ran() -> None:
    path = "sys/amd64/vmm/vmm.c"
    total = {path: {1: 2, 2: 1, 3: 0}, "sys/sys/x.h": {1: 0}}
    families = {"a": {path: {1: 1, 2: 1, 3: 0}}, "b": {path: {1: 1, 2: 0, 3: 0}}}
    # bhyve is made from one of the module's files as well, and from one of its own.
    own = {path: {1: 0, 3: 4}, "usr.sbin/bhyve/mem.c": {7: 1}}
    found = coverage.gather({MODULE: total, "bhyve": own}, families, {}, {}, "intel")
    assert found.families == (stored.Family("a", 2, 1), stored.Family("b", 1, 0))
    assert found.summary == (
        "no changed line contains code; 2 of 4 lines of vmm.ko, 2 of 3 lines of bhyve did"
    )
    assert found.scope.endswith(": 2 of 3 lines ran (66.7 %)")
    text = stored.text(found)
    assert "     2      1  a\n" in text
    assert "[sys/sys/x.h]" in text
    assert "[bhyve: usr.sbin/bhyve/mem.c]" in text
    assert stored.UNSEEN in text


def test_a_guest_in_the_place_of_one_that_broke_gets_the_program_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "compile_counters", lambda *_a: Path("counters"))
    put: list[str] = []
    # The first time bhyve has counted, and the library is not running.
    named = iter(["bhyve\n", "", "bhyve\n"])

    def fetch(remote: str, local: Path, _deadline: object) -> None:
        local.write_bytes(counted(5 if remote == "/x/counters.bin" else 7).tobytes())

    def script(text: str, *words: str) -> Any:
        assert "./counters" in text
        assert words == ("/x", "libvmmapi.so.6", "bhyve")
        return SimpleNamespace(stdout=next(named))

    guest = SimpleNamespace(
        put=lambda _local, remote, mode: put.append(remote), script=script,
        deadline=lambda: None, ssh=SimpleNamespace(get=fetch),
    )  # fmt: skip
    built = SimpleNamespace(counting=(Path("libvmmapi.so.6"), Path("bhyve")))
    bench: Any = SimpleNamespace(
        module=SimpleNamespace(
            vmm=SimpleNamespace(guest=guest, home="/x", build=built),
            running=built, built=SimpleNamespace(build=built),
        ),
        breaks=0, run_dir=tmp_path,
    )  # fmt: skip
    collector = coverage.Collector(bench, tmp_path)
    collector.take("a")
    collector.take("a")
    assert put == ["/x/counters"]
    assert collector.total == {MODULE: counted(5), "bhyve": counted(7)}
    bench.breaks = 1
    collector.take("a")
    # All of it is the new guest's.
    assert put == ["/x/counters"] * 2
    assert collector.total == {MODULE: counted(10), "bhyve": counted(14)}


SHELL_COUNTS = "#!/bin/sh\nprintf module\n"


def test_only_what_counted_since_the_last_time_is_read(tmp_path: Path) -> None:
    """The script that runs in the guest, here in a shell."""
    (tmp_path / "counters").write_text(SHELL_COUNTS)
    (tmp_path / "counters").chmod(0o755)

    def named() -> list[str]:
        words = ["sh", "-c", coverage.READ, "sh", str(tmp_path), "bhyve", "vmmls"]
        return process.run(words, Deadline.after(20)).stdout.split()

    assert named() == []
    assert (tmp_path / "counters.bin").read_text() == "module"
    (tmp_path / "bhyve.counters").write_bytes(b"1")
    assert named() == ["bhyve"]
    assert (tmp_path / "bhyve.read").read_bytes() == b"1"
    assert named() == []
    (tmp_path / "bhyve.counters").write_bytes(b"2")
    (tmp_path / "vmmls.counters").write_bytes(b"3")
    assert named() == ["bhyve", "vmmls"]
