"""bhyve's parts: what is gathered for the compiler, and what their programs say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from fakes import FakeGuest

from harness.bhyve import bhyveunit
from harness.errors import GuestError
from harness.series.load import load_series

SAID = """\
TAP version 13
1..3
ok 1 - iov.count: the length of a list
not ok 2 - iov.truncate: a list is cut
# cut to 4 bytes, 1 buffers are left, not 2
# it was ended by signal 11
ok 3 - iov.seek: a list goes on # SKIP there is no seek_iov()
# verdict failed=1
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree with a bhyve of a few lines."""
    bhyve = tmp_path / "tree" / "usr.sbin" / "bhyve"
    (bhyve / "amd64").mkdir(parents=True)
    newvers = tmp_path / "tree" / "sys" / "conf" / "newvers.sh"
    newvers.parent.mkdir(parents=True)
    newvers.write_text('REVISION="15.1"\n')
    (bhyve / "qemu_fwcfg.c").write_text(
        '#include "debug.h"\n#include "amd64/inout.h"\n # include "amd64/pci_lpc.h"\nint here;\n'
    )
    (bhyve / "debug.h").write_text("/* debug */\n")
    (bhyve / "amd64" / "inout.h").write_text('#include "amd64/x.h"\n')
    return tmp_path / "tree"


def part(name: str) -> bhyveunit.Part:
    return next(part for part in bhyveunit.PARTS if part.name == name)


def test_each_part_has_its_tests() -> None:
    named = {name for it in bhyveunit.PARTS for name in it.sources}
    assert named == {path.name for path in bhyveunit.SOURCES.glob("*.c")}


def test_a_part_is_found_where_the_release_has_it(tree: Path) -> None:
    assert bhyveunit.find(part("fwcfg"), tree) == "usr.sbin/bhyve/qemu_fwcfg.c"
    assert bhyveunit.find(part("fwctl"), tree) is None
    (tree / "usr.sbin/bhyve/fwctl.c").write_text("")
    assert bhyveunit.find(part("fwctl"), tree) == "usr.sbin/bhyve/fwctl.c"
    (tree / "usr.sbin/bhyve/amd64/fwctl.c").write_text("")
    assert bhyveunit.find(part("fwctl"), tree) == "usr.sbin/bhyve/amd64/fwctl.c"


def test_part_and_headers_lie_in_one_folder(tree: Path) -> None:
    with bhyveunit._gathered(part("fwcfg"), tree, None) as folder:
        names = {path.name for path in folder.iterdir()}
        assert {"part.h", "debug.h", "inout.h", "unit.h", "test_fwcfg.c", "ports.c"} <= names
        text = (folder / "part.h").read_text()
        assert '#include "inout.h"\n # include "pci_lpc.h"\n' in text
        assert (folder / "inout.h").read_text() == '#include "x.h"\n'


def test_the_kernels_acpi_headers_come_under_names_of_their_own(tree: Path) -> None:
    bhyve, acpica = tree / "usr.sbin/bhyve", tree / "sys/contrib/dev/acpica/include"
    (acpica / "platform").mkdir(parents=True)
    (bhyve / "acpi.h").write_text("bhyve's own\n")
    (bhyve / "device.h").write_text("#include <contrib/dev/acpica/include/acpi.h>\n")
    (acpica / "acpi.h").write_text("#include <contrib/dev/acpica/include/platform/acenv.h>\n")
    (acpica / "platform/acenv.h").write_text('#include "acgcc.h"\n')
    (acpica / "platform/acgcc.h").write_text("the end\n")
    with bhyveunit._gathered(part("fwcfg"), tree, None) as folder:
        read = {path.name: path.read_text() for path in folder.glob("*.h")}
    assert read["acpi.h"] == "bhyve's own\n"
    assert read["device.h"] == '#include "acpica_acpi.h"\n'
    assert read["acpica_acpi.h"] == '#include "acpica_acenv.h"\n'
    assert read["acpica_acenv.h"] == '#include "acpica_acgcc.h"\n'
    assert read["acpica_acgcc.h"] == "the end\n"


def test_the_kernels_virtio_headers_come_under_names_of_their_own(tree: Path) -> None:
    bhyve, virtio = tree / "usr.sbin/bhyve", tree / "sys/dev/virtio"
    (virtio / "pci").mkdir(parents=True)
    (bhyve / "virtio.h").write_text(
        "#include <dev/virtio/virtio.h>\n#include <dev/virtio/pci/x.h>\n"
    )
    (virtio / "virtio.h").write_text("#include <dev/virtio/virtio_ids.h>\n")
    (virtio / "pci/x.h").write_text("the end\n")
    with bhyveunit._gathered(part("virtio"), tree_with(tree, "virtio.c"), None) as folder:
        read = {path.name: path.read_text() for path in folder.glob("*.h")}
    assert read["virtio.h"] == '#include "kernel_virtio.h"\n#include "kernel_x.h"\n'
    assert read["kernel_virtio.h"] == '#include "kernel_virtio_ids.h"\n'
    assert read["kernel_x.h"] == "the end\n"


def tree_with(tree: Path, name: str) -> Path:
    (tree / "usr.sbin/bhyve" / name).write_text("")
    return tree


def test_the_part_is_as_the_series_leaves_it(tree: Path, tmp_path: Path) -> None:
    patch = tmp_path / "x.patch"
    patch.write_text(
        "diff --git a/usr.sbin/bhyve/qemu_fwcfg.c b/usr.sbin/bhyve/qemu_fwcfg.c\n"
        "--- a/usr.sbin/bhyve/qemu_fwcfg.c\n+++ b/usr.sbin/bhyve/qemu_fwcfg.c\n"
        '@@ -2,3 +2,3 @@\n #include "amd64/inout.h"\n  # include "amd64/pci_lpc.h"\n'
        "-int here;\n+int there;\n"
    )
    series = load_series([patch], "15.1")
    with bhyveunit._gathered(part("fwcfg"), tree, series) as folder:
        assert "int there;" in (folder / "part.h").read_text()
        assert (folder / "debug.h").read_text() == "/* debug */\n"
    assert "int here;" in (tree / "usr.sbin/bhyve/qemu_fwcfg.c").read_text()


@pytest.mark.parametrize(
    ("path", "does"),
    [
        ("usr.sbin/bhyve/iov.c", True),
        ("sys/amd64/include/vmm.h", True),
        ("sys/amd64/vmm/vmm.c", False),
        ("usr.sbin/bhyvectl/bhyvectl.c", False),
    ],
)
def test_a_series_that_cannot_change_them(tmp_path: Path, path: str, does: bool) -> None:
    patch = tmp_path / "x.patch"
    patch.write_text(
        f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-a\n+b\n"
    )
    assert bhyveunit.concerns(load_series([patch], "15.1")) is does


def test_what_a_program_says() -> None:
    guest = FakeGuest({"/x/unit": (1, SAID, "")})
    held, failed, skipped = bhyveunit.run(guest, "/x/unit")
    assert (held.held, failed.held, skipped.held) == (True, False, True)
    assert skipped.skipped == "there is no seek_iov()"
    assert str(failed) == (
        "iov.truncate (a list is cut) failed: cut to 4 bytes, 1 buffers are left, not 2; "
        "it was ended by signal 11"
    )


@pytest.mark.parametrize("said", ["", SAID.replace("# verdict failed=1\n", ""), SAID[:70]])
def test_a_report_that_breaks_off_is_no_verdict(said: str) -> None:
    with pytest.raises(GuestError, match=r"/x/unit: it (printed nothing|ended)"):
        bhyveunit.run(FakeGuest({"/x/unit": (1, said, "")}), "/x/unit")


# What our side of the tests itself does, with a part that is not bhyve's: it needs no FreeBSD but
# for the few names that glibc lacks.
_PART = r"""
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "unit.h"
static void holds(void) { equal("one", 1, 1); same("text", "a", "a"); }
static void differs(void) { equal("one", 1, 2); miss("bytes \xff\n"); same("text", "a", "b"); }
static void crashes(void) { raise(SIGSEGV); }
static void exits(void) { exit(4); }
static void hangs(void) { (void)alarm(1); pause(); }
static void too_far(void) { char *at = guarded(1, 10); at[9] = 1; at[10] = 1; }
static void says_nothing(void) { skip("no %s", "reason"); }
const struct unit units[] = {
    { "t.holds", "w", holds }, { "t.differs", "w", differs }, { "t.crashes", "w", crashes },
    { "t.exits", "w", exits }, { "t.hangs", "w", hangs }, { "t.far", "w", too_far },
    { "t.skip", "w", says_nothing },
};
const size_t nunits = 7;
"""
_GLIBC = r"""
#include <sys/param.h>
#include <string.h>
#include <unistd.h>
#ifndef PAGE_SIZE
#define PAGE_SIZE 4096
#endif
#define roundup2(x, y) (((x) + ((y) - 1)) & ~((size_t)(y) - 1))
static inline void strlcat_(char *to, const char *from, size_t size) {
    size_t used = strlen(to);
    if (used + strlen(from) < size) strcpy(to + used, from);
}
#define strlcat strlcat_
"""


def test_our_side_of_a_program(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "a C compiler is needed"
    (tmp_path / "part.c").write_text(_PART)
    (tmp_path / "glibc.h").write_text(_GLIBC)
    program = tmp_path / "unit"
    command: list[str | Path] = [
        compiler,
        "-D_GNU_SOURCE",
        "-include",
        tmp_path / "glibc.h",
        "-o",
        program,
    ]
    command += ["-I", bhyveunit.SOURCES, bhyveunit.SOURCES / "unit.c", tmp_path / "part.c"]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    cases = bhyveunit.run(FakeGuest({"/x": (1, done.stdout, "")}), "/x")
    assert [(it.name, it.held, it.notes) for it in cases] == [
        ("t.holds", True, ()),
        ("t.differs", False, ("one is 0x1, not 0x2", "bytes ??", 'text is "a", not "b"')),
        ("t.crashes", False, ("it was ended by signal 11",)),
        ("t.exits", False, ("it exited with 4",)),
        ("t.hangs", False, ("no end within 10 s",)),
        ("t.far", False, ("it was ended by signal 11",)),
        ("t.skip", True, ()),
    ]
    assert cases[-1].skipped == "no reason"
