"""Coverage: counters of a real module of one file, and what is made of them."""

from __future__ import annotations

import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from faketree import VMM_C, diff, mail, make_series, make_tree

from harness import debian
from harness.build import builder
from harness.build import coverage as counters
from harness.errors import CannotError, GuestError
from harness.run import coverage
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
        symbols = {
            it.name: it["st_value"] for it in elf.get_section_by_name(".symtab").iter_symbols()
        }
    assert symbols[counters.END] - symbols[counters.START] == 16
    assert "__llvm_prf_cnts" in names
    assert not names & set(counters.NOT_LOADED)
    assert builder.read_build_id(built.module) == built.build_id
    assert plain.symbols
    with pytest.raises(CannotError, match="was not built for coverage"):
        counters.functions(plain.symbols)
    with pytest.raises(CannotError, match="8 bytes of counters were read, the module has 16"):
        counters.profile(found, bytes(8))


def bench_of(tmp_path: Path, tree: Path, built: builder.Build) -> Any:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    return SimpleNamespace(
        build=built, running=built, vmm=None, record=SimpleNamespace(source=tree), run_dir=run_dir,
        properties={},
    )  # fmt: skip


def test_changed_lines_that_ran_and_those_that_did_not(
    tmp_path: Path, tree: Path, series: Series
) -> None:
    built = builder.build(tree, None, series, "15.1", coverage=True)
    bench = bench_of(tmp_path, tree, built)
    collector = coverage.Collector(bench, tmp_path)
    # The function ran three times, and never came out at the first return.
    collector.total = counted(3, 0)
    collector.families["checks"] = counted(3, 0)
    coverage.conclude(bench, collector, series)
    assert bench.properties["coverage"].startswith("1 of 2 changed lines ran; ")
    text = (bench.run_dir / "coverage.txt").read_text()
    assert f"  {CODE}: 8\n" in text
    shown = (bench.run_dir / "coverage.html").read_text()
    assert '<span class="missed new">     8         0  \t\treturn (2);</span>' in shown
    assert '<span class="ran">     9         3  \treturn (NUMBER);</span>' in shown
    assert coverage.by_line((bench.run_dir / "coverage.lcov").read_text())[CODE][9] == 3


def test_nothing_that_was_read_is_said_and_is_no_failure(
    tmp_path: Path, tree: Path, series: Series
) -> None:
    bench = bench_of(tmp_path, tree, builder.build(tree, None, series, "15.1", coverage=True))
    collector = coverage.Collector(bench, tmp_path)
    collector.trouble = "vmm.ko: not loaded"
    coverage.conclude(bench, collector, series)
    said = bench.properties["coverage"]
    assert said == "not known: no counters were read: vmm.ko: not loaded"


def test_counters_are_added_up_over_checks_and_loadings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = SimpleNamespace()
    bench: Any = SimpleNamespace(vmm=object(), build=built, running=built)
    collector = coverage.Collector(bench, tmp_path)
    readings = iter([counted(1, 0), counted(3, 0), counted(1, 1), counted(1, 5)])
    monkeypatch.setattr(collector, "_read", lambda _vmm: next(readings))
    for name in ("tests/test_a.py::x", "tests/test_a.py::y[1]", "tests/test_b.py::z"):
        collector.pytest_runtest_logfinish(name)
    assert collector.total == counted(4, 1)
    assert collector.families == {"a": counted(3, 0), "b": counted(1, 1)}
    # Another module runs: its counters, if any, are not the patch's.
    bench.running = SimpleNamespace()
    collector.take("a")
    assert collector.total == counted(4, 1)
    bench.running = built

    def gone(_vmm: object) -> None:
        raise GuestError("the guest is gone")

    monkeypatch.setattr(collector, "_read", gone)
    collector.take("a")
    assert (collector.total, collector.trouble) == (counted(4, 1), "the guest is gone")


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
