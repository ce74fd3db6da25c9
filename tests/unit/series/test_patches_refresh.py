"""From an edited tree back to the series."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faketree import NUMBERED, diff, mail, make_series, make_tree, snapshot

from harness.errors import PatchError, UsageError
from harness.series import apply, refresh
from harness.series import load as patches
from harness.series.load import Series

MANUAL = "share/man/man4/vmm.4"
ADDED = "sys/dev/vmm/new.c"
ONCE = NUMBERED.replace("line 20\n", "line XX\n")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pristine(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "pristine")


@pytest.fixture
def topic(tmp_path: Path) -> Path:
    first = mail(diff(tmp_path, {MANUAL: NUMBERED}, {MANUAL: ONCE, ADDED: "one\n"}), "vmm: First")
    second = mail(diff(tmp_path, {ADDED: "one\n"}, {ADDED: "one\ntwo\n"}), "vmm: Second")
    return make_series(tmp_path / "topic", {"1.patch": first}, {"2.patch": second})


@pytest.fixture
def edited(tmp_path: Path, pristine: Path, topic: Path) -> Path:
    tree = tmp_path / "edited"
    shutil.copytree(pristine, tree)
    apply.apply(load(topic), tree)
    return tree


def load(topic: Path) -> Series:
    return patches.load_series(topic, "15.1")


def test_without_edits_nothing_is_rewritten(pristine: Path, edited: Path, topic: Path) -> None:
    before = snapshot(topic)
    assert refresh.refresh(load(topic), pristine, edited) == refresh.Refreshed((), (), ())
    assert snapshot(topic) == before


def test_an_edit_goes_into_the_last_patch_that_touches_the_file(
    tmp_path: Path, pristine: Path, edited: Path, topic: Path
) -> None:
    (edited / MANUAL).write_text(ONCE.replace("line XX\n", "line ZZ\n"))
    (edited / ADDED).write_text("one\ntwo\nthree\n")
    trees = snapshot(pristine), snapshot(edited)
    done = refresh.refresh(load(topic), pristine, edited)
    assert (done.changed, done.shared) == (("1.patch", "2.patch"), ("2.patch",))
    assert (snapshot(pristine), snapshot(edited)) == trees
    first, second = load(topic).patches
    assert (first.subject, first.author) == ("vmm: First", "A Hacker <a@example.org>")
    assert "Signed-off-by: A Hacker" in first.message
    assert b"2 files changed, 2 insertions(+), 1 deletion(-)" in first.data
    assert first.data.endswith(b"-- \n2.39.5\n\n")
    assert b"+two\n+three\n" in second.data
    again = tmp_path / "again"
    shutil.copytree(pristine, again)
    apply.apply(load(topic), again)
    for path in (MANUAL, ADDED):
        assert (again / path).read_text() == (edited / path).read_text()
    assert refresh.refresh(load(topic), pristine, edited).changed == ()


def test_files_no_patch_touches_are_reported_and_added_on_request(
    tmp_path: Path, pristine: Path, edited: Path, topic: Path
) -> None:
    (edited / "sys/dev/vmm/vmm.h").write_text("#define NUMBER 2\n")
    (edited / "sys/dev/vmm/more.c").write_text("more\n")
    (edited / "sys/dev/vmm/vmm.o").write_text("product\n")
    (edited / "sys/amd64/conf/DEFAULTS").unlink()
    others = ("sys/amd64/conf/DEFAULTS", "sys/dev/vmm/more.c", "sys/dev/vmm/vmm.h")
    assert refresh.refresh(load(topic), pristine, edited).unclaimed == others
    assert refresh.refresh(load(topic), pristine, edited, into="2.patch").changed == ("2.patch",)
    assert set(others) < set(load(topic).patches[1].touched)
    again = tmp_path / "again"
    shutil.copytree(pristine, again)
    apply.apply(load(topic), again)
    assert (again / "sys/dev/vmm/more.c").read_text() == "more\n"
    assert not (again / "sys/amd64/conf/DEFAULTS").exists()


def test_the_amount_of_context_stays(tmp_path: Path, pristine: Path, topic: Path) -> None:
    lean = diff(tmp_path, {MANUAL: NUMBERED}, {MANUAL: ONCE})
    lean = lean.replace(b"@@ -17,7 +17,7 @@", b"@@ -19,3 +19,3 @@")
    for line in (b" line 17\n", b" line 18\n", b" line 22\n", b" line 23\n"):
        lean = lean.replace(line, b"")
    topic = make_series(tmp_path / "lean", {"1.patch": mail(lean)})
    edited = make_tree(tmp_path / "edited lean")
    apply.apply(load(topic), edited)
    (edited / MANUAL).write_text(NUMBERED.replace("line 20\n", "line WW\n"))
    assert refresh.refresh(load(topic), pristine, edited).changed == ("1.patch",)
    assert b" line 19\n-line 20\n+line WW\n line 21\n-- \n" in load(topic).patches[0].data


def test_what_cannot_be_refreshed_is_said(
    tmp_path: Path, pristine: Path, edited: Path, topic: Path
) -> None:
    with pytest.raises(UsageError, match="two trees"):
        refresh.refresh(load(topic), edited, edited)
    with pytest.raises(UsageError, match="--into 9: the series has no patch of that name"):
        refresh.refresh(load(topic), pristine, edited, into="9")
    (edited / ADDED).write_text("one\n")
    before = snapshot(topic)
    with pytest.raises(PatchError, match=r"2\.patch: nothing is left of it"):
        refresh.refresh(load(topic), pristine, edited)
    assert snapshot(topic) == before
    (pristine / MANUAL).write_text("other\n")
    with pytest.raises(PatchError, match=r"1\.patch does not apply"):
        refresh.refresh(load(topic), pristine, edited)
