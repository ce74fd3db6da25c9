"""Fetching from a server that is busy, endless or slow."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from badserver import BadServer, Handler
from fetched import CHECKSUMS, CONTENT, FILE, QUICK, REMOTE, get, refused
from fetched import server as server

from harness.errors import CannotError
from harness.image.fetch import FetchError, fetch

PATIENT = replace(QUICK, stall_s=10.0)


def busy(status: int, headers: dict[str, str], times: int = 1) -> Callable[[Handler], None]:
    def trick(handler: Handler) -> None:
        asked = [path for path, _ in handler.bad.asked if path == handler.path]
        if len(asked) <= times:
            handler.head(status, {**headers, "Content-Length": "0"})
        else:
            handler.honest()

    return trick


def reset(handler: Handler) -> None:
    """Cut the first connection before any answer."""
    if [path for path, _ in handler.bad.asked].count(handler.path) == 1:
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.connection.close()
    else:
        handler.honest()


@pytest.mark.parametrize("path", [CHECKSUMS, FILE])
@pytest.mark.parametrize(
    "trick",
    [
        busy(503, {}),
        busy(503, {}, times=3),
        busy(429, {"Retry-After": "0"}),
        busy(502, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        busy(503, {"Retry-After": "nonsense"}),
        reset,
    ],
)
def test_a_busy_server_is_asked_again(
    server: BadServer, tmp_path: Path, path: str, trick: Callable[[Handler], None]
) -> None:
    server.tricks[path] = trick
    got = fetch(REMOTE, (server.address,), tmp_path, limits=PATIENT)
    assert got.path.read_bytes() == CONTENT


def test_a_server_that_stays_busy_is_an_error(server: BadServer, tmp_path: Path) -> None:
    server.tricks[FILE] = busy(503, {}, times=99)
    with pytest.raises(FetchError, match="HTTP 503"):
        fetch(REMOTE, (server.address,), tmp_path, limits=PATIENT)
    assert [path for path, _ in server.asked].count(FILE) == PATIENT.tries
    # What is plainly not there is asked for once, and a day is not waited for.
    server.asked.clear()
    server.tricks[FILE] = busy(404, {}, times=99)
    with pytest.raises(FetchError, match="HTTP 404"):
        fetch(REMOTE, (server.address,), tmp_path, limits=PATIENT)
    server.tricks[FILE] = busy(503, {"Retry-After": "3600"}, times=99)
    with pytest.raises(FetchError, match="asks to come back in 3600 s"):
        fetch(REMOTE, (server.address,), tmp_path, limits=PATIENT)
    assert [path for path, _ in server.asked].count(FILE) == 2


def test_retry_after_is_waited_for(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("harness.image.network.time.sleep", slept.append)
    server.tricks[CHECKSUMS] = busy(429, {"Retry-After": "7"})
    fetch(REMOTE, (server.address,), tmp_path, limits=PATIENT)
    assert [s for s in slept if s > 1] == [7.0]


def endless(handler: Handler) -> None:
    """A body without a length and without an end."""
    handler.head(200, {})
    with contextlib.suppress(OSError):
        while not handler.bad.over.is_set():
            handler.body(bytes(1 << 20))


def test_a_body_without_end_is_not_kept(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.tricks[FILE] = endless
    raised = replace(REMOTE, about_bytes=4 << 20)
    assert "does not end after" in refused(server, tmp_path, raised)
    assert not list(tmp_path.glob("*.partial"))
    # Where nobody knows how long it is, some room on the disk stays.
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=100 << 20))
    with pytest.raises(CannotError, match=r"fetching more of .* needs 512"):
        get(server, tmp_path)


def test_a_length_that_no_such_file_has(server: BadServer, tmp_path: Path) -> None:
    server.tricks[FILE] = lambda handler: handler.head(200, {"Content-Length": str(10**17)})
    assert "are accepted" in refused(server, tmp_path)


@pytest.mark.parametrize("path", [CHECKSUMS, FILE])
def test_a_trickle_is_not_waited_for_without_end(
    server: BadServer, tmp_path: Path, path: str
) -> None:
    """Just enough to be no stall, and for ever."""

    def trickle(handler: Handler) -> None:
        handler.head(200, {})
        with contextlib.suppress(OSError):
            while not handler.bad.over.wait(0.05):
                handler.body(b"x" * 200)

    server.tricks[path] = trickle
    limits = replace(QUICK, least_bytes=10, patience_s=0.5, least_bytes_s=100_000)
    with pytest.raises(FetchError, match="too slow: "):
        fetch(REMOTE, (server.address,), tmp_path, limits=limits)
