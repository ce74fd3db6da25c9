"""report.html: well formed whatever a guest said, complete offline, and read back as written."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness import report
from harness.cli import report_commands
from harness.errors import CannotError, UsageError
from harness.guest.panic_report import Frame, Panic
from harness.guest.transcript import Transcript, asked, evidence
from harness.report import Check, Report, StageResult, coverage, html, timeline

EVIL = "</pre></title><script>alert(1)</script>\x1b[31m\x00\x9b\u202e\ud800\ufeff\"'>&lt;<!--"
IMAGE = {"image sha256": "5fb4"}
_VOID = {"meta", "line", "rect", "br"}


class Page(HTMLParser):
    """Raises where tags do not nest; keeps the text, the tags and the ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        known = dict(attrs)
        assert len(known) == len(attrs), f"{tag}: an attribute twice"
        assert not any(name.startswith("on") for name in known)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check(name: str, outcome: str = "passed", **more: object) -> Check:
    known = {"title": f"claim of {name}", "of_patch": True, "seconds": 2.0}
    return Check(name, outcome=outcome, **{**known, **more})  # type: ignore[arg-type]


def run(*checks: Check, **more: object) -> Report:
    known: dict[str, object] = {
        "release": "15.1",
        "backend": "bochs",
        "stock": False,
        "series": "series meminfo",
        "started_at": "2026-01-01T00:00:00+00:00",
        "run_dir": Path("/nowhere"),
        "stages": (StageResult("boot", "ok", 90.0, "up"), StageResult("checks", "ok", 9, "", 90.0)),
        "checks": checks,
        "properties": IMAGE,
    }
    return Report(**{**known, **more})  # type: ignore[arg-type]


def test_nothing_that_a_guest_says_becomes_markup() -> None:
    transcript = Transcript()
    transcript.hear(asked(EVIL, None, EVIL.encode("utf-8", "replace"), b"\xff\x00", 0.5))
    everything = dataclasses.replace(
        check(EVIL, "failed", title=EVIL, message=EVIL, detail=EVIL, stock_message=EVIL),
        evidence=evidence(transcript, [EVIL], [EVIL]),
    )
    panic = Panic(
        EVIL, (EVIL,), (Frame(EVIL, 1, sources=(EVIL,)),), ((EVIL, EVIL),), ((EVIL, EVIL),)
    )
    evil = run(
        everything,
        check("test_a.py::test_b", "skipped", message=EVIL),
        stages=(StageResult(EVIL, "failed", 1.0, EVIL),),
        properties={EVIL: EVIL},
        series=EVIL,
        release=EVIL,
        backend=EVIL,
        error=EVIL,
        error_detail=EVIL,
        panic=panic,
    )
    text = html.render(evil, run(everything, stock=True, series=EVIL))
    page = Page(text)
    assert "script" not in page.tags
    assert page.text.count("alert(1)") > 20
    assert "␛[31m␀⟨U+009B⟩⟨U+202E⟩⟨U+D800⟩⟨U+FEFF⟩" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800\ufeff]", text)
    text.encode()


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = html.render(run(check("test_a.py::test_b"), check("test_a.py::test_c", "failed")))
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "@import" not in text
    assert "url(" not in text


def test_the_failing_come_first_and_the_two_modules_stand_side_by_side() -> None:
    holds = check("test_a.py::test_holds", on_stock="failed", stock_message="no such sysctl")
    fails = check("test_z.py::test_fails", "failed", message="four is not five", on_stock="passed")
    page = Page(
        html.render(run(holds, check("test_b.py::test_c", "skipped", message="no VMX"), fails))
    )
    assert "What did not hold" in page.text
    order = [page.text.rindex(words) for words in ("four is not five", "no VMX", "test_holds")]
    assert order == sorted(order)
    assert "StockPatchedTook" in page.text
    assert "on the stock module: no such sysctl" in page.text
    assert "StockPatched" not in Page(html.render(run(check("test_a.py::test_b")))).text


