"""HTTP with time limits: every failure is a `Broken` with a short reason."""

from __future__ import annotations

import http.client
import itertools
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from urllib3 import exceptions as low

T = TypeVar("T")

_CHUNK_BYTES = 1 << 16
_BUSY = (429, 500, 502, 503, 504)
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_DEEPEST = 20


@dataclass(frozen=True)
class Limits:
    """Time limits: for a name or a connection, and for an answer's next bytes.

    A download that gets fewer than `least_bytes` within `stall_s` also counts as stalled, and so
    does one that after `patience_s` is slower on average than `least_bytes_s`.  If a server is busy
    or closes the connection before it answers, `tries` attempts are made: the next after `pause_s`,
    each later one after twice as long, or after the server's own pause, if it is within
    `longest_s`.
    """

    connect_s: float = 5.0
    stall_s: float = 20.0
    least_bytes: int = 1024
    patience_s: float = 60.0
    least_bytes_s: int = 4096
    tries: int = 4
    pause_s: float = 1.0
    longest_s: float = 60.0


class Broken(Exception):
    """A transfer failed; the text is the reason.  `midway`: an answer had begun to arrive.

    `busy`: the same may work soon, for instance after `wait_s`, if the server says so.
    """

    def __init__(
        self, reason: str, *, midway: bool = False, busy: bool = False, wait_s: float = 0.0
    ) -> None:
        super().__init__(reason)
        self.midway = midway
        self.busy = busy
        self.wait_s = wait_s


class NothingMore(Broken):
    """The server has no byte from the requested offset on; `total_bytes` is its file's length."""

    def __init__(self, total_bytes: int | None) -> None:
        super().__init__("the server has no more of it than is here already")
        self.total_bytes = total_bytes


class Answer:
    """A server's answer: bytes from `start` on, `total_bytes` in all if the server says so."""

    def __init__(self, response: requests.Response, limits: Limits) -> None:
        self._response = response
        self._limits = limits
        self.start = 0
        self.total_bytes: int | None = None
        if response.status_code == 206:
            said = re.fullmatch(
                r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "")
            )
            if not said:
                raise Broken("the server answers 206 without saying which part it sends")
            self.start = int(said[1])
            self.total_bytes = None if said[2] == "*" else int(said[2])
        elif response.headers.get("Content-Length", "").isdigit():
            self.total_bytes = int(response.headers["Content-Length"])

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they arrive, never unpacked; Broken if they stop arriving."""
        raw: urllib3.HTTPResponse = self._response.raw
        window_bytes, window_at = 0, time.monotonic()
        all_bytes, began = 0, window_at
        while True:
            try:
                chunk = raw.read1(_CHUNK_BYTES, decode_content=False)
            except (low.HTTPError, OSError) as error:
                raise Broken(self._reason(error), midway=True) from error
            if not chunk:
                return
            yield chunk
            window_bytes += len(chunk)
            all_bytes += len(chunk)
            now = time.monotonic()
            passed_s = now - began
            if (
                passed_s > self._limits.patience_s
                and all_bytes < passed_s * self._limits.least_bytes_s
            ):
                raise Broken(
                    f"too slow: {all_bytes} bytes in {passed_s:.0f} s, but at least "
                    f"{self._limits.least_bytes_s} a second are required"
                )
            if now - window_at > self._limits.stall_s:
                if window_bytes < self._limits.least_bytes:
                    raise Broken(self._stalled(), midway=True)
                window_bytes, window_at = 0, now

    def _stalled(self) -> str:
        return f"stalled: almost no data came for {self._limits.stall_s:.0f} s"

    def _reason(self, error: Exception) -> str:
        if isinstance(error, low.ReadTimeoutError | TimeoutError):
            return self._stalled()
        return "the connection broke"


@contextmanager
def get(session: requests.Session, url: str, limits: Limits, *, start: int = 0) -> Iterator[Answer]:
    """Request `url` from byte `start` on; the answer may begin at 0 nevertheless."""
    _resolve(session, url, limits)
    headers = {"Accept-Encoding": "identity", "User-Agent": "vmm-workbench"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = session.get(
            url, headers=headers, stream=True, timeout=(limits.connect_s, limits.stall_s)
        )
    except (requests.RequestException, low.HTTPError, OSError, ValueError) as error:
        raise Broken(_why(error, limits), busy=_hung_up(error)) from error
    with response:
        hops = [*response.history, response]
        if url.startswith("https:") and any(not hop.url.startswith("https:") for hop in hops):
            raise Broken("it redirects to an address without TLS")
        if response.status_code == 416 and start:
            said = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
            raise NothingMore(int(said[1]) if said else None)
        if response.status_code not in (200, 206):
            raise Broken(
                f"HTTP {response.status_code} {response.reason}".rstrip(),
                busy=response.status_code in _BUSY,
                wait_s=_retry_after(response.headers.get("Retry-After", "")),
            )
        answer = Answer(response, limits)
        if answer.start not in (0, start):
            raise Broken(
                f"bytes from {start} on were requested, but the server sends from {answer.start}"
            )
        yield answer


def patiently(work: Callable[[], T], limits: Limits) -> T:
    """Call `work`, again while the server is busy; its result, or the last attempt's exception."""
    for tried in itertools.count(1):
        try:
            return work()
        except Broken as error:
            if not error.busy or tried >= limits.tries:
                raise
            if error.wait_s > limits.longest_s:
                raise Broken(f"{error}; it asks to come back in {error.wait_s:.0f} s") from error
            pause_s = limits.pause_s * 2.0 ** (tried - 1)
            # A random pause, so that not all rejected clients come back at the same moment.
            time.sleep(max(error.wait_s, pause_s * random.uniform(0.75, 1.25)))  # noqa: S311
    raise AssertionError("unreachable")


