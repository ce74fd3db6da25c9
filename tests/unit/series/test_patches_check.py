"""What `inv patch check` reports before a reviewer would."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faketree import NUMBERED, diff, mail, make_series, make_tree
from hypothesis import given
from hypothesis import strategies as st

from harness.series import check as series_check
from harness.series import load, mandoc, style9
from harness.series.check import Report

PAGE = """\
.Dd November 23, 2026
.Dt VMMLS 8
.Os
.Sh NAME
.Nm vmmls
.Nd list virtual machines
.Sh DESCRIPTION
It lists them; see
.Xr bhyve 8 .
"""


def check(tmp_path: Path, data: bytes, tree: Path | None = None) -> Report:
    topic = make_series(tmp_path / "topic", {"1.patch": data})
    return series_check.check(load.load_series(topic, "15.1"), tree)


def texts(report: Report, kind: str) -> list[str]:
    return [finding.text for finding in report.findings if finding.kind == kind]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("\treturn (x);", ""),
        ("\treturn;", ""),
        ("\treturn (a) + b;", ""),
        ("\treturn x;", "return without parentheses"),
        ("\treturn(x);", "no blank after return"),
        ("\tif(x)", "no blank after if"),
        ("\twhile (x) {", ""),
        ("\tif (x){", "no blank next to a brace"),
        ("\t}else {", "no blank next to a brace"),
        ("\t    continued);", ""),
        ("        spaces();", "indented with blanks"),
        ("  two();", ""),
        ("\t  \tmixed();", "a tab after blanks"),
        ("\tx = 1; // no", "a // comment"),
        ('\tprintf("http://x");', ""),
        ("\t/* http://x if(this) return x; */", ""),
        (" * if(this) the middle of // a comment", ""),
        ('\tx = \'"\'; y = "//";', ""),
        ("\tdon_t(); /* don't */ // but", "a // comment"),
        ("\tn = sizeof x;", "sizeof without parentheses"),
        ("\tn = sizeof(x);", ""),
        ("\tx = notreturn y;", ""),
        ("\t" * 9 + "x = 12345;", "82 columns wide"),
        ("\t" * 9 + "x = 123;", ""),
    ],
)
def test_style_of_single_lines(tmp_path: Path, line: str, wrong: str) -> None:
    found = texts(check(tmp_path, mail(diff(tmp_path, {}, {"sys/a.c": line + "\n"}))), "style")
    if wrong:
        assert len(found) == 1
        assert found[0].startswith("sys/a.c:1: ")
        assert wrong in found[0]
    else:
        assert found == []


def test_style_looks_at_added_lines_and_only_c_has_it_all(tmp_path: Path) -> None:
    old = "\treturn x;\n"
    data = diff(tmp_path, {"a.c": old}, {"a.c": old + "/*\n return x;\n*/\n", "a.sh": "if(x) \n"})
    assert texts(check(tmp_path, mail(data)), "style") == ["a.sh:1: blanks at the end of the line"]


@given(st.text())
def test_style_never_fails_on_any_line(line: str) -> None:
    list(style9.check_line(line, style9._code(line, False)[0]))


@pytest.mark.parametrize(
    ("subject", "message", "wrong"),
    [
        ("vmm: Do it", "Because.", ""),
        ("Do it", "Because.", "does not begin with the changed part"),
        ("vmm: Do it.", "Because.", "full stop"),
        ("vmm: " + "x" * 70, "Because.", "longer than 72"),
        ("vmm: Do it", "", "does not say why"),
        ("vmm: Do it", "long words " * 9, "columns wide"),
    ],
)
def test_messages(tmp_path: Path, subject: str, message: str, wrong: str) -> None:
    data = mail(diff(tmp_path, {}, {"a": "x\n"}), subject, message)
    found = texts(check(tmp_path, data), "message")
    assert len(found) == bool(wrong)
    assert wrong in "".join(found)


def test_sign_off_by_the_author(tmp_path: Path) -> None:
    data = mail(diff(tmp_path, {}, {"a": "x\n"}))
    none = data.replace(b"Signed-off-by: A Hacker <a@example.org>\n", b"")
    other = data.replace(b"Signed-off-by: A Hacker <a@", b"Signed-off-by: A Hacker <b@")
    assert texts(check(tmp_path / "1", none), "message") == ["no Signed-off-by: line"]
    assert "not by its author" in texts(check(tmp_path / "2", other), "message")[0]
    bare = diff(tmp_path, {}, {"a": "x\n"})
    assert "no From: line" in texts(check(tmp_path / "3", bare), "message")[0]


def test_without_a_tree_what_needs_one_is_not_run(tmp_path: Path) -> None:
    report = check(tmp_path, mail(diff(tmp_path, {"gone": "a\n"}, {"gone": "b\n"})))
    assert report.held
    assert dict(report.not_run).keys() >= {"applies", "drift"}
    assert report.state(report.series.patches[0], "applies") == "not run"


def test_with_a_tree_it_applies_or_drifts_or_does_not(tmp_path: Path) -> None:
    path = "share/man/man4/vmm.4"
    tree = make_tree(tmp_path / "src")
    data = mail(diff(tmp_path, {path: NUMBERED}, {path: NUMBERED.replace("line 9\n", "x\n")}))
    # A page this odd has mandoc's complaints before and after; only new ones count.
    assert check(tmp_path / "1", data, tree).findings == ()
    (tree / path).write_text("more\n" + NUMBERED)
    report = check(tmp_path / "2", data, tree)
    assert report.held
    assert texts(report, "drift") == [f"{path}: hunk 1 fits +1 lines away"]
    (tree / path).write_text("other\n")
    report = check(tmp_path / "3", data, tree)
    assert not report.held
    assert report.state(report.series.patches[0], "applies") == "no"
    assert "1.patch does not apply" in texts(report, "applies")[0]
    assert report.to_data()["held"] is False


@pytest.mark.skipif(bool(mandoc.unavailable()), reason="mandoc is not installed")
def test_manuals_that_are_added_are_linted_without_a_tree(tmp_path: Path) -> None:
    good = check(tmp_path / "1", mail(diff(tmp_path, {}, {"usr.sbin/vmmls/vmmls.8": PAGE})))
    assert good.findings == ()
    bad_page = PAGE.replace(".Xr bhyve 8 .", ".Xr bhyve 8 .\n.Foo bar\n.Bl -tag")
    bad = check(tmp_path / "2", mail(diff(tmp_path, {}, {"usr.sbin/vmmls/vmmls.8": bad_page})))
    assert not bad.held
    assert any("Foo" in text for text in texts(bad, "manual"))


def test_a_missing_mandoc_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = shutil.which
    without = lambda name: None if name == "mandoc" else genuine(name)  # noqa: E731
    monkeypatch.setattr(shutil, "which", without)
    report = check(tmp_path, mail(diff(tmp_path, {}, {"vmmls.8": "rubbish\n"})))
    assert dict(report.not_run)["manual"] == "mandoc is not installed"
    assert report.state(report.series.patches[0], "manual") == "not run"
