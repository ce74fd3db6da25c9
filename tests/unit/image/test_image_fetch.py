"""Fetching from a server that lies, stalls, truncates, redirects and dies."""

from __future__ import annotations

import hashlib
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from badserver import BadServer, Handler
from fetched import CHECKSUMS, CONTENT, DIGEST, FILE, QUICK, REMOTE, get, refused
from fetched import server as server
from urllib3.exceptions import LocationParseError

from harness.errors import CannotError, UsageError
from harness.image import fetch as fetching
from harness.image.fetch import Fetched, FetchError, fetch
from harness.image.manifest import RemoteFile


def test_a_good_file_arrives_once(server: BadServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    got = get(server, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert got.path.read_bytes() == CONTENT
    assert got.digest == DIGEST
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    before = len(server.asked)
    assert get(server, tmp_path) == got
    assert len(server.asked) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "disk.raw.xz",
        "disk.raw.xz.json",
        "disk.raw.xz.lock",
    ]


def test_a_dying_server_is_asked_for_the_rest(server: BadServer, tmp_path: Path) -> None:
    drops = [100_000, 150_000]
    server.tricks[FILE] = lambda request: request.honest(drops.pop(0) if drops else None)
    assert get(server, tmp_path).path.read_bytes() == CONTENT
    ranges = [asked[1] for asked in server.asked if asked[0] == FILE]
    assert ranges == ["", "bytes=100000-", "bytes=250000-"]


def test_a_server_that_keeps_dying_is_an_error(server: BadServer, tmp_path: Path) -> None:
    server.tricks[FILE] = lambda request: request.honest(1000)
    assert "the connection broke" in refused(server, tmp_path)
    assert len([1 for path, _ in server.asked if path == FILE]) == 4
    # What came is not lost: the next run goes on from there.
    del server.tricks[FILE]
    assert get(server, tmp_path).digest == DIGEST
    assert server.asked[-1] == (FILE, "bytes=4000-")


def test_a_server_without_ranges_starts_over(server: BadServer, tmp_path: Path) -> None:
    first = [True]

    def trick(request: Handler) -> None:
        request.head(200, {"Content-Length": str(len(CONTENT))})
        request.body(CONTENT[:5000] if first else CONTENT)
        first.clear()

    server.tricks[FILE] = trick
    assert get(server, tmp_path).path.read_bytes() == CONTENT


def test_a_partial_of_another_file_is_not_gone_on_with(server: BadServer, tmp_path: Path) -> None:
    (tmp_path / "disk.raw.xz.partial").write_bytes(b"of a release long gone")
    assert get(server, tmp_path).digest == DIGEST
    assert server.asked[-1] == (FILE, "")


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 7])
def test_a_partial_that_is_already_whole_or_longer(
    server: BadServer, tmp_path: Path, size: int
) -> None:
    """The first of them ended before it could look at what it had."""
    (tmp_path / "disk.raw.xz.partial").write_bytes(CONTENT.ljust(size, b"x"))
    (tmp_path / "disk.raw.xz.partial.of").write_text(DIGEST)
    assert get(server, tmp_path).path.read_bytes() == CONTENT


def test_a_stall_before_and_within_the_answer(server: BadServer, tmp_path: Path) -> None:
    server.tricks[FILE] = lambda request: request.hang()
    assert "stalled" in refused(server, tmp_path)

    def within(request: Handler) -> None:
        request.head(200, {"Content-Length": str(len(CONTENT))})
        request.body(b"")
        request.hang()

    server.tricks[FILE] = within
    assert "stalled" in refused(server, tmp_path)


def test_a_drip_counts_as_a_stall(server: BadServer, tmp_path: Path) -> None:
    def trick(request: Handler) -> None:
        request.head(200, {"Content-Length": str(len(CONTENT))})
        request.drip()

    server.tricks[FILE] = trick
    assert "stalled" in refused(server, tmp_path)


