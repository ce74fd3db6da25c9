"""Which parts a patch reaches, on small trees."""

from __future__ import annotations

from pathlib import Path

import pytest
from faketree import make_tree

from harness.build import parts

TREE = {
    "lib/libvmmapi/vmmapi.c": "#include <machine/vmm_dev.h>\n#include <vmmapi.h>\n",
    "lib/libvmmapi/vmmapi.h": "#include <sys/types.h>\n",
    "lib/libvmmapi/Makefile": "x\n",
    "sys/sys/types.h": "x\n",
    "sys/amd64/include/vmm.h": (
        "#ifdef _KERNEL\n#include <sys/inner.h>\n#else\n#include <dev/vmm/user.h>\n#endif\n"
    ),
    "sys/amd64/include/vmm_dev.h": "#include <machine/vmm.h>\n",
    "sys/sys/inner.h": "x\n",
    "sys/dev/vmm/user.h": "x\n",
    "sys/dev/vmm/vmm_dev.c": "#include <machine/vmm_dev.h>\n",
    "sys/amd64/vmm/intel/vmx.c": '#include "vmcs.h"\n',
    "sys/amd64/vmm/intel/vmcs.h": "x\n",
    "sys/amd64/vmm/vmm_instruction_emul.c": "x\n",
    "usr.sbin/bhyve/main.c": "#  include\t<vmmapi.h>\n#include <lib9p.h>\n",
    "usr.sbin/bhyve/bhyve.8": "x\n",
    "usr.sbin/bhyve/amd64/Makefile.inc": "x\n",
    "usr.sbin/bhyvectl/bhyvectl.c": '#include "amd64/vmm/intel/vmcs.h"\n',
    "usr.sbin/bhyveload/bhyveload.c": "#include <userboot.h>\n",
    "stand/userboot/userboot.h": "x\n",
    "contrib/lib9p/lib9p.h": "x\n",
}  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "src", TREE)


@pytest.mark.parametrize(
    ("path", "reached"),
    [
        ("sys/amd64/include/vmm.h", ["vmm.ko", "libvmmapi"]),
        ("sys/sys/inner.h", ["vmm.ko"]),
        ("sys/dev/vmm/user.h", ["vmm.ko", "libvmmapi"]),
        ("sys/sys/types.h", ["libvmmapi", "bhyve"]),
        ("lib/libvmmapi/vmmapi.h", ["libvmmapi", "bhyve"]),
        ("lib/libvmmapi/vmmapi.c", ["libvmmapi"]),
        ("lib/libvmmapi/Makefile", ["libvmmapi"]),
        ("sys/amd64/vmm/intel/vmcs.h", ["vmm.ko", "bhyvectl"]),
        ("sys/amd64/vmm/vmm_instruction_emul.c", ["vmm.ko", "bhyve"]),
        ("stand/userboot/userboot.h", ["bhyveload"]),
        ("contrib/lib9p/lib9p.h", ["bhyve"]),
        ("usr.sbin/bhyve/amd64/Makefile.inc", ["bhyve"]),
        ("usr.sbin/vmmls/new.c", ["vmmls"]),
        ("sys/kern/kern_fork.c", []),
        ("sys/arm64/vmm/vmm.c", []),
        ("share/man/man4/vmm.4", []),
        ("share/mk/bsd.own.mk", list(parts.PARTS)),
    ],
)
def test_what_a_file_reaches(tree: Path, path: str, reached: list[str]) -> None:
    found = parts.reach(tree, [path])
    assert list(found.names) == reached
    assert found.nothing == (() if reached else (path,))


def test_several_paths_are_sorted_to_their_parts(tree: Path) -> None:
    found = parts.reach(tree, ["sys/kern/a.c", "lib/libvmmapi/vmmapi.c", "sys/dev/vmm/vmm_dev.c"])
    assert found.parts == (
        ("vmm.ko", ("sys/dev/vmm/vmm_dev.c",)),
        ("libvmmapi", ("lib/libvmmapi/vmmapi.c",)),
    )
    assert found.nothing == ("sys/kern/a.c",)


def test_conditions_about_the_kernel_are_read_in_all_forms(tree: Path) -> None:
    for begin in ("#ifdef _KERNEL /* x */", "#if defined(_KERNEL)", "# if defined _KERNEL"):
        (tree / "sys/amd64/include/vmm.h").write_text(
            f"{begin}\n#if 1\n#include <sys/inner.h>\n#endif\n#endif\n"
        )
        assert parts.reach(tree, ["sys/sys/inner.h"]).names == ("vmm.ko",)
    for begin in ("#ifndef _KERNEL", "#if !defined(_KERNEL)", "#ifdef OTHER", "#if 0"):
        (tree / "sys/amd64/include/vmm.h").write_text(f"{begin}\n#include <sys/inner.h>\n#endif\n")
        assert "libvmmapi" in parts.reach(tree, ["sys/sys/inner.h"]).names


def test_includes_in_a_circle_and_out_of_the_tree_do_no_harm(tree: Path) -> None:
    (tree / "lib/libvmmapi/vmmapi.h").write_text(
        '#include <vmmapi.h>\n#include "../../../../etc/passwd"\n#include </etc/passwd>\n'
    )
    assert "lib/libvmmapi/vmmapi.h" in parts.closure(tree, parts.PARTS["libvmmapi"])


def test_the_reason_why_a_file_is_not_tested(tree: Path) -> None:
    paths = [
        "usr.sbin/bhyve/bhyve.8",
        "usr.sbin/bhyve/main.c",
        "lib/libvmmapi/Makefile",
        "lib/libvmmapi/vmmapi.c",
        "sys/kern/a.c",
        "tests/sys/vmm/vmm_test.c",
        "sys/modules/vmm/README",
    ]
    reached = parts.reach(tree, paths)
    left_out = {"bhyve": "the sysroot lacks libnv.so"}
    assert [parts.why_untested(path, reached, left_out) for path in paths] == [
        "it is documentation",
        "bhyve was not built: the sysroot lacks libnv.so",
        "",
        "no part that was built reads it",
        "no part that is built uses it",
        "",
        "it is documentation",
    ]
    assert parts.why_untested(paths[5], reached, {"libvmmapi": "x"}) == "libvmmapi was not built: x"