def read_text(session: requests.Session, url: str, limits: Limits, *, most_bytes: int) -> str:
    """A short text file; Broken if it is longer than `most_bytes`."""
    return patiently(lambda: _read_text(session, url, limits, most_bytes), limits)


def _read_text(session: requests.Session, url: str, limits: Limits, most_bytes: int) -> str:
    data = bytearray()
    with get(session, url, limits) as answer:
        for chunk in answer.chunks():
            data += chunk
            if len(data) > most_bytes:
                raise Broken(f"it is longer than {most_bytes} bytes: not a checksum file")
        if answer.total_bytes is not None and len(data) < answer.total_bytes:
            raise Broken("the connection broke")
    return data.decode("utf-8", "replace")


def _resolve(session: requests.Session, url: str, limits: Limits) -> None:
    """Look the host up within the limit: a resolver without a network can take half a minute."""
    if session.trust_env and requests.utils.get_environ_proxies(url):
        return  # the proxy does it
    host = urlsplit(url).hostname or ""
    failure: list[str] = [f"no answer from the name service within {limits.connect_s:.0f} s"]

    def look_up() -> None:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            failure[0] = error.strerror or "unknown"
        else:
            failure.clear()

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(limits.connect_s)
    if failure:
        raise Broken(f"cannot find the host {host} ({failure[0]}); is there a network?")


def _hung_up(error: BaseException) -> bool:
    """Whether a server accepted the connection but closed it before it answered."""
    seen: BaseException | None = error
    for _ in range(_DEEPEST):
        if seen is None:
            break
        if isinstance(seen, ConnectionResetError | http.client.RemoteDisconnected):
            return True
        if isinstance(seen, low.NewConnectionError):
            return False
        inner = next((it for it in seen.args if isinstance(it, BaseException)), None)
        # The reason of a TLS error is a word, of others the exception beneath.
        reason = getattr(seen, "reason", None)
        under = reason if isinstance(reason, BaseException) else None
        seen = inner or under or seen.__cause__ or seen.__context__
    return False


def _retry_after(said: str) -> float:
    """The seconds that a server asks to wait; 0 if it says nothing valid."""
    try:
        return float(max(0.0, urllib3.Retry().parse_retry_after(said))) if said else 0.0
    except (low.HTTPError, ValueError, OverflowError):
        return 0.0


def _why(error: Exception, limits: Limits) -> str:
    """A short reason for an error of requests; the cause is several exceptions deep."""
    bundle = next((n for n in _BUNDLES if (p := os.environ.get(n)) and not os.path.exists(p)), None)
    if bundle and not isinstance(error, requests.RequestException):
        return f"{bundle}={os.environ[bundle]}: there is no such file; correct or unset it"
    if isinstance(error, requests.ConnectTimeout):
        return f"no answer within {limits.connect_s:.0f} s"
    if isinstance(error, requests.ReadTimeout):
        return f"stalled: connected, but no answer within {limits.stall_s:.0f} s"
    if isinstance(error, requests.TooManyRedirects):
        return "it redirects without end"
    innermost = _words(_innermost(error))
    if "certificate verify failed" in innermost:
        return (
            f"its certificate is not trusted ({innermost}); if it is your own mirror's or proxy's, "
            "name a file with its certificate: REQUESTS_CA_BUNDLE=FILE"
        )
    if "SOCKS" in innermost:
        return (
            "a SOCKS proxy cannot be used here; set https_proxy to an HTTP proxy, or fetch the "
            "files yourself and import them"
        )
    if "no certificate or crl found" in innermost:
        named = next((name for name in _BUNDLES if os.environ.get(name)), "the file")
        return (
            f"{named}={os.environ.get(named, '')}: there are no certificates in it; correct or "
            "unset it"
        )
    if isinstance(error, requests.exceptions.ProxyError):
        return f"the proxy cannot be used: {innermost}; correct or unset https_proxy"
    if isinstance(error, requests.exceptions.SSLError):
        return f"TLS: {innermost}"
    return innermost


def _words(tls: str) -> str:
    """What OpenSSL says, without its codes and the line of its source."""
    return re.sub(r"^\[(?:ssl|x509)[^\]]*\] |\s*\(_ssl\.c:\d+\)$", "", tls, flags=re.I)


def _innermost(error: BaseException) -> str:
    seen: BaseException = error
    while True:
        inner = seen.__cause__ or seen.__context__
        reason = getattr(seen, "reason", None)
        if isinstance(reason, BaseException):
            inner = reason
        elif seen.args and isinstance(seen.args[0], BaseException):
            inner = seen.args[0]
        if inner is None or inner is seen:
            break
        seen = inner
    if isinstance(seen, OSError) and seen.strerror:
        return seen.strerror.lower()
    return str(seen) or type(seen).__name__
