"""A file and its checksum file on a server of the tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import badserver
import pytest
from badserver import BadServer

from harness.image.fetch import Fetched, FetchError, fetch
from harness.image.manifest import RemoteFile
from harness.image.network import Limits

CONTENT = bytes(range(256)) * 2000

DIGEST = hashlib.sha512(CONTENT).hexdigest()

FILE = "/rel/disk.raw.xz"

CHECKSUMS = "/rel/CHECKSUM.SHA512"

REMOTE = RemoteFile("rel/", "disk.raw.xz", "CHECKSUM.SHA512", "sha512")

QUICK = Limits(connect_s=2.0, stall_s=0.4, least_bytes=1024, pause_s=0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BadServer]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    bad, http = badserver.start()
    bad.publish("rel/", "disk.raw.xz", CONTENT)
    yield bad
    bad.over.set()
    http.shutdown()
    http.server_close()


def get(server: BadServer, folder: Path, remote: RemoteFile = REMOTE, **more: object) -> Fetched:
    return fetch(remote, (server.address,), folder, limits=QUICK, **more)  # type: ignore[arg-type]


def refused(server: BadServer, folder: Path, remote: RemoteFile = REMOTE) -> str:
    """The one line with which fetching fails; no file is there afterwards."""
    with pytest.raises(FetchError) as caught:
        get(server, folder, remote)
    assert not (folder / "disk.raw.xz").exists()
    assert "\n" not in caught.value.message
    assert server.address in caught.value.message
    return caught.value.message