def test_the_wrong_file_is_not_kept(server: BadServer, tmp_path: Path) -> None:
    server.files[FILE] = b"<html>our service is moving</html>"
    message = refused(server, tmp_path)
    assert "checksum differs" in message
    assert DIGEST[:16] in message
    assert not (tmp_path / "disk.raw.xz.partial").exists()


def test_truncated_without_a_length(server: BadServer, tmp_path: Path) -> None:
    def trick(request: Handler) -> None:
        request.head(200, {})
        request.body(CONTENT[:1234])

    server.tricks[FILE] = trick
    assert "checksum differs" in refused(server, tmp_path)


def test_the_wrong_part_is_noticed(server: BadServer, tmp_path: Path) -> None:
    (tmp_path / "disk.raw.xz.partial").write_bytes(CONTENT[:100])
    (tmp_path / "disk.raw.xz.partial.of").write_text(DIGEST)

    def trick(request: Handler) -> None:
        size = len(CONTENT)
        request.head(206, {"Content-Range": f"bytes 50-{size - 1}/{size}"})
        request.body(CONTENT[50:])

    server.tricks[FILE] = trick
    assert "bytes from 100 on were requested, but the server sends from 50" in refused(
        server, tmp_path
    )


def test_redirects(server: BadServer, tmp_path: Path) -> None:
    server.files["/elsewhere"] = CONTENT
    server.tricks[FILE] = lambda request: request.head(302, {"Location": "/elsewhere"})
    assert get(server, tmp_path).digest == DIGEST
    (tmp_path / "disk.raw.xz").unlink()
    server.tricks[FILE] = lambda request: request.head(302, {"Location": FILE})
    assert "redirects without end" in refused(server, tmp_path)


@pytest.mark.parametrize("path", [FILE, CHECKSUMS])
@pytest.mark.parametrize("status", [403, 404, 503])
def test_refusals_name_the_file_and_the_status(
    server: BadServer, tmp_path: Path, path: str, status: int
) -> None:
    server.tricks[path] = lambda request: request.head(status, {"Content-Length": "0"})
    message = refused(server, tmp_path)
    assert f"{path.removeprefix('/')}: HTTP {status}" in message


def test_mirrors_in_turn(server: BadServer, tmp_path: Path) -> None:
    got = fetch(REMOTE, (f"{server.address}nothing/", server.address), tmp_path, limits=QUICK)
    assert got.url == f"{server.address}rel/disk.raw.xz"
    got.path.unlink()
    with pytest.raises(FetchError) as caught:
        fetch(REMOTE, (f"{server.address}a/", f"{server.address}b/"), tmp_path, limits=QUICK)
    assert "/b/rel/CHECKSUM.SHA512: HTTP 404" in caught.value.message
    assert "/a/rel/CHECKSUM.SHA512: HTTP 404" in caught.value.detail


def test_a_second_mirror_goes_on_where_the_first_died(server: BadServer, tmp_path: Path) -> None:
    server.publish("dying/rel/", "disk.raw.xz", CONTENT)
    drops = iter([200_000])
    server.tricks["/dying" + FILE] = lambda request: request.honest(next(drops, 0))
    mirrors = (f"{server.address}dying/", server.address)
    assert fetch(REMOTE, mirrors, tmp_path, limits=QUICK).path.read_bytes() == CONTENT
    assert server.asked[-1] == (FILE, "bytes=200000-")


