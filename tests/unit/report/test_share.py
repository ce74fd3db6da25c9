"""The file that is sent to others holds no names, places, addresses or keys."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli import report_commands
from harness.errors import UsageError
from harness.guest.panic_report import Panic
from harness.report import Cell, Check, Matrix, Report, StageResult, save, share

SECRETS = (
    "/home/alice/Secret/patches/x.patch",
    "/Users/bob/x",
    "~carol/x",
    "C:\\Users\\dave\\x",
    "\\\\server9\\share\\x",
    "192.0.2.17",
    "192.0.2.18:2222",
    "2001:db8::17",
    "fe80::1%eth7",
    "::1",
    "52:54:00:12:34:56",
    "build7.corp.example.com",
    "erin@example.org",
    "https://frank:pw@example.net/x?token=1",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGb3 grace@laptop",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "ghp_abcdefghijklmnop0123456789ABCDEFGH",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
    "password=hunter2",
    "Authorization: Bearer abc123",
    "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0",
    "heidi",
    "ho\x1bst5",
    "heidi_host5",
)
TRACES = [
    "alice",
    "Secret",
    "bob",
    "carol",
    "dave",
    "server9",
    "192.0.2",
    "db8",
    "fe80",
    "eth7",
    "52:54",
    "corp",
    "example",
    "erin",
    "frank",
    "grace",
    "AAAA",
    "PRIVATE",
    "ghp_",
    "eyJ",
    "hunter2",
    "abc123",
    "c2Vj",
    "heidi",
    "judy",
    "Judy",
    "\\\\",
    "/home",
    "/Users",
    "2222",
    "\x1b",
]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))


def run(folder: Path, text: str = "", **more: Any) -> Report:
    known: dict[str, Any] = {
        "release": "15.1",
        "backend": "bochs",
        "stock": False,
        "series": "series meminfo",
        "started_at": "2026-01-01T01:02:03+00:00",
        "run_dir": folder,
        "stages": (StageResult("checks", "ok", 12.34, text),),
        "checks": (
            Check("test_x.py::test_all_of_hw.vmm.mem_free_is_there", text, "passed", True, 0.25),
            Check(f"test_x.py::test_y[{text}]", text, "failed", True, 0.25, text, text),
        ),
        "properties": {
            "processor": "intel",
            "host": f"Some Processor 9000, 2 of them {text}",
            "emulator": f"/home/judy/bin/bochs 3.0{text}",
            "image": f"FreeBSD 15.1-RELEASE-p1 {text}",
            "image sha256": "a" * 64,
            "module sha256": text,
            "machine": text,
            text: text,
        },
        "error": text,
        "error_exit_code": 4 if text else 0,
        "error_detail": text,
        "panic": Panic(text, ()) if text else None,
    }
    return Report(**{**known, **more})


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", ["{}", "it said '{}' to us", "x={},y", "a\n{}\tb", "({})"])
def test_nothing_of_it_is_in_the_file(tmp_path: Path, secret: str, form: str) -> None:
    names = {"heidi", "host5", "al", "root"}
    found = share.shared(run(tmp_path, form.format(secret)), names)
    text = json.dumps(found)
    for trace in (*TRACES, secret):
        assert trace not in text, text


@pytest.mark.parametrize("field", ["release", "backend", "series", "topic", "started_at"])
def test_no_field_is_a_way_around(tmp_path: Path, field: str) -> None:
    text = json.dumps(share.shared(run(tmp_path, **{field: "/home/alice/x 192.0.2.17"}), ()))
    assert "alice" not in text
    assert "192.0.2" not in text


def test_what_others_want_to_know_stays(tmp_path: Path) -> None:
    found = share.shared(run(tmp_path), {"root", "test"})
    (one,) = found["runs"]
    assert one["verdict"] == "series meminfo, FreeBSD 15.1 in bochs: 1 of 2 checks ok, 1 FAILED"
    assert (one["release"], one["backend"], one["processor"]) == ("15.1", "bochs", "intel")
    assert (one["date"], one["emulator"]) == ("2026-01-01", "bochs 3.0")
    assert one["system"] == "FreeBSD 15.1-RELEASE-p1"
    assert one["digests"] == {"image sha256": "a" * 64}
    assert one["checks"][0] == {
        "name": "test_x.py::test_all_of_hw.vmm.mem_free_is_there",
        "status": "ok",
        "seconds": 0.2,
    }
    kept = (
        "sys/dev/vmm/vmm_mem.c",
        "464 of 464 checks ok",
        "hw.vmm.mem_free is 4096, not 0",
        "vm_alloc_memseg+0x4a",
        "test_x.py::test_figures_beyond_32_bits_are_exact[rom-fb]",
        "FreeBSD 15.1-RELEASE-p1",
    )
    scrub = share._Scrub(())
    assert [scrub(text) for text in kept] == list(kept)


def test_several_runs_are_one_file_with_the_gaps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "1-verify"
    folder.mkdir(parents=True)
    one = run(folder)
    gap = Cell("15.1", "kvm", reason="no right to open /dev/kvm; ask alice@example.org")
    found = share.shared(Matrix((Cell.of(one), gap), "2026-01-01", folder), ())
    assert len(found["runs"]) == 2
    assert found["runs"][1]["words"] == "not run: no right to open <path>; ask <address>"
    save(dataclasses.replace(one))
    report_commands.share_run("", False)
    assert str(folder / "shared.json") in capsys.readouterr().out.replace("\n", "")
    assert json.loads((folder / "shared.json").read_text())["format"] == share.FORMAT
    with pytest.raises(UsageError):
        report_commands.share_run("2-verify", False)
