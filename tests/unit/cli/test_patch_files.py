"""`patch.check --files`: a series against single files of main, as a server publishes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import badserver
import pytest
from badserver import BadServer
from faketree import NUMBERED, diff, mail, make_series

from harness.cli import patch_commands
from harness.errors import CannotError, UsageError

MANUAL = "share/man/man4/vmm.4"
NEW = "sys/dev/vmm/vmm_acct.c"
TOP = "/src/main"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadServer]:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    bad, http = badserver.start()
    bad.files[f"{TOP}/sys/conf/newvers.sh"] = b'REVISION="16.0"\nBRANCH="CURRENT"\n'
    bad.files[f"{TOP}/sys/sys/param.h"] = b"#define __FreeBSD_version 1600004\n"
    bad.files[f"{TOP}/{MANUAL}"] = NUMBERED.encode()
    yield bad
    bad.over.set()
    http.shutdown()
    http.server_close()


@pytest.fixture
def topic(tmp_path: Path) -> Path:
    """A topic with a series for main alone, which changes one file and adds one."""
    data = diff(
        tmp_path,
        {MANUAL: NUMBERED},
        {MANUAL: NUMBERED.replace("line 9\n", "x\n"), NEW: "int\tx;\n"},
    )
    topic = make_series(tmp_path / "topic", {"0001-x.patch": mail(data)})
    (topic / "15.1").rename(topic / "main")
    return topic


def check(server: BadServer, topic: Path, *, release: str = "", top: str = TOP) -> int:
    address = f"{server.address.rstrip('/')}{top}"
    return patch_commands.check_files([str(topic)], "", release, "", address, json=True)


@pytest.mark.parametrize("release", ["", "main", "16.0-CURRENT"])
def test_a_series_that_fits(
    server: BadServer, topic: Path, release: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(server, topic, release=release) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["held"]
    assert report["not_run"].get("applies") is None
    # Each file is asked for once, and no other one is.
    asked = [path.removeprefix(f"{TOP}/") for path, _range in server.asked]
    assert sorted(asked) == sorted([MANUAL, NEW, "sys/conf/newvers.sh", "sys/sys/param.h"])


def test_a_series_that_does_not_fit_any_more(
    server: BadServer, topic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files[f"{TOP}/{MANUAL}"] = b"other\n"
    assert check(server, topic) == 5
    assert not json.loads(capsys.readouterr().out)[0]["held"]
    # A file that was removed from main.
    del server.files[f"{TOP}/{MANUAL}"]
    assert check(server, topic) == 5


def test_what_is_no_source_tree(server: BadServer, topic: Path) -> None:
    with pytest.raises(UsageError, match=r"not the top of a FreeBSD source tree \(sys/conf/newv"):
        check(server, topic, top="/src/main/sys")
    with pytest.raises(UsageError, match="--files somewhere: must be an http:// or https://"):
        patch_commands.check_files([str(topic)], "", "", "", "somewhere", json=True)
    with pytest.raises(UsageError, match="--files and --tree both name a source tree"):
        patch_commands.check_files([str(topic)], "", "", "/x", "somewhere", json=True)


def test_another_release_than_main(server: BadServer, topic: Path) -> None:
    server.files[f"{TOP}/sys/conf/newvers.sh"] = b'REVISION="15.1"\nBRANCH="STABLE"\n'
    server.files[f"{TOP}/sys/sys/param.h"] = b"#define __FreeBSD_version 1501000\n"
    with pytest.raises(UsageError, match=r"is FreeBSD 15\.1, not main"):
        check(server, topic, release="main")
    with pytest.raises(UsageError, match=r"no series for FreeBSD 15\.1, only for main"):
        check(server, topic)


def test_a_server_that_refuses(server: BadServer, topic: Path) -> None:
    path = f"{TOP}/{MANUAL}"
    server.tricks[path] = lambda request: request.head(403, {"Content-Length": "0"})
    with pytest.raises(CannotError, match=f"cannot fetch http://.*{MANUAL}: HTTP 403"):
        check(server, topic)

    def cut(request: badserver.Handler) -> None:
        request.head(200, {"Content-Length": "100"})
        request.body(b"x")

    server.tricks[path] = cut
    with pytest.raises(CannotError, match="the connection broke"):
        check(server, topic)
