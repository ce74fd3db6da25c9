"""The private stand-in for the source tree, the kernel options, and the compiler's words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faketree import diff, mail, make_series, make_tree, snapshot

from harness import source_tree
from harness.build import bmake, kernconf, linktree, targets
from harness.build.sandbox import Sandbox
from harness.errors import UsageError
from harness.series import load
from harness.series.load import Series

HEADER = "sys/dev/vmm/vmm.h"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    more = {"sys/kern/bus_if.m": "x", "sys/dev/pci/pci.c": "x", "lib/Makefile.inc": "x"}
    return make_tree(tmp_path / "src", more)


def series_of(tmp_path: Path, before: str, after: str, path: str = HEADER) -> Series:
    data = mail(diff(tmp_path, {path: before}, {path: after}))
    return load.load_series(make_series(tmp_path / "topic", {"1.patch": data}), "15.1")


def planted(tmp_path: Path, tree: Path, series: Series | None) -> Path:
    folder = tmp_path / "linked"
    linktree.plant(source_tree.identify(tree, "15.1"), series, folder)
    return folder


def test_only_links_lead_to_the_users_tree(tmp_path: Path, tree: Path) -> None:
    before = snapshot(tree)
    series = series_of(tmp_path, "#define NUMBER 1\n", "#define NUMBER 2\n")
    folder = planted(tmp_path, tree, series)
    assert (folder / HEADER).read_text() == "#define NUMBER 2\n"
    assert not (folder / HEADER).is_symlink()
    assert (folder / "sys/dev/vmm/vmm.c").is_symlink()
    assert (folder / "sys/dev/pci").is_symlink()
    for real in ("sys", "sys/dev", "sys/dev/vmm", "sys/modules/vmm", "sys/amd64", "share/mk"):
        assert (folder / real).is_dir()
        assert not (folder / real).is_symlink()
    assert snapshot(tree) == before


def test_a_touched_file_that_is_a_link_is_copied_not_written_through(
    tmp_path: Path, tree: Path
) -> None:
    outside = tmp_path / "outside.h"
    (tree / HEADER).rename(outside)
    (tree / HEADER).symlink_to(outside)
    series = series_of(tmp_path, "#define NUMBER 1\n", "#define NUMBER 2\n")
    folder = planted(tmp_path, tree, series)
    assert (folder / HEADER).read_text() == "#define NUMBER 2\n"
    assert outside.read_text() == "#define NUMBER 1\n"


def test_a_touched_file_behind_a_linked_folder_is_copied_too(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "pci").mkdir()
    (tmp_path / "pci/a.h").write_text("1\n")
    (tree / "sys/dev/other").symlink_to(tmp_path / "pci")
    folder = planted(tmp_path, tree, series_of(tmp_path, "1\n", "2\n", "sys/dev/other/a.h"))
    assert (folder / "sys/dev/other/a.h").read_text() == "2\n"
    assert (tmp_path / "pci/a.h").read_text() == "1\n"


def test_a_program_that_is_touched_finds_what_it_includes(tmp_path: Path, tree: Path) -> None:
    """bhyve's Makefile looks for ../../contrib, from a folder that is no link."""
    for path in ("usr.sbin/bhyve/a.c", "usr.sbin/bhyve/b.c", "contrib/lib9p/lib9p.h"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text("1\n")
    series = series_of(tmp_path, "1\n", "2\n", "usr.sbin/bhyve/a.c")
    folder = planted(tmp_path, tree, series)
    assert (folder / "usr.sbin/bhyve/a.c").read_text() == "2\n"
    assert (folder / "usr.sbin/bhyve/b.c").is_symlink()
    assert (folder / "usr.sbin/bhyve/../../contrib/lib9p/lib9p.h").read_text() == "1\n"


@pytest.mark.parametrize(
    ("linked", "missing"),
    [
        ("LIBADD+= vmmapi md nv uvmem pthread z util sbuf cam 9p\n", ["libuvmem.so"]),
        ("LIBADD=\tvmmapi md nv pthread \\\n\tutil # uvmem\n", []),  # FreeBSD 14 has no uvmem
        ("LIBADD.bhyve= util\nLIBADD+=\tcrypto\n", ["libcrypto.so"]),
        ("PROG=\tbhyve\n", []),
    ],
)
def test_what_the_sysroot_lacks_for_a_program_is_named(
    tmp_path: Path, linked: str, missing: list[str]
) -> None:
    makefile = tmp_path / "src/usr.sbin/bhyve/Makefile"
    makefile.parent.mkdir(parents=True)
    makefile.write_text(linked)
    libraries = tmp_path / "root/usr/lib"
    libraries.mkdir(parents=True)
    for name in ("md", "nv", "pthread", "z", "util", "sbuf", "cam", "9p"):
        (libraries / f"lib{name}.so").touch()
    needs = targets._missing_libraries(tmp_path / "src", tmp_path / "root", "bhyve", ())
    assert needs == missing
    more = targets._missing_libraries(tmp_path / "src", tmp_path / "root", "bhyve", ("xo",))
    assert more == [*missing, "libxo.so"]


def test_removed_files_are_not_there(tmp_path: Path, tree: Path) -> None:
    data = mail(diff(tmp_path, {HEADER: "#define NUMBER 1\n"}, {HEADER: None}))
    topic = make_series(tmp_path / "topic", {"1.patch": data})
    folder = planted(tmp_path, tree, load.load_series(topic, "15.1"))
    assert not os.path.lexists(folder / HEADER)


def test_reading_an_unpatched_file_after_all_is_noticed(tmp_path: Path, tree: Path) -> None:
    series = series_of(tmp_path, "#define NUMBER 1\n", "#define NUMBER 2\n")
    folder = planted(tmp_path, tree, series)
    objects = tmp_path / "obj/deep"
    objects.mkdir(parents=True)
    listing = objects / ".depend.vmm.o"
    listing.write_text(f"vmm.o: {folder}/sys/dev/vmm/vmm.c \\\n {folder}/{HEADER}\n")
    source = source_tree.identify(tree, "15.1")
    assert linktree.reads(source, series, folder, tmp_path / "obj") == linktree.Reads(
        (), frozenset({HEADER})
    )
    listing.write_text(f"vmm.o: {folder}/sys/dev/pci/../vmm/vmm.h\n")
    assert linktree.reads(source, series, folder, tmp_path / "obj") == linktree.Reads(
        (HEADER,), frozenset({HEADER})
    )
    listing.write_text("")
    assert linktree.reads(source, series, folder, tmp_path / "obj") == linktree.Reads(
        (), frozenset()
    )


def test_what_a_build_in_place_left_is_not_taken_for_source(tmp_path: Path, tree: Path) -> None:
    """bhyve's block_if.c is a source; the same kind of name in a module's folder is a product."""
    (tree / "usr.sbin/bhyve").mkdir(parents=True, exist_ok=True)
    sources = ("usr.sbin/bhyve/block_if.c", "usr.sbin/bhyve/block_if.h")
    products = ("usr.sbin/bhyve/block_if.o", "sys/modules/vmm/pci_if.h", "sys/modules/vmm/vmm.ko")
    for path in (*sources, *products):
        (tree / path).write_text("x")
    before = linktree.fingerprint(tree)
    folder = planted(tmp_path, tree, None)
    assert [path for path in sources if not (folder / path).is_file()] == []
    assert [path for path in products if (folder / path).exists()] == []
    (tree / products[0]).write_text("another")
    assert linktree.fingerprint(tree) == before
    (tree / sources[0]).write_text("another")
    assert linktree.fingerprint(tree) != before


def test_interfaces_are_found_behind_links(tmp_path: Path, tree: Path) -> None:
    assert linktree.interfaces(tree, tmp_path / "linked") == (
        tmp_path / "linked/sys/kern/bus_if.m",
    )


def test_the_fingerprint_follows_what_a_build_reads(tmp_path: Path, tree: Path) -> None:
    seen = {linktree.fingerprint(tree)}
    (tree / "sys/dev/pci/pci.c").write_text("longer")
    seen.add(linktree.fingerprint(tree))
    (tree / "sys/dev/pci/new.h").write_text("x")
    seen.add(linktree.fingerprint(tree))
    (tree / "sys/dev/pci/new.h").unlink()
    seen.add(linktree.fingerprint(tree))
    (tree / "lib/Makefile.inc").write_text("longer")
    seen.add(linktree.fingerprint(tree))
    assert len(seen) == 4
    (tree / "contrib").mkdir()
    (tree / "contrib/unrelated").write_text("x")
    (tree / "sys/dev/pci/dangling").symlink_to("nowhere")
    (tree / "sys/dev/pci/loop").symlink_to(".")
    assert linktree.fingerprint(tree) == linktree.fingerprint(tree)


CONFIG = """\
include "std.debug"
options \tDDB, NUMA=2 # comment
options \tTEXT="some words"
nooptions EARLY
device\tacpi # a device
device uart
nodevice uart
cpu\tHAMMER
ident X
"""


def test_kernel_options_are_read_as_config_does(tmp_path: Path) -> None:
    tree = make_tree(
        tmp_path,
        {
            "sys/amd64/conf/DEFAULTS": "options EARLY\n",
            "sys/amd64/conf/GENERIC": CONFIG,
            "sys/conf/std.debug": "options INVARIANTS\n",
        },
    )
    config = kernconf.read_config(tree)
    assert dict(config.options) == {
        "DDB": "1", "DEV_ACPI": "1", "HAMMER": "1", "INVARIANTS": "1", "NUMA": "2",
        "TEXT": "some words",
    }  # fmt: skip
    assert config.invariants
    assert dict(config.headers) == {
        "opt_acpi.h": "#define DEV_ACPI 1\n",
        "opt_cpu.h": "#define HAMMER 1\n",
        "opt_ddb.h": "#define DDB 1\n",
        "opt_global.h": "#define INVARIANTS 1\n#define NUMA 2\n",
    }
    changed = kernconf.read_config(tree, changes=["!INVARIANTS", "DDB=3"])
    assert not changed.invariants
    assert dict(changed.options)["DDB"] == "3"


def test_a_kernel_states_its_own_configuration(tmp_path: Path) -> None:
    """A kernel's own statement comes before the tree's GENERIC: it may be a debug kernel."""
    tree = make_tree(tmp_path, {"sys/amd64/conf/GENERIC": CONFIG})
    running = ("options CONFIG_AUTOGENERATED", "ident GENERIC-DEBUG", "machine amd64", "cpu HAMMER",
               "makeoptions DEBUG=-g", "options WITNESS", "options INVARIANTS", "device acpi",
               "options TEXT=words")  # fmt: skip
    config = kernconf.read_config(tree, running=running)
    assert config.name == "GENERIC-DEBUG"
    assert config.invariants
    assert dict(config.options) == {
        "CONFIG_AUTOGENERATED": "1", "HAMMER": "1", "WITNESS": "1", "INVARIANTS": "1",
        "DEV_ACPI": "1", "TEXT": "words",
    }  # fmt: skip
    headers = dict(config.headers)
    assert "INVARIANTS" in headers["opt_global.h"]
    assert headers["opt_ddb.h"] == ""
    plain = kernconf.read_config(tree, changes=["!INVARIANTS"], running=running)
    assert not plain.invariants
    with pytest.raises(UsageError, match="no such kernel configuration"):
        kernconf.read_config(tree, running=["include GENERIC"])


def test_kernel_configurations_that_cannot_be_read(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, {"sys/amd64/conf/LOOP": 'include "LOOP"\n'})
    for name in ("NONE", "LOOP", "../../../etc/passwd"):
        with pytest.raises(UsageError, match="no such kernel configuration"):
            kernconf.read_config(tree, name)


def test_error_lines_are_the_compilers_and_few() -> None:
    lines = [
        "--- vmm.o ---",
        "clang -O2 -Werror -c /f/sys/vmm.c " + "-Wlong " * 200,
        "/f/sys/vmm.c:3:5: warning: unused",
        "/f/sys/vmm.c:6:10: error: undeclared 'x'",
        "    6 |         return (x);",
        "      |                 ^",
        "/f/sys/vmm.h:1:1: note: here",
        "1 error generated.",
        "*** [vmm.o] Error code 1",
        "bmake: stopped in /f/sys/modules/vmm",
    ]
    assert bmake.error_lines(lines, "/f") == [
        "sys/vmm.c:6:10: error: undeclared 'x'",
        *lines[4:6],
        "sys/vmm.h:1:1: note: here",
    ]
    many = [f"/f/a.c:{number}:1: error: no" for number in range(100)]
    assert len(bmake.error_lines(many, "/f")) <= 26
    linker = ["ld.lld-19: error: undefined symbol: gone", ">>> referenced by vmm.c"]
    assert bmake.error_lines(linker, "/f")[0] == linker[0]
    assert bmake.error_lines(linker, "/f")[1] == linker[1]
    plain = ["--- x ---", "sh: strange: not found", "*** [x] Error code 127", "bmake: stopped"]
    assert bmake.error_lines(plain, "/f") == ["sh: strange: not found"]


def test_warnings_do_not_depend_on_where_the_linked_tree_is() -> None:
    log = """\
$ cd /c/builds/work/0123456789abcdef/src/sys/modules/vmm && bmake
/c/builds/work/0123456789abcdef/src/sys/dev/vmm/vmm.c:10:2: warning: unused variable 'x' [-Wunused]
   10 |  int x;
/c/builds/work/0123456789abcdef/src/sys/dev/vmm/vmm.c:10:2: error: no
"""
    other = log.replace("0123456789abcdef", "fedcba9876543210").replace(":10:2", ":44:7")
    assert (
        bmake.warning_lines(log)
        == bmake.warning_lines(other)
        == {"sys/dev/vmm/vmm.c: warning: unused variable 'x' [-Wunused]": 1}
    )
    assert bmake.warning_lines(log + other) - bmake.warning_lines(log)


def test_a_link_that_make_laid_and_a_copied_header_count_as_read(
    tmp_path: Path, tree: Path
) -> None:
    """<machine/vmm.h> is found by a link among the objects whose text is a path in the sandbox."""
    header = "sys/amd64/include/vmm.h"
    (tree / header).parent.mkdir(parents=True)
    (tree / header).write_text("1\n")
    series = series_of(tmp_path, "1\n", "2\n", header)
    work = tmp_path / "work"
    work.mkdir()
    linktree.plant(source_tree.identify(tree, "15.1"), series, work / "src")
    fence = Sandbox("bwrap", work)
    (work / "obj/m").mkdir(parents=True)
    (work / "obj/m/machine").symlink_to("/workbench/src/sys/amd64/include")
    (work / "include/machine").mkdir(parents=True)
    copies = {work / "include/machine/vmm.h": header}
    source = source_tree.identify(tree, "15.1")
    for listed in ("machine/vmm.h", "/workbench/include/machine/vmm.h", f"/workbench/src/{header}"):
        (work / "obj/m/.depend.x.o").write_text(f"x.o: {listed}\n")
        found = linktree.reads(source, series, work / "src", work / "obj", fence, copies)
        assert found == linktree.Reads((), frozenset({header})), listed
    (work / "obj/m/machine").unlink()
    (work / "obj/m/machine").symlink_to(tree / "sys/amd64/include")
    (work / "obj/m/.depend.x.o").write_text("x.o: machine/vmm.h\n")
    found = linktree.reads(source, series, work / "src", work / "obj", fence, copies)
    assert found.unpatched == (header,)
