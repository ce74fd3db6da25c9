"""A verdict is about the whole patch: files of it that nothing was built from are reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faketree import NUMBERED, VMM_C, diff, mail, make_series, make_tree

from harness import debian
from harness.build import builder, parts
from harness.build.builder import Build
from harness.errors import CannotError
from harness.report import NOT_TESTED, Check, Report
from harness.run import tested
from harness.series import load
from harness.series.load import Series

pytestmark = pytest.mark.skipif(
    debian.clang_version() is None, reason="clang and lld are not installed"
)

HEADER = "sys/dev/vmm/vmm.h"
CODE = "sys/dev/vmm/vmm.c"
MANUAL = "share/man/man4/vmm.4"
ONE, TWO = "#define NUMBER 1\n", "#define NUMBER 2\n"
BEFORE: dict[str, str | None] = {
    HEADER: ONE,
    CODE: VMM_C,
    MANUAL: NUMBERED,
    "usr.sbin/bhyveload/bhyveload.c": "int x;\n",
    "sys/arm64/vmm/vmm.c": "int y;\n",
    "sys/kern/kern_x.c": "int z;\n",
    "sys/modules/vmm/README": "x\n",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return make_tree(tmp_path / "src", {path: text for path, text in BEFORE.items() if text})


Built = Callable[..., tuple[Series, Build]]


@pytest.fixture
def built(tmp_path: Path, tree: Path) -> Built:
    """A series that changes some files, and what it makes."""

    def go(**changed: str | None) -> tuple[Series, Build]:
        names = {path.rpartition("/")[2].partition(".")[0]: path for path in BEFORE}
        names |= {"header": HEADER, "manual": MANUAL, "code": CODE, "arm": "sys/arm64/vmm/vmm.c"}
        after = {names[name]: text for name, text in changed.items()}
        before = {path: BEFORE[path] for path in after}
        place = tmp_path / f"topic-{len(list(tmp_path.iterdir()))}"
        topic = make_series(place, {"1.patch": mail(diff(tmp_path, before, after))})
        series = load.load_series(topic, "15.1")
        return series, builder.build(tree, None, series, "15.1")

    return go


@pytest.mark.parametrize(
    "changed",
    [
        {"bhyveload": "int changed;\n"},
        {"arm": "int changed;\n", "kern_x": "int changed;\n"},
        {"kern_x": None, "README": "y\n"},
    ],
)
def test_a_patch_of_what_no_part_builds_has_no_verdict(
    tree: Path, built: Built, changed: dict[str, str | None]
) -> None:
    series, with_it = built(**changed)
    stock = builder.build(tree, None, None, "15.1")
    assert tested.same_as_stock(with_it, stock) == ("vmm.ko",)
    with pytest.raises(CannotError, match="so the checks would test stock FreeBSD") as caught:
        tested.require_difference(series, with_it, stock)
    assert caught.value.exit_code == 3
    if None not in changed.values():
        with pytest.raises(CannotError, match=r"nothing is built from its files"):
            tested.require_difference(series, with_it, None)


def test_a_patch_that_changes_a_comment_alone_has_no_verdict(tree: Path, built: Built) -> None:
    series, with_it = built(header="/* one */\n" + ONE)
    assert tested.untested(with_it) == ()
    with pytest.raises(CannotError, match="the same as without it, byte for byte"):
        tested.require_difference(series, with_it, builder.build(tree, None, None, "15.1"))


def test_the_files_that_nothing_is_built_from_are_named(tree: Path, built: Built) -> None:
    series, with_it = built(
        header=TWO, bhyveload="int changed;\n", arm="int changed;\n", manual="x\n"
    )
    missed = tested.untested(with_it)
    assert missed == (MANUAL, "sys/arm64/vmm/vmm.c", "usr.sbin/bhyveload/bhyveload.c")
    stock = builder.build(tree, None, None, "15.1")
    assert tested.same_as_stock(with_it, stock) == ()
    for other in (stock, None):
        tested.require_difference(series, with_it, other)


def test_makefiles_of_what_is_built_are_read_and_others_are_not(tree: Path) -> None:
    paths = {
        "sys/modules/vmm/Makefile": True,
        "share/mk/bsd.x.mk": True,
        "sys/conf/kmod.mk": True,
        "sys/conf/options.amd64": True,
        "usr.sbin/bhyveload/Makefile": False,
        "sys/modules/zfs/Makefile": False,
        "share/man/man4/Makefile": False,
        "sys/modules/vmm/README": False,
        "lib/libvmmapi/Makefile": False,
        "tests/sys/vmm/vmm_test.c": False,
        "etc/rc.d/x": False,
    }
    reached = parts.reach(tree, paths)
    left_out = dict.fromkeys(("libvmmapi", "bhyveload"), "no sysroot")
    found = {path: not parts.why_untested(path, reached, left_out) for path in paths}
    assert found == paths


def test_hunks_that_moved_are_kept_with_the_build(tmp_path: Path, tree: Path, built: Built) -> None:
    (tree / CODE).write_text("/* one more line */\n" + VMM_C)
    _, with_it = built(code=VMM_C.replace("return (NUMBER);", "return (NUMBER + 1);"))
    assert with_it.drift == (f"1.patch: {CODE}: hunk 1 moved +1 lines",)
    assert with_it.to_data()["drift"] == with_it.drift
    _, again = built(code=VMM_C.replace("return (NUMBER);", "return (NUMBER + 1);"))
    assert (again.cached, again.drift) == (True, with_it.drift)


def test_the_verdict_names_what_was_not_tested(tmp_path: Path) -> None:
    check = Check("a", "a", "passed", False, 1.0)
    report = Report(
        "15.1", "bochs", False, "series x", "now", tmp_path, (), (check,),
        {NOT_TESTED: "2 files of the patch: a.c, b.c"},
    )  # fmt: skip
    assert report.verdict == (
        "series x, FreeBSD 15.1 in bochs: 1 of 1 checks ok; not tested: 2 files of the patch: a.c, "
        "b.c"
    )
    assert report.exit_code == 0
