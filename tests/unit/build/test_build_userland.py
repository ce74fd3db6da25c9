"""The library, the command and small programs, against a sysroot with next to nothing in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from faketree import PARAM, diff, mail, make_series, make_tree

from harness import debian
from harness.build import builder
from harness.errors import CannotError, PatchError, UsageError
from harness.series import load

pytestmark = pytest.mark.skipif(
    debian.clang_version() is None, reason="clang and lld are not installed"
)

LIBRARY_MK = """\
SHLIB_MAJOR=	7
OUT=${MAKEOBJDIRPREFIX}${SRCTOP}/amd64.amd64/lib/libvmmapi
libvmmapi.so.7:
	@mkdir -p ${OUT}
	${CC} --ld-path=${LD} -shared -nostdlib -fpic -o ${OUT}/$@ \\
		-Wl,-soname,$@ ${SRCTOP}/lib/libvmmapi/vmmapi.c
"""
TOOL_MK = """\
OUT=${MAKEOBJDIRPREFIX}${SRCTOP}/amd64.amd64/usr.sbin/vmmls
vmmls:
	@mkdir -p ${OUT}
	${CC} --ld-path=${LD} -nostdlib -fPIE -pie -o ${OUT}/$@ \\
		${SRCTOP}/usr.sbin/vmmls/vmmls.c ${LDFLAGS} -lvmmapi
