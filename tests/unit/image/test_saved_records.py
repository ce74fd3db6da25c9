"""What was saved is read back with every value replaced: each reader gives it back, or one line.

The kinds of values are those that tripped readers before: nothing, a number where a text is due, a
number without end, a text that is a path or breaks a line, a table in a table.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from brought import bring_disk

from harness import keeper, report
from harness.build import result
from harness.cli import guest_commands, image_commands, report_commands, shells
from harness.errors import WorkbenchError
from harness.guest import snapshot
from harness.guest import snapshot_failures as failures
from harness.guest.transcript import Asked, Evidence
from harness.image import fetch, store
from harness.report.data import Check, Report, StageResult

VALUES: tuple[Any, ...] = (
    None, -1, 1e30, -1e30, "", "x", "two\nlines", [1], [[]], {}, {"a": 1}, True, "\ud800",
    "../../x", "a\0b", 10**30, "-oProxyCommand=x", "\x1b[31m",
)  # fmt: skip
TEXTS = (b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000, b"1" * 6000, b'{"a":' * 50_000)
Act = Callable[[], object]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(each, (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: Any, *, drop: bool = False) -> Any:
    if not at:
        return new
    whole = copy.deepcopy(value)
    inner = whole
    for key in at[:-1]:
        inner = inner[key]
    if drop:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return whole


def forgeries(good: Any) -> Iterator[bytes]:
    yield from TEXTS
    for at in places(good):
        for value in VALUES:
            yield json.dumps(changed(good, at, value)).encode("utf-8", "surrogatepass")
        if at:
            yield json.dumps(changed(good, at, None, drop=True)).encode()


def attack(path: Path, *acts: Act) -> None:
    """Every forgery is put in `path`'s place; an act may give it back or end in one line."""
    good = path.read_bytes()
    for text in forgeries(json.loads(good)):
        path.write_bytes(text)
        for act in acts:
            try:
                act()
            except WorkbenchError as error:
                assert "\n" not in error.message.replace(str(path), ""), text[:200]  # noqa: PT017
    path.write_bytes(good)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "runs"))


@pytest.mark.timeout(120)
def test_images_trees_and_pins(tmp_path: Path) -> None:
    bring_disk(tmp_path / "d")
    home = store.folder("15.1")
    attack(
        home / "image.json",
        lambda: image_commands.show_info("15.1", False),
        lambda: image_commands.show_list(False),
    )
    attack(
        home / "trees.json", lambda: store.source("15.1"), lambda: image_commands.show_list(False)
    )
    (home / "downloads").mkdir()
    pin = home / "downloads/src.txz"
    fetch.write_note(fetch.Fetched(pin, "http://x/", "0" * 128, "now"))
    pin.write_text("x")
    attack(
        pin.with_name("src.txz.json"),
        lambda: fetch.pin_of(pin),
        lambda: image_commands.verify("15.1", False),
    )


@pytest.mark.timeout(120)
def test_guests_that_stay(tmp_path: Path) -> None:
    owner = keeper.record.Process.of(os.getpid())
    assert owner is not None
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
    record = keeper.Record("q", tmp_path, owner, stage="ready", ssh_port=1, user="root")
    began = "2026-01-01T00:00:00+00:00"
    more: dict[str, Any] = {
        "emulator": owner,
        "began_at": began,
        "private_key": "/k",
        "options": {"a": 1},
    }
    keeper.save(dataclasses.replace(record, host_key=key, **more))
    command: list[str] = []

    def enter_it() -> None:
        command[:], _ = shells.ssh_command(keeper.find("q"), ["id"], terminal=False)
        target = command[command.index("--") + 1]
        assert not target.startswith("-")

    (tmp_path / "q").mkdir()
    path = tmp_path / "runs/guests/q.json"
    attack(path, lambda: guest_commands.status("", False), lambda: keeper.find("q"))
    good = json.loads(path.read_text())
    for user in ("-oProxyCommand=touch x #", "-l", "root -v", "a\nb", "a b", 5, None):
        path.write_text(json.dumps({**good, "user": user}))
        with pytest.raises(WorkbenchError, match=r"cannot be read .*user"):
            enter_it()
    path.write_text(json.dumps(good))
    enter_it()
    assert command[-3:] == ["--", "root@127.0.0.1", "id"]


@pytest.mark.timeout(200)
def test_reports(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "1-verify"
    folder.mkdir(parents=True)
    evidence = Evidence((Asked("a", 0, "o", "e", 1.0),), 1, 1.0, ("c",), ("d",))
    made = Report(
        "15.1", "tcg", False, "s", "2026-01-01T00:00:00+00:00", folder,
        (StageResult("a", "ok", 1.0, "n", 0.5),),
        (Check("a::b", "t", "passed", False, 1.0, at_s=1.0, evidence=evidence),),
        {"image sha256": "x"},
    )  # fmt: skip
    report.save(made)
    assert report.load(folder) == made
    attack(
        folder / "report.json",
        lambda: report_commands.show_list(False),
        lambda: report_commands.show("1-verify", False, False),
    )


@pytest.mark.timeout(120)
def test_snapshots_and_what_did_not_work(tmp_path: Path) -> None:
    record = bring_disk(tmp_path / "d")
    home = snapshot.home(record.disk)
    folder = home / ("0" * 32)
    (folder / "state").mkdir(parents=True)
    (folder / "snapshot.json").write_text(
        json.dumps({"made_at": "x", "facts": {"backend": "tcg"}, "files": {}})
    )
    attack(
        folder / "snapshot.json",
        lambda: image_commands.show_info("15.1", False),
        lambda: snapshot.find(record.disk, {"backend": "tcg"}),
    )
    failures.note(home, "k", "saving", "why")
    attack(home / "k.failed.json", lambda: str(failures.of(home, "k")))


@pytest.mark.timeout(120)
def test_builds(tmp_path: Path) -> None:
    manifest = {
        "release": "15.1", "revision": "15.1", "osversion": 1501000, "build_id": "ab",
        "series": None, "series_digest": None, "kernel_config": "GENERIC", "invariants": False,
        "compiler": "clang", "warnings": 0, "sandboxed": True,
        "seconds": 1.0, "module": "vmm.ko", "library": None,
        "tool": None, "not_built": [["a", "b"]], "untested": [["x.c", "y"]],
        "reached": ["vmm.ko"], "drift": ["y"],
        "digests": {},
    }  # fmt: skip
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest))
    assert result.load(tmp_path) is not None
    attack(path, lambda: result.load(tmp_path))