def test_a_check_shows_what_was_asked_and_what_came_back() -> None:
    transcript = Transcript()
    transcript.hear(asked("sysctl hw.vmm", 1, b"", b"unknown oid", 0.25))
    raised = check("test_a.py::test_b", evidence=evidence(transcript, ["login:"], ["vmm: loaded"]))
    text = Page(html.render(run(raised))).text
    for words in ("$ sysctl hw.vmm", "exit 1, 0.2 s", "unknown oid", "login:", "vmm: loaded"):
        assert words in text


def test_a_panic_is_shown() -> None:
    frames = (Frame("panic", 1), Frame("vm_create", 0x2A, sources=("sys/vmm.c:7",)))
    guilty = check("test_a.py::test_b", "error", message="the guest panicked: panic: x")
    panic = Panic("panic: x", ("panic: x",), frames, (("rip", "0x7"),))
    page = Page(html.render(run(check("test_a.py::test_a"), guilty, panic=panic)))
    assert "during claim of test_a.py::test_b" in page.text
    for words in ("The panic", "panic: x", "vm_create+0x2a", "sys/vmm.c:7", "rip"):
        assert words in page.text


def test_a_long_console_is_cut_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "guest").mkdir()
    with (tmp_path / "guest" / "console.log").open("wb") as stream:
        stream.write(
            b"the beginning\r\n" + (b"\x1b[H" + b"<b>" * 30 + b"\n") * 110_000 + b"the end\n"
        )
    text = html.render(run(run_dir=tmp_path))
    page = Page(text)
    assert len(text) < 1_000_000
    for words in (
        "the beginning\n",
        "the end\n",
        "bytes are left out here",
        "guest/console.log, 10 MB",
    ):
        assert words in page.text
    assert "b" not in page.tags


def test_transcripts_stay_small() -> None:
    transcript = Transcript()
    for number in range(1000):
        transcript.hear(asked(f"echo {number}" + "x" * 9000, 0, b"y" * 100_000, b"", 1.0))
    kept = evidence(transcript, ["line " * 1000] * 1000, [])
    assert (kept.count, kept.seconds, len(kept.commands)) == (1000, 1000.0, 80)
    assert kept.commands[0].command.startswith("echo 0x")
    assert kept.commands[-1].command.startswith("echo 999x")
    assert "[... 98000 bytes ...]" in kept.commands[0].stdout
    assert len(json.dumps(dataclasses.asdict(kept))) < 500_000
    assert "[920 commands in between were not kept]" in html.render(
        run(check("test_a.py::test_b", evidence=kept))
    )


def test_the_picture_shows_where_the_seconds_went() -> None:
    checks = (
        check("test_a.py::test_b", at_s=91.0, seconds=2.0),
        check("test_b.py::test_c", "failed", at_s=93.0, seconds=6.0),
    )
    one = run(*checks)
    whole = timeline.of_stages(one)
    part = timeline.of_checks(one, {"test_a.py::test_b": "check-1"})
    assert whole is not None
    assert part is not None
    assert [row.label for row in whole.rows] == ["boot, 90 s", "checks, 9.0 s"]
    bars: list[object] = [(bar.left, bar.width) for row in whole.rows for bar in row.bars]
    assert bars == [
        (0.0, pytest.approx(100 * 90 / 99, abs=0.01)),
        (pytest.approx(100 * 90 / 99, abs=0.01), pytest.approx(100 * 9 / 99, abs=0.01)),
    ]
    assert [(bar.left, bar.width, bar.tone) for row in part.rows for bar in row.bars] == [
        (0.0, 25.0, "ok"),
        (25.0, 75.0, "failed"),
    ]
    split = run(dataclasses.replace(checks[0], guest=2), checks[1])
    lanes = timeline.of_checks(split, {})
    assert lanes is not None
    assert [row.label for row in lanes.rows] == ["guest 1, 6.0 s", "guest 2, 2.0 s"]
    assert timeline.of_stages(run(stages=())) is None
    assert timeline.of_checks(run(), {}) is None


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def saved(folder: Path, name: str, *checks: Check, **more: object) -> Report:
    one = run(*checks, run_dir=folder / name, **more)
    report.save(one)
    return one