"""
TOOL_C = '#include "vmmapi.h"\nvoid _start(void);\nvoid _start(void) { (void)vmm_new(); }\n'
HEADER = "lib/libvmmapi/vmmapi.h"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(
        tmp_path / "src",
        {
            "lib/libvmmapi/Makefile": LIBRARY_MK,
            "lib/libvmmapi/vmmapi.c": '#include "vmmapi.h"\n',
            HEADER: "/* old */\n",
        },
    )


@pytest.fixture
def sysroot(tmp_path: Path) -> Path:
    folder = tmp_path / "a sysroot"
    for name in ("usr/include/sys/param.h", "usr/lib/crt1.o", "usr/lib/libc.so"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "usr/include/sys/param.h").write_text(PARAM)
    # The release's own header, which the patched one has to hide.
    (folder / "usr/include/vmmapi.h").write_text("#error the sysroot's header\n")
    return folder


@pytest.fixture
def series(tmp_path: Path) -> load.Series:
    data = diff(
        tmp_path,
        {HEADER: "/* old */\n", "lib/libvmmapi/vmmapi.c": '#include "vmmapi.h"\n'},
        {
            HEADER: "int vmm_new(void);\n",
            "lib/libvmmapi/vmmapi.c": '#include "vmmapi.h"\nint vmm_new(void) { return (1); }\n',
            "usr.sbin/vmmls/Makefile": TOOL_MK,
            "usr.sbin/vmmls/vmmls.c": TOOL_C,
        },
    )
    return load.load_series(make_series(tmp_path / "topic", {"1.patch": mail(data)}), "15.1")


def dynamic(file: Path) -> dict[str, list[str]]:
    with file.open("rb") as stream:
        section = ELFFile(stream).get_section_by_name(".dynamic")
        assert isinstance(section, DynamicSection)
        tags = section.iter_tags()
        found: dict[str, list[str]] = {}
        for tag in tags:
            for name in ("needed", "runpath", "soname"):
                if hasattr(tag, name):
                    found.setdefault(name, []).append(getattr(tag, name))
        return found


def test_library_and_command_find_each_other_in_one_folder(
    tree: Path, sysroot: Path, series: load.Series
) -> None:
    built = builder.build(tree, sysroot, series, "15.1")
    assert built.not_built == ()
    assert built.library is not None
    assert built.tool is not None
    assert built.library.name == "libvmmapi.so.7"
    assert dynamic(built.tool) == {"needed": ["libvmmapi.so.7"], "runpath": ["$ORIGIN"]}
    assert (built.include / "vmmapi.h").read_text() == "int vmm_new(void);\n"
    assert set(dict(built.digests)) == {"vmm.ko", "libvmmapi.so.7", "vmmls"}
    assert builder.build(tree, sysroot, series, "15.1").cached
    (sysroot / "usr/include/more.h").touch()
    assert not builder.build(tree, sysroot, series, "15.1").cached


def test_stock_has_a_library_and_no_command(tree: Path, sysroot: Path) -> None:
    built = builder.build(tree, sysroot, None, "15.1")
    assert built.library is not None
    assert built.not_built == (("vmmls", "the source has no usr.sbin/vmmls"),)


def test_without_a_sysroot_what_is_missing_is_said(tree: Path, series: load.Series) -> None:
    built = builder.build(tree, None, series, "15.1")
    assert [name for name, _ in built.not_built] == ["libvmmapi", "vmmls"]
    assert (built.library, built.tool) == (None, None)


def test_a_fault_in_the_command_is_a_patch_error(tmp_path: Path, tree: Path, sysroot: Path) -> None:
    added = {"usr.sbin/vmmls/Makefile": TOOL_MK, "usr.sbin/vmmls/vmmls.c": "nonsense\n"}
    topic = make_series(tmp_path / "bad", {"1.patch": mail(diff(tmp_path, {}, added))})
    with pytest.raises(PatchError, match=r"^vmmls does not build: usr\.sbin/vmmls/vmmls\.c:1:1: "):
        builder.build(tree, sysroot, load.load_series(topic, "15.1"), "15.1")


def test_programs_are_compiled_against_the_build(
    tmp_path: Path, tree: Path, sysroot: Path, series: load.Series
) -> None:
    built = builder.build(tree, sysroot, series, "15.1")
    source = tmp_path / "ask.c"
    source.write_text(TOOL_C)
    options: dict[str, Any] = {"sysroot": sysroot, "libraries": ["vmmapi"], "flags": ["-nostdlib"]}
    program = builder.compile_program(built, [source], **options)
    assert dynamic(program) == {"needed": ["libvmmapi.so.7"], "runpath": ["$ORIGIN"]}
    made = program.stat().st_mtime_ns
    assert builder.compile_program(built, [source], **options).stat().st_mtime_ns == made
    source.write_text(TOOL_C.replace("vmm_new", "vmm_gone"))
    with pytest.raises(PatchError, match=r"ask does not compile: .*ask\.c:3:"):
        builder.compile_program(built, [source], **options)
    with pytest.raises(UsageError, match=r"none\.c: cannot be read"):
        builder.compile_program(built, [tmp_path / "none.c"], **options)
    bare = builder.build(tree, None, series, "15.1")
    with pytest.raises(CannotError, match="libvmmapi was not built"):
        builder.compile_program(bare, [source], **options)


@pytest.mark.parametrize(("version", "fits"), [(1402000, False), (1500000, True), (1600001, False)])
def test_a_sysroot_of_another_major_release_is_refused(
    tree: Path, sysroot: Path, version: int, fits: bool
) -> None:
    header = sysroot / "usr/include/sys/param.h"
    header.write_text(f"/* x */\n#define __FreeBSD_version {version}\t/* y */\n")
    if fits:
        assert builder.build(tree, sysroot, None, "15.1").library
        return
    with pytest.raises(UsageError, match=rf"is of FreeBSD {version // 100000} \({version}\), but"):
        builder.build(tree, sysroot, None, "15.1")


def test_a_program_that_a_header_reaches_is_built_and_finds_the_library(
    tmp_path: Path, tree: Path, sysroot: Path
) -> None:
    """The guest's own would go on with the old header."""
    makefile = TOOL_MK.replace("vmmls", "bhyvectl") + "LIBADD=\tvmmapi util\n"
    for path, text in {
        "usr.sbin/bhyvectl/Makefile": makefile,
        "usr.sbin/bhyvectl/bhyvectl.c": TOOL_C.replace("vmm_new", "vmm_old"),
        HEADER: "int vmm_old(void);\n",
        "lib/libvmmapi/vmmapi.c": '#include "vmmapi.h"\nint vmm_old(void) { return (0); }\n',
    }.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    before: dict[str, str | None] = {HEADER: "int vmm_old(void);\n"}
    after: dict[str, str | None] = {HEADER: "int vmm_old(void);\n#define MORE\n"}
    topic = make_series(tmp_path / "topic", {"1.patch": mail(diff(tmp_path, before, after))})
    series = load.load_series(topic, "15.1")
    lacking = builder.build(tree, sysroot, series, "15.1")
    assert dict(lacking.not_built)["bhyvectl"] == "the sysroot lacks libutil.so"
    (sysroot / "usr/lib/libutil.so").touch()
    built = builder.build(tree, sysroot, series, "15.1")
    assert built.reached == ("libvmmapi", "bhyvectl")
    assert [path.name for path in built.programs] == ["bhyvectl"]
    assert dynamic(built.programs[0]) == {"needed": ["libvmmapi.so.7"], "runpath": ["$ORIGIN"]}
    assert builder.build(tree, sysroot, None, "15.1").programs == ()