def test_a_second_run_waits_and_downloads_nothing(server: BadServer, tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(request: Handler) -> None:
        begun.set()
        go_on.wait(5)
        request.honest()

    server.tricks[FILE] = slowly
    got: list[Fetched] = []
    runs = [threading.Thread(target=lambda: got.append(get(server, tmp_path))) for _ in range(2)]
    runs[0].start()
    assert begun.wait(5)
    runs[1].start()
    go_on.set()
    for run in runs:
        run.join(10)
    assert len(got) == 2
    assert got[0] == got[1]
    assert len([1 for path, _ in server.asked if path == FILE]) == 1


def test_a_disk_without_room_is_asked_first(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(
        CannotError, match=r"fetching disk\.raw\.xz needs 500\.0 KiB .*free some room"
    ):
        get(server, tmp_path)
    assert not (tmp_path / "disk.raw.xz.partial").exists()


def test_tls_is_not_left_by_a_redirect(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that takes the address with https for the one without stands for the TLS server."""
    plain = requests.Session.get

    def downgraded(self: requests.Session, url: str, **more: object) -> requests.Response:
        return plain(self, url.replace("https:", "http:"), **more)  # type: ignore[arg-type]

    monkeypatch.setattr(requests.Session, "get", downgraded)
    with pytest.raises(FetchError, match="it redirects to an address without TLS"):
        fetch(REMOTE, (server.address.replace("http:", "https:"),), tmp_path, limits=QUICK)


def test_nobody_listens(server: BadServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:1/.*connection refused"):
        fetch(REMOTE, ("http://127.0.0.1:1/",), tmp_path, limits=QUICK)


def test_no_such_host_and_a_silent_name_service(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_args: never.wait(5))
    with pytest.raises(FetchError, match=r"cannot find the host mirror\.invalid .no answer"):
        fetch(REMOTE, ("http://mirror.invalid/",), tmp_path, limits=replace(QUICK, connect_s=0.2))
    never.set()


def test_a_proxy_is_used_and_named_when_it_fails(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    with pytest.raises(FetchError, match="the proxy cannot be used: connection refused"):
        fetch(REMOTE, ("http://mirror.invalid/",), tmp_path, limits=QUICK)
    # A proxy gets the whole address as its path.
    monkeypatch.setenv("http_proxy", server.address)
    for path in (FILE, CHECKSUMS):
        server.files[f"http://mirror.invalid{path}"] = server.files[path]
    assert fetch(REMOTE, ("http://mirror.invalid/",), tmp_path, limits=QUICK).digest == DIGEST


def test_offline_uses_the_cache_alone(server: BadServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="--offline"):
        get(server, tmp_path, offline=True)
    assert server.asked == []
    get(server, tmp_path)
    assert get(server, tmp_path, offline=True).digest == DIGEST


def test_a_mirror_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetching.mirrors(("https://a/",)) == ("https://a/",)
    monkeypatch.setenv("HARNESS_MIRROR", "http://localhost:8080/freebsd")
    assert fetching.mirrors(("https://a/",)) == ("http://localhost:8080/freebsd/",)
    monkeypatch.setenv("HARNESS_MIRROR", "/srv/mirror")
    with pytest.raises(UsageError, match="HARNESS_MIRROR=/srv/mirror"):
        fetching.mirrors(("https://a/",))


def test_the_distribution_sets_manifest() -> None:
    remote = RemoteFile("rel/", "src.txz", "MANIFEST", "sha256")
    digest = hashlib.sha256(b"src").hexdigest()
    text = (
        f'base-src.txz\t{"0" * 64}\t1\tbase\t"Base"\ton\n'
        f'src.txz\t{digest}\t106842\tsrc\t"System source tree"\toff\n'
    )
    assert fetching.published_digest(text, "src.txz", remote) == digest
    assert fetching.published_digest(text.replace("\t", " "), "src.txz", remote) is None


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for other in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "/no/such/file")
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(FetchError, match=f"{name}=/no/such/file: there is no such file"):
        fetch(REMOTE, ("https://127.0.0.1:9/",), tmp_path, limits=QUICK)


@pytest.mark.parametrize("error", [OSError("odd"), ValueError("odd"), LocationParseError("odd")])
def test_whatever_a_library_raises_is_a_line(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_args: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr(requests.Session, "get", broken)
    assert "odd" in refused(server, tmp_path)
