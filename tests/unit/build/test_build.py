"""Building: real bmake and clang on a tree of one file, and everything around them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from faketree import diff, mail, make_series, make_tree, snapshot

from harness import debian, files
from harness.build import builder, targets
from harness.build.job import Job, Made
from harness.errors import CannotError, PatchError, UsageError
from harness.series import apply, load
from harness.series.load import Series

pytestmark = pytest.mark.skipif(
    debian.clang_version() is None, reason="clang and lld are not installed"
)

HEADER = "sys/dev/vmm/vmm.h"
ONE, TWO = "#define NUMBER 1\n", "#define NUMBER 2\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "the source")


def series_of(tmp_path: Path, after: str, name: str = "topic") -> Series:
    data = mail(diff(tmp_path, {HEADER: ONE}, {HEADER: after}))
    return load.load_series(make_series(tmp_path / name, {"1.patch": data}), "15.1")


def counted(made: list[str]) -> Callable[[Job], Made]:
    def maker(job: Job) -> Made:
        made.append(job.tree.revision)
        return targets.make_all(job)

    return maker


def test_stock_and_patched_differ_and_leave_the_tree_alone(tmp_path: Path, tree: Path) -> None:
    before = snapshot(tree)
    stock = builder.build(tree, None, None, "15.1")
    patched = builder.build(tree, None, series_of(tmp_path, TWO), "15.1")
    assert snapshot(tree) == before
    assert stock.build_id != patched.build_id
    assert builder.read_build_id(patched.module) == patched.build_id
    assert (stock.series, patched.series) == (None, "topic")
    assert (patched.osversion, patched.revision) == (1501000, "15.1")
    assert patched.warnings == 0
    assert not patched.cached
    assert dict(patched.not_built)["libvmmapi"].startswith("no sysroot")
    assert dict(patched.digests)["vmm.ko"] == files.sha256_file(patched.module)
    assert (patched.include / "dev/vmm/vmm.h").read_text() == TWO
    assert not list((tmp_path / "cache/builds/work").iterdir())
    assert json.dumps(patched.to_data())


def test_a_full_disk_is_not_the_patch_s_fault(tmp_path: Path, tree: Path) -> None:
    def maker(_job: Job) -> Made:
        raise PatchError("vmm.ko does not build", detail="fatal error: No space left on device")

    with pytest.raises(CannotError, match="its disk is full; free some room"):
        builder.build(tree, None, None, "15.1", maker=maker)


def test_a_second_run_builds_nothing(tmp_path: Path, tree: Path) -> None:
    made: list[str] = []
    series = series_of(tmp_path, TWO)
    first = builder.build(tree, None, series, "15.1", maker=counted(made))
    again = builder.build(tree, None, series, "15.1", maker=counted(made))
    renamed = builder.build(tree, None, series_of(tmp_path, TWO, "renamed"), "15.1")
    assert (renamed.cached, renamed.series, again.series) == (True, "renamed", "topic")
    assert made == ["15.1"]
    assert again.cached
    assert (again.build_id, again.module, again.key) == (first.build_id, first.module, first.key)


def test_the_same_source_makes_the_same_module_anywhere(tmp_path: Path, tree: Path) -> None:
    other = make_tree(tmp_path / "elsewhere")
    first, second = (builder.build(it, None, None, "15.1") for it in (tree, other))
    assert first.key != second.key
    assert first.build_id == second.build_id
    assert b"/usr/src/sys/dev/vmm/vmm.c" in first.module.read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        HEADER,
        "sys/conf/options",
        "share/mk/sys.mk",
        "sys/modules/vmm/Makefile",
        "sys/dev/vmm/brand_new.h",
    ],
)
def test_a_touched_source_is_built_again(tree: Path, path: str) -> None:
    made: list[str] = []
    builder.build(tree, None, None, "15.1", maker=counted(made))
    with (tree / path).open("a") as stream:
        stream.write("\n")
    assert not builder.build(tree, None, None, "15.1", maker=counted(made)).cached
    assert len(made) == 2


def test_an_edit_that_keeps_size_and_time_is_seen_too(tree: Path) -> None:
    builder.build(tree, None, None, "15.1")
    times = (tree / HEADER).stat()
    (tree / HEADER).write_text(TWO)
    os.utime(tree / HEADER, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not builder.build(tree, None, None, "15.1").cached


def test_sources_that_no_part_reads_are_named(tmp_path: Path, tree: Path) -> None:
    data = mail(
        diff(tmp_path, {HEADER: ONE}, {HEADER: TWO, "sys/kern/new.c": "x\n", "NOTES": "x\n"})
    )
    series = load.load_series(make_series(tmp_path / "topic", {"1.patch": data}), "15.1")
    for _ in range(2):
        assert builder.build(tree, None, series, "15.1").untested == (
            ("NOTES", "no part that is built uses it"),
            ("sys/kern/new.c", "no part that is built uses it"),
        )


def test_a_tree_where_an_apply_was_cut_off_is_not_built(tree: Path) -> None:
    apply.journal_folder(tree).mkdir(parents=True)
    with pytest.raises(UsageError, match="was interrupted there"):
        builder.build(tree, None, None, "15.1")


def test_options_and_series_have_builds_of_their_own(tmp_path: Path, tree: Path) -> None:
    plain = builder.build(tree, None, None, "15.1")
    checked = builder.build(tree, None, None, "15.1", kernel_options=["INVARIANTS"])
    assert (plain.invariants, checked.invariants) == (False, True)
    stated = builder.build(tree, None, None, "15.1", kernel=["ident MINE", "options INVARIANTS"])
    assert (stated.invariants, stated.kernel_config) == (True, "MINE")
    assert stated.key not in (plain.key, checked.key)
    assert (
        len(
            {
                plain.key,
                checked.key,
                builder.build(tree, None, series_of(tmp_path, TWO), "15.1").key,
            }
        )
        == 3
    )
    with pytest.raises(UsageError, match="kernel option 'NONSENSE'"):
        builder.build(tree, None, None, "15.1", kernel_options=["NONSENSE"])


def test_a_damaged_build_is_made_again(tree: Path) -> None:
    first = builder.build(tree, None, None, "15.1")
    first.module.write_bytes(b"half")
    again = builder.build(tree, None, None, "15.1")
    assert not again.cached
    assert again.build_id == first.build_id


def test_a_compiler_error_shows_its_lines_and_names_the_log(
    tmp_path: Path, tree: Path, cache: Path
) -> None:
    before = snapshot(tree)
    series = series_of(tmp_path, "#define NUMBER nothing_known\n")
    with pytest.raises(PatchError) as caught:
        builder.build(tree, None, series, "15.1")
    error = caught.value
    assert error.exit_code == 5
    assert "\n" not in error.message
    assert error.message.startswith(
        "vmm.ko does not build: sys/dev/vmm/vmm.c:7:10: "
        "error: use of undeclared identifier 'nothing_known'"
    )
    log = Path(error.message.split("(log: ")[1].rstrip(")"))
    assert "undeclared identifier" in log.read_text()
    assert "return (NUMBER);" in error.detail
    assert "sys/dev/vmm/vmm.h:1:16: note: expanded from macro 'NUMBER'" in error.detail
    assert "ffreestanding" not in error.detail
    assert snapshot(tree) == before
    assert not list(cache.glob("builds/*/manifest.json"))
    assert not list((cache / "builds/work").iterdir())


def test_a_patch_that_does_not_apply_builds_nothing(
    tmp_path: Path, tree: Path, cache: Path
) -> None:
    series = series_of(tmp_path, TWO)
    (tree / HEADER).write_text("#define NUMBER 7\n")
    before = snapshot(tree)
    with pytest.raises(PatchError, match=r"1\.patch does not apply: sys/dev/vmm/vmm\.h, hunk 1"):
        builder.build(tree, None, series, "15.1")
    assert snapshot(tree) == before
    assert not list(cache.glob("builds/*/manifest.json"))


def test_warnings_are_counted(tmp_path: Path, tree: Path) -> None:
    series = series_of(tmp_path, "#define NUMBER 1); int never; (void)(2\n")
    assert builder.build(tree, None, series, "15.1").warnings == 1


def test_what_a_build_in_place_left_is_not_taken_for_ours(tmp_path: Path, tree: Path) -> None:
    for name in ("vmm.ko", "vmm.o", "opt_global.h"):
        (tree / "sys/modules/vmm" / name).write_text("stale")
    (tree / "sys/modules/vmm/obj").symlink_to(tmp_path)
    before = snapshot(tree)
    assert builder.read_build_id(builder.build(tree, None, None, "15.1").module)
    assert snapshot(tree) == before


def test_two_at_once_build_once(tmp_path: Path, tree: Path) -> None:
    made: list[str] = []
    series = series_of(tmp_path, TWO)
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.append(
                builder.build(tree, None, series, "15.1", maker=counted(made))
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(built.cached for built in results) == [False, True, True, True]


def test_an_interrupted_build_leaves_nothing_and_the_next_one_builds(
    tree: Path, cache: Path
) -> None:
    (tree / "sys/modules/vmm/Makefile").write_text("all:\n\t@echo --- x ---\n\t@sleep 60\n")
    code = (
        "import sys, os, signal\nfrom pathlib import Path\n"
        "from harness.build import builder\n"
        "def seen(line):\n    if line.endswith(': x'): os.kill(os.getpid(), signal.SIGINT)\n"
        "builder.build(Path(sys.argv[1]), None, None, '15.1', progress=seen)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tree)],
        cwd=files.PROJECT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    assert "KeyboardInterrupt" in done.stderr
    assert not list((cache / "builds/work").iterdir())
    assert not list(cache.glob("builds/*/manifest.json"))
    make_tree(tree)
    assert not builder.build(tree, None, None, "15.1").cached


def test_what_is_wrong_with_the_tree_is_said(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(UsageError, match=r"is FreeBSD 15\.1, not 14; name the right --src"):
        builder.build(tree, None, None, "14")
    with pytest.raises(UsageError, match="no such folder"):
        builder.build(tmp_path / "none", None, None, "15.1")
    with pytest.raises(UsageError, match=r"not a FreeBSD sysroot \(usr/include/sys/param.h"):
        builder.build(tree, tmp_path, None, "15.1")
    (tree / "sys/amd64/conf/GENERIC").unlink()
    with pytest.raises(UsageError, match="GENERIC: no such kernel configuration"):
        builder.build(tree, None, None, "15.1")
    (tree / "sys/sys/param.h").write_text("nothing")
    with pytest.raises(UsageError, match="cannot find its release"):
        builder.build(tree, None, None, "15.1")


def test_without_a_compiler_the_remedy_is_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "clang_version", lambda: None)
    with pytest.raises(CannotError, match=r"\./inv setup"):
        builder.build(tree, None, None, "15.1")


def test_old_builds_are_forgotten(
    tmp_path: Path, tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "_KEPT_BUILDS", 2)
    for number in range(4):
        series = series_of(tmp_path, f"#define NUMBER 1{number}\n", f"topic{number}")
        last = builder.build(tree, None, series, "15.1")
    assert len(list(cache.glob("builds/*/manifest.json"))) == 2
    assert last.module.is_file()
