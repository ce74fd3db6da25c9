"""Programs and libraries that count which of their lines run, in a file next to them."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from faketree import PARAM, diff, mail, make_series, make_tree
from test_build_userland import HEADER, LIBRARY_MK, TOOL_MK

from harness import debian, process
from harness.build import bmake, builder, coverage, targets
from harness.deadline import Deadline
from harness.series import load

pytestmark = pytest.mark.skipif(
    debian.clang_version() is None, reason="clang and lld are not installed"
)

# It counts `argc` rounds and then waits for its end, whatever that is.
PROGRAM = """\
#include <stdio.h>
#include <unistd.h>
int twice(int);
static int once(int n) { return (n > 2 ? n : 0); }
int
main(int argc, char **argv)
{
	(void)argv;
	for (int i = 0; i < argc; i++)
		(void)twice(once(i));
	puts("counted");
	fflush(stdout);
	pause();
	return (0);
}
"""
LIBRARY = "int twice(int n) { return (n == 99 ? 1 : 2 * n); }\n"


def run_clang(*words: str | Path) -> None:
    done = process.run(["clang-" + str(debian.clang_version()), *map(str, words)],
                       Deadline.after(60))  # fmt: skip
    assert done.ok, done.stderr


@pytest.fixture
def counting(tmp_path: Path) -> Path:
    """The program and its library, made for this machine with the flags of a build."""
    (tmp_path / "main.c").write_text(PROGRAM)
    (tmp_path / "twice.c").write_text(LIBRARY)
    (tmp_path / "script").write_text(coverage.USER_SCRIPT)
    # Linux has no MAP_NOSYNC, and declares dladdr() only on request.
    plain = ["-O2", "-fPIC", "-Wall", "-Werror", "-DMAP_NOSYNC=0", "-D_GNU_SOURCE"]
    run_clang(*plain, "-c", coverage.USER_SOURCE, "-o", tmp_path / "counted.o")
    common: list[str | Path] = [*coverage.USER_FLAGS, "-fuse-ld=lld", tmp_path / "counted.o",
              f"-Wl,-T,{tmp_path}/script"]  # fmt: skip
    library = tmp_path / "libtwice.so"
    run_clang(*common, "-shared", "-fPIC", tmp_path / "twice.c", "-o", library)
    run_clang(*common, tmp_path / "main.c", library, f"-Wl,-rpath,{tmp_path}", "-o",
              tmp_path / "main")  # fmt: skip
    return tmp_path / "main"


def counts(file: Path) -> dict[str, tuple[int, ...]]:
    """The counters of each function, from a file with symbols and the counters next to it."""
    known = coverage.functions(file)
    data = file.with_name(file.name + coverage.COUNTERS_SUFFIX).read_bytes()
    blocks = coverage.profile(known, data).strip().split("\n\n")
    rows = (block.splitlines() for block in blocks)
    return {row[0].rpartition(":")[2].rpartition(";")[2]: tuple(map(int, row[3:])) for row in rows}


def run_and_kill(program: Path, *arguments: str) -> None:
    with subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdout.readline() == "counted\n"
        os.kill(running.pid, signal.SIGKILL)


def test_what_a_killed_process_counted_is_in_the_file(counting: Path) -> None:
    run_and_kill(counting, "x", "x", "x")
    assert counts(counting) == {"once": (4, 1), "main": (1, 4)}
    assert counts(counting.with_name("libtwice.so")) == {"twice": (4, 0)}
    # The next process adds to it.
    run_and_kill(counting)
    assert counts(counting) == {"once": (5, 1), "main": (2, 5)}
    assert counts(counting.with_name("libtwice.so")) == {"twice": (5, 0)}


def test_the_file_is_the_program_s_that_a_link_leads_to(counting: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(counting)
    run_and_kill(link)
    assert counts(counting)["main"] == (1, 1)
    assert [path.name for path in link.parent.iterdir()] == ["link"]


def test_a_process_that_cannot_have_the_file_runs_as_usual(counting: Path) -> None:
    counting.with_name("main.counters").mkdir()
    run_and_kill(counting)
    assert counts(counting.with_name("libtwice.so")) == {"twice": (1, 0)}


STUBS = {
    "sys/types.h": "typedef unsigned long size_t; typedef long off_t;\n#define NULL ((void *)0)\n",
    "sys/stat.h": "int fchmod(int, int);\n",
    "sys/mman.h": "void *mmap(void *, size_t, int, int, int, off_t);\n"
    "#define PROT_READ 1\n#define PROT_WRITE 2\n#define MAP_SHARED 1\n#define MAP_FIXED 16\n"
    "#define MAP_NOSYNC 2048\n",
    "dlfcn.h": "typedef struct { const char *dli_fname; } Dl_info;\n"
    "int dladdr(const void *, Dl_info *);\n",
    "fcntl.h": "int open(const char *, int, ...);\n"
    "#define O_RDWR 2\n#define O_CREAT 512\n#define O_CLOEXEC 1048576\n",
    "limits.h": "#define PATH_MAX 1024\n",
    "stdio.h": "int snprintf(char *, size_t, const char *, ...);\n",
    "stdlib.h": "char *realpath(const char *, char *);\n",
    "unistd.h": "int close(int);\nint ftruncate(int, off_t);\n",
}


def test_a_build_for_coverage_makes_library_and_programs_that_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    sysroot = tmp_path / "sysroot"
    for name, text in {"sys/param.h": PARAM, **STUBS}.items():
        (sysroot / "usr/include" / name).parent.mkdir(parents=True, exist_ok=True)
        (sysroot / "usr/include" / name).write_text(text)
    (sysroot / "usr/lib").mkdir()
    for name in ("crt1.o", "libc.so"):
        (sysroot / "usr/lib" / name).touch()
    linked = LIBRARY_MK.replace("vmmapi.c\n", "vmmapi.c ${LDFLAGS}\n")
    library_c = '#include "vmmapi.h"\nint vmm_new(void) { return (1); }\n'
    before = {HEADER: "int vmm_new(void);\n", "lib/libvmmapi/vmmapi.c": library_c}
    tree = make_tree(tmp_path / "src", {"lib/libvmmapi/Makefile": linked, **before})
    tool = '#include "vmmapi.h"\nvoid _start(void);\nvoid _start(void) { (void)vmm_new(); }\n'
    added = {"usr.sbin/vmmls/Makefile": TOOL_MK.replace("-pie", "-pie -Wl,--allow-shlib-undefined "
             "-Wl,--unresolved-symbols=ignore-all"), "usr.sbin/vmmls/vmmls.c": tool}  # fmt: skip
    topic = make_series(tmp_path / "topic", {"1.patch": mail(diff(tmp_path, {}, added))})
    series = load.load_series(topic, "15.1")
    built = builder.build(tree, sysroot, series, "15.1", coverage=True)
    assert [path.name for path in built.counting] == ["libvmmapi.so.7", "vmmls"]
    for path, function in zip(built.counting, ("vmm_new", "_start"), strict=True):
        found = coverage.functions(targets.symbols_of(path))
        assert [(it.name, it.offset_bytes, it.count) for it in found] == [(function, 0, 1)]
        assert b"__llvm_covmap" not in path.read_bytes()
    assert builder.build(tree, sysroot, series, "15.1").counting == ()
    assert bmake.find_toolchain().version == debian.clang_version()