def test_a_run_is_read_back_as_it_was(runs: Path) -> None:
    transcript = Transcript()
    transcript.hear(asked("true", 0, b"out", b"", 0.5))
    raised = check("test_a.py::test_b", "failed", evidence=evidence(transcript, ["a"], ["b"]))
    panic = Panic("panic: x", ("l",), (Frame("f", 1, None, True, ("s:1",)),), (("rip", "0x1"),))
    one = saved(runs, "1-verify", raised, error="gone", error_exit_code=4, panic=panic)
    assert report.load(report.find("1-verify")) == one
    data = json.loads((runs / "1-verify" / "report.json").read_text())
    for old in ("panic", "error_detail"):
        del data[old]
    del data["checks"][0]["evidence"]
    (runs / "1-verify" / "report.json").write_text(json.dumps({**data, "of tomorrow": 1}))
    assert report.load(runs / "1-verify").checks[0].detail == raised.detail


def test_a_run_is_set_against_the_newest_of_the_other_module(runs: Path) -> None:
    one = check("test_a.py::test_b")
    saved(runs, "1-stock", one, stock=True)
    last = saved(runs, "2-stock", one, stock=True)
    saved(runs, "3-stock", one, stock=True, properties={"image sha256": "another"})
    saved(runs, "4-stock", one, stock=True, backend="kvm")
    patched = saved(runs, "5-verify", one)
    assert report.counterpart(patched) == last
    assert report.counterpart(last) == patched
    assert report.counterpart(run(check("x", on_stock="failed"))) is None
    assert "2-stock" in (runs / "5-verify" / "report.html").read_text()


def test_inv_report_tells_the_last_run(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no run has a report yet"):
        report_commands.show("", open_page=False, as_json=False)
    with pytest.raises(UsageError, match="no run has a report yet"):
        report_commands.show_list(as_json=False)
    saved(runs, "1-verify", check("test_a.py::test_b"))
    saved(runs, "2-verify", check("test_a.py::test_b", "failed"))
    (runs / "3-pytest").mkdir()
    report_commands.show_list(as_json=True)
    assert [one["run"] for one in json.loads(capsys.readouterr().out)] == ["2-verify", "1-verify"]
    report_commands.show("", open_page=False, as_json=False)
    assert f"page:    {runs}/2-verify/report.html" in capsys.readouterr().out
    for name in ("4-verify", "3-pytest"):
        with pytest.raises(UsageError, match=name):
            report_commands.show(name, open_page=False, as_json=False)
    (runs / "2-verify" / "report.json").write_text("{}")
    with pytest.raises(UsageError, match="this is not a report of this program"):
        report_commands.show("2-verify", open_page=False, as_json=False)
    opened: list[str] = []

    def refuse(page: str) -> bool:
        opened.append(page)
        return False

    monkeypatch.setattr("webbrowser.open", refuse)
    with pytest.raises(CannotError, match="yourself"):
        report_commands.show("1-verify", open_page=True, as_json=True)
    assert opened == [(runs / "1-verify" / "report.html").as_uri()]


# A source is read as text, so that it has none of these.
TEXT = EVIL.replace("\ud800", "")


def test_the_page_shows_which_lines_ran(tmp_path: Path) -> None:
    lines = (
        coverage.Line(7, "\tif (x < 1)", 3, changed=True),
        coverage.Line(8, f"\t\treturn (2);{TEXT}", 0, changed=True),
        coverage.Line(20, "}", None, changed=False),
    )
    found = coverage.Coverage(
        "1 of 2 changed lines ran", "of all: 5 of 6",
        (coverage.Changed("sys/dev/vmm/x.c", 1, 2, "8", lines),),
        (coverage.File("sys/dev/vmm/x.c", 5, 6, scoped=True),),
        (coverage.Family("vmunit.emul", 5, 4),),
    )  # fmt: skip
    coverage.save(dataclasses.replace(found, summary=found.summary), tmp_path)
    page = html.render(run(check("a"), run_dir=tmp_path))
    read = Page(page)
    assert "1 of 2 changed lines ran; not 8" in read.text
    assert '<span class="missed new">     8         0  \t\treturn (2);' in page
    assert '<span class="gap">' in page
    assert "vmunit.emul" in read.text
    assert "script" not in read.tags
    (tmp_path / coverage.DATA).write_text("{")
    assert "Which lines ran" not in html.render(run(check("a"), run_dir=tmp_path))
