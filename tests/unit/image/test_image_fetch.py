"""Fetching from a server that lies, stalls, truncates, redirects and dies."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import badserver
import pytest
import requests
from badserver import BadServer, Handler
from urllib3.exceptions import LocationParseError

from harness.errors import CannotError, UsageError
from harness.image import fetch as fetching
from harness.image.fetch import DigestChanged, Fetched, FetchError, fetch
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


def test_a_server_that_keeps_dying_is_given_up(server: BadServer, tmp_path: Path) -> None:
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


def test_a_checksum_file_without_our_line(server: BadServer, tmp_path: Path) -> None:
    server.files[CHECKSUMS] = b"SHA512 (disk.raw.xz.old) = " + DIGEST.encode() + b"\n"
    assert "no digest for disk.raw.xz" in refused(server, tmp_path)
    message = refused(server, tmp_path, replace(REMOTE, also="other.xz"))
    assert "no digest for disk.raw.xz or other.xz" in message


def test_a_file_under_its_other_name(server: BadServer, tmp_path: Path) -> None:
    """The checksum file says which it is; here it has the same name either way."""
    server.files.clear()
    server.publish("rel/", "disk-ufs.raw.xz", CONTENT)
    got = get(server, tmp_path, replace(REMOTE, also="disk-ufs.raw.xz"))
    assert (got.path.name, got.digest) == ("disk.raw.xz", DIGEST)
    assert got.url == f"{server.address}rel/disk-ufs.raw.xz"


def test_a_checksum_file_without_end(server: BadServer, tmp_path: Path) -> None:
    server.files[CHECKSUMS] = b"x" * (5 << 20)
    assert "not a checksum file" in refused(server, tmp_path)


def test_the_pin_comes_before_what_is_published(server: BadServer, tmp_path: Path) -> None:
    pinned = replace(REMOTE, pin="a" * 128)
    assert "the manifest pins aaaaaaaaaaaaaaaa" in refused(server, tmp_path, pinned)
    assert get(server, tmp_path, replace(REMOTE, pin=DIGEST)).digest == DIGEST
    with pytest.raises(FetchError, match="not the one that the manifest pins"):
        get(server, tmp_path, pinned)


def test_another_digest_later_is_an_alarm(server: BadServer, tmp_path: Path) -> None:
    get(server, tmp_path).path.unlink()
    server.publish("rel/", "disk.raw.xz", CONTENT + b"and more")
    message = refused(server, tmp_path)
    assert f"an earlier fetch saw {DIGEST[:16]}" in message
    assert "disk.raw.xz.json" in message


def test_an_alarm_tells_its_story_and_no_other_mirror_stills_it(
    server: BadServer, tmp_path: Path
) -> None:
    first = get(server, tmp_path)
    first.path.unlink()
    assert first.at
    server.publish("lies/rel/", "disk.raw.xz", b"another file")
    mirrors = (f"{server.address}lies/", server.address)
    with pytest.raises(DigestChanged) as caught:
        fetch(REMOTE, mirrors, tmp_path, limits=QUICK)
    for said in (DIGEST, hashlib.sha512(b"another file").hexdigest(), first.url, first.at):
        assert said in caught.value.detail
    assert caught.value.exit_code == 3
    assert ("/rel/disk.raw.xz", "") not in server.asked[2:]
    # A user who has compared them removes the note, as the message says.
    (tmp_path / "disk.raw.xz.json").unlink()
    assert fetch(REMOTE, mirrors, tmp_path, limits=QUICK).path.read_bytes() == b"another file"


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


NAME = "disk.raw.xz"
FORMS = {
    "BSD": f"SHA512 ({NAME}) = {DIGEST}\n",
    "BSD in capitals": f"SHA512 ({NAME}) = {DIGEST.upper()}\n",
    "GNU": f"{DIGEST}  {NAME}\n",
    "GNU binary": f"{DIGEST} *{NAME}\n",
    "GNU escaped": f"\\{DIGEST}  {NAME}\n",
    "GNU tag": f"SHA512 ({NAME}) = {DIGEST}",
    "GNU folder": f"{DIGEST}  ./{NAME}\n",
    "openssl": f"SHA512({NAME})= {DIGEST}\n",
    "openssl 3": f"SHA2-512({NAME})= {DIGEST}\n",
    "BSD with -r": f"{DIGEST} {NAME}\n",
    "a tab": f"{DIGEST}\t{NAME}\n",
    "GNU with -z": f"{DIGEST}  {NAME}\0",
    "blanks around": f"  {DIGEST}  {NAME}  \n",
    "byte order mark": f"\ufeffSHA512 ({NAME}) = {DIGEST}\n",
    "gpg": f"{NAME}: {' '.join(DIGEST.upper()[at : at + 8] for at in range(0, 128, 8))}\n",
    "certutil": f"SHA512 hash of {NAME}:\n{DIGEST}\nCertUtil: -hashfile: it worked.\n",
    "signed": (
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nSHA512 ({NAME}) = {DIGEST}\n"
        "-----BEGIN PGP SIGNATURE-----\n\niQIz\n-----END PGP SIGNATURE-----\n"
    ),
    "bare, signed": (
        f"-----BEGIN PGP SIGNED MESSAGE-----\r\nHash: SHA512\r\n\r\n{DIGEST}\r\n"
        "-----BEGIN PGP SIGNATURE-----\r\n\r\niQIz\r\n-----END PGP SIGNATURE-----\r\n"
    ),
    "several algorithms": f"SHA256 ({NAME}) = {DIGEST[:64]}\nSHA512 ({NAME}) = {DIGEST}\n",
    "CRLF": f"SHA512 ({NAME}) = {DIGEST}\r\n",
    "bare": f"{DIGEST}\n",
    "among others": f"# sums\n{'0' * 128}  other\n\n{DIGEST}  {NAME}\n{'1' * 128} *{NAME}.sig\n",
    "twice the same": f"{DIGEST}  {NAME}\nSHA512 ({NAME}) = {DIGEST}\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_checksum_files_in_every_form(server: BadServer, tmp_path: Path, form: str) -> None:
    server.files[CHECKSUMS] = FORMS[form].encode()
    assert get(server, tmp_path).digest == DIGEST


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{DIGEST}  {NAME}\n{'0' * 128}  {NAME}\n", "two digests for"),
        (f"{DIGEST}  other/{NAME}\n", f"no digest for {NAME}, but for other/{NAME}"),
        (f"SHA512 (/r/{NAME}) = {DIGEST}\n", f"no digest for {NAME}, but for /r/{NAME}"),
        (f"{DIGEST[:64]}  {NAME}\n", "no digest for"),
        (f"SHA256 ({NAME}) = {DIGEST}\n", "no digest for"),
        (f"{DIGEST}\n{'0' * 128}\n", "no digest for"),
        (f"x SHA512 ({NAME}) = {DIGEST}\n", "no digest for"),
        ("SHA512 (" * 200_000, "no digest for"),
        ("\\" * 100_000 + f"  {NAME}", "no digest for"),
    ],
)
def test_what_is_no_digest_of_the_file(
    server: BadServer, tmp_path: Path, text: str, said: str
) -> None:
    server.files[CHECKSUMS] = text.encode()
    assert said in refused(server, tmp_path)


def test_escaped_names() -> None:
    text = f"\\{DIGEST}  a\\\\b\\nc\n"
    assert fetching.published_digest(text, "a\\b\nc", REMOTE) == DIGEST
    assert fetching.published_digest(text, "a\\\\b\\nc", REMOTE) is None


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


def test_a_server_that_stays_busy_is_given_up(server: BadServer, tmp_path: Path) -> None:
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
