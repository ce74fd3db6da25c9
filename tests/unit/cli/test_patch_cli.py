"""The tasks' own part: which series, which tree, what is printed, which exit code."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from faketree import NUMBERED, diff, mail, make_series, make_tree

from harness import debian, source_tree
from harness.cli import patch_commands
from harness.errors import CannotError, UsageError
from harness.run.options import Options
from harness.series import apply

MANUAL = "share/man/man4/vmm.4"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> str:
    return str(make_tree(tmp_path / "src"))


@pytest.fixture
def topic(tmp_path: Path) -> str:
    data = diff(tmp_path, {MANUAL: NUMBERED}, {MANUAL: NUMBERED.replace("line 9\n", "x\n")})
    return str(make_series(tmp_path / "topic", {"0001-x.patch": mail(data)}))


def test_list_shows_every_series(capsys: pytest.CaptureFixture[str]) -> None:
    assert patch_commands.show_list("", json=True) == 0
    data = json.loads(capsys.readouterr().out)
    assert {(it["topic"], it["release"]) for it in data} >= {("meminfo", "15.1"), ("meminfo", "14")}
    assert patch_commands.show_list("meminfo", json=False) == 0
    assert "vmm: Account for guest memory" in capsys.readouterr().out
    with pytest.raises(UsageError, match="nothing: no such topic; the topics are meminfo"):
        patch_commands.show_list("nothing", json=False)


def test_check_exits_5_when_something_is_wrong(
    tree: str, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert patch_commands.check([topic], "", "", tree, json=True) == 0
    assert json.loads(capsys.readouterr().out)[0]["held"]
    assert patch_commands.check([topic], "", "", "", json=False) == 0
    assert "not run: applies: there is no source tree" in capsys.readouterr().err
    (Path(tree) / MANUAL).write_text("other\n")
    assert patch_commands.check([topic], "", "15.1", tree, json=False) == 5
    assert "wrong: 0001-x.patch: 0001-x.patch does not apply" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"is FreeBSD 15\.1, not 14"):
        patch_commands.check([topic], "", "14", tree, json=False)


def test_a_tree_where_an_apply_was_cut_off_is_not_the_patch_s_fault(
    tmp_path: Path, topic: str
) -> None:
    """Typing the command from the message, with the series it asks for, solves the problem."""
    tree = make_tree(tmp_path / "a tree")
    apply.journal_folder(tree).mkdir(parents=True, mode=0o700)
    for name in ("", "15.1"):
        with pytest.raises(UsageError, match="was interrupted there") as caught:
            patch_commands.check([topic], "", name, str(tree), json=False)
    found = re.search(r"\./inv (.+) again with the --series", caught.value.message)
    assert found
    assert shlex.split(found[1]) == ["patch.apply", str(tree)]
    assert patch_commands.apply(str(tree), [topic], "", "") == 0
    assert patch_commands.check([topic], "", "", str(make_tree(tmp_path / "b")), json=False) == 0
    apply.require_complete(tree)


def test_the_projects_own_series_hold_without_a_tree() -> None:
    assert patch_commands.check([], "", "", "", json=True) == 0


def test_apply_refresh_export_go_round(tmp_path: Path, tree: str, topic: str) -> None:
    edited = make_tree(tmp_path / "edited")
    assert patch_commands.apply(str(edited), [topic], "", "") == 0
    assert "x\n" in (edited / MANUAL).read_text()
    (edited / MANUAL).write_text(NUMBERED.replace("line 9\n", "y\n"))
    assert patch_commands.refresh_series(str(edited), tree, [topic], "", "", "") == 0
    out = tmp_path / "out.mbox"
    assert patch_commands.export([topic], "", "", str(out)) == 0
    assert b"\n+y\n" in out.read_bytes()


def test_a_builder_that_there_is_not_is_the_first_thing_said() -> None:
    """Nothing is imported, and the message does not complain about that."""
    with pytest.raises(UsageError, match="--builder nope: it must be one of auto, host, guest"):
        patch_commands.run_build("", True, (), "", "", "", False, "nope")
    with pytest.raises(UsageError, match="--builder nope"):
        Options(builder="nope")


def test_build_needs_a_source_tree_and_says_how(topic: str) -> None:
    with pytest.raises(CannotError, match=r"image\.import --release 15\.1 .*or give --src DIR"):
        patch_commands.run_build("15.1", False, [topic], "", "", "", False)
    with pytest.raises(UsageError, match="--stock builds without patches"):
        patch_commands.run_build("15.1", True, [topic], "", "", "", False)


@pytest.mark.skipif(debian.clang_version() is None, reason="clang and lld are not installed")
def test_build_says_what_it_did(tree: str, topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert patch_commands.run_build("", False, [topic], "", tree, "", False) == 0
    shown = capsys.readouterr()
    assert "not built: no sysroot" in shown.out
    assert "0 warnings" in shown.err
    assert patch_commands.run_build("", False, [topic], "", tree, "", True) == 0
    shown = capsys.readouterr()
    assert "nothing changed, nothing built" in shown.err
    assert json.loads(shown.out)["cached"] is True


def other_tree(folder: Path, newvers: str, version: int) -> str:
    """A tree that says of itself what is given."""
    more = {
        "sys/conf/newvers.sh": newvers,
        "sys/sys/param.h": f"#define __FreeBSD_version {version}\n",
    }
    return str(make_tree(folder, more))


@pytest.mark.parametrize(
    ("newvers", "version", "release"),
    [
        ('REVISION="15.1"\nBRANCH="RELEASE-p2"\n', 1501000, "15.1"),
        ('REVISION="2.8"\nBRANCH="pfSense"\n', 1500500, "15.0"),
        ("REVISION=15.1\n", 1501000, "15.1"),
        ('PRODUCT="x"\n', 1402504, "14.2"),
        ('REVISION="13.3-TrueNAS"\n', 1301500, "13.1"),
        ('REVISION="16.0"\nBRANCH="CURRENT"\n', 1600004, "16.0"),
    ],
)
def test_a_tree_is_known_by_its_version(
    tmp_path: Path, newvers: str, version: int, release: str
) -> None:
    tree = source_tree.read(Path(other_tree(tmp_path / "other", newvers, version)))
    assert (tree.revision, tree.osversion) == (release, version)
    assert source_tree.identify(tree.path, release) == tree


def test_a_tree_without_release_is_held_to_its_own_series(
    tmp_path: Path, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not to every series of its branch."""
    (Path(topic) / "15.0").mkdir()
    other = mail(diff(tmp_path, {}, {"sys/y.h": "y\n"}))
    (Path(topic) / "15.0/1.patch").write_bytes(other)
    (Path(topic) / "15.0/series").write_text("1.patch\n")
    for version, release, note in ((1501000, "15.1", ""), (1500000, "15.0", "")):
        tree = other_tree(tmp_path / release, "", version)
        assert patch_commands.check([topic], "", "", tree, json=True) == 0
        shown = capsys.readouterr()
        assert [it["release"] for it in json.loads(shown.out)] == [release]
        assert note in shown.err
    tree = other_tree(tmp_path / "15.3", "", 1503000)
    assert patch_commands.check([topic], "", "", tree, json=True) == 0
    shown = capsys.readouterr()
    assert [it["release"] for it in json.loads(shown.out)] == ["15.1"]
    assert "no series for FreeBSD 15.3; the one for 15.1 is checked" in shown.err
    with pytest.raises(UsageError, match=r"no series for FreeBSD 16\.0, .*put one for 16\.0 into"):
        patch_commands.check([topic], "", "", other_tree(tmp_path / "16", "", 1600000), json=True)
    # A folder of patches applies to a tree of any release.
    data = diff(tmp_path, {}, {"sys/x.h": "x\n"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/1.patch").write_bytes(mail(data))
    tree = str(tmp_path / "16")
    assert patch_commands.check([str(tmp_path / "mine")], "", "", tree, json=True) == 0


def test_several_series_are_one_on_top_of_the_other(
    tmp_path: Path, tree: str, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more.patch").write_bytes(mail(diff(tmp_path, {}, {"sys/x.h": "x\n"})))
    both = [topic, str(tmp_path / "more.patch")]
    assert patch_commands.check(both, "", "", tree, json=True) == 0
    names = [it["patch"] for it in json.loads(capsys.readouterr().out)[0]["patches"]]
    assert names == ["0001-x.patch", "more.patch"]
    assert patch_commands.apply(tree, both, "", "") == 0
    assert (Path(tree) / "sys/x.h").read_text() == "x\n"
    with pytest.raises(UsageError, match="--series and --topic both name patches"):
        patch_commands.apply(tree, both, "meminfo", "")


@pytest.mark.skipif(debian.clang_version() is None, reason="clang and lld are not installed")
def test_build_takes_what_the_tree_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = other_tree(tmp_path / "14", 'REVISION="14.4"\n', 1404000)
    (tmp_path / "more.patch").write_bytes(
        diff(
            tmp_path,
            {"sys/dev/vmm/vmm.h": "#define NUMBER 1\n"},
            {"sys/dev/vmm/vmm.h": "#define NUMBER 2\n", "sys/arm64/x.c": "x\n"},
        )
    )
    series = [str(tmp_path / "more.patch")]
    assert patch_commands.run_build("", False, series, "", tree, "", True) == 0
    assert json.loads(capsys.readouterr().out)["release"] == "14.4"
    assert patch_commands.run_build("", False, series, "", tree, "", False) == 0
    assert "sys/arm64/x.c is not tested: no part that is built" in capsys.readouterr().err
